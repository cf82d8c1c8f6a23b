"""OpenAI's own client for Python, and its images."""

from pathlib import Path

from answer import answer
from openai import OpenAI


def client(url, key, **options):
    return OpenAI(base_url=f"{url}/v1", api_key=key, **options)


def generate(url, key, timeout=None, **said):
    options = {} if timeout is None else {"timeout": timeout, "max_retries": 0}
    return [each.model_dump() for each in client(url, key, **options).images.generate(**said).data]


def edit(url, key, image, mask=None, **said):
    """Edit one image, or a list of images; files are paths."""
    files = {"image": Path(image) if isinstance(image, str) else [Path(each) for each in image]}
    if mask is not None:
        files["mask"] = Path(mask)
    return client(url, key).images.edit(**files, **said).model_dump()


def answer_of(url, key, **said):
    """All that an answer has, not its images alone."""
    return client(url, key).images.generate(**said).model_dump()


def stream(url, key, image=None, **said):
    """The events of a stream."""
    images = client(url, key).images
    if image is None:
        return [event.model_dump() for event in images.generate(stream=True, **said)]
    return [event.model_dump() for event in images.edit(stream=True, image=Path(image), **said)]


def leave(url, key, **said):
    """Leave a stream before its first event."""
    client(url, key).images.generate(stream=True, **said).close()


def models(url, key):
    return [each.id for each in client(url, key).models.list()]


def model(url, key, name):
    return client(url, key).models.retrieve(name).model_dump()


answer(
    {
        "generate": generate,
        "answer_of": answer_of,
        "edit": edit,
        "stream": stream,
        "leave": leave,
        "models": models,
        "model": model,
    }
)
