// OpenAI's own client for JavaScript, and its images.
import OpenAI from "openai";
import { answer } from "./answer.mjs";

const client = ({ url, key, ...options }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key, ...options });

await answer({
  generate: async ({ url, key, timeout, ...said }) => {
    const options = timeout ? { timeout: timeout * 1000, maxRetries: 0 } : {};
    return (await client({ url, key, ...options }).images.generate(said)).data;
  },
  models: async (to) => (await client(to).models.list()).data.map(({ id }) => id),
  model: ({ name, ...to }) => client(to).models.retrieve(name),
});
