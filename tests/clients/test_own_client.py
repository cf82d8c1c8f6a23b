"""`hidream.Client` and `hidream.AsyncClient` against a server with the embedded model."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

import hidream
from client.rude import CuttingProxy
from hidream.errors import Conflict, Forbidden, Interrupted, InvalidInput, NotFound, TimedOut, Unauthorized

PROMPT = "a red apple"
SMALL = {"size": (256, 256), "num_inference_steps": 2}
AT_ONCE = hidream.Retry(first_s=0, longest_s=0)


@pytest.fixture(scope="module")
def client(service):
    with hidream.Client(service.url, service.key, timeout=240) as client:
        yield client


@pytest.fixture(scope="module")
def waiting(idle):
    """A client of a server without a worker, where tasks wait for ever."""
    with hidream.Client(idle.url, idle.key, retry=AT_ONCE) as client:
        yield client


def test_a_call_gives_an_image_with_all_about_it(client, tmp_path):
    result = client(PROMPT, seed=7, **SMALL)
    assert result.image.size == (256, 256)
    assert result.seed == 7
    assert result.version.startswith("hidream-i1-dev/")
    assert 0 < result.timings.inference_s <= result.timings.execution_s
    assert result.warnings == ()
    (path,) = result.save(tmp_path / "apple.png")
    assert path.read_bytes() == result.files[0]
    assert Image.open(path).text["seed"] == "7" or "7" in str(Image.open(path).text)


def test_the_event_loop_gives_the_same_image(service, client):
    async def main():
        async with hidream.AsyncClient(service.url, service.key, timeout=240) as other:
            one, two = await asyncio.gather(other(PROMPT, seed=7, **SMALL), other(PROMPT, seed=8, **SMALL))
            task = await other.submit(PROMPT, seed=7, **SMALL)
            states = [event.status async for event in task.events()]
            listed = [each.id async for each in other.list(status="completed")]
            assert task.id in listed
            assert (await other.get(task.id)).status == "completed"
            return one, two, states

    one, two, states = asyncio.run(main())
    assert one.files == client(PROMPT, seed=7, **SMALL).files
    assert two.files != one.files
    assert states[-1] == "completed"


def test_several_images_have_the_seeds_that_follow(client, tmp_path):
    result = client(PROMPT, seed=7, num_images=2, output_format="jpeg", **SMALL)
    assert [path.name for path in result.save(tmp_path / "a.jpg")] == ["a-7.jpg", "a-8.jpg"]
    assert len(result.images) == 2


def test_events_have_progress_and_previews(client):
    task = client.submit(PROMPT, size="512x512", num_inference_steps=12)
    told = list(task.events())
    assert task.status == "completed"
    steps = [event.step for event in told]
    assert steps == sorted(steps)
    assert told[-1].step <= told[-1].steps  # the end may come before the last progress was seen
    assert all(event.preview.size >= (16, 16) for event in told if event.preview_file)
    assert task.result().image.size == (512, 512)


def test_images_to_start_from_are_uploaded(client, photo):
    image = Image.open(photo)
    mask = Image.new("L", image.size, 255)
    for source in (image, str(photo), photo.read_bytes(), client.upload(photo)):
        result = client(PROMPT, image=source, mask=mask, strength=0.5, seed=1, num_inference_steps=2)
        assert result.image.size == image.size


def test_a_task_that_fails_raises_what_the_worker_says(client):
    with pytest.raises(InvalidInput, match="nowhere") as raised:
        client(PROMPT, loras=[("nowhere", 0.5)], **SMALL)
    assert raised.value.task_id


def test_errors_say_what_the_server_says(service, client):
    with hidream.Client(service.url, "hd_wrong") as stranger, pytest.raises(Unauthorized) as raised:
        stranger.balance()
    assert raised.value.status == 401
    assert raised.value.request_id
    with pytest.raises(NotFound, match="wavespeed-ai/hidream-i1-dev"):
        client.submit(PROMPT, model="other")
    with pytest.raises(NotFound) as raised:
        client.get("0" * 32)
    assert raised.value.task_id == "0" * 32
    with pytest.raises(InvalidInput, match="webhook") as raised:
        client.submit(PROMPT, webhook="ftp://host")
    assert raised.value.field == "webhook"


def test_a_key_of_the_callers_own_gives_the_same_task(waiting):
    tasks = [waiting.submit(PROMPT, seed=7, idempotency_key="mine") for _ in range(3)]
    assert len({task.id for task in tasks}) == 1
    with pytest.raises(Conflict):
        waiting.submit(PROMPT, seed=8, idempotency_key="mine")


def test_a_task_is_cancelled_and_deleted(waiting):
    task = waiting.submit(PROMPT)
    assert task.cancel().status == "cancelled"
    assert task.cancel().status == "cancelled"
    with pytest.raises(Interrupted):
        task.result()
    assert task.delete() == 1
    with pytest.raises(NotFound):
        task.refresh()


def test_the_time_of_a_wait_is_kept(waiting):
    task = waiting.submit(PROMPT)
    with pytest.raises(TimedOut) as raised:
        task.wait(timeout=0.5)
    assert raised.value.task_id == task.id
    with pytest.raises(TimedOut):
        task.result(timeout=0.5)
    assert task.cancel().status == "cancelled"


def test_a_list_has_all_tasks_page_by_page(waiting):
    wanted = {waiting.submit(f"fox {n}", seed=n).id for n in range(130)}
    assert wanted <= {task.id for task in waiting.list(status="created")}
    asked = next(iter(waiting.list(include_inputs=True)))
    assert asked.prediction.input["prompt"] == "fox 129"
    assert waiting.delete(wanted) == 130
    assert not wanted & {task.id for task in waiting.list(status="created")}


def test_threads_share_a_client(waiting):
    with ThreadPoolExecutor(16) as pool:
        tasks = list(pool.map(lambda n: waiting.submit(PROMPT, seed=n), range(64)))
    assert sorted(task.prediction.seed for task in tasks) == list(range(64))
    assert waiting.delete([task.id for task in tasks]) == 64


def test_the_account_is_shown(service, client):
    assert client.balance() == 1000
    assert [model["model_id"] for model in client.models()] == [
        f"wavespeed-ai/hidream-i1-{name}" for name in ("dev", "full", "fast")
    ]
    assert client.webhook_secret().startswith("whsec_")


def count(waiting, prompt):
    return sum(task.prediction.input["prompt"] == prompt for task in waiting.list(include_inputs=True))


def submit_through(idle, cuts, prompt):
    with CuttingProxy(idle.url, cuts) as proxy:
        with hidream.Client(proxy.url, idle.key, retry=AT_ONCE, timeout=60) as client:
            task = client.submit(prompt, seed=1)
        return task.id, proxy.forwarded


@pytest.fixture(scope="module")
def lengths(idle):
    """The bytes of a submission, and those of its answer."""
    _, forwarded = submit_through(idle, {}, "whole")
    return forwarded[0, "request"], forwarded[0, "response"]


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("side", ["request", "response"])
@pytest.mark.parametrize("times", [1, 4])
def test_wherever_connections_break_there_is_one_task(idle, waiting, lengths, side, share, times):
    """The first connections break after this share of the length of a submission or its answer."""
    prompt = f"cut {side} {share} {times}"
    at = round(lengths[side == "response"] * share)
    cut = (at, None) if side == "request" else (None, at)
    task_id, _ = submit_through(idle, dict.fromkeys(range(times), cut), prompt)
    assert count(waiting, prompt) == 1
    assert waiting.get(task_id).status == "created"
    waiting.delete(task_id)


def test_a_key_without_the_scope_is_told(service):
    made = service.command("keys", "create", "--name", "viewer", "--scopes", "view")
    key = next(word for word in made.split() if word.startswith("hd_"))
    with hidream.Client(service.url, key) as viewer, pytest.raises(Forbidden, match="scope"):
        viewer.submit(PROMPT)
