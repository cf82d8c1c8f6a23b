"""What the Hub says of a repository, and its refusals in words of ours. The one module that lists what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from hidream import __version__
from hidream.errors import HubError, InvalidInput
from hidream.hub.cache import COMMIT, DIGEST
from hidream.hub.catalogue import entry_of
from hidream.hub.names import ModelId

METADATA_TIMEOUT_S = 30.0
"""Without an answer for so long, the Hub counts as unreachable."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository."""

    path: str
    size_bytes: int
    digest: str  # 64 digits: its SHA-256; 40: its SHA-1 as a Git blob


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    model: ModelId
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool
    licence: str  # as the repository states it


def listing(model: ModelId, token: str | None = None) -> Listing:
    """Ask the Hub for the files of a repository. Raises HubError, or InvalidInput if there is no such repository."""
    from huggingface_hub import HfApi

    with refusals_of(model), _readable(model):
        info = HfApi(token=token, library_name="hidream", library_version=__version__).model_info(
            model.repository, revision=model.revision, files_metadata=True, timeout=METADATA_TIMEOUT_S
        )
    commit = info.sha or ""
    if not COMMIT.fullmatch(commit):
        raise HubError(f"the Hub names {commit!r:.60} as the commit of {model}; accepted: 40 hexadecimal digits")
    licence = str(getattr(info.card_data, "license", None) or "")
    return Listing(model, commit, tuple(map(_file, info.siblings or ())), bool(info.gated), licence)


def check_access(listing: Listing, token: str | None = None) -> None:
    """Ask for the head of one file, before anything is downloaded. Raises HubError if it is refused."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if listing.files:
        url = hf_hub_url(listing.model.repository, listing.files[0].path, revision=listing.commit)
        with refusals_of(listing.model):
            get_hf_file_metadata(url, token=token, timeout=METADATA_TIMEOUT_S)


@contextlib.contextmanager
def _readable(model: ModelId) -> Iterator[None]:
    """Raise HubError for a description that `huggingface_hub` cannot read, such as a page of HTML."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{_endpoint()} answers for {model}, but not with the description of a repository ({_short(error)}); "
            "accepted: a Hub, which HF_ENDPOINT names"
        ) from error


@contextlib.contextmanager
def refusals_of(model: ModelId) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` into ours, which name the cure."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(_gated(model)) from error
    except errors.RevisionNotFoundError as error:
        raise InvalidInput(
            f"{model.repository} has no revision {model.revision!r}; accepted: a branch, a tag or a commit of it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InvalidInput(
            f"the Hub has no {model.repository}, or not for you; accepted: an id as its page shows it, and for a "
            "private repository a token that may read it (`hf auth login` or HF_TOKEN)"
        ) from error
    except errors.HFValidationError as error:
        raise InvalidInput(f"{model} is no id of the Hub: {_short(error)}; accepted: as its page shows it") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(f"HF_HUB_OFFLINE is set, so the Hub is not asked for {model}; accepted: without it") from error
    except errors.HfHubHTTPError as error:
        raise HubError(_http(model, error)) from error
    except (http_error(), ConnectionError) as error:
        raise HubError(
            f"{_endpoint()} cannot be reached ({_short(error)}); what has arrived stays, try again"
        ) from error


def http_error() -> type[Exception]:
    """The root of all errors of the HTTP library that `huggingface_hub` uses: httpx, and from 2.0 on httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    (root,) = (each for each in HfHubHTTPError.__bases__ if not issubclass(each, OSError))
    return root  # type: ignore[return-value]


def _file(sibling: Any) -> RemoteFile:  # noqa: ANN401 - a RepoSibling, of which every version has another type
    """Check what the Hub says of a file: its path and digest become names of files here."""
    path, digest = str(sibling.rfilename), sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.lfs.size if sibling.lfs else sibling.size
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not path.isprintable():
        raise HubError(f"the Hub names a file {path!r:.100}; accepted: a path inside of its repository")
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise HubError(f"the Hub says neither size nor digest of {path}: it cannot be checked, and is not downloaded")
    return RemoteFile(path, size, digest)


def _gated(model: ModelId) -> str:
    """Say what to accept, where, and how to log in."""
    from huggingface_hub import get_token

    entry = entry_of(model.repository)
    licence = entry.licence if entry else "its licence"
    account = "the account of your token has no access yet" if get_token() else "you are not logged in"
    page = f"{_endpoint()}/{model.repository}"
    text = (
        f"{model.repository} is gated, and {account}: accept {licence} at {page} (access may take a while), then log "
        "in with `hf auth login`, or set HF_TOKEN to a token from your account's settings"
    )
    if entry and entry.free_copy and entry.free_copy != model.repository:
        text += f". {entry.free_copy} has the same weights without a gate: `hidream models pull {entry.free_copy}`"
    return text


def _http(model: ModelId, error: Any) -> str:  # noqa: ANN401 - an HfHubHTTPError, which mypy does not see here
    status = error.response.status_code
    cure = "check your token (`hf auth whoami`)" if status in (401, 403) else "what has arrived stays, try again"
    return f"{_endpoint()} answers {status} for {model}; {cure}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _short(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__
