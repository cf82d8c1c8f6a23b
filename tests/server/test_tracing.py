"""Spans: one per request, with route and status, without anything secret; none if tracing is off."""

import gzip
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hidream.server.app import create_app
from hidream.server.tracing import ENDPOINT, Traced, traced

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_is_a_span(api):
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    app = Traced(create_app(api.service), provider.get_tracer("test"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        data = (await api.submit(prompt="a private house")).json()["data"]
        headers = api.bearer | {"traceparent": PARENT}
        assert (await client.get(f"/api/v3/predictions/{data['id']}", headers=headers)).status_code == 200
        await client.get("/readyz")
    one, other = kept.get_finished_spans()
    assert one.name == "GET /api/{api}/predictions/{prediction_id}"
    assert dict(one.attributes) == {
        "http.request.method": "GET",
        "http.route": "/api/{api}/predictions/{prediction_id}",
        "http.response.status_code": 200,
        "hidream.prediction_id": data["id"],
    }
    assert f"{one.context.trace_id:032x}" == PARENT.split("-")[1]
    assert (other.name, other.status.is_ok) == ("GET /readyz", False)
    for span in (one, other):
        assert api.secret not in span.to_json()
        assert "private" not in span.to_json()


async def test_without_an_endpoint_nothing_is_traced(api):
    app = create_app(api.service)
    assert traced(app, {}) is app
    assert traced(app, {ENDPOINT: ""}) is app


async def test_without_the_extra_it_says_so(monkeypatch, caplog, open_api):
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)

    async with open_api() as api:
        app = create_app(api.service)
        assert traced(app, {ENDPOINT: "http://127.0.0.1:1"}) is app
        assert f"tracing_off reason={ENDPOINT} is set" in caplog.text


@pytest.mark.integration
def test_spans_are_sent_where_the_environment_says():
    """In a process of its own, because OpenTelemetry keeps threads; the collector is a real socket."""
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        Thread(target=collector.serve_forever, daemon=True).start()
        code = """
import asyncio, os
from hidream.server.tracing import traced
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
async def main():
    async def send(message): pass
    await traced(app, os.environ)({"type": "http", "method": "GET", "headers": []}, None, send)
asyncio.run(main())
"""
        environ = {ENDPOINT: f"http://127.0.0.1:{collector.server_port}", "PATH": ""}
        subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=60)
        collector.shutdown()
    ((path, body),) = got
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert path == "/v1/traces"
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "hidream"
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["GET none"]


async def test_other_protocols_pass():
    passed = []

    async def app(scope, receive, send):
        passed.append(scope["type"])

    await Traced(app, None)({"type": "lifespan"}, None, None)
    assert json.dumps(passed) == '["lifespan"]'
