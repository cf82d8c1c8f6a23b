// OpenAI's own client for JavaScript, and its images.
import { createReadStream } from "node:fs";
import OpenAI, { toFile } from "openai";
import { answer } from "./answer.mjs";

const client = ({ url, key, ...options }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key, ...options });

const file = (path) => toFile(createReadStream(path), "photo.png", { type: "image/png" });

async function events(stream) {
  const all = [];
  for await (const event of await stream) all.push(event);
  return all;
}

await answer({
  answer_of: ({ url, key, ...said }) => client({ url, key }).images.generate(said),
  edit: async ({ url, key, image, mask, ...said }) => {
    const files = { image: Array.isArray(image) ? await Promise.all(image.map(file)) : await file(image) };
    if (mask) files.mask = await file(mask);
    return client({ url, key }).images.edit({ ...files, ...said });
  },
  stream: async ({ url, key, image, ...said }) => {
    const { images } = client({ url, key });
    if (!image) return events(images.generate({ stream: true, ...said }));
    return events(images.edit({ stream: true, image: await file(image), ...said }));
  },
  leave: async ({ url, key, ...said }) => {
    (await client({ url, key }).images.generate({ stream: true, ...said })).controller.abort();
  },
  generate: async ({ url, key, timeout, ...said }) => {
    const options = timeout ? { timeout: timeout * 1000, maxRetries: 0 } : {};
    return (await client({ url, key, ...options }).images.generate(said)).data;
  },
  models: async (to) => (await client(to).models.list()).data.map(({ id }) => id),
  model: ({ name, ...to }) => client(to).models.retrieve(name),
});
