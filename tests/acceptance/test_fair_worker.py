"""The time of one key's small image beside another key's huge tasks: real processes, sockets and model."""

import re
import statistics
import sys
import time

import httpx
import pytest
from service import until

FULL = "/api/v3/wavespeed-ai/hidream-i1-full"
IMAGES = 40


class Other:
    """Another key's client: small images, one after the other."""

    def __init__(self, service):
        key = re.search(r"hd_\S+", service.command("keys", "create", "--name", "other"))[0]
        self.http = httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key}"}, timeout=120)

    def seconds(self, model):
        asked = {"prompt": "a red apple", "size": "512*512", "num_inference_steps": 4, "enable_sync_mode": True}
        begun = time.perf_counter()
        answer = self.http.post(f"/api/v3/wavespeed-ai/hidream-i1-{model}", json=asked)
        assert answer.json()["data"]["status"] == "completed", answer.text
        return time.perf_counter() - begun

    def p95(self, model):
        times = sorted(self.seconds(model) for _ in range(IMAGES))
        return statistics.quantiles(times, n=20)[-1]


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", ["full", "dev"])
@pytest.mark.parametrize("render", ["best", "native"])
@pytest.mark.parametrize("own_service", ["dev,full"], indirect=True, ids=["dev,full"])
def test_tasks_of_800_large_steps_hold_up_no_small_image_of_another_key(own_service, capsys, model, render):
    """Goal: twice its quiet time, and its fair half of the machine; before, each waited for a whole task: 27 s."""
    other = Other(own_service)
    other.seconds(model)
    quiet = other.p95(model)
    huge = {"prompt": "a boat", "size": "1536*1536", "num_inference_steps": 200, "num_images": 4, "render": render}
    tasks = [own_service.http.post(FULL, json=huge).raise_for_status().json()["data"] for _ in range(4)]
    until(lambda: own_service.http.get(tasks[0]["urls"]["get"]).json()["data"]["status"] == "processing")
    attacked = other.p95(model)
    with capsys.disabled():
        sys.stdout.write(f"\n{render}, {model}: p95 {quiet:.2f} s quiet, {attacked:.2f} s beside huge tasks\n")
    if render == "best":  # on one core, a task takes half a minute
        done = own_service.result(tasks[0])
        assert done["status"] == "completed", "the large ones go on"
    for task in tasks:
        own_service.http.delete(f"/api/v3/predictions/{task['id']}")
    other.http.close()
    assert attacked < (4 if render == "best" else 20) * quiet + 2.0  # a native step of that size takes half a second
