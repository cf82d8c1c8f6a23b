"""Responses: the URL that a client sees, behind any proxy."""

import pytest
from starlette.requests import Request

from hidream.errors import InvalidInput
from hidream.server.responses import base_url


def request(**headers):
    scope = {
        "type": "http",
        "scheme": "http",
        "server": ("10.0.0.1", 8000),
        "path": "/api/v3/x",
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    return Request(scope)


@pytest.mark.parametrize(
    ("headers", "public_url", "expected"),
    [
        ({"host": "draw.example:81"}, "", "http://draw.example:81"),
        ({}, "", "http://10.0.0.1:8000"),
        ({"host": "inner", "x_forwarded_proto": "https"}, "", "https://inner"),
        (
            {"host": "inner", "x_forwarded_host": "outer, middle", "x_forwarded_proto": "https, http"},
            "",
            "https://outer",
        ),
        ({"host": "inner", "x_forwarded_prefix": "/draw/"}, "", "http://inner/draw"),
        ({"host": "inner", "x_forwarded_host": "outer"}, "https://public.example/a/", "https://public.example/a"),
    ],
)
def test_the_base_of_all_urls(headers, public_url, expected):
    assert base_url(request(**headers), public_url) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "["},
        {"host": "a b"},
        {"host": "x" * 300},
        {"host": "inner", "x_forwarded_proto": "javascript"},
        {"host": "inner", "x_forwarded_prefix": "/" + "x" * 300},
        {"host": "inner", "x_forwarded_host": "a/b?c"},
        {"host": 'a"><script>'},
    ],
)
def test_headers_that_make_no_url_are_refused(headers):
    with pytest.raises(InvalidInput, match="accepted: what makes a URL"):
        base_url(request(**headers), "")
