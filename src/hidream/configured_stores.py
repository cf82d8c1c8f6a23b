"""From settings to the places where files lie: the one file that knows both, for the server and the worker."""

from __future__ import annotations

from hidream.outputs.bucket import BucketAccess
from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import Namespace, ObjectStore
from hidream.settings.tables import Settings


def open_configured_store(settings: Settings, namespace: Namespace) -> ObjectStore:
    """Open the place of a namespace in the configured folder or bucket. Raises ConfigurationError."""
    wanted = settings.outputs
    access = BucketAccess(
        endpoint=wanted.endpoint or None,
        region=wanted.region or None,
        access_key_id=wanted.access_key_id or None,
        secret_access_key=wanted.secret_access_key or None,
        signed_urls=wanted.signed_urls == "on",
        public_endpoint=wanted.public_endpoint or None,
    )
    return open_object_store(settings.outputs_url, namespace, access)
