"""The way out: which connections are opened, what is left of them, and what is said when there is none.

Most of it is seen through its two users, in `test_delivery` and `server/test_fetch`.
"""

import asyncio
import socket
import ssl

import httpcore
import pytest

from hidream.errors import InvalidInput
from hidream.outbound import network, targets
from hidream.outbound.network import CheckedNetwork, TlsContext, connection_error, header, read_body, send_request
from hidream.outbound.targets import Allowlist
from webhooks.receiver import Receiver, deaf_port, says, sends

pytestmark = pytest.mark.integration

HERE = Allowlist.read(["127.0.0.0/8"])


def resolves(*addresses):
    async def lookup(host, port):
        return list(addresses)

    return lookup


def checked(url, lookup=targets.resolve, allowed=HERE):
    return CheckedNetwork(targets.check(url, allowed), allowed, lookup)


def asked(receiver, tls=None, content=b"hello"):
    return send_request(checked(receiver.url()), tls or TlsContext(), 20.0, "POST", [("X-A", "b")], content)


async def test_what_is_asked_and_answered():
    answers = says(200, "X-Some: one", "x-some: two", body=b"hello")
    async with Receiver(answers) as receiver, asked(receiver) as answer:
        assert (answer.status, header(answer, "x-some"), header(answer, "x-other")) == (200, "one", "")
        assert await read_body(answer, 100) == b"hello"
    (received,) = receiver.received
    assert (received.line, received.body) == ("POST /hook HTTP/1.1", b"hello")
    assert received.headers["x-a"] == "b"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["connection"] == "close"


async def test_of_a_long_answer_just_more_than_enough_is_read():
    endless = sends(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000)
    async with Receiver(endless) as receiver, asked(receiver) as answer:
        assert 5000 < len(await read_body(answer, 5000)) < 5_000_000  # what one reading of the socket may bring


async def test_a_connection_to_another_host_is_our_own_mistake():
    with pytest.raises(AssertionError, match="for one target"):
        await checked("http://127.0.0.1:1/").connect_tcp("127.0.0.2", 1)


async def test_a_network_opens_one_connection_and_closes_it():
    gone = asyncio.Event()

    async def wait(reader, writer):
        await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(wait, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        one = checked(f"http://some.example:{port}/", resolves("127.0.0.1"))
        await one.aclose()  # nothing is open yet
        await one.connect_tcp("some.example", port, 1.0)
        with pytest.raises(AssertionError, match="one connection per target"):
            await one.connect_tcp("some.example", port, 1.0)
        await one.aclose()
        await asyncio.wait_for(gone.wait(), 20)


async def test_an_inner_address_among_those_of_a_name_is_refused():
    one = checked("http://some.example/", resolves("93.184.215.14", "10.0.0.1"))
    with pytest.raises(InvalidInput, match="not public"):
        await one.connect_tcp("some.example", 80, 1.0)


async def _failed(url, lookup=targets.resolve, within_s=20.0):
    one = checked(url, lookup)
    with pytest.raises((httpcore.ConnectError, httpcore.ConnectTimeout)) as raised:
        await one.connect_tcp(one.target.host, one.target.port, within_s)
    return connection_error(raised.value, within_s)


async def test_why_there_is_no_connection_is_said_without_addresses():
    async def unknown(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def silent(host, port):
        await asyncio.Event().wait()

    with deaf_port() as port:
        assert await _failed(f"http://127.0.0.1:{port}/") == "no connection: Connection refused"
    said = await _failed("http://some.example/", unknown)
    assert said == "the host name could not be resolved: Name or service not known"
    assert await _failed("http://some.example/", silent, 0.1) == "no connection within 0.1 s"


@pytest.mark.parametrize("error", [httpcore.ReadError(), httpcore.RemoteProtocolError("x"), ValueError("10.0.0.1")])
def test_what_went_wrong_on_a_connection_is_for_others_to_say(error):
    assert connection_error(error, 1.0) == ""


def _count(monkeypatch):
    made = []
    real = httpcore.default_ssl_context
    monkeypatch.setattr(network.httpcore, "default_ssl_context", lambda: made.append(real()) or made[-1])
    return made


async def test_authorities_are_read_once_and_when_they_are_needed(monkeypatch):
    made = _count(monkeypatch)

    trust = TlsContext()
    async with Receiver(says(200)) as receiver, asked(receiver, trust):
        assert made == []
    found = [await trust.context(), *await asyncio.gather(*(trust.context() for _ in range(20)))]
    assert len(made) == 1
    assert all(context is made[0] for context in found)
    assert made[0].verify_mode is ssl.CERT_REQUIRED
    assert made[0].check_hostname


async def test_many_who_need_authorities_at_the_same_time_share_one_reading(monkeypatch):
    made = _count(monkeypatch)

    trust = TlsContext()
    assert len(set(map(id, await asyncio.gather(*(trust.context() for _ in range(20)))))) == len(made) == 1


async def test_a_context_that_is_given_is_used_as_it_is(monkeypatch):
    made, context = _count(monkeypatch), ssl.create_default_context()
    assert await TlsContext(context).context() is context
    assert made == []
