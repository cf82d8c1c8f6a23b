"""Pictures that clients bring: taken from where they are, looked at, and put into their place as uploads.

A picture is what its bytes say, whatever it calls itself: PNG, JPEG or WebP, which Pillow can read, and of no more
pixels than a computer can bear. They are read in a process of their own (`images/decoders`). The worker finds it by its
name, which is the right to it.
"""

from __future__ import annotations

import asyncio
import base64
import re
from urllib.parse import unquote

from hidream.errors import InvalidInput, NotFound
from hidream.images.decoders import Decoders, File
from hidream.outputs.names import MEDIA_TYPES, draw_name, is_name
from hidream.outputs.place import Place
from hidream.server.fetch import Rules, fetch
from hidream.store import uploads
from hidream.store.database import Database
from hidream.store.keys import Key
from hidream.store.uploads import Upload
from hidream.types import ImageFormat
from hidream.webhooks.network import Trust
from hidream.webhooks.targets import Allowed

PARTING_S = 0.5
"""How long pictures that are looked at may go on once the process is told to stop."""
FILENAME_MAX = 256

ACCEPTED = (
    "accepted: an http(s) URL, a data: URI or base64 of a PNG, JPEG or WebP file, or the download_url of an upload"
)
_OURS = re.compile(r"(?:https?://\S*/uploads/)?([\w-]{43}\.\w+)", re.ASCII)
_URL_SAFE = str.maketrans("-_", "+/")
"""The other alphabet of base64 (RFC 4648, section 5)."""
_NO_DIGIT = re.compile("[^A-Za-z0-9+/]")
_DATA = re.compile(r"data:[\w.+/;=-]*?;base64,", re.ASCII | re.IGNORECASE)


class Pictures:
    """One process's way to take pictures in."""

    def __init__(self, database: Database, place: Place, allowed: Allowed, max_bytes: int, tls: Trust) -> None:
        self.max_bytes = max_bytes
        self._database = database
        self._place = place
        self._rules = Rules(allowed, max_bytes, tls=tls)
        self._decoders = Decoders()

    async def take(self, key: Key, field: str, given: str) -> str:
        """Take in what a request says under `field`; return the name of the upload. Raises InvalidInput."""
        ours = _OURS.fullmatch(given)
        if ours and (known := await self.find(ours[1])) is not None:
            return known.name
        if re.match("https?://", given, re.IGNORECASE):
            data = await fetch(field, given, self._rules)
        else:
            data = await asyncio.to_thread(self._decoded, field, given)
        return (await self.keep(key, field, "", data)).name

    async def keep(self, key: Key, field: str, filename: str, data: bytes) -> Upload:
        """Look at a picture, and keep it. Raises InvalidInput, StorageUnavailable."""
        image_format = await self.look(field, data, key.id)
        name = draw_name(image_format)
        await self._place.write(name, data)
        now = self._database.now_ms()
        upload = Upload(name, key.id, _shown(filename), MEDIA_TYPES[image_format], len(data), now, stored=True)
        await uploads.announce(self._database, upload)
        return upload

    async def announce(self, key: Key, filename: str, image_format: ImageFormat, size: int) -> Upload:
        """Draw the name of a picture that is to come."""
        name, now = draw_name(image_format), self._database.now_ms()
        upload = Upload(name, key.id, _shown(filename), MEDIA_TYPES[image_format], size, now, stored=False)
        await uploads.announce(self._database, upload)
        return upload

    async def fill(self, name: str, data: bytes) -> Upload:
        """Keep the picture that was announced under a name; the same once more changes nothing.

        Raises NotFound when none was announced, or InvalidInput when there is another one already.
        """
        announced = await uploads.get(self._database, name) if is_name(name) else None
        if announced is None:
            raise NotFound("there is no such upload")
        if announced.stored:
            if await self._place.read(name) == data:
                return announced
            raise InvalidInput("there is another file of this name; accepted: a new upload")
        image_format = await self.look("the file", data, announced.key_id)
        await self._place.write(name, data)
        await uploads.store(self._database, name, MEDIA_TYPES[image_format], len(data))
        return announced

    async def find(self, name: str) -> Upload | None:
        """Look up an upload whose file is there."""
        upload = await uploads.get(self._database, name) if is_name(name) else None
        return upload if upload and upload.stored else None

    async def look(self, field: str, file: File, key_id: str = "") -> ImageFormat:
        """See that this is a picture: its bytes, or where they lie. Raises InvalidInput, StorageUnavailable.

        Of one key, one picture is looked at after the other.
        """
        return await self._decoders.look(key_id, field, file)

    async def shown_size(self, field: str, name: str, key_id: str = "") -> tuple[int, int]:
        """Read the width and height of an upload as it is shown. Raises InvalidInput, NotFound, StorageUnavailable."""
        return await self._decoders.shown_size(key_id, field, await self._place.read(name))

    def stop(self) -> None:
        """Give up in PARTING_S whatever is still looked at, and take nothing more: this process is about to leave."""
        asyncio.get_running_loop().call_later(PARTING_S, self._decoders.close)

    def close(self) -> None:
        """End the processes that look at pictures, at once."""
        self._decoders.close()

    def _decoded(self, field: str, given: str) -> bytes:
        if given[:5].lower() == "data:" and not _DATA.match(given):
            raise InvalidInput(f"{field} is {given!r:.60}, a data: URI without ;base64 before its comma; {ACCEPTED}")
        text = unquote(given[prefix.end() :]) if (prefix := _DATA.match(given)) else given
        digits = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
        if bad := _NO_DIGIT.search(digits):
            place = text.translate(_URL_SAFE).index(bad[0]) + len(prefix[0] if prefix else "")
            raise InvalidInput(f"{field} is {given!r:.60}, with {bad[0]!r} at {place}: no base64; {ACCEPTED}")
        if len(digits) % 4 == 1:
            raise InvalidInput(f"{field} ends within a byte, after {len(digits)} digits of base64; {ACCEPTED}")
        data = base64.b64decode(digits + "=" * (-len(digits) % 4))
        if len(data) > self.max_bytes:
            raise InvalidInput(f"{field} has {len(data)} bytes; accepted: up to {self.max_bytes}")
        return data


def _shown(filename: str) -> str:
    """Keep of a file's name what can be shown, and kept by any database."""
    return "".join(filter(str.isprintable, filename))[:FILENAME_MAX]
