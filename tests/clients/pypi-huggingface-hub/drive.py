"""Hugging Face's client for Python, by its provider "wavespeed"."""

from answer import answer
from huggingface_hub import InferenceClient
from huggingface_hub.hf_api import InferenceProviderMapping
from huggingface_hub.inference._providers import PROVIDERS
from huggingface_hub.inference._providers._common import HARDCODED_MODEL_INFERENCE_MAPPING

MODEL = "HiDream-ai/HiDream-I1-Dev"


def client(url, key, model, task, timeout=None):
    """Point the provider at a host, and say by which name this has the model: neither has an option."""
    PROVIDERS["wavespeed"][task].base_url = url
    HARDCODED_MODEL_INFERENCE_MAPPING["wavespeed"] = {
        MODEL: InferenceProviderMapping(
            provider="wavespeed", hf_model_id=MODEL, providerId=model, status="live", task=task
        )
    }
    return InferenceClient(provider="wavespeed", api_key=key, timeout=timeout)


def text_to_image(url, key, model, prompt, timeout=None, **said):
    image = client(url, key, model, "text-to-image", timeout).text_to_image(prompt, model=MODEL, **said)
    return seen(image)


def image_to_image(url, key, model, path, **said):
    image = client(url, key, model, "image-to-image").image_to_image(path, model=MODEL, **said)
    return seen(image)


def seen(image):
    return {"size": image.size, "format": image.format, "colours": len(image.convert("RGB").getcolors(1 << 24))}


answer({"text_to_image": text_to_image, "image_to_image": image_to_image})
