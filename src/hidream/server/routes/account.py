"""Information about the installation and the key: models, prices, balance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hidream.errors import InvalidInput
from hidream.request import BY_NAME
from hidream.server import model_registry, parameters, schema, unused
from hidream.server.bodies.body import read_short_json
from hidream.server.responses import success
from hidream.server.service import AnyKey, Route, Service, Version, service_of
from hidream.types import Variant

CURRENCY = "USD"
DESCRIPTIONS = {
    "dev": f"HiDream-I1-Dev: an image from a prompt in {Variant.DEV.steps} steps, distilled.",
    "full": f"HiDream-I1-Full: an image from a prompt in {Variant.FULL.steps} steps, with guidance and negative "
    "prompts.",
    "fast": f"HiDream-I1-Fast: an image from a prompt in {Variant.FAST.steps} steps, distilled.",
}


async def balance(request: Request, api: Version, key: AnyKey) -> Response:
    """GET /api/{v2,v3}/balance: a configured number; nothing is charged."""
    return success({"balance": service_of(request).settings.server.balance})


async def models(request: Request, api: Version, key: AnyKey) -> Response:
    """GET /api/{v2,v3}/models: the served models, with the parameters of each."""
    service = service_of(request)
    return success([_model(service, name) for name in service.models])


async def pricing(request: Request, api: Version, key: AnyKey) -> Response:
    """POST /api/{v2,v3}/model/pricing: what a request would cost."""
    model, price, strange = await _price(request)
    return success(unused.with_warnings({"model_id": model, "unit_price": price, "currency": CURRENCY}, strange))


async def price(request: Request, api: Version, key: AnyKey) -> Response:
    """POST /api/{v2,v3}/model/price: the same in the form that other clients expect."""
    model, price, strange = await _price(request)
    data = {"model_id": model, "price": price, "discounted_price": price, "currency": CURRENCY}
    return success(unused.with_warnings(data, strange))


async def _price(request: Request) -> tuple[str, float, Iterator[str]]:
    """Return the model that a request names, the price of its images, and warnings."""
    service = service_of(request)
    body = await read_short_json(request)
    model = model_registry.find(service.models, body.get("model_id"))
    inputs = {} if body.get("inputs") is None else body["inputs"]
    if not isinstance(inputs, dict):
        raise InvalidInput(f"inputs is {inputs!r:.100}; accepted: an object, a request's parameters")
    given = inputs.get("num_images")
    count = BY_NAME["num_images"].kind.read("num_images", 1 if given in (None, "") else given)
    strange = chain(
        unused.unknown(body, ("model_id", "inputs"), "this route"),
        unused.unknown(inputs, unused.PROPERTIES[parameters.V3.name], "inputs"),
        unused.unknown(request.query_params, (), "the URL"),
    )
    return model, service.settings.server.price * count, strange


def _model(service: Service, name: str) -> dict[str, Any]:
    variant = service.models[name]
    run = {"type": "model_run", "request_schema": schema.submission(parameters.V3, variant)}
    return {
        "model_id": name,
        "name": name,
        "description": DESCRIPTIONS[variant],
        "type": "text-to-image",
        "base_price": service.settings.server.price,
        "api_schema": {"api_schemas": [run]},
    }


ROUTES: Sequence[Route] = (
    ("GET", "/api/{api}/balance", balance),
    ("GET", "/api/{api}/models", models),
    ("POST", "/api/{api}/model/pricing", pricing),
    ("POST", "/api/{api}/model/price", price),
)
