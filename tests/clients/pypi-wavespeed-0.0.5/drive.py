"""PyPI wavespeed as of its first months: the only client that speaks v2 by itself."""

import asyncio

from answer import answer
from wavespeed import WaveSpeed


def client(url, key, timeout=None, api="v2"):
    return WaveSpeed(api_key=key, base_url=f"{url}/api/{api}/", timeout=timeout or 120)


def run(url, key, model, body, sync=False, timeout=None, api="v2"):
    return shown(client(url, key, timeout, api).run(model, body | {"enable_sync_mode": sync}))


def run_async(url, key, model, body):
    return shown(asyncio.run(client(url, key).async_run(model, body)))


def look_up(url, key, task):
    return shown(client(url, key).get_prediction(task))


def shown(prediction):
    return prediction.model_dump(mode="json")


answer({"run": run, "run_async": run_async, "look_up": look_up})
