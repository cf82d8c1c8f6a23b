// npm wavespeed, the current SDK.
import { Client } from "wavespeed";
import { answer } from "./answer.mjs";

const client = ({ url, key }) => new Client(key, { baseUrl: url });

await answer({
  run: async ({ model, body, sync, timeout, ...to }) => {
    const options = { pollInterval: 0.1, enableSyncMode: sync, timeout };
    return (await client(to).run(model, body, options)).outputs;
  },
  run_no_throw: async ({ model, body, sync, ...to }) => {
    const { outputs, detail } = await client(to).runNoThrow(model, body, { pollInterval: 0.1, enableSyncMode: sync });
    return { outputs, status: detail.status, task_id: detail.taskId, error: detail.error?.message ?? null };
  },
  upload: ({ path, ...to }) => client(to).upload(path),
});
