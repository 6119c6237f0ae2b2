// One service of an agent fleet, on the OpenTelemetry SDK as README.md sets it up: endpoint, protocol and sampler come
// from the environment. `service.py` is the same in Python, and says what the arguments and the output are.
'use strict';

const http = require('node:http');
const { parseArgs } = require('node:util');
const api = require('@opentelemetry/api');
const { ExportResultCode, setGlobalErrorHandler } = require('@opentelemetry/core');
const { defaultResource, detectResources, envDetector } = require('@opentelemetry/resources');
const { BatchSpanProcessor, NodeTracerProvider } = require('@opentelemetry/sdk-trace-node');

const { SpanKind, SpanStatusCode, propagation, trace } = api;

const spans = [];
const trouble = [];
let exported = 0;

// Retries, refusals, partial successes: the SDK only logs them.
const complain = (...what) => trouble.push(what.map(String).join(' '));
const quiet = () => {};
api.diag.setLogger({ error: complain, warn: complain, info: quiet, debug: quiet, verbose: quiet }, api.DiagLogLevel.WARN);
setGlobalErrorHandler((error) => complain(error.stack ?? error));

function exporter() {
  const packages = {
    'grpc': '@opentelemetry/exporter-trace-otlp-grpc',
    'http/protobuf': '@opentelemetry/exporter-trace-otlp-proto',
    'http/json': '@opentelemetry/exporter-trace-otlp-http',
  };
  const { OTLPTraceExporter } = require(packages[process.env.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL]);
  return new OTLPTraceExporter();
}

// Counts what it got through.
class Counted {
  inner = exporter();

  export(batch, done) {
    this.inner.export(batch, (result) => {
      if (result.code === ExportResultCode.SUCCESS) exported += batch.length;
      else complain(`an export of ${batch.length} spans:`, result.error);
      done(result);
    });
  }

  shutdown() {
    return this.inner.shutdown();
  }

  forceFlush() {
    return this.inner.forceFlush();
  }
}

const provider = new NodeTracerProvider({
  resource: defaultResource().merge(detectResources({ detectors: [envDetector] })),
  spanProcessors: [new BatchSpanProcessor(new Counted())],
});
provider.register();
const tracer = trace.getTracer('fleet.service', '1.2.3');

const hex = (context) => `${context.traceId}/${context.spanId}`;
const nanos = ([seconds, rest]) => String(BigInt(seconds) * 1_000_000_000n + BigInt(rest));

// A span, and the own list of what was done to it.
class Noted {
  constructor(span, parent, name, kind, attributes, links) {
    this.span = span;
    const context = span.spanContext();
    this.note = {
      service: process.env.OTEL_SERVICE_NAME,
      trace_id: context.traceId,
      span_id: context.spanId,
      parent_span_id: parent?.spanId ?? '',
      sampled: (context.traceFlags & api.TraceFlags.SAMPLED) !== 0,
      name,
      kind: SpanKind[kind],
      attributes: { ...attributes },
      events: [],
      links: links.map((link) => hex(link.context)),
      status: ['UNSET', ''],
    };
    spans.push(this.note);
  }

  set(key, value) {
    this.span.setAttribute(key, value);
    this.note.attributes[key] = value;
  }

  event(name, attributes) {
    this.span.addEvent(name, attributes);
    this.note.events.push({ name, attributes });
  }

  fail(kind, text) {
    this.set('error.type', kind);
    this.span.setStatus({ code: SpanStatusCode.ERROR, message: text });
    this.note.status = ['ERROR', text];
  }

  end() {
    this.span.end();
    if (this.note.sampled) {
      this.note.start = nanos(this.span.startTime);
      this.note.end = nanos(this.span.endTime);
    }
  }
}

async function span(name, kind, attributes, work, context = api.context.active(), links = []) {
  const parent = trace.getSpanContext(context);
  const made = tracer.startSpan(name, { kind, attributes, links }, context);
  const noted = new Noted(made, parent, name, kind, attributes, links);
  try {
    return await api.context.with(trace.setSpan(context, made), work, undefined, noted);
  } finally {
    noted.end();
  }
}

