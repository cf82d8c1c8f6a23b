// npm wavespeed as of its first months.
import { readFile } from "node:fs/promises";
import { WaveSpeed } from "wavespeed";
import { answer } from "./answer.mjs";

const client = ({ url, key, api = "v3", timeout }) =>
  new WaveSpeed(key, { baseUrl: `${url}/api/${api}/`, pollInterval: 0.1, timeout });

const shown = ({ client, ...prediction }) => prediction;

await answer({
  run: async ({ model, body, sync, options, ...to }) =>
    shown(await client(to).run(model, { ...body, enable_sync_mode: sync }, options)),
  look_up: async ({ task, ...to }) => shown(await client(to).getPrediction(task)),
  upload: async ({ path, ...to }) => client(to).upload(new Blob([await readFile(path)]), { filename: "photo.png" }),
});
