"""After a kill of any process, every acknowledged task completes with the image that it would have had."""

import os
import random
import signal
import time

import pytest
from service import Service, until


def start_an_image(service, seed):
    """Submit an image that takes a while, and return as soon as the worker is at it."""
    data = service.submit(size="1536*1536", seed=seed, output_format="png", enable_base64_output=False)
    until(lambda: service.http.get(data["urls"]["get"]).json()["data"]["status"] == "processing")
    return data


def was_drawn_twice(service, data):
    return f"task_started id={data['id']} attempt=2" in service.log.read_text()


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_whoever_is_killed_in_mid_image_it_is_the_same_image_and_nothing_is_lost(own_service, number):
    service = own_service
    _, expected = service.draw(size="1536*1536", seed=7, output_format="png")

    interrupted = start_an_image(service, seed=7)
    os.kill(service.worker_pid(), number)
    data = service.result(interrupted)
    assert (data["status"], data["seed"]) == ("completed", 7)
    assert was_drawn_twice(service, data)
    assert service.http.get(data["outputs"][0]).content == expected

    acknowledged = [start_an_image(service, seed=7)]
    acknowledged += [service.submit(size="256*256", seed=seed, num_inference_steps=4) for seed in range(8, 12)]
    kill_server(service)
    results = []
    for seed, data in enumerate(acknowledged, start=7):
        results.append(service.result(data | {"urls": {"get": f"/api/v3/predictions/{data['id']}"}}))
        assert (results[-1]["status"], results[-1]["seed"]) == ("completed", seed)
        assert results[-1]["created_at"] == data["created_at"]
    assert was_drawn_twice(service, results[0])
    assert service.http.get(results[0]["outputs"][0]).content == expected


@pytest.mark.long
@pytest.mark.timeout(1200)  # a worker that dies again and again is started after 30 s only
@pytest.mark.parametrize("seed", range(3))
def test_random_kills_lose_nothing(tmp_path, seed, first_seed):
    """Forty tasks while worker and server are killed at random: each ends completed, with its own image."""
    service, dice = Service(tmp_path / "home", HIDREAM_WORKER_ATTEMPTS_MAX="100"), random.Random(first_seed + seed)
    expected = [service.draw(size="256*256", seed=number, output_format="png")[1] for number in range(4)]
    acknowledged = []
    for number in range(40):
        acknowledged.append(service.submit(size="256*256", seed=number % 4, output_format="png"))
        if number % 5 == 3:
            until(service.ready, 240)
            time.sleep(dice.uniform(0, 2))
            kill_worker(service) if dice.random() < 0.5 else kill_server(service)
    for number, data in enumerate(acknowledged):
        data |= {"urls": {"get": f"/api/v3/predictions/{data['id']}"}}
        until(lambda data=data: service.result(data)["status"] == "completed", timeout_s=240)
        assert service.http.get(service.result(data)["outputs"][0]).content == expected[number % 4]
    assert service.stop() == 0


def kill_worker(service):
    until(lambda: not is_gone(service.worker_pid()), 60)  # the one killed before has a successor
    os.kill(service.worker_pid(), signal.SIGKILL)


def kill_server(service):
    worker = service.worker_pid()
    service.process.kill()
    service.stop()
    until(lambda: is_gone(worker))
    service.start()
