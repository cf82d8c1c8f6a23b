"""PyPI wavespeed, the current SDK."""

import wavespeed
from answer import answer


def client(url, key):
    return wavespeed.Client(api_key=key, base_url=url)


def run(url, key, model, body, sync=False, timeout=None):
    said = client(url, key).run(model, body, timeout=timeout, poll_interval=0.1, enable_sync_mode=sync)
    return said["outputs"]


def run_by_module(url, key, model, body):
    wavespeed.config.api.base_url, wavespeed.config.api.api_key = url, key
    return wavespeed.run(model, body)["outputs"]


def run_no_throw(url, key, model, body, sync=False):
    return client(url, key).run_no_throw(model, body, poll_interval=0.1, enable_sync_mode=sync)


def look_up(url, key, task):
    return client(url, key).get_result(task)["data"]


def upload(url, key, path):
    return client(url, key).upload(path)


answer({each.__name__: each for each in (run, run_by_module, run_no_throw, look_up, upload)})
