"""OpenTelemetry tracing: one span per HTTP request, if the operator has installed it and set an endpoint.

`pip install 'hidream[telemetry]'` and OTEL_EXPORTER_OTLP_ENDPOINT switch it on. OpenTelemetry's own variables
(OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, ...) configure the rest. A span has the method,
route, status and prediction id, but no URL, key or prompt. A caller's `traceparent` is continued. There is no span for
a task: the times in its row and the log describe what happens in the worker.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SERVICE = "hidream"

logger = logging.getLogger(__name__)


def traced(app: ASGIApp, environ: Mapping[str, str]) -> ASGIApp:
    """Wrap an application so that its requests are traced. Without an endpoint, return the application itself."""
    if not environ.get(ENDPOINT):
        return app
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("tracing_off reason=%s is set, and OpenTelemetry is not installed", ENDPOINT)
        return app
    provider = TracerProvider(resource=Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME") or SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # sends its buffer at exit
    return Traced(app, provider.get_tracer(SERVICE))


class Traced:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on within a span of its own."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        caller = TraceContextTextMapPropagator().extract(headers)
        with self._tracer.start_as_current_span(scope["method"], caller, SpanKind.SERVER) as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _describe(span, scope, message["status"])
                await send(message)

            await self._app(scope, receive, send_and_note)


def _describe(span: Span, scope: Scope, status: int) -> None:
    """Set a span's name and attributes by OpenTelemetry's conventions for HTTP servers."""
    from opentelemetry.trace import StatusCode

    route = getattr(scope.get("route"), "path", "none")
    span.update_name(f"{scope['method']} {route}")
    span.set_attributes(
        {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status}
    )
    if prediction_id := scope.get("path_params", {}).get("prediction_id"):
        span.set_attribute("hidream.prediction_id", str(prediction_id)[:32])
    if status >= 500:
        span.set_status(StatusCode.ERROR)
