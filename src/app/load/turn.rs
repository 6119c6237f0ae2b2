//! Turns of AI agents: a root, model calls, tools, and MCP servers in other services. The names
//! are those of the GenAI semantic conventions.

use rand::Rng;
use rand::rngs::SmallRng;

use super::salad;
use super::service::ServiceKind;
use super::template::{EventPlan, ScopeIndex, SpanKind, SpanPlan};
use super::template::{double, flag, int, list, text};

pub(super) const SERVICES: &[ServiceKind] = &[
    ServiceKind {
        names: &[
            "support-agent",
            "coding-agent",
            "research-agent",
            "billing-agent",
        ],
        language: "python",
        scopes: &[
            ("agent.runtime", "3.2.0"),
            ("opentelemetry.instrumentation.genai", "0.62b1"),
            ("opentelemetry.instrumentation.mcp", "0.62b1"),
        ],
    },
    ServiceKind {
        names: &["mcp-search", "mcp-files", "mcp-tickets", "mcp-browser"],
        language: "nodejs",
        scopes: &[("@opentelemetry/instrumentation-mcp", "0.14.2")],
    },
    // Rare: one turn in 37 asks it, so that one 512-span request in six has a third resource.
    ServiceKind {
        names: &["guardrail"],
        language: "go",
        scopes: &[(
            "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc",
            "0.66.0",
        )],
    },
];

const RUNTIME: ScopeIndex = ScopeIndex(0);
const GENAI: ScopeIndex = ScopeIndex(1);
const MCP_CLIENT: ScopeIndex = ScopeIndex(2);
const MCP_SERVER: ScopeIndex = ScopeIndex(3);
const GUARDRAIL: ScopeIndex = ScopeIndex(4);

const MODELS: &[(&str, &str)] = &[
    ("anthropic", "claude-sonnet-4-5"),
    ("openai", "gpt-5.1"),
    ("gcp.gemini", "gemini-2.5-pro"),
    ("aws.bedrock", "llama-4-maverick"),
];
const TOOLS: &[&str] = &[
    "search_tickets",
    "read_file",
    "run_query",
    "fetch_page",
    "send_reply",
    "list_orders",
];
const TENANTS: u32 = 24;
const MILLISECOND: u64 = 1_000_000;

/// What becomes of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Clean,
    /// A tool fails and the turn with it: status ERROR.
    Error,
    /// The same tool with the same arguments again and again, until the model is cut off.
    MaxTokens,
    /// Nothing wrong but the time: 47 seconds.
    Slow,
}

/// How one turn is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct TurnPlan {
    pub(super) spans: usize,
    pub(super) fate: Fate,
    pub(super) asks_guardrail: bool,
    /// `None`: one of the many.
    pub(super) tenant: Option<&'static str>,
}

struct Turn<'a> {
    spans: Vec<SpanPlan>,
    now_nanos: u64,
    random: &'a mut SmallRng,
    provider: &'static str,
    model: &'static str,
    input_tokens: i64,
}

/// The spans of one turn; the root is the first.
pub(super) fn turn(plan: TurnPlan, random: &mut SmallRng) -> Vec<SpanPlan> {
    // Squared, so that a few tenants make most of the traffic.
    let skewed = random.random::<f64>().powi(2) * f64::from(TENANTS);
    let tenant = match plan.tenant {
        Some(tenant) => tenant.to_owned(),
        None => format!("tenant-{:02}", skewed as u32),
    };
    let (provider, model) = match plan.fate {
        Fate::MaxTokens => MODELS[2],
        _ => MODELS[random.random_range(0..MODELS.len())],
    };
    let agent = format!("agent-{}", random.random_range(1..=9));
    let mut turn = Turn {
        spans: Vec::with_capacity(plan.spans),
        now_nanos: 0,
        random,
        provider,
        model,
        input_tokens: 900,
    };
    let mut attributes = vec![
        text("tenant.id", tenant),
        text("gen_ai.operation.name", "invoke_agent"),
        text("gen_ai.agent.name", agent),
        text("gen_ai.agent.version", "14"),
        text("gen_ai.provider.name", provider),
        text(
            "user.id",
            format!("u-{:06}", turn.random.random::<u32>() % 1_000_000),
        ),
        text("app.route", "/v1/turns"),
    ];
    let error = (plan.fate == Fate::Error).then(|| "tool failed: upstream timeout".to_owned());
    if error.is_some() {
        attributes.push(text("error.type", "tool_error"));
    }
    if plan.fate == Fate::MaxTokens {
        attributes.push(list("gen_ai.response.finish_reasons", &["MAX_TOKENS"]));
    }
    let root = turn.open(RUNTIME, "agent.turn".into(), SpanKind::Server, None);
    turn.spans[root].attributes = attributes;
    turn.spans[root].has_conversation = true;
    turn.spans[root].error = error;

    if plan.asks_guardrail {
        turn.guardrail(root);
    }
    let looped = (plan.fate == Fate::MaxTokens).then_some(TOOLS[2]);
    turn.model_call(root, "tool_calls", 0);
    let mut failed = plan.fate != Fate::Error;
    // One span is kept for the last model call.
    while turn.spans.len() + 1 < plan.spans {
        let left = plan.spans - turn.spans.len() - 1;
        let calls = if looped.is_some() {
            1
        } else {
            turn.random.random_range(1..=3)
        };
        for _ in 0..calls {
            let left = plan.spans - turn.spans.len() - 1;
            if left == 0 {
                break;
            }
            let tool = looped.unwrap_or_else(|| TOOLS[turn.random.random_range(0..TOOLS.len())]);
            let fails = !failed && left <= 4;
            failed |= fails;
            turn.tool_call(root, tool, left, fails, looped.is_some());
        }
        if left > 1 && turn.spans.len() + 1 < plan.spans {
            turn.model_call(root, "tool_calls", 0);
        }
    }
    match plan.fate {
        Fate::MaxTokens => turn.model_call(root, "MAX_TOKENS", 8192),
        Fate::Clean | Fate::Error | Fate::Slow => turn.model_call(root, "stop", 0),
    }
    turn.pause(1, 20);
    turn.close(root);
    if plan.fate == Fate::Slow {
        stretch(&mut turn.spans, 47_000 * MILLISECOND);
    }
    turn.spans
}

