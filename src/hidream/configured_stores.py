"""Opening object stores from the settings, for the server and the worker: the only module that knows both."""

from __future__ import annotations

from hidream.outputs.bucket import BucketAccess
from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import Namespace, ObjectStore
from hidream.settings.tables import Settings


def open_configured_store(settings: Settings, namespace: Namespace) -> ObjectStore:
    """Open the object store of a namespace in the configured folder or bucket. Raises ConfigurationError."""
    return open_store_at(settings.outputs_url, settings, namespace)


def open_store_at(url: str, settings: Settings, namespace: Namespace) -> ObjectStore:
    """Open the object store of a namespace elsewhere, with the configured access. Raises ConfigurationError."""
    outputs = settings.outputs
    access = BucketAccess(
        endpoint=outputs.endpoint or None,
        region=outputs.region or None,
        access_key_id=outputs.access_key_id or None,
        secret_access_key=outputs.secret_access_key or None,
        signed_urls=outputs.signed_urls == "on",
        public_endpoint=outputs.public_endpoint or None,
    )
    return open_object_store(url, namespace, access)
