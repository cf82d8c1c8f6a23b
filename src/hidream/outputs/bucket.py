"""A bucket of an S3-compatible object store: the objects `prefix/namespace/name`.

If `BucketAccess` leaves something out, obstore takes it from the variables that AWS's own tools read (AWS_ENDPOINT_URL,
AWS_REGION, AWS_ACCESS_KEY_ID, …, https://developmentseed.org/obstore/latest/api/store/aws/), and keys also from the
role of the machine or container; it does not read files below `~/.aws`. `BucketAccess` takes precedence: given keys are
used without a session token from the environment.

An object is written in one request, so a crashed process leaves nothing behind. A file is always requested as a whole,
and a range is cut out here: images have a few MB, and not every store answers range requests like S3 (rclone and lakeFS
respond with 200 instead of 206, which obstore refuses).

obstore starts threads when it is first used. A process must fork before that, or its children hang. A proxy is taken
from the environment (HTTPS_PROXY, NO_PROXY).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from hidream.errors import ConfigurationError, NotFound, ObjectStoreUnavailable
from hidream.file_names import CACHE_CONTROL, format_of, is_name, media_type_of
from hidream.outputs.object_store import CHUNK_BYTES, Chunks, Namespace, ObjectMetadata
from hidream.outputs.part import Part, part_in

if TYPE_CHECKING:
    from obstore import Attributes, GetResult, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential

CONNECT_TIMEOUT_S = 5
TRIES = 3
"""How often a request to a store that hangs is sent within `timeout_s`. After a refused connection or a 5xx there are
RETRIES retries, which bridge a second and a half: 0.1 + 0.2 + 0.4 + 0.8, with jitter."""
RETRIES = 4
DOWNLOAD_MAX_S = 3600
"""The time for a download by a slow client; each read from the store is still limited to `timeout_s / TRIES`."""
PAGE = 1000
"""Objects in one request: S3's limit (API reference, ListObjectsV2 and DeleteObjects)."""
ADOPTIONS_MAX = 2
"""Parts that are uploaded at a time; each is in memory meanwhile."""
SIGNED_MAX_S = 7 * 24 * 3600
"""The maximum validity of a signed URL (Signature Version 4, query parameter X-Amz-Expires)."""

T = TypeVar("T")

_PROBE = ".probe"
_ROLE_SERVER = "//169.254."
"""The address at which AWS serves the keys of a machine's or container's role, used if no others are given."""


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """How a bucket is reached.

    endpoint: URL of the store, without the bucket; None: AWS's own, for the region.
    access_key_id, secret_access_key: both or neither.
    signed_urls: clients get URLs of the bucket that are signed for some time, instead of URLs of this server.
    public_endpoint: the endpoint in these URLs, where clients reach the store by another one.
    timeout_s: after this a call fails, its retries included.
    """

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    signed_urls: bool = False
    public_endpoint: str | None = None
    timeout_s: float = 30


