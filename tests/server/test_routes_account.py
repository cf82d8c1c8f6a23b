"""The routes of models, prices, balance and secret."""

import pytest

from hidream.server.parameters import V3, parse

DEV, FULL, FAST = (f"wavespeed-ai/hidream-i1-{variant}" for variant in ("dev", "full", "fast"))


async def test_the_balance_is_a_number_by_setting(open_api):
    async with open_api(balance=12.5) as api:
        for version in ("v2", "v3"):
            assert (await api.get(f"/api/{version}/balance")).json()["data"] == {"balance": 12.5}
        assert (await api.client.get("/api/v3/balance")).status_code == 401


async def test_models_are_those_that_are_served_with_what_each_takes(open_api):
    async with open_api(price=0.25) as api:
        models = (await api.get("/api/v3/models")).json()["data"]
        assert sorted(model["model_id"] for model in models) == sorted((DEV, FULL, FAST))
        for model in models:
            assert (model["type"], model["base_price"]) == ("text-to-image", 0.25)
            (run,) = model["api_schema"]["api_schemas"]
            schema = run["request_schema"]
            assert (run["type"], schema["required"]) == ("model_run", ["prompt"])
            assert schema["x-order-properties"] == list(schema["properties"])
            assert ("guidance_scale" in schema["properties"]) == (model["model_id"] == FULL)
            defaults = {name: p["default"] for name, p in schema["properties"].items() if "default" in p}
            variant = api.service.models[model["model_id"]]
            assert parse({"prompt": "a", "seed": 7} | defaults | {"seed": 7}, V3, variant) == parse(
                {"prompt": "a", "seed": 7}, V3, variant
            ), "its defaults are the defaults"


async def test_prices(open_api):
    async with open_api(price=0.25) as api:
        asked = {"model_id": DEV, "inputs": {"prompt": "a", "num_images": 3}}
        unit = (await api.post("/api/v3/model/pricing", **asked)).json()["data"]
        assert unit == {"model_id": DEV, "unit_price": 0.75, "currency": "USD"}
        total = (await api.post("/api/v3/model/price", model_id=DEV)).json()["data"]
        assert total == {"model_id": DEV, "price": 0.25, "discounted_price": 0.25, "currency": "USD"}


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"model_id": "x/y"}, 404, "there is no model 'x/y'; there are: wavespeed-ai/"),
        ({}, 404, "there is no model None"),
        ({"model_id": ["a"]}, 404, "there is no model ['a']"),
        ({"model_id": DEV, "inputs": [1]}, 400, "inputs is [1]"),
        ({"model_id": DEV, "inputs": False}, 400, "inputs is False"),
        ({"model_id": DEV, "inputs": {"num_images": 5}}, 400, "num_images is 5"),
        ({"model_id": DEV, "inputs": {"num_images": 0}}, 400, "num_images is 0"),
    ],
)
@pytest.mark.parametrize("route", ["price", "pricing"])
async def test_prices_of_what_there_is_not(api, asked, status, message, route):
    answer = await api.post(f"/api/v3/model/{route}", **asked)
    assert (answer.status_code, answer.json()["message"][: len(message)]) == (status, message)


@pytest.mark.parametrize(
    ("path", "body", "known"),
    [
        ("model/price?foo=1", {"model_id": "hidream-i1-dev"}, "foo is not a parameter of the URL"),
        ("model/price", {"model_id": "hidream-i1-dev", "inputs": {"num_imagse": 3}}, "did you mean num_images?"),
        ("model/pricing", {"model_id": "hidream-i1-dev", "input": {}, "inptus": {"seed": 1}}, "did you mean inputs?"),
        ("media/uploads", {"filename": "a.png", "size": 9, "contenttype": "image/png"}, "did you mean content_type?"),
        ("predictions/delete", {"ids": ["0" * 32], "idss": 1}, "did you mean ids?"),
    ],
)
async def test_what_a_route_does_not_know_is_told(api, path, body, known):
    answer = await api.client.post(f"/api/v3/{path}", json=body, headers=api.bearer)
    assert answer.status_code == 200
    (warning,) = answer.json()["data"]["warnings"]
    assert known in warning
