"""Images that clients bring: taken from where they are, looked at, and put into their place as uploads.

An image is what its bytes say, whatever it calls itself: PNG, JPEG or WebP, which Pillow can read, and of no more
pixels than a computer can bear. They are read in a process of their own (`images/decoders`). The worker finds it by its
name, which is the right to it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from hidream.errors import DatabaseUnavailable, InvalidInput, NotFound, ObjectStoreUnavailable, TooMany
from hidream.file_names import MEDIA_TYPES, is_name, random_name
from hidream.images.decoders import Decoders, File
from hidream.outbound.network import TlsContext
from hidream.outbound.targets import Allowlist
from hidream.outputs.object_store import ObjectStore
from hidream.outputs.part import Part
from hidream.server.bodies import base64_text
from hidream.server.bodies.long_text import LongText
from hidream.server.fetch import Rules, fetch
from hidream.server.limits.concurrency import LARGE_AT_ONCE, QUEUE_TIMEOUT_S, RETRY_AFTER_S, ConcurrencyLimiter
from hidream.store import uploads
from hidream.store.database import Database
from hidream.store.keys import Key
from hidream.store.uploads import Upload
from hidream.types import ImageFormat

SHUTDOWN_S = 0.5
"""How long images that are looked at may go on once the process is told to stop."""
FILENAME_MAX = 256
UNNAMED = "file"
FILLING_S, ADOPTING_S = 120.0, 90.0
"""How long an upload is one request's to fill, also if its process dies, and how long putting the file into its place
may take: less, so that a file never comes there behind another one's."""
DECODED_AT_ONCE = 2
"""Long texts whose base64 is read at a time."""
LOOKUPS_PER_ADDRESS, LOOKUPS_AT_ONCE = 2, 3
"""Names of uploads that are looked up at a time, of those without a key: they leave the database to those with one."""

_FILLED_BY_ANOTHER = "another request is putting a file to this URL"
_OURS = re.compile(r"(?:https?://\S*/uploads/)?([\w-]{43}\.\w+)", re.ASCII)


