"""Delivery attempts on real sockets: receivers that answer, fail, hang, trickle, lie and redirect."""

import asyncio
import gc
import json
import os
import socket
import ssl
import time
from dataclasses import replace

import httpcore
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from receiver import Receiver, closes, deaf_port, hangs, says, sends, unheard

from hidream.outbound.network import TlsContext
from hidream.outbound.targets import Allowlist
from hidream.webhooks import delivery, signature
from hidream.webhooks.delivery import (
    ATTEMPTS_MAX,
    DELAYS_S,
    Attempt,
    WebhookClient,
    WebhookMessage,
    backoff,
    deliver,
    retry_delay_s,
)
from hidream.webhooks.received import check

pytestmark = pytest.mark.integration

SECRET = signature.new_secret()
BODY = json.dumps({"id": "6488c275", "prompt": "ein Fuchs – 🦊"}, ensure_ascii=False).encode()
HERE = Allowlist.read(["127.0.0.0/8", "::1"])


def courier(**changes):
    """A courier to this machine; a test that waits until it gives up says how soon that is."""
    return replace(WebhookClient(allowed=HERE, connect_s=20.0, total_s=20.0), **changes)


def resolves(*answers):
    """A resolver with another answer each time; the last stays."""
    left = [[answer] if isinstance(answer, str) else answer for answer in answers]
    asked = []

    async def resolve(host, port):
        asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    resolve.asked = asked
    return resolve


def attempt(receiver, host=None, body=BODY, path="/hook", **changes):
    return deliver(courier(**changes), WebhookMessage("6488c275", receiver.url(host, path), SECRET, body))


async def attempted(behaviour, *, host=None, body=BODY, **changes):
    """One attempt at a receiver that behaves so: the attempt, and the receiver."""

    async with Receiver(behaviour) as receiver:
        return await attempt(receiver, host, body, **changes), receiver


async def test_what_arrives_are_the_bytes_that_were_signed():
    made, receiver = await attempted(says(200, body=b"thanks"), path="/hook?name=a%20b", now_s=lambda: 1_763_856_000.9)
    assert made == Attempt(200, "", made.duration_ms)
    assert made.delivered
    (received,) = receiver.received
    assert received.line == "POST /hook?name=a%20b HTTP/1.1"
    assert received.body == BODY
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["user-agent"].startswith("hidream/")
    assert received.headers["connection"] == "close"
    assert received.headers["webhook-id"] == "6488c275"
    assert received.headers["webhook-timestamp"] == "1763856000"
    check(received.headers, received.body, SECRET, 1_763_856_000)


@pytest.mark.parametrize("status", [201, 202, 204, 299])
async def test_every_2xx_is_delivered(status):
    made, _ = await attempted(says(status))
    assert (made.status, made.error) == (status, "")


@pytest.mark.parametrize("status", [400, 404, 410, 500, 503])
async def test_any_other_answer_is_not(status):
    made, _ = await attempted(says(status, body=b"secret of the receiver"))
    assert (made.status, made.error) == (status, f"the receiver answered {status}; accepted: 2xx")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_an_inner_address_is_not_followed(status):
    async with Receiver(says(200)) as inner, Receiver(says(status, f"Location: {inner.url()}")) as outer:
        made = await attempt(outer)
        assert (outer.connections, inner.connections) == (1, 0)
    assert made.status == status
    assert "redirects are not followed" in made.error


