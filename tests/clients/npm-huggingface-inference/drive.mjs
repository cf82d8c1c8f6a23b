// Hugging Face's client for JavaScript, by its provider "wavespeed".
import { InferenceClient } from "@huggingface/inference";
import { answer } from "./answer.mjs";

const HF_MODEL = "HiDream-ai/HiDream-I1-Dev";

// What the Hub would say: by which name the provider has the model.
const hub = (model) => ({
  inferenceProviderMapping: { wavespeed: { providerId: model, status: "live", task: "text-to-image" } },
});

await answer({
  text_to_image: async ({ url, key, model, prompt, parameters, outputType, abort_ms }) => {
    const ask = (to, init) =>
      new URL(to).host === "huggingface.co" ? Promise.resolve(Response.json(hub(model))) : fetch(to, init);
    const image = await new InferenceClient(key).textToImage(
      {
        provider: "wavespeed",
        model: `${HF_MODEL}#${model}`, // the client remembers what the Hub has said of a model
        inputs: prompt,
        parameters,
        urlTransform: (to) => to.replace("https://api.wavespeed.ai", url),
      },
      { fetch: ask, outputType, signal: abort_ms && AbortSignal.timeout(abort_ms) },
    );
    return typeof image === "string" ? image : Buffer.from(await image.arrayBuffer()).toString("base64");
  },
});
