"""Spans of edits for OpenTelemetry: waiting, preparing, running, decoding, under the request that asked for them.

Lone, because its packages are an extra of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from adapedit.http import require

STAGES = ("queue", "prepare", "run", "decode")
"""One after the other."""


class Traces:
    """Sends spans to a collector. address: of its OTLP over HTTP, such as http://127.0.0.1:4318; None: no spans."""

    def __init__(self, address: str | None) -> None:
        self.provider: Any = None
        if address is None:
            return
        require("traces", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.provider = TracerProvider(resource=Resource.create({"service.name": "adapedit"}))
        exporter = OTLPSpanExporter(endpoint=f"{address.rstrip('/')}/v1/traces")
        self.provider.add_span_processor(BatchSpanProcessor(exporter))

    @property
    def of_requests(self) -> dict[str, Any]:
        """For FastAPI: spans of requests go the same way. What it would log of errors quotes requests, and is off."""
        off = {"metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
        return {"tracer_provider": self.provider, "tracing": self.provider is not None, **off}

    def here(self) -> str | None:
        """Where spans belong that are made for the request of this thread, as W3C's traceparent."""
        if self.provider is None:
            return None
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier.get("traceparent")

    def edit(self, parent: str | None, facts: Mapping[str, str], seconds: Mapping[str, float]) -> None:
        """Spans of an edit that has just ended. facts: id, model, method and reason; seconds: by stage, and in all."""
        if self.provider is None:
            return
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        above = TraceContextTextMapPropagator().extract({"traceparent": parent or ""})
        tracer, now = self.provider.get_tracer("adapedit"), time.time_ns()
        at = now - int(seconds["total"] * 1e9)
        named = {f"adapedit.{name}": fact for name, fact in facts.items()}
        span = tracer.start_span("edit", context=above, start_time=at, attributes=named)
        for name in STAGES:
            if name in seconds:
                begun, at = at, at + int(seconds[name] * 1e9)
                inside = tracer.start_span(name, context=trace.set_span_in_context(span), start_time=begun)
                inside.end(end_time=at)
        span.end(end_time=max(now, at))

    def close(self) -> None:
        """Send what is left."""
        if self.provider is not None:
            self.provider.shutdown()