class Bucket:
    """An `object_store.ObjectStore` in a bucket. Raises ConfigurationError if `access` is invalid."""

    def __init__(self, bucket: str, prefix: str, namespace: Namespace, access: BucketAccess) -> None:
        _check(access)
        self.namespace = namespace
        self._bucket = bucket
        self._access = access
        self._adopting = asyncio.Semaphore(ADOPTIONS_MAX)
        key_prefix = f"{prefix}/{namespace}" if prefix else str(namespace)
        self._store = _store(bucket, key_prefix, access, access.endpoint)
        self._signer = _store(bucket, key_prefix, access, access.public_endpoint or access.endpoint)

    async def check(self) -> None:
        """Write an object, list, and delete it. Raises ConfigurationError, or ObjectStoreUnavailable."""
        async with self._translated_errors("cannot be used", starting=True):
            await obstore.put_async(self._store, _PROBE, b"hidream", use_multipart=False)
            await _next(obstore.list(self._store, chunk_size=1))
            await obstore.delete_async(self._store, [_PROBE])

    async def write(self, name: str, data: bytes) -> None:
        """Write an object, with the headers for its downloads."""
        await self._put(name, data)

    def part(self) -> AbstractAsyncContextManager[Part]:
        """Open a part in the folder for temporary files."""
        return part_in(Path(tempfile.gettempdir()), _reported)

    async def adopt(self, name: str, part: Part) -> None:
        """Upload a part in one request, for which it is read into memory; ADOPTIONS_MAX limits how many do so."""
        media_type_of(name)
        await part.flush()
        async with self._adopting:
            await self._put(name, part.path)

    async def read(self, name: str) -> bytes:
        """Read an object. Raises NotFound if it does not exist."""
        format_of(name)
        async with self._translated_errors("cannot be read", one=True):
            result = await obstore.get_async(self._store, name)
            return (await result.bytes_async()).to_bytes()

    async def metadata(self, name: str) -> ObjectMetadata:
        """Return size, time and ETag of an object. Raises NotFound."""
        format_of(name)
        async with self._translated_errors("cannot be read", one=True):
            return _metadata(await obstore.head_async(self._store, name))

    async def open(self, name: str) -> tuple[ObjectMetadata, Chunks]:
        """Open an object. Raises NotFound."""
        format_of(name)
        async with self._translated_errors("cannot be read", one=True):
            result = await obstore.get_async(self._store, name)
        return _metadata(result.meta), lambda start, stop: self._chunks(result, start, stop)

    async def delete(self, names: Iterable[str]) -> None:
        """Delete objects."""
        wanted = [name for name in names if format_of(name)]
        for start in range(0, len(wanted), PAGE):
            async with self._translated_errors("cannot be written to"):
                await obstore.delete_async(self._store, wanted[start : start + PAGE])

    async def names(self, older_than: datetime) -> AsyncIterator[str]:
        """Yield the names of all objects last written before `older_than`, page by page."""
        pages = obstore.list(self._store, chunk_size=PAGE)
        while True:
            async with self._translated_errors("cannot be listed"):
                page = await _next(pages)
            if not page:
                return
            for found in page:
                if is_name(found["path"]) and found["last_modified"] < older_than:
                    yield found["path"]

    async def url(self, name: str, base_url: str, valid_s: float) -> str:
        """Return the URL at which this server serves the object, or a signed URL of the bucket, for at most a week."""
        format_of(name)
        if not self._access.signed_urls:
            return f"{base_url}/{self.namespace}/{name}"
        valid = timedelta(seconds=max(1, min(valid_s, SIGNED_MAX_S)))
        async with self._translated_errors("cannot sign a URL"):
            return await obstore.sign_async(self._signer, "GET", name, valid)

    async def _put(self, name: str, data: bytes | Path) -> None:
        attributes: Attributes = {"Content-Type": media_type_of(name), "Cache-Control": CACHE_CONTROL}
        async with self._translated_errors("cannot be written to"):
            await obstore.put_async(self._store, name, data, attributes=attributes, use_multipart=False)

    async def _chunks(self, result: GetResult, start: int, stop: int) -> AsyncIterator[bytes]:
        stream = result.stream(min_chunk_size=CHUNK_BYTES)
        at = 0
        while at < stop:
            async with self._translated_errors("cannot be read"):
                chunk = await _next(stream)
            if not chunk:
                raise ObjectStoreUnavailable("the bucket returned less than the whole file; try again")
            wanted = chunk[max(start - at, 0) : stop - at]
            at += len(chunk)
            if wanted:
                yield wanted

    @contextlib.asynccontextmanager
    async def _translated_errors(
        self, failed: str, *, one: bool = False, starting: bool = False
    ) -> AsyncIterator[None]:
        """Limit the time of a call, and turn its errors into ours, without the endpoint or the secret name.

        one: the call is about one object; if it does not exist, raise NotFound.
        starting: raise ConfigurationError if the store refuses, because a retry would not help.
        """
        try:
            async with asyncio.timeout(self._access.timeout_s):
                yield
        except (BaseError, OSError) as error:  # TimeoutError and FileNotFoundError are OSErrors
            answer = _answer(error)
            if one and isinstance(error, FileNotFoundError) and answer.code != "NoSuchBucket":
                raise NotFound("there is no such file") from error
            if starting and answer.refused:
                raise ConfigurationError(
                    f"the bucket {self._bucket!r} {failed}: {answer.reason}; accepted: a bucket that exists, its "
                    "region, and keys that may put, get, list and delete its objects"
                ) from error
            raise ObjectStoreUnavailable(f"the bucket {failed} now: {answer.reason}; try again later") from error


