"""Which URLs and addresses may be called, and which never, however they are written."""

import asyncio
import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hidream.errors import ConfigurationError, InvalidInput
from hidream.outbound import targets
from hidream.outbound.targets import Allowlist, Target

NOTHING = Allowlist()

INNER_HOSTS = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.255.255.254",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.31.255.255",
    "192.168.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.51.100.255",
    "203.0.113.7",
    "198.19.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "localhost",
    "LocalHost.",
    "a.localhost",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a00:1]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::8.8.8.8]",
    "[2002:7f00:1::]",
    "[2002:808:808::]",
    "[2001:0:808:808::1]",
    "[2001:db8::1]",
    "[3fff:fff::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
]


@pytest.mark.parametrize("host", INNER_HOSTS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_inner_host_is_refused_however_it_is_written(scheme, host):
    with pytest.raises(InvalidInput) as error:
        targets.check(f"{scheme}://{host}:8080/hook", NOTHING)
    assert error.value.message.startswith(f"webhook is '{scheme}://{host}:8080/hook'; accepted: an http or https URL")
    assert "HIDREAM_WEBHOOKS_ALLOWED" in error.value.message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/hook",
        "//example.com/hook",
        "http:example.com",
        "http:///hook",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com:70/_x",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:８０/",
        "http://example.com:/",
        "http://exa mple.com/",
        "http://example.com/a b",
        "http://example.com/\r\nX-Key: 1",
        "http://example.com/\n",
        "\thttp://example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://example..com/",
        "http://.example.com/",
        "http://example.com../",
        "http://-example.com/",
        f"http://{'a' * 64}.com/",
        f"http://{'a.' * 127}com/",
        "http://exämple.com/",
        "http://①②⑦.⓪.⓪.①/",
        "http://example.com/ä",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://[127.0.0.1]/",
        "http://[2606:4700::1::2]/",
        "http://8.8.8/",
        "http://8.8.8.8.8/",
        "http://example.1/",
    ],
)
def test_what_is_no_clear_url_is_refused(url):
    with pytest.raises(InvalidInput, match="accepted"):
        targets.check(url, NOTHING)


@pytest.mark.parametrize(
    "url", ["https://me:hunter2@example.com/", "https://hunter2@example.com", "http://example.com:hunter2@127.0.0.1/"]
)
def test_credentials_are_refused_and_not_repeated(url):
    with pytest.raises(InvalidInput, match="user name or a password") as error:
        targets.check(url, NOTHING)
    assert "hunter2" not in error.value.message


def test_a_long_url_is_refused_by_its_length():
    url = "https://example.com/" + "a" * (2048 - len("https://example.com/"))
    assert targets.check(url, NOTHING).host == "example.com"
    with pytest.raises(InvalidInput, match="webhook has 2049 characters; accepted"):
        targets.check(url + "a", NOTHING)


@pytest.mark.parametrize(
    ("url", "target", "netloc"),
    [
        ("https://example.com", Target("https", "example.com", 443, "/"), "example.com"),
        ("HTTP://Example.COM./Hook", Target("http", "example.com", 80, "/Hook"), "example.com"),
        ("http://example.com:80/", Target("http", "example.com", 80, "/"), "example.com"),
        ("https://example.com:8443?a=b", Target("https", "example.com", 8443, "/?a=b"), "example.com:8443"),
        ("http://example.com:1", Target("http", "example.com", 1, "/"), "example.com:1"),
        ("http://example.com:65535", Target("http", "example.com", 65535, "/"), "example.com:65535"),
        ("https://a_b.example/x%20y?z=@#part", Target("https", "a_b.example", 443, "/x%20y?z=@"), "a_b.example"),
        ("http://8.8.8.8/", Target("http", "8.8.8.8", 80, "/"), "8.8.8.8"),
        ("http://[2606:4700:0::1111]:81/", Target("http", "2606:4700::1111", 81, "/"), "[2606:4700::1111]:81"),
        ("https://[2606:4700::1111]/", Target("https", "2606:4700::1111", 443, "/"), "[2606:4700::1111]"),
        ("http://[64:ff9b::808:808]/", Target("http", "64:ff9b::808:808", 80, "/"), "[64:ff9b::808:808]"),
        ("https://xn--exmple-cua.com/", Target("https", "xn--exmple-cua.com", 443, "/"), "xn--exmple-cua.com"),
    ],
)
def test_a_public_url_is_read(url, target, netloc):
    assert targets.check(url, NOTHING) == target
    assert target.netloc == netloc


@given(st.ip_addresses())
def test_what_is_permitted_is_what_python_calls_global_too(address):
    if targets.is_permitted(address, NOTHING) and targets._unwrapped(address) == address:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@given(st.ip_addresses(v=4))