async function post(url, body, headers) {
  const answer = await fetch(url, {
    method: 'POST',
    body: JSON.stringify(body),
    headers: { 'content-type': 'application/json', ...headers },
    signal: AbortSignal.timeout(20_000),
  });
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

// A client span, and its context in the headers.
function call(url, path, body) {
  const attributes = { 'http.request.method': 'POST', 'url.full': url + path };
  return span(`POST ${path}`, SpanKind.CLIENT, attributes, async (here) => {
    const headers = {};
    propagation.inject(api.context.active(), headers);
    const answer = await post(url + path, body, headers);
    here.set('http.response.status_code', 200);
    return answer;
  });
}

// MCP carries the context in `params._meta`, not in headers.
function toolCall(tools, number, tool, argument) {
  const attributes = { 'gen_ai.operation.name': 'execute_tool', 'gen_ai.tool.name': tool, 'gen_ai.tool.type': 'function' };
  return span(`execute_tool ${tool}`, SpanKind.INTERNAL, attributes, async (outer) => {
    const request = { 'mcp.method.name': 'tools/call', 'jsonrpc.request.id': String(number), 'rpc.system': 'jsonrpc' };
    const result = await span(`tools/call ${tool}`, SpanKind.CLIENT, request, async (client) => {
      const meta = {};
      propagation.inject(api.context.active(), meta);
      const params = { name: tool, arguments: argument, _meta: meta };
      const body = { jsonrpc: '2.0', id: number, method: 'tools/call', params };
      const { result } = await post(`${tools}/mcp`, body, {});
      if (result.isError) client.fail('tool_error', result.text);
      return result;
    });
    if (result.isError) outer.fail('tool_error', result.text);
    outer.set('gen_ai.tool.call.result', result.text);
    return result.text;
  });
}

function turn(args, body, context) {
  const attributes = { 'http.route': '/turn', 'tenant.id': body.tenant };
  const agent = { 'gen_ai.operation.name': 'invoke_agent', 'gen_ai.conversation.id': body.conversation };
  const invoke = () => span('invoke_agent planner', SpanKind.INTERNAL, agent, async (here) => {
    const history = [{ role: 'user', content: body.question }];
    for (let step = 0; step < body.steps; step += 1) {
      const thought = await call(args.models, '/chat', { messages: history, step });
      history.push({ role: 'assistant', content: thought.text });
      const names = ['search', body.fails && step === 1 ? 'fail' : 'tickets'];
      const results = await Promise.all(names.map((name) => toolCall(args.tools, step, name, body.question)));
      for (const content of results) history.push({ role: 'tool', content });
    }
    here.event('plan.done', { 'plan.steps': body.steps, 'plan.cost': 0.125, 'plan.final': true });
    here.set('gen_ai.output.messages', JSON.stringify(history));
    return { text: history.at(-1).content };
  });
  return span('POST /turn', SpanKind.SERVER, attributes, invoke, context);
}

function chat(_args, body, context) {
  const attributes = {
    'gen_ai.operation.name': 'chat',
    'gen_ai.request.model': 'large-2',
    'gen_ai.request.temperature': 0.7,
    'gen_ai.request.stream': true,
    'gen_ai.request.seed': Number.MAX_SAFE_INTEGER,
    'gen_ai.request.stop_sequences': ['\n\n', 'конец', '终', '🛑'],
    'gen_ai.input.messages': JSON.stringify(body.messages) + 'ß\u0000"\\\u2028'.repeat(2000),
  };
  const infer = () => span('chat large-2', SpanKind.CLIENT, attributes, async (here) => {
    here.event('first chunk', { seconds: 0.25, tokens: -3, words: ['a', 'b'] });
    here.event('last chunk', {});
    here.set('gen_ai.response.finish_reasons', ['tool_calls']);
    here.set('gen_ai.usage.input_tokens', 1200 + body.step);
    here.set('logprobs', [-0.5, -1.25, -1e-9]);
    here.set('tokens', [1, null, 3]);
    here.set('flags', [true, false]);
    here.set('nothing', []);
    here.set('empty', '');
    return { text: `step ${body.step}: ask 🔎` };
  });
  return span('POST /chat', SpanKind.SERVER, { 'http.route': '/chat' }, infer, context);
}

// A link to the request before, wherever it came from.
let last;
function before(now) {
  const links = last ? [{ context: last }] : [];
  last = now.spanContext();
  return links;
}

function mcp(_args, body) {
  const { name: tool, _meta: meta } = body.params;
  const attributes = { 'mcp.method.name': 'tools/call', 'gen_ai.tool.name': tool, 'jsonrpc.request.id': String(body.id) };
  const context = propagation.extract(api.ROOT_CONTEXT, meta);
  return span(`tools/call ${tool}`, SpanKind.SERVER, attributes, async (here) => {
    const query = { 'db.system.name': 'postgresql' };
    await span('query', SpanKind.CLIENT, query, async () => {}, api.context.active(), before(here.span));
    if (tool === 'fail') {
      here.event('exception', { 'exception.type': 'Timeout', 'exception.message': 'after 3 s ⏱' });
      here.fail('tool_error', 'no answer ⏱');
      return { result: { isError: true, text: 'no answer ⏱' } };
    }
    return { result: { isError: false, text: `${tool}: 3 hits` } };
  }, context);
}

async function play(args) {
  const turns = Array.from({ length: Number(args.turns) }, (_, number) => number);
  const one = (number) => {
    const body = {
      tenant: `tenant-${number % 3}`,
      conversation: `conversation-${number}`,
      steps: 1 + (number % 3),
      fails: number % 2 === 0,
      question: `Frage ${number}: où est le café ☕?`,
    };
    const attributes = { 'http.route': '/assist', 'tenant.id': body.tenant };
    return span('POST /assist', SpanKind.SERVER, attributes, async (root) => {
      const answer = await call(args.planner, '/turn', body);
      root.set('answer.length', answer.text.length);
    });
  };
  const player = async () => {
    while (turns.length > 0) await one(turns.shift());
  };
  await Promise.all([player(), player(), player(), player()]);
}

async function serve(args, routes) {
  const server = http.createServer(async (request, response) => {
    try {
      let text = '';
      for await (const chunk of request.setEncoding('utf8')) text += chunk;
      const context = propagation.extract(api.ROOT_CONTEXT, request.headers);
      response.end(JSON.stringify(await routes[request.url](args, JSON.parse(text), context)));
    } catch (error) {
      complain(error.stack);
      response.writeHead(500).end(String(error));
    }
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  console.log(JSON.stringify({ listening: server.address().port }));
  await new Promise((stopped) => process.once('SIGTERM', stopped));
  server.closeAllConnections();
  await new Promise((closed) => server.close(closed));
}

async function main() {
  const text = { type: 'string' };
  const options = { models: text, tools: text, planner: text, turns: text };
  const { values: args, positionals: [role] } = parseArgs({ options, allowPositionals: true });
  const servers = { planner: { '/turn': turn }, models: { '/chat': chat }, tools: { '/mcp': mcp } };
  await (role === 'play' ? play(args) : serve(args, servers[role]));
  await provider.shutdown();
  const books = JSON.stringify({ spans, exported, trouble });
  process.stdout.write(`${books}\n`, () => process.exit(trouble.length > 0 ? 1 : 0));
}

main();
