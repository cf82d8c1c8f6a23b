"""docs/WEBHOOKS.md: its example verifies, its receiver works with real webhooks, its numbers are the code's."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from receiver import Receiver, says

from hidream.outbound import targets
from hidream.webhooks import delivery, signature, verify

PAGE = (Path(__file__).parents[2] / "docs" / "WEBHOOKS.md").read_text()
EXAMPLE = dict(re.findall(r"^\| `?([\w-]+)`? \| `(.+)` \|$", PAGE, re.MULTILINE))
HEADERS = {name: value for name, value in EXAMPLE.items() if name.startswith("webhook-")}
BODY = EXAMPLE["body"].encode()


@pytest.fixture
def genuine():
    (code,) = re.findall(r"^```python\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    names = {}
    exec(code, names)
    return names["genuine"]


def test_the_example_is_what_our_code_computes():
    stamp = int(EXAMPLE["webhook-timestamp"])
    assert signature.headers(EXAMPLE["secret"], EXAMPLE["webhook-id"], stamp, BODY) == HEADERS
    assert verify(HEADERS, BODY, EXAMPLE["secret"], stamp)["status"] == "completed"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
@pytest.mark.integration
def test_the_example_is_what_openssl_computes():
    (command,) = re.findall(r"^```\n(printf .+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert said.split()[-1] == EXAMPLE["webhook-signature"].removeprefix("v3,")


def test_the_example_is_genuine_for_300_seconds(genuine, monkeypatch):
    stamp = int(EXAMPLE["webhook-timestamp"])
    for now_s, expected in ((stamp, True), (stamp + 300, True), (stamp + 301, False), (stamp - 301, False)):
        monkeypatch.setattr(time, "time", lambda now_s=now_s: now_s)
        assert genuine(EXAMPLE["secret"], HEADERS, BODY) is expected
        assert genuine(EXAMPLE["secret"], HEADERS, BODY + b" ") is False
        assert genuine(signature.new_secret(), HEADERS, BODY) is False


@pytest.mark.integration
async def test_what_is_delivered_is_genuine(genuine):
    secret = signature.new_secret()

    async with Receiver(says(200)) as receiver:
        courier = delivery.WebhookClient(allowed=targets.Allowlist.read(["127.0.0.1"]))
        sent = delivery.WebhookMessage("6488c275", receiver.url(), secret, "ein Füchslein".encode())
        assert (await delivery.deliver(courier, sent)).delivered
        received = receiver.received[0]
    assert genuine(secret, received.headers, received.body)
    assert not genuine(secret, received.headers | {"webhook-id": "6488c276"}, received.body)


def test_the_numbers_are_those_of_the_code():
    (row,) = re.findall(r"^\| waits \| (.+) \|$", PAGE, re.MULTILINE)
    units = {"s": 1, "min": 60, "h": 3600}
    waits = [cell.split() for cell in row.split(" | ")]
    assert [int(number) * units[unit] for number, unit in waits] == list(delivery.DELAYS_S)
    assert f"up to {delivery.JITTER:.0%}".replace("%", " %") in PAGE
    assert delivery.RETRY_AFTER_MAX_S == 3600
    assert "an\n  hour at most" in PAGE
    assert f"within {delivery.TOTAL_S:g} seconds in all, or no connection within {delivery.CONNECT_S:g};" in PAGE
    assert f"up to {targets.URL_MAX_CHARS} ASCII characters" in PAGE
