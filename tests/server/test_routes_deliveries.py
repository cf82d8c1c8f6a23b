"""Webhooks to be delivered: listed, and delivered again."""

from hidream.store import outbox
from hidream.store.keys import Scope
from hidream.store.outbox import DeliveryState


async def owed(api):
    """A task that has ended and owes a webhook: its id, and the delivery's."""
    id_ = (await api.submit(prompt="a", webhook="https://receiver.example/hook")).json()["data"]["id"]
    await api.draw()
    ((delivery),) = (await api.get(f"/api/v3/predictions/{id_}/webhooks")).json()["data"]
    return id_, delivery


async def test_deliveries_are_listed(api):
    id_, delivery = await owed(api)
    shown = {name: delivery[name] for name in ("url", "state", "attempts", "status_code", "error", "finished_at")}
    assert shown == {
        "url": "https://receiver.example/hook",
        "state": "waiting",
        "attempts": 0,
        "status_code": None,
        "error": "",
        "finished_at": None,
    }
    assert delivery["next_attempt_at"] == delivery["created_at"]

    (claimed,) = await outbox.claim(api.database, 1, 60)
    await outbox.record_attempt(api.database, claimed, DeliveryState.GIVEN_UP, 500, "the receiver answered 500")
    (after,) = (await api.get(f"/api/v2/predictions/{id_}/webhooks")).json()["data"]
    assert (after["state"], after["attempts"], after["status_code"]) == ("given_up", 1, 500)
    assert (after["error"], after["next_attempt_at"]) == ("the receiver answered 500", None)


async def test_a_delivery_is_replayed_under_its_id(api):
    id_, delivery = await owed(api)
    (claimed,) = await outbox.claim(api.database, 1, 60)
    await outbox.record_attempt(api.database, claimed, DeliveryState.DELIVERED, 200, "")
    answer = await api.post(f"/api/v3/predictions/{id_}/webhooks/{delivery['id']}/replay")
    assert answer.json()["data"] == {"id": delivery["id"], "state": "waiting"}
    (again,) = await outbox.claim(api.database, 1, 60)
    assert (again.id, again.attempts) == (delivery["id"], 1)


async def test_a_task_without_a_webhook_has_no_deliveries(api):
    id_ = (await api.submit(prompt="a")).json()["data"]["id"]
    assert (await api.get(f"/api/v3/predictions/{id_}/webhooks")).json()["data"] == []


async def test_what_is_not_there_or_another_keys_is_a_404(api):
    id_, delivery = await owed(api)
    nothing = "0" * 32
    other, reading = await api.key(), await api.key(Scope.READ)
    for path, headers, status in (
        (f"{nothing}/webhooks/{delivery['id']}/replay", api.bearer, 404),
        (f"{id_}/webhooks/{nothing}/replay", api.bearer, 404),
        (f"{id_}/webhooks/{delivery['id']}/replay", other, 404),
        (f"{id_}/webhooks/{delivery['id']}/replay", reading, 403),
    ):
        assert (await api.client.post(f"/api/v3/predictions/{path}", headers=headers)).status_code == status
    assert (await api.client.get(f"/api/v3/predictions/{id_}/webhooks", headers=other)).status_code == 404
    assert (await api.get(f"/api/v3/predictions/{nothing}/webhooks")).status_code == 404
