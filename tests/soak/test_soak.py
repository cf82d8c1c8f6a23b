"""Hundreds of tasks while API processes and workers are killed at random: each ends once, correctly.

Clients behave as good ones do: they name each task by an Idempotency-Key, and repeat what was not acknowledged, to
whichever API process there is. The log of acknowledgements is the oracle:

 - an acknowledged id is never unknown afterwards, and never goes back from an end;
 - it ends completed, with the image of its seed, or failed if the engine fails at its seed;
 - it owes exactly one webhook, which is written in the transaction of an end: so it has ended exactly once;
 - there are exactly as many predictions as clients meant to submit: nothing was taken in twice.
"""

import asyncio
import contextlib
import io
import json
import random
import time

import httpx
import pytest
from PIL import Image

from postgres import postgres
from soak.fast_worker import fails
from soak.fleet import KEY, MODEL, Fleet
from webhooks.receiver import Receiver, says

__all__ = ["postgres"]

CLIENTS = 4
TOLD_WITHIN_S = 120
"""A webhook that a process had claimed and not sent when it died is told by another after a minute."""
BEARER = {"Authorization": f"Bearer {KEY}"}
GONE = (httpx.TransportError,)
"""What a client sees of a process that is killed."""


class Soak:
    """One run: clients, a killer beside them, and what was acknowledged.

    The clients submit `least` tasks, and go on until each kind of process was killed and one of them while it drew: a
    quick machine would be done before anything has happened.
    """

    def __init__(self, fleet, hook, seed, least, kill_every_s):
        self.fleet, self.hook, self.least, self.kill_every_s = fleet, hook, least, kill_every_s
        self.count = None  # of the tasks submitted, known at their end
        self.dice = random.Random(seed)
        self.acknowledged, self.ended, self.owed = {}, {}, {}
        self.over = asyncio.Event()
        self.kills = {"api": 0, "worker": 0}
        self.numbers = self.numbered()

    async def run(self):
        async with httpx.AsyncClient(headers=BEARER, timeout=20) as http:
            self.http = http
            killer = asyncio.create_task(self.kill())
            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(self.submit_all())
                group.create_task(self.watch())
            self.over.set()
            await killer

    def numbered(self):
        """Number the tasks to be submitted."""
        number = 0
        while number < self.least or not (all(self.kills.values()) and "attempt=2" in self.fleet.logs()):
            yield number
            number += 1
        self.count = number

    async def kill(self):
        """Replace one after the other; none is killed before the new one listens."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.kill_every_s * self.dice.uniform(0.3, 1.7)):
                    await self.over.wait()
            if self.over.is_set():
                return
            member = self.dice.choice(self.fleet.members)
            self.kills[member.kind] += 1
            new = await asyncio.to_thread(self.fleet.replace, member)
            if new.kind == "api":
                await asyncio.to_thread(getattr, new, "url")

    async def ask(self, method, path, **options):
        """Ask whichever API there is, until one answers."""
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, "no API has answered for a minute"
            listening = [api for api in self.fleet.apis if api.listens]
            if listening:
                try:
                    answer = await self.http.request(method, self.dice.choice(listening).url + path, **options)
                except GONE:
                    continue
                if answer.status_code != 503:
                    return answer
            await asyncio.sleep(0.05)

    async def submit_all(self):
        for number in self.numbers:
            body = {"prompt": f"soak {number}", "seed": number, "webhook": self.hook, "output_format": "png"}
            answer = await self.ask(
                "POST", f"/api/v3/{MODEL}", json=body, headers={"Idempotency-Key": f"soak-{number}"}
            )
            assert answer.status_code == 200, answer.text
            self.acknowledged[number] = answer.json()["data"]["id"]
            await asyncio.sleep(self.dice.expovariate(1 / 0.1))

    async def watch(self):
        """Look at tasks in their turn until all have ended."""
        while self.count is None or len(self.ended) < self.count:
            waiting = [number for number in self.acknowledged if number not in self.ended]
            for number in self.dice.sample(waiting, min(len(waiting), 20)):
                data = await self.result(number)
                if data["status"] in ("completed", "failed"):
                    self.ended[number] = data
            await asyncio.sleep(0.05)

    async def result(self, number):
        answer = await self.ask("GET", f"/api/v3/predictions/{self.acknowledged[number]}")
        assert answer.status_code == 200, f"{number} was acknowledged: {answer.text}"
        return answer.json()["data"]

    async def verify(self):
        """Hold what there is now, with nobody killed any more, against the log of acknowledgements."""
        async with httpx.AsyncClient(headers=BEARER, timeout=20) as self.http:
            assert len(set(self.acknowledged.values())) == self.count
            listed = (await self.ask("POST", "/api/v3/predictions", json={})).json()["data"]
            assert listed["total"] == self.count
            room = asyncio.Semaphore(CLIENTS)
            async with asyncio.TaskGroup() as group:
                for number in range(self.count):
                    group.create_task(self.verify_one(number, room))

    async def verify_one(self, number, room):
        async with room:
            await self.hold(number, await self.result(number))

    async def hold(self, number, data):
        told = self.ended[number]
        assert (data["status"], data["seed"]) == ("failed" if fails(number) else "completed", number), data
        assert [data[name] for name in ("status", "error", "executionTime")] == [
            told[name] for name in ("status", "error", "executionTime")
        ]
        owed = (await self.ask("GET", f"/api/v3/predictions/{data['id']}/webhooks")).json()["data"]
        assert len(owed) == 1, f"{number} has ended {len(owed)} times"
        if not fails(number):
            (output,) = data["outputs"]
            image = await self.ask("GET", httpx.URL(output).path)
            pixels = Image.open(io.BytesIO(image.content)).convert("RGB")
            assert pixels.getpixel((3, 3)) == (number % 256,) * 3
        self.owed[data["id"]] = owed[0]["id"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/home/hidream.db"
    return request.getfixturevalue("postgres").url()


async def soak(folder, url, seed, least, kill_every_s, told_within_s=0):
    async with Receiver(says(200)) as receiver:
        with Fleet(folder, HIDREAM_STORE_DATABASE_URL=url, FAST_WORKER_PACE_S="0.05") as fleet:
            run = Soak(fleet, receiver.url(), seed, least, kill_every_s)
            await run.run()
            await run.verify()
            if told_within_s:
                async with asyncio.timeout(told_within_s):
                    while len(told(receiver)) < run.count:
                        await asyncio.sleep(0.2)
            assert told(receiver) <= set(run.owed.items())  # each under one id
            assert "Traceback" not in fleet.logs()
            assert KEY not in fleet.logs()


def told(receiver):
    """The predictions that the receiver was told of, and under which id."""
    return {(json.loads(got.body)["id"], got.headers["webhook-id"]) for got in receiver.received}


async def test_killed_at_random_nothing_is_lost_and_nothing_ends_twice(tmp_path, url):
    await soak(tmp_path, url, seed=1, least=60, kill_every_s=0.8)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(10))
async def test_two_thousand_tasks_under_fire(tmp_path, url, seed, first_seed):
    await soak(tmp_path, url, seed=first_seed + seed, least=2000, kill_every_s=1.0, told_within_s=TOLD_WITHIN_S)