@contextlib.contextmanager
def _reported(done: str) -> Iterator[None]:
    """Turn OSErrors of the local folder into ObjectStoreUnavailable."""
    try:
        yield
    except OSError as error:
        raise ObjectStoreUnavailable(f"a file cannot be {done} now: {error.strerror}; try again later") from error


@dataclass(frozen=True, slots=True)
class _Answer:
    """An error response of a store; `status` is None if there was no response."""

    status: int | None
    code: str
    reason: str

    @property
    def refused(self) -> bool:
        """Whether a retry would be useless, judging by the status (408: too slow, 429: too many requests)."""
        return self.status is not None and 300 <= self.status < 500 and self.status not in (408, 429)


def _answer(error: Exception) -> _Answer:
    """Parse the store's response from obstore's error text, because obstore gives nothing else."""
    text = str(error)
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if _ROLE_SERVER in text:
        return _Answer(403, "", "no keys are given, and this machine has no role")
    if status:
        shown = f"{status[1]} {code[1]}" if code else status[1]
        return _Answer(int(status[1]), code[1] if code else "", f"the store answers {shown}")
    if isinstance(error, TimeoutError) or "TimedOut" in text:
        return _Answer(None, "", "the store does not answer in time")
    return _Answer(
        None, "", "the store cannot be reached" if "kind: Connect" in text else "the store's response is not usable"
    )


async def _next(items: AsyncIterator[T]) -> T | None:
    """Return the next item, or None at the end; `anext` with a default fails with obstore's awaitables."""
    try:
        return await anext(items)
    except StopAsyncIteration:
        return None


def _metadata(meta: ObjectMeta) -> ObjectMetadata:
    modified, size_bytes = meta["last_modified"], meta["size"]
    etag = (meta["e_tag"] or f"{int(modified.timestamp()):x}-{size_bytes:x}").removeprefix("W/").strip('"')
    return ObjectMetadata(size_bytes, modified, f'"{etag}"')


def _store(bucket: str, prefix: str, access: BucketAccess, endpoint: str | None) -> S3Store:
    config: S3Config = {}
    client: ClientConfig = {
        "allow_http": not (endpoint or "").startswith("https://"),  # without one, AWS_ENDPOINT_URL may say http://
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=access.timeout_s / TRIES),
        "timeout": timedelta(seconds=DOWNLOAD_MAX_S),
    }
    if endpoint:
        config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}  # the second is stronger, so its variable too
    if access.region:
        config["region"] = access.region
    keys = _keys(access)
    if keys:
        config["skip_signature"] = False
    retries: RetryConfig = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=access.timeout_s)}
    try:
        return S3Store(
            bucket, prefix=prefix, config=config, client_options=client, retry_config=retries, credential_provider=keys
        )
    except (BaseError, ValueError) as error:
        raise ConfigurationError(f"the bucket {bucket!r} cannot be used: {str(error).splitlines()[0]}") from error


def _keys(access: BucketAccess) -> Callable[[], S3Credential] | None:
    """Return a function that gives the keys; with plain values, obstore would add a token from the environment."""
    if not (access.access_key_id and access.secret_access_key):
        return None
    keys: S3Credential = {
        "access_key_id": access.access_key_id,
        "secret_access_key": access.secret_access_key,
        "token": None,
        "expires_at": None,
    }
    return lambda: keys


def _check(access: BucketAccess) -> None:
    for name, url in (("endpoint", access.endpoint), ("public endpoint", access.public_endpoint)):
        if url and not re.match(r"https?://[^/]", url):
            raise ConfigurationError(f"the bucket's {name} is {url!r}; accepted: a URL with http:// or https://")
    if bool(access.access_key_id) != bool(access.secret_access_key):
        raise ConfigurationError(
            "only one of the bucket's access key id and secret access key is set; accepted: both, or none"
        )
    if access.timeout_s <= 0:
        raise ConfigurationError(f"the bucket's timeout is {access.timeout_s:g} s; accepted: more than 0")
