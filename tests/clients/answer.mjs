// In a client's own process: does what each line of stdin asks, and says in a line of stdout what came of it.
//
// The other end is `driven.py`. What the client itself prints goes to stderr.
import { createInterface } from "node:readline";

console.log = console.info = console.error;

export async function answer(functions) {
  for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    let said;
    try {
      said = { gives: (await functions[asked.do](asked.with)) ?? null };
    } catch (error) {
      said = { raises: kinds(error), says: error.message };
    }
    process.stdout.write(JSON.stringify(said) + "\n");
  }
}

function kinds(error) {
  const names = [error.name];
  for (let kind = Object.getPrototypeOf(error); kind; kind = Object.getPrototypeOf(kind)) names.push(kind.constructor.name);
  return names;
}