class InputImages:
    """One process's way to take images in."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        allowed: Allowlist,
        max_bytes: int,
        tls: TlsContext,
        bodies: ConcurrencyLimiter,
    ) -> None:
        self.max_bytes = max_bytes
        self._database = database
        self._store = store
        self._rules = Rules(allowed, max_bytes, tls=tls)
        self._decoders = Decoders()
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)
        self._bodies = bodies
        fetches = "too many images are being fetched from URLs, for this key or for all"
        self._fetches = ConcurrencyLimiter(None, LARGE_AT_ONCE, QUEUE_TIMEOUT_S, fetches)
        self._lookups = ConcurrencyLimiter(LOOKUPS_PER_ADDRESS, LOOKUPS_AT_ONCE)  # of strangers, by their addresses
        self._fillings = ConcurrencyLimiter(1, sys.maxsize, QUEUE_TIMEOUT_S, _FILLED_BY_ANOTHER)

    async def check(self, key: Key) -> None:
        """See whether a key may bring an image now, before anything is read of it. Raises TooMany."""
        await uploads.check(self._database, key)

    async def take(self, key: Key, field: str, given: str | LongText) -> str:
        """Take in what a request says under `field`; return the name of the upload.

        Raises InvalidInput, TooMany, ObjectStoreUnavailable.
        """
        if isinstance(given, str):
            ours = _OURS.fullmatch(given)
            if ours and (known := await self.find(ours[1])) is not None:
                return known.name
        await uploads.check(self._database, key, within_request=True)
        if isinstance(given, str) and re.match("https?://", given, re.IGNORECASE):
            async with self._fetches.slot(key.id), self._store.part() as part:
                await fetch(field, given, self._rules, part)
                return (await self._kept(key, field, part)).name
        async with self._store.part() as part:
            await self._decode(field, given, part)
            return (await self._kept(key, field, part)).name

    async def keep(self, key: Key, field: str, part: Part, filename: str) -> Upload:
        """Look at an image that was uploaded, and keep it. Raises InvalidInput, TooMany, ObjectStoreUnavailable."""
        return await self._kept(key, field, part, filename)

    async def announce(self, key: Key, filename: str, image_format: ImageFormat, size: int) -> Upload:
        """Choose the name of an announced image. Raises TooMany."""
        name, now = random_name(image_format), self._database.now_ms()
        upload = Upload(name, key.id, _shown(filename) or UNNAMED, MEDIA_TYPES[image_format], size, now, stored=False)
        await uploads.create(self._database, upload, key.limits)
        return upload

    @asynccontextmanager
    async def filling(self, name: str, address: str = "") -> AsyncIterator[tuple[Upload, Part]]:
        """Begin to bring the image that was announced under a name: one at a time does, of a key's so many.

        Raises NotFound when none was announced, TooMany, ObjectStoreUnavailable.
        """
        async with self._lookups.slot(address):
            first = await self._announced(name)
        async with self._fillings.slot(name), self._bodies.slot(first.key_id), self._store.part() as part:
            yield await self._announced(name), part

    async def fill(self, announced: Upload, part: Part) -> None:
        """Keep the image that was announced; the same once more changes nothing.

        Of requests to several processes, one puts its file into its place. Raises InvalidInput when there is another
        one already, TooMany while another request does that, NotFound when the upload was withdrawn meanwhile.
        """
        name = announced.name
        if announced.stored:
            await self._compare(name, part)
            return
        image_format = await self._looked(announced.key_id, "the file", part)
        claim = await uploads.claim(self._database, name, FILLING_S)
        if claim is None:
            await self._too_late(name, part)
            return
        try:
            async with asyncio.timeout(ADOPTING_S):
                await self._store.adopt(name, part)
            stored = await uploads.mark_stored(self._database, name, claim, MEDIA_TYPES[image_format], part.size_bytes)
        except TimeoutError as error:  # it may come into its place yet: the claim is kept
            raise ObjectStoreUnavailable("the file cannot be stored now; try again later") from error
        except (ObjectStoreUnavailable, DatabaseUnavailable):
            with suppress(DatabaseUnavailable):
                await uploads.release(self._database, name, claim, announced.media_type)
            raise
        if not stored:
            if await uploads.get(self._database, name) is None:
                await self._store.delete([name])
                raise NotFound("the upload does not exist any more: it was announced too long ago")
            await self._too_late(name, part)  # the claim expired, and another request has taken over

    async def _too_late(self, name: str, part: Part) -> None:
        """Say what another request has done meanwhile: nothing is wrong if it has brought the same."""
        if not (await self._announced(name)).stored:
            raise TooMany(f"{_FILLED_BY_ANOTHER}; try again later", RETRY_AFTER_S)
        await self._compare(name, part)

    async def _compare(self, name: str, part: Part) -> None:
        if not await self._is(name, part):
            raise InvalidInput("there is another file of this name; accepted: a new upload")

    async def _announced(self, name: str) -> Upload:
        announced = await uploads.get(self._database, name, of_valid_key=True) if is_name(name) else None
        if announced is None:
            raise NotFound("the upload does not exist or has expired, or its key was revoked")
        return announced

    async def _kept(self, key: Key, field: str, part: Part, filename: str | None = None) -> Upload:
        """Keep an image; one without a filename came within a submission, which is counted itself."""
        image_format = await self._looked(key.id, field, part)
        name, now = random_name(image_format), self._database.now_ms()
        shown = uploads.INLINE if filename is None else _shown(filename) or UNNAMED
        upload = Upload(name, key.id, shown, MEDIA_TYPES[image_format], part.size_bytes, now, stored=True)
        await self._store.adopt(name, part)
        try:
            await uploads.create(self._database, upload, key.limits, within_request=filename is None)
        except BaseException:  # nobody has been told its name, and a row that was written after all goes unused
            with suppress(ObjectStoreUnavailable):
                await self._store.delete([name])
            raise
        return upload

    async def _looked(self, key_id: str, field: str, part: Part) -> ImageFormat:
        await part.flush()
        return await self.look(field, part.path, key_id)

    async def _is(self, name: str, part: Part) -> bool:
        """Whether what was written is what is there."""
        await part.flush()
        metadata, chunks = await self._store.open(name)
        if metadata.size_bytes != part.size_bytes:
            return False
        with part.path.open("rb") as file:
            async for chunk in chunks(0, metadata.size_bytes):
                if await asyncio.to_thread(file.read, len(chunk)) != chunk:
                    return False
        return True

    async def _decode(self, field: str, given: str | LongText, part: Part) -> None:
        """Write what a text stands for; one that lies in a file is not needed any more then."""
        if isinstance(given, str):
            starts = range(0, len(given), base64_text.PIECE_CHARS)
            short = (given[at : at + base64_text.PIECE_CHARS] for at in starts)
            await part.written(base64_text.decode, field, repr(given[:100]), short, part.append, self.max_bytes)
            return
        async with self._decoding:
            long = base64_text.pieces_of(given.path)
            await part.written(base64_text.decode, field, repr(given), long, part.append, self.max_bytes)
        await given.close()

    async def find(self, name: str, address: str = "") -> Upload | None:
        """Look up an upload whose file is there, for who asks from this address."""
        async with self._lookups.slot(address):
            upload = await uploads.get(self._database, name) if is_name(name) else None
        return upload if upload and upload.stored else None

    async def look(self, field: str, file: File, key_id: str) -> ImageFormat:
        """See that this is an image: its bytes, or where they lie. Raises InvalidInput, ObjectStoreUnavailable.

        Of one key, one image is looked at after the other.
        """
        return await self._decoders.look(key_id, field, file)

    async def shown_size(self, field: str, name: str, key_id: str) -> tuple[int, int]:
        """Read an upload's width and height as it is shown. Raises InvalidInput, NotFound, ObjectStoreUnavailable."""
        return await self._decoders.shown_size(key_id, field, partial(self._store.read, name))

    def stop(self) -> None:
        """Give up in PARTING_S whatever is still looked at, and take nothing more: this process is about to leave."""
        asyncio.get_running_loop().call_later(SHUTDOWN_S, self._decoders.close)

    def close(self) -> None:
        """End the processes that look at images, at once."""
        self._decoders.close()


def _shown(filename: str) -> str:
    """Keep of a file's name what can be shown, and kept by any database."""
    return "".join(filter(str.isprintable, filename))[:FILENAME_MAX]
