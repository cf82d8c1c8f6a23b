"""The location of files, from one setting: the path of a folder, or a bucket as `s3://bucket/prefix`."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hidream.errors import ConfigurationError
from hidream.outputs.bucket import Bucket, BucketAccess
from hidream.outputs.folder import Folder
from hidream.outputs.object_store import Namespace, ObjectStore

ACCEPTED = "accepted: the path of a folder, file:///path, s3://bucket or s3://bucket/prefix"
NO_ACCESS = BucketAccess()
"""All as AWS's variables say."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()/-]*")
"""The characters that S3 calls safe in keys (user guide, "Naming Amazon S3 objects")."""


def open_object_store(url: str, namespace: Namespace, access: BucketAccess = NO_ACCESS) -> ObjectStore:
    """Open the object store of one namespace; `url` is the root of all namespaces. Nothing is read or written yet.

    Raises ConfigurationError if the URL or the access is invalid.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url):  # one letter is a drive of Windows
        if not url:
            raise ConfigurationError(f"the location of files is empty; {ACCEPTED}")
        return Folder(Path(url), namespace)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return Folder(Path(unquote(parts.path)), namespace)
    prefix = parts.path.strip("/")
    plain = not (parts.query or parts.fragment) and ".." not in prefix and "//" not in prefix
    if parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc) and _PREFIX.fullmatch(prefix) and plain:
        return Bucket(parts.netloc, prefix, namespace, access)
    raise ConfigurationError(f"the location of files is {url!r}; {ACCEPTED}")
