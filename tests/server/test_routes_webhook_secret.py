"""The webhook secret: read, rotated and retired, without a failure at any receiver."""

import hashlib
import hmac
import time

import pytest
from test_webhook_loop import LOCAL, deliver, leave, settled, submit

from hidream import webhooks
from hidream.errors import InvalidSignature
from hidream.store.keys import Scope
from webhooks.receiver import Receiver, says

SECRET = "/api/v3/webhook/secret"


async def test_each_key_has_a_secret_of_its_own_that_stays(api):
    first, again = [(await api.get("/api/v3/webhook/secret")).json()["data"]["secret"] for _ in range(2)]
    other = await api.client.get("/api/v3/webhook/secret", headers=await api.key())
    assert first == again != other.json()["data"]["secret"]
    assert first.startswith("whsec_")
    answer = await api.client.get("/api/v3/webhook/secret", headers=await api.key(Scope.SUBMIT))
    assert answer.status_code == 403


def as_documented(secret, received):
    """Verify as WaveSpeed's page and errogaht/wavespeed-ai-bundle do: what follows `v3,` is one signature, whole."""
    message = f"{received.headers['webhook-id']}.{received.headers['webhook-timestamp']}.".encode() + received.body
    expected = hmac.new(secret.removeprefix("whsec_").encode(), message, hashlib.sha256).hexdigest()
    version, *signatures = received.headers["webhook-signature"].split(",")
    return version == "v3" and signatures == [expected]


async def test_a_receiver_that_knows_of_no_rotation_goes_on_with_the_old_secret_until_it_ends(open_api):
    async with open_api(allowed=LOCAL) as api, Receiver(says(200)) as receiver:
        running = await deliver(api)

        async def told():
            data = await submit(api, receiver)
            await api.draw()
            await settled(api, data, "delivered")
            return receiver.received[-1]

        old = (await api.get(SECRET)).json()["data"]["secret"]
        rotated = (await api.post(f"{SECRET}/rotate", overlap_hours=1)).json()["data"]
        assert rotated == (await api.get(SECRET)).json()["data"]
        new = rotated["next_secret"]
        assert rotated["secret"] == old != new
        assert rotated["secret_until"] > time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        received = await told()
        assert as_documented(old, received)
        assert not as_documented(new, received)
        for secret in (old, new):
            assert webhooks.verify(received.headers, received.body, secret)
        assert (await api.post(f"{SECRET}/retire")).json()["data"] == {"secret": new}
        received = await told()
        assert as_documented(new, received)
        assert "webhook-signature-next" not in received.headers
        with pytest.raises(InvalidSignature):
            webhooks.verify(received.headers, received.body, old)
        await leave(api, running)


async def test_a_rotation_lasts_a_day_unless_it_is_said(api):
    old = (await api.get(SECRET)).json()["data"]["secret"]
    answer = await api.client.post(f"{SECRET}/rotate", headers=api.bearer)  # without a body
    assert answer.json()["data"]["secret"] == old
    again = await api.post(f"{SECRET}/rotate")
    assert (again.status_code, again.json()["message"][:43]) == (409, "the webhook secret is being rotated already")
    at_once = (await api.post(f"{SECRET}/rotate", overlap_hours=0, ovrlap=1)).json()["data"]
    assert at_once["secret"] not in (old, answer.json()["data"]["next_secret"])
    assert "ovrlap is not a parameter of this route" in at_once["warnings"][0]
    assert (await api.get(SECRET)).json()["data"] == {"secret": at_once["secret"]}


@pytest.mark.parametrize("hours", [-1, 169, 0.5, "24", True, [1]])
async def test_an_overlap_that_is_none_is_refused(api, hours):
    answer = await api.post(f"{SECRET}/rotate", overlap_hours=hours)
    assert answer.status_code == 400
    assert f"overlap_hours is {hours!r}; accepted: a whole number from 0 to 168" in answer.json()["message"]
    raw = await api.raw(f"{SECRET}/rotate", b"24", "text/plain")
    assert raw.status_code == 400


async def test_a_key_that_may_not_read_its_secret_may_not_rotate_it(api):
    headers = await api.key(Scope.SUBMIT)
    for what in ("rotate", "retire"):
        assert (await api.client.post(f"{SECRET}/{what}", headers=headers)).status_code == 403
