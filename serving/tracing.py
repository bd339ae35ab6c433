"""Spans of each request (OpenTelemetry), loaded only where BLASTWATCH_TRACES says where they go.

    POST /v1/predict        from the first byte of the head to the last of the answer
      decode                one image: bytes to input, in a thread
      wait                  cells of this request, until their batch begins
      infer                 that batch, which cells of others may share
      capture               the hand-over of one answer to the queue of the capture, not its way to the database

A caller's `traceparent` (W3C) is taken up. Sampler and resource come from OpenTelemetry's own variables. Spans carry
the request id, the route, the version and counts; no pixel, no patient, no key.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from blastwatch import __version__
from blastwatch.errors import SettingsError

CONSOLE = "console"
REQUEST_ID = "blastwatch.request_id"
_SPAN = "span"  # in the state of a request


class Mark(NamedTuple):
    """Whose cell waits in the batcher, and since when (`time.monotonic`)."""

    request: Context
    since: float


class Traces:
    """Begins and ends spans of one worker. Spans that are ready are exported by a thread.

    A request's span is the current one of its task, and of the threads to which `context.get_current` is carried.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource.create({"service.name": "blastwatch", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("blastwatch", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> None:
        """Begin the span of a request, in the task that answers it."""
        headers = {name: value for name, value in Headers(scope=scope).items() if name.startswith("trace")}
        identity = scope["state"]["request_id"]
        span = self._tracer.start_span(
            scope["method"],
            context=self._propagator.extract(headers, context=Context()),
            kind=SpanKind.SERVER,
            attributes={REQUEST_ID: identity, "http.request.method": scope["method"]},
        )
        scope["state"][_SPAN] = span
        context.attach(trace.set_span_in_context(span, context.set_value(REQUEST_ID, identity)))

    def end(self, scope: Scope, route: str, status: int) -> None:
        """End the span of a request that was answered."""
        state = scope["state"]
        span = state.pop(_SPAN, None)
        if span is None:
            return
        span.update_name(f"{scope['method']} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        for name, kept in (("blastwatch.model_version", "model_version"), ("blastwatch.cells", "cells")):
            if kept in state:
                span.set_attribute(name, state[kept])
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A part of the current request."""
        attributes = {REQUEST_ID: str(context.get_value(REQUEST_ID))}
        with self._tracer.start_as_current_span(name, attributes=attributes):
            yield

    def mark(self) -> Mark:
        """A cell of the current request joins the queue of the batcher."""
        return Mark(context.get_current(), time.monotonic())

    def batch(self, marks: Sequence[Mark], began: float, ended: float) -> None:
        """A batch was inferred: each request with cells in it has waited, and shared it.

        Args:
            marks: of every cell in it.
            began, ended: `time.monotonic`.
        """
        offset = time.time_ns() - time.monotonic_ns()
        requests: dict[int, list[Mark]] = {}
        for one in marks:
            requests.setdefault(id(trace.get_current_span(one.request)), []).append(one)
        for own in requests.values():
            request, since = own[0].request, min(one.since for one in own)
            for name, start, end in (("wait", since, began), ("infer", began, ended)):
                span = self._tracer.start_span(name, context=request, start_time=offset + int(start * 1e9))
                span.set_attribute(REQUEST_ID, str(context.get_value(REQUEST_ID, request)))
                span.set_attribute("blastwatch.cells", len(own))
                if name == "infer":
                    span.set_attribute("blastwatch.batch_cells", len(marks))
                span.end(offset + int(end * 1e9))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def open_traces(target: str) -> Traces:
    """Traces that go to `console`, or to a collector that speaks OTLP over HTTP at this address.

    Raises:
        SettingsError: the exporter is not installed.
    """
    return Traces(exporter_to(target))


def exporter_to(target: str) -> SpanExporter:
    """What `open_traces` sends spans with."""
    if target == CONSOLE:
        return ConsoleSpanExporter()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise SettingsError(
            f"BLASTWATCH_TRACES={target} needs an exporter that is not installed ({error}). Install what "
            "requirements/run.txt pins, or opentelemetry-exporter-otlp-proto-http alone."
        ) from error
    exporter: SpanExporter = OTLPSpanExporter(endpoint=target)
    return exporter
