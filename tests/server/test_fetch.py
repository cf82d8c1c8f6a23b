"""Fetching through the checked network: pinned addresses, redirects, TLS, and the reason if a server is unreachable.

What the answers of a server lead to is in `test_images`.
"""

import asyncio
import gc
import socket
import ssl

import pytest
import trustme
from fetching import fetched

from hidream.errors import InvalidInput
from hidream.outbound import network
from hidream.outbound.network import TlsContext
from hidream.outbound.targets import Allowlist
from hidream.server.background.webhook_loop import WebhookLoop
from hidream.server.fetch import Rules
from hidream.store import keys, outbox
from hidream.store.outbox import DeliveryState
from webhooks.receiver import Receiver, deaf_port, says, unheard

pytestmark = pytest.mark.integration

HERE = Allowlist.read(["127.0.0.0/8"])
MAX_BYTES = 4096


def resolves(**hosts):
    """A resolver that keeps what it was asked; each host has one list of addresses for each time, the last stays."""
    asked = []

    async def resolve(host, port):
        asked.append(host)
        answers = hosts[host.partition(".")[0]]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    resolve.asked = asked
    return resolve


async def refusal(url, **rules):
    with pytest.raises(InvalidInput) as raised:
        await fetched("image", url, Rules(**{"allowed": HERE, "max_bytes": MAX_BYTES} | rules))
    return raised.value.message


async def test_the_connection_goes_to_the_address_that_was_checked():
    """The name moves right after it was checked: to an address that would be refused, where another one listens."""

    allowed = Allowlist.read(["127.0.0.1"])
    resolve = resolves(images=[["127.0.0.1"], ["127.0.0.2"]])
    async with (
        Receiver(says(200, body=b"good")) as good,
        Receiver(says(200, body=b"bad"), "127.0.0.2", port=good.port) as bad,
    ):
        url = f"http://images.example:{good.port}/a.png"
        assert await fetched("image", url, Rules(allowed, MAX_BYTES, resolve=resolve)) == b"good"
        assert resolve.asked == ["images.example"]
        message = await refusal(url, allowed=allowed, resolve=resolve)
        assert message.startswith("image leads to an address that is not public")
        assert (good.connections, bad.connections) == (1, 0)


async def test_where_a_redirect_leads_is_resolved_and_checked_anew():
    allowed = Allowlist.read(["127.0.0.1"])
    resolve = resolves(first=[["127.0.0.1"]], second=[["127.0.0.2"]])
    async with (
        Receiver(says(200, body=b"")) as first,
        Receiver(says(200, body=b"inner"), "127.0.0.2", port=first.port) as second,
    ):
        first.behaviour = says(302, f"Location: http://second.example:{first.port}/")
        url = f"http://first.example:{first.port}/"
        message = await refusal(url, allowed=allowed, resolve=resolve)
        assert message.startswith("image leads to an address that is not public")
        assert resolve.asked == ["first.example", "second.example"]
        assert (first.connections, second.connections) == (1, 0)


async def test_an_allowed_host_is_asked_wherever_it_is():
    async with Receiver(says(200, body=b"image")) as site:
        rules = Rules(Allowlist.read(["images.internal"]), MAX_BYTES, resolve=resolves(images=[["127.0.0.1"]]))
        assert await fetched("image", f"http://images.internal:{site.port}/", rules) == b"image"


async def test_of_many_addresses_some_of_each_family_are_tried():
    six = [f"::ffff:127.0.0.{n}" for n in range(10, 15)]
    four = [f"127.0.0.{n}" for n in range(20, 25)]

    async with Receiver(says(200, body=b"image"), "127.0.0.21") as site:
        rules = Rules(HERE, MAX_BYTES, resolve=resolves(images=[[*six, *four]]))
        assert await fetched("image", f"http://images.example:{site.port}/", rules) == b"image"


async def test_why_a_server_is_not_reached_is_said_and_names_no_address():
    async def silent(host, port):
        await asyncio.Event().wait()

    async def unknown(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with deaf_port() as port:
        for resolve, connect_s, reason in (
            (resolves(images=[["127.0.0.1"]]), 20, "no connection: Connection refused"),
            (unknown, 20, "the host name could not be resolved: Name or service not known"),
            (silent, 0.2, "no connection within 0.2 s"),
        ):
            message = await refusal(f"http://images.example:{port}/", resolve=resolve, connect_s=connect_s)
            said = f"its server cannot be reached ({reason}); accepted: a URL that answers with a file"
            assert message == f"image could not be fetched: {said}"


@pytest.mark.parametrize(
    ("connect_s", "total_s", "message"), [(0.2, 5.0, "no connection within 0.2 s"), (5.0, 0.2, "within 0.2 s")]
)
async def test_a_tls_greeting_that_is_not_answered_leaves_nothing_open(connect_s, total_s, message):
    tls = TlsContext(ssl.create_default_context())  # so that reading the authorities takes none of the time
    async with unheard() as (port, closed):
        said = await refusal(f"https://127.0.0.1:{port}/", connect_s=connect_s, total_s=total_s, tls=tls)
        await asyncio.wait_for(closed.wait(), 20)
        assert message in said
    gc.collect()  # a transport that was left open would warn, and warnings are errors


def listening(authority, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_verifies_the_name_although_the_address_is_pinned():
    authority = trustme.CA()
    rules = Rules(HERE, MAX_BYTES, resolve=resolves(images=[["127.0.0.1"]]), tls=TlsContext(trusting(authority)))

    async def scenario(name):
        async with Receiver(says(200, body=b"image"), tls=listening(authority, name)) as site:
            return await fetched("image", f"https://images.example:{site.port}/", rules)

    assert await scenario("images.example") == b"image"
    with pytest.raises(InvalidInput, match=r"cannot be reached \(the certificate was not accepted: Hostname mismatch"):
        await scenario("other.example")


async def test_a_process_reads_its_authorities_once_for_images_and_webhooks(make_image, monkeypatch, open_api):
    authority, readings = trustme.CA(), []

    def reading():
        readings.append(trusting(authority))
        return readings[-1]

    monkeypatch.setattr(network.httpcore, "default_ssl_context", reading)

    async def told(api, data):
        key = (await keys.list_keys(api.database))[0]
        async with asyncio.timeout(20):
            while (await outbox.list_deliveries(api.database, data["id"], key.id))[
                0
            ].state is not DeliveryState.DELIVERED:
                await asyncio.sleep(0.01)

    async with open_api(allowed="127.0.0.0/8") as api:
        running = asyncio.create_task(WebhookLoop(api.service).run())
        tls = listening(authority, "127.0.0.1")
        async with Receiver(says(200, body=make_image()), tls=tls) as site, Receiver(says(200), tls=tls) as receiver:
            assert readings == []
            image = f"https://127.0.0.1:{site.port}/a.png"
            answer = await api.submit(query=f"?webhook={receiver.url()}", prompt="a", image=image)
            assert answer.status_code == 200, answer.text
            await api.draw()
            await told(api, answer.json()["data"])
        api.database.changes.stop()
        await running
        assert len(readings) == 1
