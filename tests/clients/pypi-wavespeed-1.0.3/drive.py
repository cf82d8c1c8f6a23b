"""PyPI wavespeed as of its first stable version."""

import wavespeed
from answer import answer


def client(url, key):
    return wavespeed.Client(api_key=key, base_url=url)


def run(url, key, model, body, sync=False, timeout=None):
    said = client(url, key).run(model, body, timeout=timeout, poll_interval=0.1, enable_sync_mode=sync)
    return said["outputs"]


def upload(url, key, path):
    return client(url, key).upload(path)


answer({"run": run, "upload": upload})