def test_an_address_is_as_inner_as_the_one_that_it_wraps(address):
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        wrapped = IPv6Address(int(IPv6Address(prefix)) | int(address))
        assert targets.is_permitted(wrapped, NOTHING) == targets.is_permitted(address, NOTHING)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])
def test_public_addresses_are_permitted(address):
    assert targets.is_permitted(ip_address(address), NOTHING)


def test_the_operator_allows_networks_addresses_and_hosts():
    allowed = Allowlist.read(["10.1.0.0/16", " FD00:1::/32 ", "127.0.0.1", "Hooks.Internal.", "localhost"])
    for url in (
        "http://10.1.2.3/",
        "http://[fd00:1::5]/",
        "http://[::ffff:10.1.2.3]/",
        "http://127.0.0.1:8000/",
        "http://localhost/",
        "http://hooks.internal/",
    ):
        targets.check(url, allowed)
    for url in ("http://10.2.0.1/", "http://[fd00:2::5]/", "http://127.0.0.2/", "http://a.localhost/"):
        with pytest.raises(InvalidInput):
            targets.check(url, allowed)


def test_localhost_is_allowed_by_both_of_its_addresses():
    targets.check("http://localhost/", Allowlist.read(["127.0.0.0/8", "::1"]))
    with pytest.raises(InvalidInput):
        targets.check("http://localhost/", Allowlist.read(["127.0.0.0/8"]))


@pytest.mark.parametrize("entry", ["", "10.0.0.1/8", "10.0.0.0/33", "127.1", "http://hooks.internal", "a b", "*.com"])
def test_what_the_operator_cannot_mean_is_an_error(entry):
    with pytest.raises(ConfigurationError, match="accepted: a network such as") as error:
        Allowlist.read(["8.8.8.8", entry])
    assert repr(entry) in error.value.message


async def found(url, *answer, allowed=NOTHING):
    async def lookup(host, port):
        return list(answer)

    return await targets.addresses(targets.check(url, allowed), allowed, lookup)


async def test_a_host_is_refused_if_any_of_its_addresses_is_inner():
    url = "https://example.com/"
    assert await found(url, "8.8.8.8", "2606:4700::1") == [IPv4Address("8.8.8.8"), IPv6Address("2606:4700::1")]
    for inner in ("127.0.0.1", "::1", "fe80::1%lo", "::ffff:10.0.0.1", "169.254.169.254"):
        with pytest.raises(InvalidInput, match="webhook leads to an address that is not public") as error:
            await found(url, "8.8.8.8", inner)
        assert inner not in error.value.message


async def test_an_allowed_host_may_lead_anywhere_and_others_to_allowed_networks():
    assert await found("http://hooks.internal/", "10.1.2.3", allowed=Allowlist.read(["hooks.internal"]))
    assert await found("http://hooks.internal/", "10.1.2.3", allowed=Allowlist.read(["10.0.0.0/8"]))
    with pytest.raises(InvalidInput):
        await found("http://not.internal/", "10.1.2.3", allowed=Allowlist.read(["hooks.internal"]))


async def test_a_literal_address_is_checked_again_and_not_looked_up():
    assert await found("http://8.8.8.8/", "127.0.0.1") == [IPv4Address("8.8.8.8")]
    assert await found("http://[2606:4700::1]/", "127.0.0.1") == [IPv6Address("2606:4700::1")]
    with pytest.raises(InvalidInput):  # it was allowed when it was submitted
        await targets.addresses(Target("http", "10.1.2.3", 80, "/"), NOTHING, targets.resolve)


async def test_a_host_without_addresses_is_not_resolved():
    with pytest.raises(socket.gaierror, match="no address"):
        await found("https://example.com/")


async def test_the_systems_resolver_knows_localhost():
    assert {ip_address(text).is_loopback for text in await targets.resolve("localhost", 80)} == {True}


async def test_a_name_server_that_does_not_answer_holds_nobody_up(monkeypatch):
    release, asked = threading.Event(), threading.Barrier(65)
    real = socket.getaddrinfo

    def slow(host, *rest, **more):
        if host == "slow.example":
            asked.wait(20)
            release.wait(20)
        return real("localhost", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    waiting = [asyncio.create_task(targets.resolve("slow.example", 80)) for _ in range(64)]
    await asyncio.to_thread(asked.wait, 20)  # all 64 are being asked at once
    assert await asyncio.wait_for(targets.resolve("fast.example", 80), 20)
    for task in waiting[1:]:
        task.cancel()
    await asyncio.gather(*waiting[1:], return_exceptions=True)
    release.set()
    assert await asyncio.wait_for(waiting[0], 20)
