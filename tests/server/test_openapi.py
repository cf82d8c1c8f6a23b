"""The OpenAPI document against the registered routes and their responses."""

import asyncio
import re

import pytest

from hidream.server import openai_parameters

MODEL = "wavespeed-ai/hidream-i1-dev"
JSON_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def fits(value, schema, document):
    """Say whether a value is as the schema has it, of the words that our answers' schemas use."""
    if "$ref" in schema:
        return fits(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(
        isinstance(value, JSON_TYPES[t]) and (t == "boolean") == isinstance(value, bool) for t in types
    ):
        return False
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        return (
            all(name in value for name in schema.get("required", ()))
            and len(value) >= schema.get("minProperties", 0)
            and all(fits(each, inner[name], document) for name, each in value.items() if name in inner)
        )
    if isinstance(value, list):
        return all(fits(each, schema.get("items", {}), document) for each in value)
    if isinstance(value, int | float):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return value is None or "pattern" not in schema or re.search(schema["pattern"], value) is not None


def unnamed(value, schema, document):
    """Names in an answer that its schema, where it lists any, does not have."""
    if "$ref" in schema:
        return unnamed(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if isinstance(value, list):
        return [name for each in value for name in unnamed(each, schema.get("items", {}), document)]
    inner = schema.get("properties")
    if not isinstance(value, dict) or inner is None:
        return []
    deeper = [name for key, each in value.items() for name in unnamed(each, inner.get(key, {}), document)]
    return [key for key in value if key not in inner] + deeper


async def test_it_has_every_route_and_no_other(api):
    document = (await api.client.get("/openapi.json")).json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    described |= {("HEAD", path) for method, path in described if method == "GET"}  # as everywhere
    there = {
        (method, route.path)
        for route in api.client._transport.app.routes
        for method in getattr(route, "methods", None) or ()
    }
    submit = ("POST", "/api/{api}/wavespeed-ai/{name:path}")
    expected = {(method, path.replace(":path", "")) for method, path in there - {submit}}
    expected |= {("POST", f"/api/{version}/{name}") for version in ("v2", "v3") for name in api.service.models}
    assert submit in there
    assert described == expected
    assert document["servers"] == [{"url": "http://test"}]


async def test_answers_are_as_it_says(api, make_image):
    document = (await api.client.get("/openapi.json")).json()

    def check(answer, method, path):
        described = document["paths"][path][method]["responses"][str(answer.status_code)]
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = described["content"][media_type]["schema"]
        if media_type == "application/json":
            assert fits(answer.json(), schema, document), (answer.json(), schema)
            assert not unnamed(answer.json(), schema, document)

    def fits_path(text, path, name):
        """Whether a name that the server has made is one that its own document allows in a path."""
        described = [each for method in document["paths"][path].values() for each in method["parameters"]]
        return all(fits(text, each["schema"], document) for each in described if each["name"] == name)

    submit, one = f"/api/v3/{MODEL}", "/api/{api}/predictions/{prediction_id}"
    taken = await api.submit(prompt="a", webhook="https://receiver.example/")
    id_ = taken.json()["data"]["id"]
    check(taken, "post", submit)
    check(await api.submit(prompt=""), "post", submit)
    check(await api.get(f"/api/v3/predictions/{id_}"), "get", one)
    check(await api.get(f"/api/v3/predictions/{id_}?wait_s=x"), "get", one)
    assert fits_path(id_, one, "prediction_id")
    await api.draw(warnings=["long"])
    check(await api.get(f"/api/v3/predictions/{id_}/result"), "get", f"{one}/result")
    check(await api.get(f"/api/v3/predictions/{id_}/webhooks"), "get", f"{one}/webhooks")
    delivery = (await api.get(f"/api/v3/predictions/{id_}/webhooks")).json()["data"][0]["id"]
    assert fits_path(delivery, f"{one}/webhooks/{{delivery_id}}/replay", "delivery_id")
    replayed = await api.post(f"/api/v3/predictions/{id_}/webhooks/{delivery}/replay")
    check(replayed, "post", f"{one}/webhooks/{{delivery_id}}/replay")
    check(await api.post("/api/v3/predictions", include_inputs=True), "post", "/api/{api}/predictions")
    check(await api.post(f"/api/v3/predictions/{id_}/cancel"), "post", f"{one}/cancel")
    check(await api.delete(f"/api/v3/predictions/{id_}"), "delete", one)
    check(await api.delete(f"/api/v3/predictions/{id_}"), "delete", one)
    check(await api.post("/api/v3/predictions/delete", ids=[id_]), "post", "/api/{api}/predictions/delete")
    for path in ("balance", "models", "webhook/secret"):
        check(await api.get(f"/api/v3/{path}"), "get", f"/api/{{api}}/{path}")
    for path in ("model/price", "model/pricing"):
        check(await api.post(f"/api/v3/{path}", model_id=MODEL), "post", f"/api/{{api}}/{path}")
    ticket = await api.post("/api/v3/media/uploads", filename="a.png", size=len(make_image()))
    check(ticket, "post", "/api/{api}/media/uploads")
    url = ticket.json()["data"]["download_url"]
    check(await api.client.get(url), "get", "/uploads/{name}")
    check(await api.client.put(url, content=make_image()), "put", "/uploads/{name}")
    check(await api.client.get(url), "get", "/uploads/{name}")
    check(await api.client.get(url, headers={"Range": "bytes=9999-"}), "get", "/uploads/{name}")
    assert fits_path(url.rpartition("/")[2], "/uploads/{name}", "name")
    generating = api.post("/v1/images/generations", prompt="a", n=4, seeed=7, output_format="avif")
    generated, task = await asyncio.gather(generating, api.draw())
    check(generated, "post", "/v1/images/generations")
    form = {"data": {"prompt": "a"}, "files": {"image": make_image()}, "headers": api.bearer}
    edited, _ = await asyncio.gather(api.client.post("/v1/images/edits", **form), api.draw())
    check(edited, "post", "/v1/images/edits")
    streamed, _ = await asyncio.gather(api.post("/v1/images/generations", prompt="a", stream=True), api.draw())
    check(streamed, "post", "/v1/images/generations")
    check(await api.post("/v1/images/edits", prompt="a"), "post", "/v1/images/edits")
    assert generated.json()["warnings"]
    for name in task.output_names:
        assert fits_path(name, "/outputs/{name}", "name")
        check(await api.client.get(f"/outputs/{name}"), "get", "/outputs/{name}")
    check(await api.post("/api/v3/predictions", page_sise=3), "post", "/api/{api}/predictions")
    for each in (await api.get("/v1/models")).json()["data"]:
        assert fits_path(each["id"], "/v1/models/{name}", "name")
    for path in ("/v1/models", "/healthz", "/readyz", "/openapi.json"):
        check(await api.get(path), "get", path)
    check(await api.get("/v1/models/x"), "get", "/v1/models/{name}")
    check(await api.post("/v1/images/generations", prompt="naked child"), "post", "/v1/images/generations")


@pytest.mark.parametrize("model", ["dev", "full"])
async def test_a_models_parameters_are_those_that_it_takes(api, model):
    document = (await api.client.get("/openapi.json")).json()
    path = f"/api/v3/wavespeed-ai/hidream-i1-{model}"
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for name, each in schema["properties"].items():
        if name in ("prompt", "webhook", "webhook_url"):
            continue
        body = (
            {"prompt": "a", "image": "aGVsbG8="}
            | ({"width": 512} if name == "height" else {})
            | {name: {"no": "sense"}}
        )
        answer = await api.submit(model=f"wavespeed-ai/hidream-i1-{model}", **body)
        assert (answer.status_code, answer.json()["message"].startswith(name)) == (400, True), answer.text
        kinds = [kind.get("type") for kind in each["anyOf"]]
        assert kinds[-1] == "null"


@pytest.mark.parametrize("path", [openai_parameters.GENERATIONS, openai_parameters.EDITS])
async def test_openais_parameters_are_those_that_the_route_knows(api, path):
    document = (await api.client.get("/openapi.json")).json()
    content = document["paths"][path]["post"]["requestBody"]["content"]
    described = content["application/json"]["schema"]["properties"]
    refused = {name for name, (nothing, _) in openai_parameters.UNSERVED.items() if not nothing}
    assert described.keys() == openai_parameters.NAMES - refused
    if path == openai_parameters.EDITS:
        assert content["multipart/form-data"]["schema"]["properties"].keys() == described.keys() | {"image[]"}
    size = described["size"]["anyOf"][0]["pattern"]
    assert all(re.search(size, text) for text in ("1024x1024", "1792x1024", "256*256", "auto"))
    sides = [described[name]["anyOf"][0] for name in ("width", "height")]
    assert [(side["minimum"], side["maximum"]) for side in sides] == [(256, 2048)] * 2
