"""The OpenAPI document against the routes that there are, and against their answers."""

import re

import pytest

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
        return all(name in value for name in schema.get("required", ())) and all(
            fits(each, inner[name], document) for name, each in value.items() if name in inner
        )
    if isinstance(value, list):
        return all(fits(each, schema.get("items", {}), document) for each in value)
    return "pattern" not in schema or re.search(schema["pattern"], value) is not None


def test_it_has_every_route_and_no_other(with_api):
    async def scenario(api):
        document = (await api.client.get("/openapi.json")).json()
        described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
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

    with_api(scenario)


def test_answers_are_as_it_says(with_api, picture):
    async def scenario(api):
        document = (await api.client.get("/openapi.json")).json()

        def check(answer, method, path):
            described = document["paths"][path][method]["responses"][str(answer.status_code)]
            media_type = answer.headers["content-type"].partition(";")[0]
            schema = described["content"][media_type]["schema"]
            if media_type == "application/json":
                assert fits(answer.json(), schema, document), (answer.json(), schema)

        submit, one = f"/api/v3/{MODEL}", "/api/{api}/predictions/{prediction_id}"
        taken = await api.submit(prompt="a", webhook="https://receiver.example/")
        id_ = taken.json()["data"]["id"]
        check(taken, "post", submit)
        check(await api.submit(prompt=""), "post", submit)
        check(await api.get(f"/api/v3/predictions/{id_}"), "get", one)
        check(await api.get(f"/api/v3/predictions/{id_}?wait_s=x"), "get", one)
        await api.draw(warnings=["long"])
        check(await api.get(f"/api/v3/predictions/{id_}/result"), "get", f"{one}/result")
        check(await api.get(f"/api/v3/predictions/{id_}/webhooks"), "get", f"{one}/webhooks")
        delivery = (await api.get(f"/api/v3/predictions/{id_}/webhooks")).json()["data"][0]["id"]
        replayed = await api.post(f"/api/v3/predictions/{id_}/webhooks/{delivery}/replay")
        check(replayed, "post", f"{one}/webhooks/{{delivery_id}}/replay")
        check(await api.post("/api/v3/predictions", include_inputs=True), "post", "/api/{api}/predictions")
        check(await api.delete(f"/api/v3/predictions/{id_}"), "delete", one)
        check(await api.delete(f"/api/v3/predictions/{id_}"), "delete", one)
        check(await api.post("/api/v3/predictions/delete", ids=[id_]), "post", "/api/{api}/predictions/delete")
        for path in ("balance", "models", "webhook/secret"):
            check(await api.get(f"/api/v3/{path}"), "get", f"/api/{{api}}/{path}")
        for path in ("model/price", "model/pricing"):
            check(await api.post(f"/api/v3/{path}", model_id=MODEL), "post", f"/api/{{api}}/{path}")
        ticket = await api.post("/api/v3/media/uploads", filename="a.png", size=5)
        check(ticket, "post", "/api/{api}/media/uploads")
        url = ticket.json()["data"]["download_url"]
        check(await api.client.get(url), "get", "/uploads/{name}")
        check(await api.client.put(url, content=picture()), "put", "/uploads/{name}")
        check(await api.client.get(url), "get", "/uploads/{name}")
        check(await api.client.get(url, headers={"Range": "bytes=9999-"}), "get", "/uploads/{name}")
        for path in ("/v1/models", "/healthz", "/readyz", "/openapi.json"):
            check(await api.get(path), "get", path)
        check(await api.get("/v1/models/x"), "get", "/v1/models/{name}")
        check(await api.post("/v1/images/generations", prompt="naked child"), "post", "/v1/images/generations")

    with_api(scenario)


@pytest.mark.parametrize("model", ["dev", "full"])
def test_a_models_parameters_are_those_that_it_takes(with_api, model):
    async def scenario(api):
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

    with_api(scenario)
