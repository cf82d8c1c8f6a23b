"""The service: what routes and background loops work with, and how a route finds the API version and the key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from hidream.configured_stores import open_configured_store
from hidream.errors import Forbidden, NotFound, Unauthorized
from hidream.outbound.network import TlsContext
from hidream.outbound.targets import Allowlist
from hidream.outputs.object_store import Namespace, ObjectStore
from hidream.server import model_registry
from hidream.server.client_watch import RevocationWatcher
from hidream.server.input_images import InputImages
from hidream.server.key_cache import ApiKeyCache
from hidream.server.limits.concurrency import LARGE_AT_ONCE, QUEUE_TIMEOUT_S, ConcurrencyLimiter
from hidream.server.limits.disk_space import DiskSpace, folders_of
from hidream.server.limits.rates import RateLimiter, StreamLimiter
from hidream.server.metrics import Metrics
from hidream.server.parameters import V2, V3, Api
from hidream.server.queue_status import QueueStatus, WorkerCounts
from hidream.settings.tables import Settings
from hidream.store.completion_waiter import CompletionWaiter
from hidream.store.database import Database
from hidream.store.enqueue import Enqueuer
from hidream.store.keys import Key, Scope
from hidream.store.progress import ProgressWatcher
from hidream.types import Variant

Route = tuple[str, str, Callable[..., Awaitable[Any]]]
"""Method, path and function."""


@dataclass(frozen=True, slots=True)
class Service:
    """The application's state, one per process.

    `outputs` and `uploads` are object stores. `input_images` stores the images that clients send. `models` are the
    names that are served, `aliases` other names of them under `/v1`. `allowlist` has the targets that may be requested
    although they are not public; `tls` holds the certificates that are accepted there. `read_limiter`, `rate_limiter`
    and `stream_limiter` keep the readers of one key from blocking those of others. `revocations` tells waiting requests
    that their key was revoked. `disk_space` checks whether enough disk space is free to accept tasks and uploads.
    `body_limiter` limits how many large bodies are read at once.
    """

    settings: Settings
    database: Database
    enqueuer: Enqueuer
    completion_waiter: CompletionWaiter
    queue_status: QueueStatus
    worker_counts: WorkerCounts
    key_cache: ApiKeyCache
    revocations: RevocationWatcher
    read_limiter: ConcurrencyLimiter
    rate_limiter: RateLimiter
    stream_limiter: StreamLimiter
    outputs: ObjectStore
    uploads: ObjectStore
    input_images: InputImages
    models: dict[str, Variant]
    aliases: dict[str, str]
    allowlist: Allowlist
    tls: TlsContext
    progress: ProgressWatcher
    metrics: Metrics
    disk_space: DiskSpace
    body_limiter: ConcurrencyLimiter


def assemble(settings: Settings, database: Database) -> Service:
    """Create a service on an open database. Raises ConfigurationError."""
    uploads = open_configured_store(settings, Namespace.UPLOADS)
    allowlist = Allowlist.read(entry for entry in settings.webhooks.allowed.split(",") if entry.strip())
    tls = TlsContext()
    models = model_registry.served(settings.models)
    body_limiter = ConcurrencyLimiter(
        None, LARGE_AT_ONCE, QUEUE_TIMEOUT_S, "too many large bodies are under way, of this key or of all"
    )
    return Service(
        settings=settings,
        database=database,
        enqueuer=Enqueuer(database, settings.server.queue_max, settings.server.queue_share),
        completion_waiter=CompletionWaiter(database),
        queue_status=QueueStatus(database),
        worker_counts=WorkerCounts(database, settings.worker.lease_s),
        key_cache=ApiKeyCache(database, settings.store.key_pepper),
        revocations=RevocationWatcher(database, settings.store.key_pepper),
        read_limiter=ConcurrencyLimiter(),
        rate_limiter=RateLimiter(settings.server.reads_per_minute),
        stream_limiter=StreamLimiter(settings.server.streams_max),
        outputs=open_configured_store(settings, Namespace.OUTPUTS),
        uploads=uploads,
        input_images=InputImages(database, uploads, allowlist, settings.server.upload_max_bytes, tls, body_limiter),
        models=models,
        aliases=model_registry.aliases(settings.server.model_aliases, models),
        allowlist=allowlist,
        tls=tls,
        progress=ProgressWatcher(database),
        metrics=Metrics(database, settings.worker.lease_s),
        disk_space=DiskSpace(folders_of(settings.database_url, uploads), settings.store.free_min_mb),
        body_limiter=body_limiter,
    )


def service_of(request: Request) -> Service:
    """Return the service that handles a request."""
    service = request.app.state.service
    assert isinstance(service, Service), "create_app puts it there"
    return service


async def api_of(request: Request, api: str) -> Api:
    """Read the version in the path. Raises NotFound, also for a path with a NUL, which no database accepts."""
    if "\0" in request.scope["path"]:
        raise NotFound("there is no such path: it has a NUL in it")
    for version in (V2, V3):
        if api == version.name:
            return version
    raise NotFound(f"there is no API version {api!r:.100}; there are: {V2.name}, {V3.name}")


def address_of(request: Request) -> str:
    """Return the address that a request comes from; behind a proxy, this is the proxy's."""
    return request.client.host if request.client else ""


def secret_of(request: Request) -> str:
    """Read the API key that a request sends. Raises Unauthorized if there is none."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthorized("no API key; accepted: the header `Authorization: Bearer KEY`")
    return secret.strip()


def key_of(scope: Scope | None, *, reads: bool = False) -> Callable[[Request], Awaitable[Key]]:
    """Make a dependency that finds a request's API key. It raises Unauthorized, or Forbidden if the key lacks `scope`.

    With `reads`, the request counts towards `reads_per_minute`, and beyond that the dependency raises TooMany.
    """

    async def find(request: Request) -> Key:
        service = service_of(request)
        key = await service.key_cache.find(secret_of(request), address_of(request))
        if key is None:
            raise Unauthorized("the API key is not known, or was revoked; `hidream keys create` makes one")
        if scope is not None and not key.may(scope):
            has = ", ".join(sorted(key.scopes))
            raise Forbidden(f"the API key does not have the scope {scope} (it has: {has}); accepted: a key that has it")
        request.state.key_id = key.id  # for the limiter of large bodies
        if reads:
            service.rate_limiter.count(key.id, request.scope.setdefault("state", {}))
        return key

    return find


key_of_submission = key_of(Scope.SUBMIT)

Version = Annotated[Api, Depends(api_of)]
AnyKey = Annotated[Key, Depends(key_of(None, reads=True))]
SubmitKey = Annotated[Key, Depends(key_of_submission)]
ViewKey = Annotated[Key, Depends(key_of(Scope.VIEW, reads=True))]
ReadKey = Annotated[Key, Depends(key_of(Scope.READ, reads=True))]
