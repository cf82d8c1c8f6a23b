"""Downloading what hidream needs of a repository: first the plan, which is shown, then the files, four at a time.

`refs/` names the new commit only after all its files are there, so that until then an id means the snapshot that it
meant before, and never half of one.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from hidream import __version__
from hidream.errors import HiDreamError, HubError, InvalidInput
from hidream.hub import cache, catalogue, remote
from hidream.hub.cache import COMMIT
from hidream.hub.download import Transfer, download, is_there
from hidream.hub.names import ModelId
from hidream.hub.remote import Listing, RemoteFile

TOGETHER = 4
"""Files at a time: one connection to the Hub seldom fills a line."""
SPARE_BYTES = 10**9
"""Of the disk that stays free, for the system and the programs beside."""
FEW = 12


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the plan, and how much of it is in the cache."""

    file: RemoteFile
    cached: bool
    arrived_bytes: int  # of an interrupted download

    @property
    def to_download(self) -> int:
        """The bytes that are missing."""
        return 0 if self.cached else self.file.size_bytes - self.arrived_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pull would do."""

    listing: Listing
    files: tuple[PlannedFile, ...]
    free_bytes: int
    folder: Path  # of the repository in the cache

    @property
    def total_bytes(self) -> int:
        """The size of all files; those of the same content are stored once."""
        return sum({each.file.digest: each.file.size_bytes for each in self.files}.values())

    @property
    def to_download(self) -> int:
        """The bytes that are missing."""
        return sum({each.file.digest: each.to_download for each in self.files}.values())

    @property
    def snapshot(self) -> Path:
        """The folder that the files will be in."""
        return self.folder / "snapshots" / self.listing.commit


def plan(model: ModelId, *, include: Sequence[str] = (), token: str | None = None) -> Plan:
    """Ask the Hub what a repository has, and compare it with the cache; `include` has patterns of paths.

    Raises HubError if the Hub is unreachable, and InvalidInput if there is no such repository, or nothing in it is
    chosen.
    """
    listing = remote.listing(model, token)
    paths = catalogue.needed((file.path for file in listing.files), include)
    if not paths:
        raise InvalidInput(_nothing_chosen(listing, include))
    folder = cache.folder_of(model.repository)
    by_path = {file.path: file for file in listing.files}
    files = tuple(_planned(by_path[path], folder, listing.commit) for path in paths)
    return Plan(listing, files, _free_bytes(folder), folder)


def check(plan: Plan, token: str | None = None) -> None:
    """Raise HubError if the files do not fit on the disk, or the repository is gated and closed to us."""
    if plan.listing.gated and plan.to_download:
        remote.check_access(plan.listing, token)
    if plan.to_download and plan.to_download + SPARE_BYTES > plan.free_bytes:
        raise HubError(
            f"{plan.listing.model} needs {plan.to_download / 1e9:.1f} GB more, and {plan.free_bytes / 1e9:.1f} GB are "
            f"free at {cache.cache_folder()}, of which {SPARE_BYTES / 1e9:.0f} GB stay free; accepted: a larger disk, "
            "which HF_HOME names"
        )


def pull(plan: Plan, on_bytes: Callable[[int], None], token: str | None = None) -> Path:
    """Download what a plan lacks, and return the folder of the snapshot.

    All files are tried, also after one has failed. Raises HubError with every file that failed; what has arrived stays,
    and the next call goes on there.
    """
    stop = Event()
    missing = {each.file.digest: each.file for each in plan.files if not each.cached}
    pool = ThreadPoolExecutor(TOGETHER, thread_name_prefix="hub")
    try:
        transfers = [_transfer(plan, file, token) for file in missing.values()]
        _all([pool.submit(_download, plan.listing.model, each, on_bytes, stop) for each in transfers])
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    for each in plan.files:
        _link(plan, each.file)
    _name_commit(plan)
    return plan.snapshot


def _planned(file: RemoteFile, folder: Path, commit: str) -> PlannedFile:
    blob = folder / "blobs" / file.digest
    cached = is_there(blob, file) or is_there(folder / "snapshots" / commit / file.path, file)
    arrived = cache.size_of(blob.with_name(f"{blob.name}.incomplete"))
    return PlannedFile(file, cached, arrived if arrived <= file.size_bytes else 0)


def _transfer(plan: Plan, file: RemoteFile, token: str | None) -> Transfer:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=token, library_name="hidream", library_version=__version__)
    lock = cache.cache_folder() / ".locks" / plan.folder.name / f"{file.digest}.lock"  # that of huggingface_hub
    return Transfer(
        file=file,
        url=hf_hub_url(plan.listing.model.repository, file.path, revision=plan.listing.commit),
        headers=headers | {"Accept-Encoding": "identity"},
        blob=plan.folder / "blobs" / file.digest,
        lock=lock,
    )


def _download(model: ModelId, transfer: Transfer, on_bytes: Callable[[int], None], stop: Event) -> None:
    with remote.refusals_of(model):
        download(transfer, on_bytes, stop)


def _link(plan: Plan, file: RemoteFile) -> None:
    """Put a file whose blob is there into the snapshot, as `huggingface_hub` does: as a link to the blob.

    Where a system has no symbolic links, it is a hard link or a copy. `hf_hub_download` would do it too, but downloads
    a file again, unchecked, whose ETag is not the announced digest.
    """
    link, blob = plan.snapshot / file.path, plan.folder / "blobs" / file.digest
    if is_there(link, file):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    made = _new_name(plan)
    try:
        made.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        try:
            made.hardlink_to(blob)
        except OSError:
            shutil.copyfile(blob, made)
    made.replace(link)


def _new_name(plan: Plan) -> Path:
    """A name for a file until it is whole: no other process has it."""
    return plan.folder / f"{uuid.uuid4().hex}.new"


def _all(futures: Sequence[Future[None]]) -> None:
    """Wait for all; raise what went wrong, of several errors of ours all the messages."""
    failed = [error for future in as_completed(futures) if (error := future.exception())]
    ours = [error for error in failed if isinstance(error, HiDreamError)]
    others = [error for error in failed if not isinstance(error, HiDreamError)]
    if others or len(ours) == 1:
        raise (others or ours)[0]
    if ours:
        raise HubError("; ".join(dict.fromkeys(error.message for error in ours)))


def _name_commit(plan: Plan) -> None:
    """Make the revision mean this commit."""
    revision = plan.listing.model.revision
    if COMMIT.fullmatch(revision):
        return
    ref = plan.folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    written = _new_name(plan)
    written.write_text(plan.listing.commit)
    written.replace(ref)


def _free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder that may not exist yet."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(existing).free


def _nothing_chosen(listing: Listing, include: Sequence[str]) -> str:
    weights = [file for file in listing.files if file.path.endswith(catalogue.WEIGHTS)]
    shown = ", ".join(f"{file.path} ({file.size_bytes / 1e9:.1f} GB)" for file in weights[:FEW])
    shown += f" and {len(weights) - FEW} more" * (len(weights) > FEW)
    if include:
        return f"no file of {listing.model} matches {', '.join(include)}; accepted: patterns of its files: {shown}"
    if not weights:
        return f"{listing.model} has no weights that hidream reads; accepted: safetensors or GGUF"
    return f"{listing.model} has several models: name files with --include, such as {shown}"
