"""The story of the sweep: clients that use every function of the store, and remember the responses.

A client writes down what was acknowledged, and after a death it asks again for what was not, with the same
Idempotency-Key. So the same story is told in the process that dies and in the one that carries on.
"""

import asyncio
import contextlib
import dataclasses
import io
import json
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import oracle
import sqlalchemy as sa
from painter import Painter
from PIL import Image
from ports import Watched

from hidream.errors import Conflict, NotFound, PromptRefused, TaskFailed
from hidream.file_names import random_name
from hidream.request import ImageRequest
from hidream.server.background import sweep, webhook_loop
from hidream.server.background.webhook_loop import WebhookLoop
from hidream.server.erasure import erase
from hidream.server.export import export
from hidream.server.service import assemble
from hidream.settings.tables import Outputs, Settings, Webhooks
from hidream.settings.tables import Worker as WorkerSettings
from hidream.store import (
    audit_log,
    claims,
    history,
    keys,
    outbox,
    predictions,
    task_metrics,
    uploads,
    webhook_secrets,
    workers,
)
from hidream.store.admission import IdempotencyRecord, NewTask
from hidream.store.claims import Capacity
from hidream.store.database import Database
from hidream.store.key_data import KEY_TABLES, pages
from hidream.store.keys import Limits
from hidream.store.outbox import DeliveryState
from hidream.store.schema import DELIVERIES, KEYS, PREDICTIONS
from hidream.store.workers import Worker
from hidream.types import ImageFormat, Mode, Size, Status
from hidream.worker import loop
from hidream.worker.bridge import Bridge
from hidream.worker.generation import Tools

MODEL, NOBODYS = "wavespeed-ai/hidream-i1-dev", "wavespeed-ai/hidream-i1-full"
VERSIONS = {MODEL: dict.fromkeys(Mode, "v1")}
DAY_S, HOUR_S = 24 * 3600.0, 3600.0
BEGUN_S = 1_700_000_000.0
APART_S = 120.0
"""Between two lives: longer than any lease."""
LEASE_S = 0.6
SLOWER = 50
"""How much slower the injected clock goes: leases are renewed every 0.2 s, and end after 30 s if they are not."""
ATTEMPTS_MAX = 1000
"""No death of ours may be a reason to fail."""

EXPECTED = {
    "old": (Status.FAILED, Status.DELETED),
    "stalled": (Status.COMPLETED,),
    "plain": (Status.COMPLETED,),
    "pair": (Status.COMPLETED,),
    "refused": (Status.FAILED,),
    "bad": (Status.FAILED,),
    "waiting": (Status.CANCELLED,),
    "drawn": (Status.CANCELLED,),
    "gone": (Status.DELETED,),
    "last": (Status.COMPLETED,),
    "unserved": (Status.FAILED,),
}
"""The tasks, by their prompts, and how each must end."""
SEEDS = {tag: 10 * i for i, tag in enumerate(EXPECTED, start=1)}


@dataclass
class Clock:
    """The clock of all databases of a process; it goes slowly, and jumps."""

    begun_s: float

    def __post_init__(self):
        self.since = time.monotonic()

    def __call__(self):
        return self.begun_s + (time.monotonic() - self.since) / SLOWER

    def jump(self, seconds):
        self.begun_s += seconds


class Memory:
    """What a client was answered, in a file."""

    def __init__(self, path):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = dict(json.loads(line) for line in lines)

    def keep(self, act, value):
        self.known[act] = value
        with self._path.open("a") as file:
            file.write(json.dumps([act, value]) + "\n")

    async def once(self, act, do):
        """Do what was not acknowledged yet."""
        if act not in self.known:
            self.keep(act, await do())
        return self.known[act]

    def complain(self, text):
        self.keep(f"complaint {len(self.known)}", text)

    def tasks(self):
        return {act.removeprefix("task "): id_ for act, id_ in self.known.items() if act.startswith("task ")}

    def complaints(self):
        return [text for act, text in self.known.items() if act.startswith("complaint ")]


def hurry():
    """Shorten the pauses of the loops, none of which is what is tested; a file may be an orphan at once."""
    sweep.ORPHAN_AGE = timedelta(seconds=-2)
    loop.PROGRESS_S = 0.03
    webhook_loop.MIN_INTERVAL_S = 0.01
    webhook_loop.PER_HOST_MAX, webhook_loop.POSTPONE_S = 2, 0.001
    webhook_loop.sending.DELAYS_S = (0, *(0.001,) * 10)


