"""Input images: fetched, decoded from base64 or uploaded, then validated and stored as uploads.

An image must be a PNG, JPEG or WebP file by its contents, whatever its name or Content-Type says. Pillow must be able
to read it, and the number of pixels is limited. Files are decoded in separate processes (`images/decoders`). The worker
reads an upload by its name; to know the name is to have access.
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
"""How long the validation of images may go on once the process is told to stop."""
FILENAME_MAX = 256
UNNAMED = "file"
FILLING_S, ADOPTING_S = 120.0, 90.0
"""How long one request's claim to fill an upload lasts, also if its process dies, and how long storing the file may
take. The latter is shorter, so that a late file never replaces one of another request."""
DECODED_AT_ONCE = 2
"""Long base64 texts that are decoded at a time."""
LOOKUPS_PER_ADDRESS, LOOKUPS_AT_ONCE = 2, 3
"""Look-ups of uploads at a time by clients without a key, who must not take the database from those with one."""

_FILLED_BY_ANOTHER = "another request is putting a file to this URL"
_UPLOAD = re.compile(r"(?:https?://\S*/uploads/)?([\w-]{43}\.\w+)", re.ASCII)


class InputImages:
    """Stores the input images that a process receives."""

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
        self._lookups = ConcurrencyLimiter(LOOKUPS_PER_ADDRESS, LOOKUPS_AT_ONCE)  # by address, without a key
        self._fillings = ConcurrencyLimiter(1, sys.maxsize, QUEUE_TIMEOUT_S, _FILLED_BY_ANOTHER)

    async def check(self, key: Key) -> None:
        """Check whether a key may upload an image now, before the body is read. Raises TooMany."""
        await uploads.check(self._database, key)

    async def take(self, key: Key, field: str, given: str | LongText) -> str:
        """Store the image that a request gives in `field`, unless it is an upload; return the upload's name.

        Raises InvalidInput, TooMany, ObjectStoreUnavailable.
        """
        if isinstance(given, str):
            match = _UPLOAD.fullmatch(given)
            if match and (upload := await self.find(match[1])) is not None:
                return upload.name
        await uploads.check(self._database, key, within_request=True)
        if isinstance(given, str) and re.match("https?://", given, re.IGNORECASE):
            async with self._fetches.slot(key.id), self._store.part() as part:
                await fetch(field, given, self._rules, part)
                return (await self._kept(key, field, part)).name
        async with self._store.part() as part:
            await self._decode(field, given, part)
            return (await self._kept(key, field, part)).name

    async def keep(self, key: Key, field: str, part: Part, filename: str) -> Upload:
        """Validate and store an uploaded image. Raises InvalidInput, TooMany, ObjectStoreUnavailable."""
        return await self._kept(key, field, part, filename)

    async def announce(self, key: Key, filename: str, image_format: ImageFormat, size: int) -> Upload:
        """Create an upload whose file follows with PUT, and choose its name. Raises TooMany."""
        name, now = random_name(image_format), self._database.now_ms()
        upload = Upload(name, key.id, _shown(filename) or UNNAMED, MEDIA_TYPES[image_format], size, now, stored=False)
        await uploads.create(self._database, upload, key.limits)
        return upload

    @asynccontextmanager
    async def filling(self, name: str, address: str = "") -> AsyncIterator[tuple[Upload, Part]]:
        """Open a part for the file of an announced upload. One request at a time does so for each upload.

        Raises NotFound if there is no such upload, TooMany, ObjectStoreUnavailable.
        """
        async with self._lookups.slot(address):
            first = await self._announced(name)
        async with self._fillings.slot(name), self._bodies.slot(first.key_id), self._store.part() as part:
            yield await self._announced(name), part

    async def fill(self, announced: Upload, part: Part) -> None:
        """Validate and store the file of an announced upload; to send the same file again changes nothing.

        Of concurrent requests, also to several processes, one stores its file. Raises InvalidInput if there is a
        different file already, TooMany while another request stores one, NotFound if the upload expired meanwhile.
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
        except TimeoutError as error:  # the file may still be stored, so the claim is not released
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
        """Handle an upload that another request has claimed: it is no error if that one stored the same file."""
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
        """Validate and store an image. Without a filename, it belongs to a submission, which is counted instead."""
        image_format = await self._looked(key.id, field, part)
        name, now = random_name(image_format), self._database.now_ms()
        shown = uploads.INLINE if filename is None else _shown(filename) or UNNAMED
        upload = Upload(name, key.id, shown, MEDIA_TYPES[image_format], part.size_bytes, now, stored=True)
        await self._store.adopt(name, part)
        try:
            await uploads.create(self._database, upload, key.limits, within_request=filename is None)
        except BaseException:  # no client knows the name; if the row was committed after all, it expires unused
            with suppress(ObjectStoreUnavailable):
                await self._store.delete([name])
            raise
        return upload

    async def _looked(self, key_id: str, field: str, part: Part) -> ImageFormat:
        await part.flush()
        return await self.identify(field, part.path, key_id)

    async def _is(self, name: str, part: Part) -> bool:
        """Whether a part has the same bytes as the stored file."""
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
        """Decode a base64 text into a part; the file of a long text is removed after that."""
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
        """Return an upload whose file is stored; None if there is none. Look-ups are limited per `address`."""
        async with self._lookups.slot(address):
            upload = await uploads.get(self._database, name) if is_name(name) else None
        return upload if upload and upload.stored else None

    async def identify(self, field: str, file: File, key_id: str) -> ImageFormat:
        """Validate an image, given as bytes or a path. Raises InvalidInput, ObjectStoreUnavailable.

        The images of one key are validated one after the other.
        """
        return await self._decoders.identify(key_id, field, file)

    async def oriented_size(self, field: str, name: str, key_id: str) -> tuple[int, int]:
        """Read an upload's width and height after its EXIF orientation is applied.

        Raises InvalidInput, NotFound, ObjectStoreUnavailable.
        """
        return await self._decoders.oriented_size(key_id, field, partial(self._store.read, name))

    def stop(self) -> None:
        """Abort all validation after SHUTDOWN_S, because this process stops."""
        asyncio.get_running_loop().call_later(SHUTDOWN_S, self._decoders.close)

    def close(self) -> None:
        """Stop the processes that decode images, at once."""
        self._decoders.close()


def _shown(filename: str) -> str:
    """Reduce a filename to printable characters, which every database can store."""
    return "".join(filter(str.isprintable, filename))[:FILENAME_MAX]