/// Moves all times apart so that the whole takes `total_nanos`.
fn stretch(spans: &mut [SpanPlan], total_nanos: u64) {
    let ended = spans[0].end_nanos.max(1);
    let scale =
        |nanos: u64| (u128::from(nanos) * u128::from(total_nanos) / u128::from(ended)) as u64;
    for span in spans {
        span.start_nanos = scale(span.start_nanos);
        span.end_nanos = scale(span.end_nanos);
        for event in &mut span.events {
            event.at_nanos = scale(event.at_nanos);
        }
    }
}

impl Turn<'_> {
    fn open(
        &mut self,
        scope: ScopeIndex,
        name: String,
        kind: SpanKind,
        parent: Option<usize>,
    ) -> usize {
        self.spans.push(SpanPlan {
            scope,
            name,
            kind,
            parent,
            start_nanos: self.now_nanos,
            end_nanos: self.now_nanos,
            attributes: Vec::new(),
            has_conversation: false,
            events: Vec::new(),
            error: None,
        });
        self.spans.len() - 1
    }

    fn close(&mut self, span: usize) {
        self.now_nanos += 1000;
        self.spans[span].end_nanos = self.now_nanos;
    }

    fn pause(&mut self, from_millis: u64, to_millis: u64) {
        let range = from_millis * MILLISECOND..to_millis * MILLISECOND;
        self.now_nanos += self.random.random_range(range);
    }

    fn model_call(&mut self, parent: usize, finish_reason: &str, output_tokens: i64) {
        let name = format!("chat {}", self.model);
        let span = self.open(GENAI, name, SpanKind::Client, Some(parent));
        // The history is replayed with every call.
        self.input_tokens += self.random.random_range(100..1500);
        let output_tokens = match output_tokens {
            0 => self.random.random_range(20..900),
            given => given,
        };
        let response = format!("resp_{:016x}", self.random.random::<u64>());
        self.spans[span].attributes = vec![
            text("gen_ai.operation.name", "chat"),
            text("gen_ai.provider.name", self.provider),
            text("gen_ai.request.model", self.model),
            text("gen_ai.response.model", self.model),
            text("gen_ai.response.id", response),
            list("gen_ai.response.finish_reasons", &[finish_reason]),
            int("gen_ai.usage.input_tokens", self.input_tokens),
            int("gen_ai.usage.output_tokens", output_tokens),
            double("gen_ai.response.time_to_first_chunk", 0.412),
        ];
        self.spans[span].has_conversation = true;
        if self.random.random_ratio(1, 6) {
            let prompt = salad(self.random, 200..600);
            let answer = salad(self.random, 80..300);
            self.spans[span].events.push(EventPlan {
                name: "gen_ai.client.inference.operation.details",
                at_nanos: self.now_nanos + MILLISECOND,
                attributes: vec![
                    text(
                        "gen_ai.input.messages",
                        format!(r#"[{{"role":"user","parts":[{{"type":"text","content":"{prompt}"}}]}}]"#),
                    ),
                    text(
                        "gen_ai.output.messages",
                        format!(r#"[{{"role":"assistant","parts":[{{"type":"text","content":"{answer}"}}]}}]"#),
                    ),
                ],
            });
        }
        self.pause(120, 900);
        self.close(span);
    }

    /// One to four spans, `left` at most.
    fn tool_call(&mut self, parent: usize, tool: &str, left: usize, fails: bool, repeats: bool) {
        let tool_span = self.open(
            RUNTIME,
            "tool.execute".into(),
            SpanKind::Internal,
            Some(parent),
        );
        let arguments = if repeats {
            r#"{"query":"select * from orders where state = 'open'","limit":50}"#.to_owned()
        } else {
            format!(r#"{{"query":"{}","limit":20}}"#, salad(self.random, 25..60))
        };
        let call = format!("call_{:016x}", self.random.random::<u64>());
        self.spans[tool_span].attributes = vec![
            text("gen_ai.operation.name", "execute_tool"),
            text("gen_ai.tool.name", tool),
            text("gen_ai.tool.type", "function"),
            text("gen_ai.tool.call.id", call),
            text("gen_ai.tool.call.arguments", arguments),
            flag("agent.tool.cached", false),
            int("agent.step", self.spans.len() as i64),
        ];
        if fails {
            self.spans[tool_span].error = Some("upstream timeout".into());
            self.spans[tool_span]
                .attributes
                .push(text("error.type", "timeout"));
        }
        self.pause(1, 5);
        if left >= 3 && self.random.random_ratio(3, 5) {
            self.mcp_pair(tool_span, tool, left >= 4, fails);
        } else if left >= 2 && self.random.random_ratio(1, 3) {
            let inner = self.open(
                RUNTIME,
                "tool.execute".into(),
                SpanKind::Internal,
                Some(tool_span),
            );
            self.spans[inner].attributes = vec![
                text("gen_ai.operation.name", "execute_tool"),
                text("gen_ai.tool.name", "http_get"),
                text("gen_ai.tool.type", "extension"),
                text(
                    "url.full",
                    "https://intranet.example.com/api/v2/records?limit=20&page=3",
                ),
                text("http.request.method", "GET"),
                int("http.response.status_code", 200),
                text("server.address", "intranet.example.com"),
            ];
            self.pause(5, 200);
            self.close(inner);
        } else {
            self.pause(2, 60);
        }
        self.close(tool_span);
    }

    fn mcp_pair(&mut self, parent: usize, tool: &str, may_nest: bool, fails: bool) {
        let session = format!("mcp-{:016x}", self.random.random::<u64>());
        let request = self.spans.len();
        let attributes = |protocol: &str| {
            vec![
                text("mcp.method.name", "tools/call"),
                text("gen_ai.operation.name", "execute_tool"),
                text("gen_ai.tool.name", tool),
                text("mcp.session.id", session.clone()),
                text("jsonrpc.request.id", request.to_string()),
                text("network.transport", protocol),
                text("server.address", "mcp.agents.svc"),
                int("server.port", 8931),
            ]
        };
        let name = format!("tools/call {tool}");
        let client = self.open(MCP_CLIENT, name.clone(), SpanKind::Client, Some(parent));
        self.spans[client].attributes = attributes("tcp");
        self.pause(1, 8);
        let server = self.open(MCP_SERVER, name, SpanKind::Server, Some(client));
        self.spans[server].attributes = attributes("tcp");
        if fails {
            self.spans[server]
                .attributes
                .push(text("error.type", "tool_error"));
            self.spans[server].error = Some("upstream timeout".into());
        }
        if may_nest && self.random.random_ratio(1, 3) {
            let query = self.open(
                MCP_SERVER,
                "SELECT records".into(),
                SpanKind::Client,
                Some(server),
            );
            self.spans[query].attributes = vec![
                text("db.system.name", "postgresql"),
                text("db.namespace", "records"),
                text("db.operation.name", "SELECT"),
                text(
                    "db.query.text",
                    "SELECT id, state, body FROM records WHERE owner = $1 LIMIT $2",
                ),
                text("server.address", "postgres.data.svc"),
                int("server.port", 5432),
                int("db.response.returned_rows", 20),
            ];
            self.pause(2, 40);
            self.close(query);
        }
        self.pause(5, 250);
        self.close(server);
        self.pause(1, 4);
        self.close(client);
    }

    fn guardrail(&mut self, parent: usize) {
        let name = "guardrail.v1.Checks/Check".to_owned();
        let span = self.open(GUARDRAIL, name, SpanKind::Server, Some(parent));
        self.spans[span].attributes = vec![
            text("rpc.system", "grpc"),
            text("rpc.service", "guardrail.v1.Checks"),
            text("rpc.method", "Check"),
            text("guardrail.policy", "pii-and-injection"),
            double("guardrail.score", 0.02),
            flag("guardrail.blocked", false),
        ];
        self.pause(3, 30);
        self.close(span);
    }
}
