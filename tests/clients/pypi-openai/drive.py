"""OpenAI's own client for Python, and its images."""

from answer import answer
from openai import OpenAI


def client(url, key, **options):
    return OpenAI(base_url=f"{url}/v1", api_key=key, **options)


def generate(url, key, timeout=None, **said):
    options = {} if timeout is None else {"timeout": timeout, "max_retries": 0}
    return [each.model_dump() for each in client(url, key, **options).images.generate(**said).data]


def models(url, key):
    return [each.id for each in client(url, key).models.list()]


def model(url, key, name):
    return client(url, key).models.retrieve(name).model_dump()


answer({"generate": generate, "models": models, "model": model})
