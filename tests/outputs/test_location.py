"""One setting, a folder or a bucket."""

from pathlib import Path

import pytest

from hidream.errors import ConfigurationError
from hidream.outputs.bucket import Bucket
from hidream.outputs.folder import Folder
from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import Namespace


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/srv/hidream", "/srv/hidream/outputs"),
        ("some where/else", "some where/else/outputs"),
        ("file:///srv/hi%20dream", "/srv/hi dream/outputs"),
        ("file:/srv", "/srv/outputs"),
        ("file://localhost/srv", "/srv/outputs"),
        ("C:\\pictures", "C:\\pictures/outputs"),
    ],
)
def test_a_folder(url, path):
    place = open_object_store(url, Namespace.OUTPUTS)
    assert isinstance(place, Folder)
    assert place.path == Path(path)


@pytest.mark.parametrize("url", ["s3://pictures", "s3://pictures/", "s3://my.pictures-1/some/where/", "s3://abc/a_b.c"])
def test_a_bucket(url):
    assert isinstance(open_object_store(url, Namespace.UPLOADS), Bucket)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3://",
        "s3:///prefix",
        "s3://pictures/../other",
        "s3://pictures/a//b",
        "s3://pictures/a b",
        "s3://pictures/a?versionId=1",
        "s3://key:secret@pictures",
        "s3://pictures:9000",
        "gs://pictures",
        "https://pictures.s3.amazonaws.com",
        "file://host/srv",
        "file:srv",
        "s3:/pictures",
        "S3:pictures",
    ],
)
def test_what_is_neither(url):
    with pytest.raises(ConfigurationError, match=r"accepted: the path of a folder, .* s3://bucket/prefix"):
        open_object_store(url, Namespace.OUTPUTS)