def settings(url, home, outputs):
    return dataclasses.replace(
        Settings(home=Path(home)),
        store=dataclasses.replace(Settings(home=Path(home)).store, database_url=url),
        worker=WorkerSettings(lease_s=LEASE_S, attempts_max=ATTEMPTS_MAX),
        webhooks=Webhooks(allowed="127.0.0.0/8"),
        outputs=Outputs(**outputs),
    )


class Story:
    """One process's life. `number` is how many have lived before it, and died."""

    def __init__(self, settings, memory, hook, sites, number):
        self.settings, self.memory, self.hook, self.sites, self.number = settings, memory, hook, sites, number
        self.first = number == 0
        self.clock = Clock(BEGUN_S if self.first else BEGUN_S + 8 * DAY_S + HOUR_S + number * APART_S)
        self.go_on = asyncio.Event()
        self.running = []

    async def live(self):
        async with contextlib.AsyncExitStack() as stack:
            url = self.settings.database_url
            opened = [await stack.enter_async_context(Database.open(url, self.clock)) for _ in range(4)]
            self.database, *self.workers_databases = opened
            service = assemble(self.settings, self.database)
            places = {name: Watched(getattr(service, name), self.sites) for name in ("outputs", "uploads")}
            self.service = dataclasses.replace(service, **places)
            self.service.input_images._store = self.service.uploads
            await self.tell()

    async def tell(self):
        await self.morning()
        await self.abandon()
        stale = await self.stall() if self.first else None
        await self.ask()
        first, second = (self.worker(name, i) for i, name in enumerate(("w1", f"w2 {self.number}")))
        self.running += [asyncio.create_task(self.webhooks().run())]
        watching = asyncio.create_task(self.watch("stalled"))
        await self.draw(stale)
        await self.until(self.all_ended)
        await self.until(self.all_told)
        await watching
        await self.afterwards()
        await self.restart([first, second])
        await self.until(self.all_told)
        self.database.changes.stop()
        await asyncio.gather(*self.running)

    # --- what is asked ---------------------------------------------------------------------------------------------

    async def morning(self):
        """Keys, and what is old by the time of the sweep."""
        database = self.database
        for name in ("one", "two"):
            await keys.register(database, name, f"secret of {name}")
        await keys.check_pepper(database, "")
        async with database.write() as connection:  # as a release left it that had no such column
            await connection.execute(sa.update(KEYS).values(pepper_check=None))
        self.keys = [await keys.find(database, f"secret of {name}") for name in ("one", "two")]
        third = await self.memory.once("third key", self.third_key)
        await keys.rotate(database, third)
        spare, _ = await keys.create(database, "spare")
        assert await keys.delete_unused(database, spare.id)
        await self.webhook_secret(third)
        await keys.revoke(database, third)
        assert any(key.id == third and key.revoked_ms for key in await keys.list_keys(database))
        await self.submit("old", refusal=PromptRefused("no"))
        await self.memory.once("stale upload", self.upload)
        if self.first:
            self.clock.jump(8 * DAY_S)

    def webhooks(self):
        return WebhookLoop(self.service)

    async def third_key(self):
        return (await keys.create(self.database, "third"))[0].id

    async def webhook_secret(self, key_id):
        """Rotate it; whoever has died in between finds a rotation that is under way, or none."""
        await webhook_secrets.get(self.database, key_id, "first")
        with contextlib.suppress(Conflict):
            await webhook_secrets.rotate(self.database, key_id, "second", 3_600_000)
        await webhook_secrets.retire(self.database, key_id)
        if (await webhook_secrets.get(self.database, key_id, "third")).secret != "second":
            self.memory.complain("a rotation has ended with another secret than the new one")

    async def upload(self):
        limited = dataclasses.replace(self.keys[0], limits=Limits(bytes_max=2**40))
        await self.service.input_images.check(limited)
        async with self.service.uploads.part() as part:
            await part.write(_image())
            return (await self.service.input_images.keep(self.keys[0], "image", part, "a.png")).name

    async def announced(self):
        """Announce a file, then bring it, twice; the first time it does not come into its place."""
        service = self.service
        upload = await service.input_images.announce(self.keys[1], "b.png", ImageFormat.PNG, 100)
        claim = await uploads.claim(self.database, upload.name, 60)
        await uploads.release(self.database, upload.name, claim, upload.media_type)
        for _ in range(2):
            async with service.input_images.filling(upload.name) as (announced, part):
                await part.write(_image())
                await service.input_images.fill(announced, part)
        return upload.name

    async def abandon(self):
        """Let a task wait for a model that nobody serves, while somebody serves the other."""
        await self.submit("unserved", webhook=True, model=NOBODYS)
        self.clock.jump(2)
        await workers.register(self.database, Worker("w9", [MODEL], "v1"))
        await predictions.abandon(self.database, 1.0)

    async def stall(self):
        """Have a worker take a task and fall silent."""
        await self.submit("stalled", webhook=True)
        room = Capacity(tasks=1, work=2**62, has_tasks=False)
        (stale,) = await claims.claim(self.database, [MODEL], "w0", VERSIONS, 15, room)
        self.clock.jump(16)
        assert await predictions.recover(self.database, 3) == 1
        return stale

    async def ask(self):
        image = await self.memory.once("image", self.announced)
        some = [self.submit("stalled", webhook=True), self.submit("plain", webhook=True, image=image)]
        some += [self.submit("pair", webhook=True, num_images=2), self.submit("drawn", webhook=True)]
        some += [self.submit("refused", webhook=True, refusal=PromptRefused("no")), self.submit("bad", webhook=True)]
        some += [self.submit("waiting", webhook=True), self.submit("gone", webhook=True)]
        await asyncio.gather(*some)
        await self.memory.once("cancel waiting", lambda: self.cancel("waiting"))

    async def submit(self, tag, *, webhook=False, refusal=None, image=None, num_images=1, model=MODEL):
        """Send the same request twice at once, as a client does that has lost patience."""
        if f"task {tag}" in self.memory.known:
            return
        submission = ImageRequest(tag, Size(64, 64), SEEDS[tag], False, True, False, ImageFormat.PNG, image=image)
        submission = dataclasses.replace(submission, num_images=num_images)
        target = f"{self.hook}/{tag}" if webhook else ""
        idempotency, key = IdempotencyRecord(f"key of {tag}", "digest"), self.keys[SEEDS[tag] // 10 % 2]
        asked = NewTask(key, model, submission, "http://test", target, idempotency, refusal)

        async def post():
            return (await self.service.enqueuer.existing(asked) or await self.service.enqueuer.submit(asked)).id

        one, other = await asyncio.gather(post(), post())
        if one != other:
            self.memory.complain(f"{tag} was made twice by one Idempotency-Key")
        self.memory.keep(f"task {tag}", one)

    async def cancel(self, tag):
        return await predictions.cancel(self.database, self.id(tag), self.key(tag))

    def id(self, tag):
        return self.memory.known[f"task {tag}"]

    def key(self, tag):
        return self.keys[SEEDS[tag] // 10 % 2].id

    # --- workers ---------------------------------------------------------------------------------------------------

    def worker(self, name, i):
        """Begin a worker; returns what ends it."""
        painter = Painter(bad={SEEDS["bad"]: TaskFailed("no image")}, pace_s=0.05)
        self.gate = [*getattr(self, "gate", []), painter.go_on]
        stopping, bridge = asyncio.Event(), Bridge()
        bridge.set_engines({MODEL: painter})
        tools = Tools(lambda pixels: False, self.service.outputs, self.service.uploads, VERSIONS)
        worker = Worker(name, [MODEL], "v1")
        database = self.workers_databases[i]

        async def work():
            await loop.WorkerLoop(database, bridge, worker, tools, self.settings.worker).run(stopping)
            await bridge.close()

        working = asyncio.create_task(work())
        self.running.append(working)
        return stopping, working

    def open(self, is_open=True):
        for each in self.gate:
            each.set() if is_open else each.clear()

    async def draw(self, stale):
        """Let the workers draw; one task is cancelled under way, and a worker that was lost speaks up late."""
        if self.first:
            await self.until(lambda: self.is_in("drawn", Status.PROCESSING))
            await self.until(lambda: self.is_in("stalled", Status.PROCESSING))
            await asyncio.sleep(LEASE_S / 2)  # until its worker has heard that it is watched
            for say in (
                predictions.fail(self.database, stale, 1500, "late"),
                predictions.complete(self.database, stale, [False], 1),
                predictions.requeue(self.database, stale),
            ):
                if await say:
                    self.memory.complain("what a lost worker said has counted")
        await self.memory.once("cancel drawn", lambda: self.cancel("drawn"))
        self.open()

    async def watch(self, tag):
        """See a task to its end, as an event stream does, and as a client that waits for the answer."""
        seen = None
        async with self.service.progress.watching(self.id(tag)):
            while seen is None or not seen.prediction.status.final:
                seen = await self.service.progress.next_view(self.id(tag), seen, 10)
        await self.service.completion_waiter.wait(self.id("pair"), self.key("pair"), 20)

    async def restart(self, workers):
        """Stop all workers while one draws, and start another, which finishes what they hand back."""
        self.open(False)
        await self.submit("last", webhook=True)
        await self.until(lambda: self.is_in("last", Status.PROCESSING, Status.COMPLETED))
        for stopping, _ in workers:
            stopping.set()
        for number, (_, working) in enumerate(workers):
            await self.until(lambda number=number: self.is_away(number))
            self.open()
            await working
        stopping, working = self.worker("w3", 2)
        self.open()
        await self.until(lambda: self.is_in("last", Status.COMPLETED))
        stopping.set()
        await working

    async def is_away(self, number):
        return self.workers_databases[number].changes.stopped and not await self.is_in("last", Status.PROCESSING)

    # --- afterwards ------------------------------------------------------------------------------------------------

    async def afterwards(self):
        """Look around, have a webhook sent again, delete, sweep."""
        database, key_id = self.database, self.key("plain")
        plain = await history.get(database, self.id("plain"), key_id)
        await history.queue_snapshot(database, MODEL)
        await history.list_predictions(database, key_id, history.Query())
        await task_metrics.unfinished(database)
        await task_metrics.pending_webhooks(database)
        await task_metrics.FinishedFeed(database).read()
        await workers.ready(database, 60)
        owed = await outbox.list_deliveries(database, plain.id, key_id)
        if len(owed) == 1:
            await self.memory.once("replay", lambda: outbox.replay(database, owed[0].id, plain.id, key_id))
        else:
            self.memory.complain(f"{len(owed)} webhooks are known of a task that owes one")
        await self.until(self.all_told)
        await predictions.delete(database, [self.id("gone")], self.key("gone"))
        await self.leave()
        name = await self.memory.once("orphan", self.orphan)
        await sweep.Sweep(self.service).once()
        await sweep.Sweep(self.service).orphans()
        with contextlib.suppress(NotFound):
            await self.service.outputs.metadata(name)
            self.memory.complain("an orphan was left")

    async def leave(self):
        """Have a key that was used write out what is kept of it, and be forgotten."""
        key = await self.memory.once("leaving key", self.leaving_key)
        outputs, uploads = self.service.outputs, self.service.uploads
        begun = any(act.act == "keys erase" for act in await audit_log.entries(self.database, subject=key))
        out = self.settings.home / f"all of {key} {len(list(self.settings.home.glob('all of *')))}.zip"
        written = await export(self.database, outputs, uploads, key, out, "me@here")
        if not (begun or written["files"]):
            self.memory.complain(f"an export has {written}")
        await erase(self.database, outputs, uploads, key, "me@here", known_s=0)
        for name in KEY_TABLES:
            async for rows in pages(self.database, KEY_TABLES[name], key):
                if name != "acts":
                    self.memory.complain(f"{len(rows)} {name} were left of a key that was erased")
        if not any(act.act == "keys erased" for act in await audit_log.entries(self.database, subject=key)):
            self.memory.complain("nobody knows that a key was erased")

    async def leaving_key(self):
        """A key with an upload and a task that waits for a model that nobody serves."""
        await keys.register(self.database, "leaving", "secret of leaving")
        key = await keys.find(self.database, "secret of leaving")
        async with self.service.uploads.part() as part:
            await part.write(_image())
            await self.service.input_images.keep(key, "image", part, "c.png")
        await keys.set_limits(self.database, key.id, {"images_max": 4})
        submission = ImageRequest("leaving", Size(64, 64), 1, False, True, False, ImageFormat.PNG)
        asked = NewTask(key, "wavespeed-ai/hidream-i1-full", submission, "http://test")

        async def bring():
            return asked

        await self.service.enqueuer.submit_with(asked, bring)
        if not await keys.valid_digests(self.database, {keys.digest_of("secret of leaving", "")}):
            self.memory.complain("a key that was registered is not valid")
        return key.id

    async def orphan(self):
        """Leave a file that no row speaks of."""
        name = random_name(ImageFormat.PNG)
        await self.service.outputs.write(name, b"nobody's")
        return name

    # --- waiting ---------------------------------------------------------------------------------------------------

    async def until(self, condition):
        """Wait without visiting a site; whatever a loop raises comes out here."""
        while not await condition():
            for task in self.running:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)

    async def is_in(self, tag, *states):
        wanted = sa.select(PREDICTIONS.c.id).where(PREDICTIONS.c.id == self.id(tag), PREDICTIONS.c.status.in_(states))
        return await oracle.look(self.database, wanted)

    async def all_ended(self):
        unfinished = sa.select(PREDICTIONS.c.id).where(PREDICTIONS.c.status.in_((Status.CREATED, Status.PROCESSING)))
        return not await oracle.look(self.database, unfinished.where(PREDICTIONS.c.model == MODEL))

    async def all_told(self):
        owed = sa.select(DELIVERIES.c.id).where(DELIVERIES.c.state == DeliveryState.WAITING)
        return not await oracle.look(self.database, owed)


def _image():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 60)).save(file, "PNG")
    return file.getvalue()
