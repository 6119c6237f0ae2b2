"""One service of an agent fleet, on the OpenTelemetry SDK as README.md sets it up: endpoint, protocol and sampler come
from the environment. `service.js` is the same in JavaScript; `main.rs` starts both and checks what arrives.

    service.py planner --models URL --tools URL    serves turns; `models` and `tools` serve without flags
    service.py play --turns N --planner URL        plays turns, and ends

A server prints {"listening": PORT} and serves until SIGTERM. Everyone's last line is {"spans": [...], "exported": N,
"trouble": [...]}: what it made, by its own list, and what the SDK had to say. With trouble it ends with 1.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

LOCK = threading.Lock()
SPANS = []
TROUBLE = []
EXPORTED = 0


class Complaints(logging.Handler):
    """Retries, refusals, queues that overflow: the SDK only logs them."""

    def emit(self, record):
        with LOCK:
            TROUBLE.append(record.getMessage())


class Counted(SpanExporter):
    """Counts what `exporter` got through."""

    def __init__(self, exporter):
        self.exporter = exporter

    def export(self, spans):
        global EXPORTED
        result = self.exporter.export(spans)
        with LOCK:
            if result is SpanExportResult.SUCCESS:
                EXPORTED += len(spans)
            else:
                TROUBLE.append(f"an export of {len(spans)} spans: {result}")
        return result

    def shutdown(self):
        self.exporter.shutdown()

    def force_flush(self, timeout_millis=30000):
        return self.exporter.force_flush(timeout_millis)


def exporter():
    protocol = os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"]
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    elif protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    else:
        raise SystemExit(f"this SDK has no exporter for {protocol}")
    return OTLPSpanExporter()


logging.getLogger().addHandler(Complaints(logging.WARNING))
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(BatchSpanProcessor(Counted(exporter())))
trace.set_tracer_provider(PROVIDER)
TRACER = trace.get_tracer("fleet.service", "1.2.3")


class Noted:
    """A span, and the own list of what was done to it."""

    def __init__(self, span, parent, name, kind, attributes, links):
        self.span = span
        context = span.get_span_context()
        self.note = {
            "service": os.environ["OTEL_SERVICE_NAME"],
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
            "parent_span_id": f"{parent.span_id:016x}" if parent.is_valid else "",
            "sampled": context.trace_flags.sampled,
            "name": name,
            "kind": kind.name,
            "attributes": dict(attributes),
            "events": [],
            "links": [f"{link.context.trace_id:032x}/{link.context.span_id:016x}" for link in links],
            "status": ["UNSET", ""],
        }
        with LOCK:
            SPANS.append(self.note)

    def set(self, key, value):
        self.span.set_attribute(key, value)
        self.note["attributes"][key] = value

    def event(self, name, attributes):
        self.span.add_event(name, attributes)
        self.note["events"].append({"name": name, "attributes": attributes})

    def fail(self, kind, text):
        self.set("error.type", kind)
        self.span.set_status(Status(StatusCode.ERROR, text))
        self.note["status"] = ["ERROR", text]

    def end(self):
        self.span.end()
        if self.note["sampled"]:
            self.note["start"] = str(self.span.start_time)
            self.note["end"] = str(self.span.end_time)


@contextmanager
def span(name, kind, attributes, context=None, links=()):
    parent = trace.get_current_span(context).get_span_context()
    made = TRACER.start_span(name, context=context, kind=kind, attributes=attributes, links=links)
    noted = Noted(made, parent, name, kind, attributes, links)
    try:
        with trace.use_span(made):
            yield noted
    finally:
        noted.end()


def post(url, body, headers):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def call(url, path, body):
    """A client span, and its context in the headers."""
    with span(f"POST {path}", SpanKind.CLIENT, {"http.request.method": "POST", "url.full": url + path}) as here:
        headers = {}
        propagate.inject(headers)
        answer = post(url + path, body, headers)
        here.set("http.response.status_code", 200)
        return answer


def tool_call(tools, number, tool, argument):
    """MCP carries the context in `params._meta`, not in headers."""
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool, "gen_ai.tool.type": "function"}
    with span(f"execute_tool {tool}", SpanKind.INTERNAL, attributes) as outer:
        request = {"mcp.method.name": "tools/call", "jsonrpc.request.id": str(number), "rpc.system": "jsonrpc"}
        with span(f"tools/call {tool}", SpanKind.CLIENT, request) as client:
            meta = {}
            propagate.inject(meta)
            params = {"name": tool, "arguments": argument, "_meta": meta}
            body = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
            result = post(tools + "/mcp", body, {})["result"]
            if result["isError"]:
                client.fail("tool_error", result["text"])
        if result["isError"]:
            outer.fail("tool_error", result["text"])
        outer.set("gen_ai.tool.call.result", result["text"])
        return result["text"]


def turn(args, body, context):
    with span("POST /turn", SpanKind.SERVER, {"http.route": "/turn", "tenant.id": body["tenant"]}, context):
        agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.conversation.id": body["conversation"]}
        with span("invoke_agent planner", SpanKind.INTERNAL, agent) as here:
            history = [{"role": "user", "content": body["question"]}]
            for step in range(body["steps"]):
                thought = call(args.models, "/chat", {"messages": history, "step": step})
                history.append({"role": "assistant", "content": thought["text"]})
                # Two tools at a time, in threads: the context has to come along.
                around = trace.set_span_in_context(here.span)
                with ThreadPoolExecutor(2) as pool:
                    names = ["search", "fail" if body["fails"] and step == 1 else "tickets"]
                    results = list(pool.map(lambda name: in_context(around, tool_call, args.tools, step, name, body["question"]), names))
                history.extend({"role": "tool", "content": text} for text in results)
            here.event("plan.done", {"plan.steps": body["steps"], "plan.cost": 0.125, "plan.final": True})
            here.set("gen_ai.output.messages", json.dumps(history, ensure_ascii=False))
            return {"text": history[-1]["content"]}


def in_context(context, work, *args):
    from opentelemetry import context as contexts

    token = contexts.attach(context)
    try:
        return work(*args)
    finally:
        contexts.detach(token)


def chat(_args, body, context):
    with span("POST /chat", SpanKind.SERVER, {"http.route": "/chat"}, context):
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "large-2",
            "gen_ai.request.temperature": 0.7,
            "gen_ai.request.stream": True,
            "gen_ai.request.seed": 9007199254740991,
            "gen_ai.request.stop_sequences": ["\n\n", "конец", "终", "🛑"],
            "gen_ai.input.messages": json.dumps(body["messages"], ensure_ascii=False) + "ß\u0000\"\\\u2028" * 2000,
        }
        with span("chat large-2", SpanKind.CLIENT, attributes) as here:
            here.event("first chunk", {"seconds": 0.25, "tokens": -3, "words": ["a", "b"]})
            here.event("last chunk", {})
            here.set("gen_ai.response.finish_reasons", ["tool_calls"])
            here.set("gen_ai.usage.input_tokens", 1200 + body["step"])
            here.set("logprobs", [-0.5, -1.25, -1e-9])
            here.set("tokens", [1, None, 3])
            here.set("flags", [True, False])
            here.set("nothing", [])
            here.set("empty", "")
            return {"text": f"step {body['step']}: ask 🔎"}


def mcp(_args, body, _context):
    params = body["params"]
    tool = params["name"]
    attributes = {"mcp.method.name": "tools/call", "gen_ai.tool.name": tool, "jsonrpc.request.id": str(body["id"])}
    with span(f"tools/call {tool}", SpanKind.SERVER, attributes, propagate.extract(params["_meta"])) as here:
        # A link to the request before, wherever it came from.
        with span("query", SpanKind.CLIENT, {"db.system.name": "postgresql"}, links=before(here.span)):
            pass
        if tool == "fail":
            here.event("exception", {"exception.type": "Timeout", "exception.message": "after 3 s ⏱"})
            here.fail("tool_error", "no answer ⏱")
            return {"result": {"isError": True, "text": "no answer ⏱"}}
        return {"result": {"isError": False, "text": f"{tool}: 3 hits"}}


LAST = None


def before(now):
    global LAST
    with LOCK:
        last, LAST = LAST, now.get_span_context()
    return [Link(last)] if last else []


def play(args):
    def one(number):
        body = {"tenant": f"tenant-{number % 3}", "conversation": f"conversation-{number}", "steps": 1 + number % 3,
                "fails": number % 2 == 0, "question": f"Frage {number}: où est le café ☕?"}
        with span("POST /assist", SpanKind.SERVER, {"http.route": "/assist", "tenant.id": body["tenant"]}) as root:
            answer = call(args.planner, "/turn", body)
            root.set("answer.length", len(answer["text"]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(args.turns)))


def serve(args, routes):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = json.dumps(routes[self.path](args, body, propagate.extract(self.headers))).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(json.dumps({"listening": server.server_address[1]}), flush=True)
    server.serve_forever()
    server.server_close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["play", "planner", "models", "tools"])
    for flag in ["--models", "--tools", "--planner"]:
        parser.add_argument(flag)
    parser.add_argument("--turns", type=int)
    args = parser.parse_args()
    if args.role == "play":
        play(args)
    else:
        serve(args, {"planner": {"/turn": turn}, "models": {"/chat": chat}, "tools": {"/mcp": mcp}}[args.role])
    PROVIDER.shutdown()
    print(json.dumps({"spans": SPANS, "exported": EXPORTED, "trouble": TROUBLE}), flush=True)
    sys.exit(1 if TROUBLE else 0)


main()
