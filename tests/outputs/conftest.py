"""Both kinds of object store: a folder, and a bucket of a real S3 server."""

import pytest

from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import Namespace
from s3_server import S3Server


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    with S3Server(tmp_path_factory.mktemp("s3") / "served") as server:
        yield server


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.integration)])
def opened(request, tmp_path):
    """Give a function that opens a namespace of one and the same empty place."""
    if request.param == "folder":
        return lambda namespace: open_object_store(str(tmp_path / "files"), namespace)
    s3 = request.getfixturevalue("s3")
    return lambda namespace: open_object_store(s3.url(f"{tmp_path.name}/files"), namespace, s3.access())


@pytest.fixture
def place(opened):
    return opened(Namespace.OUTPUTS)