@pytest.mark.parametrize(
    "behaviour",
    [
        hangs,
        sends(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", every_s=0.05),
        sends(b"HTTP/1.1 100 Continue\r\n\r\n", every_s=0.05),
        sends(b"H", b"", every_s=0.05),
    ],
    ids=["silent", "a head that never ends", "continue for ever", "half a line"],
)
async def test_a_receiver_that_does_not_come_to_an_answer_is_cut(behaviour):
    made, receiver = await attempted(behaviour, total_s=0.4)
    assert (made.status, made.error) == (None, "no answer within 0.4 s")
    assert 400 <= made.duration_ms < 2000
    assert receiver.received


async def test_a_receiver_that_takes_it_and_trickles_has_it():
    made, _ = await attempted(sends(b"HTTP/1.1 200 OK\r\n\r\n", b"x", every_s=0.05), total_s=0.4)
    assert (made.status, made.error) == (200, "")
    assert made.duration_ms < 2000


async def test_a_receiver_that_fails_and_trickles_has_failed():
    made, _ = await attempted(sends(b"HTTP/1.1 500 No\r\n\r\n", b"x", every_s=0.05), total_s=0.4)
    assert (made.status, made.delivered) == (500, False)


async def test_of_an_endless_answer_a_little_is_read():
    sent = 0

    async def endless(writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while sent < 1_000_000_000:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    made, _ = await attempted(endless, total_s=20.0)
    assert made.delivered
    assert sent < 50_000_000  # what the sockets' buffers hold
    assert made.duration_ms < 10_000


async def test_of_an_endless_head_a_little_is_read():
    made, _ = await attempted(sends(b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 10_000 + b"\r\n"), total_s=20.0)
    assert (made.status, made.error) == (None, "no answer, or none that is HTTP")


async def test_a_compressed_answer_is_not_unpacked():
    made, receiver = await attempted(says(200, "Content-Encoding: gzip", body=b"no gzip at all"))
    assert made.delivered
    assert "accept-encoding" not in receiver.received[0].headers


@pytest.mark.parametrize("behaviour", [closes, sends(b"SSH-2.0-OpenSSH_9.2\r\n")], ids=["closes", "other protocol"])
async def test_what_is_no_http_is_no_answer(behaviour):
    made, _ = await attempted(behaviour)
    assert (made.status, made.error) == (None, "no answer, or none that is HTTP")


async def test_a_receiver_that_breaks_off_is_said():
    async def breaks(writer):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    made, _ = await attempted(breaks)
    assert (made.status, made.error) == (None, "the connection broke before the answer")


async def test_where_nobody_listens_the_error_says_so_and_names_no_address():
    with deaf_port() as port:
        sent = WebhookMessage("1", f"http://hooks.example:{port}/", SECRET, BODY)
        made = await deliver(courier(resolve=resolves("127.0.0.1")), sent)
    assert (made.status, made.error) == (None, "no connection: Connection refused")


async def test_a_host_that_does_not_resolve_is_said():
    async def unknown(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    made, receiver = await attempted(says(200), host="hooks.example", resolve=unknown)
    assert made.error == "the host name could not be resolved: Name or service not known"
    assert receiver.connections == 0


async def test_a_resolver_that_hangs_is_given_up():
    async def silent(host, port):
        await asyncio.Event().wait()

    made, _ = await attempted(says(200), host="hooks.example", resolve=silent, connect_s=0.2)
    assert made.error == "no connection within 0.2 s"


async def test_a_name_that_leads_inside_by_now_is_refused():
    made, receiver = await attempted(
        says(200), host="hooks.example", allowed=Allowlist(), resolve=resolves("127.0.0.1")
    )
    assert made.status is None
    assert made.error.startswith("webhook leads to an address that is not public; accepted")
    assert receiver.connections == 0


async def test_a_name_that_leads_inside_among_others_is_refused():
    resolve = resolves(["127.0.0.1", "10.0.0.1"])
    made, receiver = await attempted(says(200), host="hooks.example", resolve=resolve)
    assert "not public" in made.error
    assert receiver.connections == 0


async def test_what_was_allowed_when_it_was_submitted_is_checked_again():
    made, receiver = await attempted(says(200), allowed=Allowlist())
    assert made.error.startswith("webhook is 'http://127.0.0.1:")
    assert receiver.connections == 0


async def test_the_connection_goes_to_the_address_that_was_checked():
    """The name moves right after it was checked: to an address that would be refused, where another one listens."""

    allowed = Allowlist.read(["127.0.0.1"])
    resolve = resolves("127.0.0.1", "127.0.0.2")
    async with Receiver(says(200)) as good, Receiver(says(200), "127.0.0.2", port=good.port) as bad:
        first = await attempt(good, "hooks.example", allowed=allowed, resolve=resolve)
        assert (first.status, good.connections, bad.connections) == (200, 1, 0)
        assert resolve.asked == ["hooks.example"]
        assert good.received[0].headers["host"] == f"hooks.example:{good.port}"
        second = await attempt(good, "hooks.example", allowed=allowed, resolve=resolve)
        assert "not public" in second.error
        assert (good.connections, bad.connections) == (1, 0)


async def test_the_next_address_is_tried_when_one_cannot_be_reached():
    async with Receiver(says(200), "127.0.0.3") as receiver:
        resolve = resolves(["127.0.0.2", "127.0.0.3"])
        assert (await attempt(receiver, "hooks.example", resolve=resolve)).delivered


async def test_an_address_that_swallows_everything_takes_its_share_of_the_time_only():
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full:
        port = full.getsockname()[1]
        held = [socket.socket() for _ in range(4)]  # more than are kept waiting: the next gets no answer at all
        for one in held:
            one.setblocking(False)
            one.connect_ex(("127.0.0.2", port))
        async with Receiver(says(200), "127.0.0.3", port=port) as receiver:
            resolve = resolves(["127.0.0.2", "127.0.0.3"])
            made = await attempt(receiver, "hooks.example", resolve=resolve, connect_s=2.0, total_s=20.0)
        for one in held:
            one.close()
    assert made.delivered
    assert 900 <= made.duration_ms < 1900


async def test_of_many_addresses_some_of_each_family_are_tried():
    six = [f"::ffff:127.0.0.{n}" for n in range(10, 15)]
    four = [f"127.0.0.{n}" for n in range(20, 25)]

    async def scenario(address):
        async with Receiver(says(200), address) as receiver:
            return await attempt(receiver, "hooks.example", resolve=resolves([*six, *four]))

    assert (await scenario("127.0.0.21")).delivered
    assert (await scenario("127.0.0.22")).error == "no connection: Connection refused"


async def test_an_ipv6_address_is_called():
    try:
        receiver = await Receiver(says(200), "::1").__aenter__()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    made = await attempt(receiver, "[::1]")
    await receiver.__aexit__()
    assert made.delivered
    assert receiver.received[0].headers["host"] == f"[::1]:{receiver.port}"


async def test_an_allowed_host_is_called_wherever_it_is():
    made, _ = await attempted(
        says(200), host="hooks.internal", allowed=Allowlist.read(["hooks.internal"]), resolve=resolves("127.0.0.1")
    )
    assert made.delivered


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    async with Receiver(says(200)) as receiver, Receiver(says(200)) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setitem(os.environ, name, proxy.url(path=""))
        made = await attempt(receiver)
        assert (made.status, receiver.connections, proxy.connections) == (200, 1, 0)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def listening(authority, *names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    context.asked_for = []
    context.sni_callback = lambda _, name, context: context.asked_for.append(name)
    return context


def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def attempted_by_tls(server, client, host="hooks.example"):
    async with Receiver(says(200), tls=server) as receiver:
        made = await attempt(receiver, host, tls=TlsContext(client), resolve=resolves("127.0.0.1"))
        return made, receiver


async def test_tls_verifies_the_name_although_the_address_is_pinned(authority):
    server = listening(authority, "hooks.example")
    made, receiver = await attempted_by_tls(server, trusting(authority))
    assert (made.status, made.error) == (200, "")
    assert server.asked_for == ["hooks.example"]
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"


@pytest.mark.parametrize("name", ["other.example", "127.0.0.1"])
async def test_a_certificate_for_another_name_is_refused_before_anything_is_sent(authority, name):
    made, receiver = await attempted_by_tls(listening(authority, name), trusting(authority))
    assert made.status is None
    assert made.error.startswith("the certificate was not accepted: Hostname mismatch")
    assert receiver.received == []


async def test_a_certificate_of_an_unknown_authority_is_refused(authority):
    server = listening(authority, "hooks.example")
    made, receiver = await attempted_by_tls(server, httpcore.default_ssl_context())
    assert made.error.startswith("the certificate was not accepted: ")
    assert "issuer" in made.error
    assert receiver.received == []


async def test_an_address_with_a_certificate_of_its_own_is_called(authority):
    made, _ = await attempted_by_tls(listening(authority, "127.0.0.1"), trusting(authority), host="127.0.0.1")
    assert made.delivered


async def test_https_where_there_is_no_tls_is_said():
    async def plain(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert (
            await deliver(courier(), WebhookMessage("1", url, SECRET, BODY))
        ).error == "TLS failed: WRONG_VERSION_NUMBER"


@pytest.mark.parametrize(("connect_s", "total_s"), [(0.2, 5.0), (5.0, 0.2)])
async def test_a_tls_greeting_that_is_not_answered_leaves_nothing_open(connect_s, total_s):
    async with unheard() as (port, closed):
        one = courier(connect_s=connect_s, total_s=total_s, tls=TlsContext(ssl.create_default_context()))
        made = await deliver(one, WebhookMessage("1", f"https://127.0.0.1:{port}/", SECRET, BODY))
        await asyncio.wait_for(closed.wait(), 20)
        assert made.error in ("no connection within 0.2 s", "no answer within 0.2 s")
    gc.collect()  # a transport that was left open would warn, and warnings are errors


async def test_whoever_shuts_down_can_cancel_an_attempt():
    async with Receiver(hangs) as receiver:
        task = asyncio.create_task(attempt(receiver, total_s=30.0))
        while not receiver.received:
            await asyncio.sleep(0.01)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 5


async def test_those_that_hang_do_not_hold_up_others():
    async with Receiver(hangs) as hanging, Receiver(says(200)) as receiver:
        one = courier()
        stuck = [
            asyncio.create_task(deliver(one, WebhookMessage(str(n), hanging.url(), SECRET, BODY))) for n in range(50)
        ]
        made = await deliver(one, WebhookMessage("a", receiver.url(), SECRET, BODY))
        assert not any(task.done() for task in stuck)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        assert made.delivered


async def test_a_library_that_fails_is_an_attempt_that_failed():
    made, receiver = await attempted(says(200), now_s=lambda: float("inf"))
    assert (made.status, made.error) == (None, "the attempt failed: OverflowError")
    assert receiver.connections == 0


@pytest.mark.parametrize(
    ("status", "value", "expected_s"),
    [
        (503, "120", 120),
        (429, " 7 ", 7),
        (503, "86400", delivery.RETRY_AFTER_MAX_S),
        (503, "Sat, 22 Nov 2025 23:05:00 GMT", 3000),
        (503, "Sat, 22 Nov 2025 20:00:00 GMT", 0),
        (503, "Sat, 22 Nov 2999 20:00:00 GMT", delivery.RETRY_AFTER_MAX_S),
        (503, "soon", 0),
        (503, "-5", 0),
        (503, "1.5", 0),
        (503, "²", 0),
        (503, "9" * 400, 0),
        (500, "120", 0),
        (200, "120", 0),
    ],
)
async def test_busy_receivers_say_when_to_come_back(status, value, expected_s):
    made, _ = await attempted(
        says(status, f"Retry-After: {value}"), now_s=lambda: 1_763_849_700.0
    )  # 22:15:00 of that day
    assert made.retry_after_s == expected_s


def test_the_first_attempt_is_at_once_and_the_ninth_within_the_day():
    assert backoff(1, "any") == 0
    assert sum(backoff(n, "any") for n in range(1, 10)) < 12 * 3600
    assert ATTEMPTS_MAX >= 10
    assert 20 * 3600 <= sum(DELAYS_S) <= 24 * 3600


@given(st.text(), st.integers(1, 100))
def test_a_delay_is_longer_by_a_share_that_the_seed_decides(seed, attempt):
    plain_s = DELAYS_S[min(attempt, ATTEMPTS_MAX) - 1]
    assert plain_s <= backoff(attempt, seed) <= plain_s * 1.2
    assert backoff(attempt, seed) == backoff(attempt, seed)


def test_those_that_failed_together_do_not_come_back_together():
    assert len({backoff(2, f"{n:032x}") for n in range(1000)}) > 990
    assert backoff(6, "a") / DELAYS_S[5] != backoff(7, "a") / DELAYS_S[6]


def test_retry_after_puts_the_next_attempt_off_and_never_brings_it_forward():
    busy = Attempt(503, "busy", 10, retry_after_s=60.0)
    assert retry_delay_s(1, "seed", busy) == 60
    assert retry_delay_s(5, "seed", busy) == backoff(6, "seed") > 60
    assert retry_delay_s(1, "seed", replace(busy, retry_after_s=0.0)) == backoff(2, "seed")
