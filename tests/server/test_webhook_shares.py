"""Receivers of one key that hang do not delay the webhooks of another key."""

import asyncio
import time

import pytest

from hidream.errors import PromptRefused
from hidream.request import ImageRequest
from hidream.server.background.webhook_loop import PER_HOST_MAX, WebhookLoop
from hidream.store import keys
from hidream.store.admission import NewTask
from hidream.types import ImageFormat, Size
from hidream.webhooks.delivery import TOTAL_S, WebhookClient
from webhooks.receiver import Receiver, hangs, says

MODEL = "wavespeed-ai/hidream-i1-dev"
SUBMISSION = ImageRequest("a house", Size(512, 512), 7, False, True, False, ImageFormat.PNG)
LOCAL = "127.0.0.0/8"


async def owe(api, key, url):
    """Have a task of a key end, and its webhook owed."""
    asked = NewTask(key, MODEL, SUBMISSION, "http://test", url, refusal=PromptRefused("no"))
    await api.service.enqueuer.submit(asked)


async def seconds_of_others(api, well, count):
    """How long each of `count` webhooks of a key that has none running takes to arrive, sorted."""
    other, _ = await keys.create(api.database, "other")
    took = []
    for _ in range(count):
        before, began = len(well.received), time.monotonic()
        await owe(api, other, well.url())
        async with asyncio.timeout(300):
            while len(well.received) == before:
                await asyncio.sleep(0.005)
        took.append(time.monotonic() - began)
    return sorted(took)


async def attacked(apis, attackers, hooks, count, total_s):
    """Let each of `attackers` keys owe `hooks` webhooks to as many addresses that hang, then measure another's."""
    api, running = apis[0], []
    async with Receiver(hangs, host="0.0.0.0") as stuck, Receiver(says(204)) as well:
        for n in range(attackers):
            key, _ = await keys.create(api.database, f"attacker {n}")
            urls = [stuck.url(host=f"127.{n + 1}.{i // 250}.{i % 250 + 1}") for i in range(hooks)]
            await asyncio.gather(*(owe(api, key, url) for url in urls))
        for each in apis:
            webhook_client = WebhookClient(allowed=each.service.allowlist, total_s=total_s)
            running.append(asyncio.create_task(WebhookLoop(each.service, webhook_client).run()))
        async with asyncio.timeout(60):
            while stuck.connections < 16:
                await asyncio.sleep(0.01)
        took = await seconds_of_others(api, well, count)
        for each in apis:
            each.database.changes.stop()
    await asyncio.gather(*running)  # those that hung were cut off
    return took, stuck.connections


@pytest.mark.parametrize("attackers", [1, 3])
async def test_hooks_that_hang_on_many_addresses_leave_room_for_others(open_api, attackers):
    async with open_api(allowed=LOCAL) as api:
        took, connections = await attacked([api], attackers, 40, 10, total_s=60)  # none of them ends meanwhile
        assert took[-1] < 5, took
        assert connections < api.settings.webhooks.together_max


async def test_hooks_that_hang_at_a_host_leave_room_for_anothers_at_the_same_host(open_api):
    async with open_api(allowed=LOCAL) as api:

        async def answer(writer):
            await (hangs if "stuck" in receiver.received[-1].line else says(204))(writer)

        async with Receiver(answer) as receiver:
            key, _ = await keys.create(api.database, "attacker")
            for _ in range(40):
                await owe(api, key, receiver.url(path="/stuck"))
            running = asyncio.create_task(
                WebhookLoop(api.service, WebhookClient(allowed=api.service.allowlist, total_s=60)).run()
            )
            async with asyncio.timeout(60):
                while len(receiver.received) < PER_HOST_MAX // 2:
                    await asyncio.sleep(0.01)
            took = await seconds_of_others(api, receiver, 5)
            assert took[-1] < 5, took
            assert receiver.connections == PER_HOST_MAX // 2 + 5
            api.database.changes.stop()
        await running


@pytest.mark.long
@pytest.mark.parametrize("instances", [1, 2])
async def test_600_hooks_that_hang_on_600_addresses(open_apis, instances):
    async with open_apis(instances, allowed=LOCAL) as apis:
        took, _ = await attacked(apis, 1, 600, 100, total_s=TOTAL_S)
        median, late = took[len(took) // 2], took[int(len(took) * 0.95)]
        print(f"{instances} processes: median {median:.3f} s, p95 {late:.3f} s, most {took[-1]:.3f} s")  # noqa: T201
        assert late < 1
