//! Ten-span web requests, the traffic of ordinary microservices.

use rand::Rng;
use rand::rngs::SmallRng;

use super::salad;
use super::service::ServiceKind;
use super::template::{ScopeIndex, SpanKind, SpanPlan, int, text};

pub(super) const SERVICES: &[ServiceKind] = &[
    ServiceKind {
        names: &["gateway", "storefront"],
        language: "go",
        scopes: &[
            (
                "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp",
                "0.66.0",
            ),
            ("gateway.auth", "1.9.0"),
        ],
    },
    ServiceKind {
        names: &["orders", "catalogue", "profiles"],
        language: "java",
        scopes: &[
            ("io.opentelemetry.tomcat-10.0", "2.22.0-alpha"),
            ("io.opentelemetry.jdbc", "2.22.0-alpha"),
        ],
    },
    // One request in 78 pays, so that every other 512-span batch has a third resource.
    ServiceKind {
        names: &["payments"],
        language: "nodejs",
        scopes: &[("@opentelemetry/instrumentation-http", "0.208.0")],
    },
];

const HTTP: ScopeIndex = ScopeIndex(0);
const AUTH: ScopeIndex = ScopeIndex(1);
const SERVER: ScopeIndex = ScopeIndex(2);
const JDBC: ScopeIndex = ScopeIndex(3);
const PAYMENTS: ScopeIndex = ScopeIndex(4);

const ROUTES: &[&str] = &["/api/orders/{id}", "/api/catalogue", "/api/profile/{id}"];
const MILLISECOND: u64 = 1_000_000;

/// The spans of one request; the root is the first.
pub(super) fn request(pays: bool, random: &mut SmallRng) -> Vec<SpanPlan> {
    let route = ROUTES[random.random_range(0..ROUTES.len())];
    let mut spans = Vec::with_capacity(10);
    // (scope, name, kind, parent, start and end in percent of the whole)
    let server = if pays { PAYMENTS } else { SERVER };
    let plan: [(ScopeIndex, String, SpanKind, Option<usize>, u64, u64); 10] = [
        (HTTP, format!("GET {route}"), SpanKind::Server, None, 0, 100),
        (
            AUTH,
            "authenticate".into(),
            SpanKind::Internal,
            Some(0),
            1,
            8,
        ),
        (HTTP, "GET".into(), SpanKind::Client, Some(0), 10, 97),
        (
            SERVER,
            format!("GET {route}"),
            SpanKind::Server,
            Some(2),
            12,
            95,
        ),
        (
            JDBC,
            "SELECT accounts".into(),
            SpanKind::Client,
            Some(3),
            14,
            26,
        ),
        (
            JDBC,
            "SELECT orders".into(),
            SpanKind::Client,
            Some(3),
            28,
            44,
        ),
        (
            server,
            "POST /internal/price".into(),
            SpanKind::Server,
            Some(3),
            46,
            70,
        ),
        (
            JDBC,
            "SELECT prices".into(),
            SpanKind::Client,
            Some(6),
            48,
            66,
        ),
        (
            JDBC,
            "UPDATE last_seen".into(),
            SpanKind::Client,
            Some(3),
            72,
            84,
        ),
        (SERVER, "render".into(), SpanKind::Internal, Some(3), 86, 94),
    ];
    let total_nanos = random.random_range(20..180) * MILLISECOND;
    for (scope, name, kind, parent, start, end) in plan {
        let attributes = match scope {
            JDBC => vec![
                text("db.system.name", "postgresql"),
                text("db.namespace", "shop"),
                text(
                    "db.query.text",
                    format!("{name} WHERE tenant = $1 AND id = $2"),
                ),
                text("server.address", "postgres.shop.svc"),
                int("server.port", 5432),
                text(
                    "db.collection.name",
                    name.split(' ').next_back().unwrap_or(""),
                ),
                text(
                    "thread.name",
                    format!("http-exec-{}", random.random_range(1..200)),
                ),
            ],
            AUTH => vec![
                text(
                    "enduser.id",
                    format!("u-{:06}", random.random_range(0..1_000_000)),
                ),
                text("enduser.scope", "orders:read profile:read"),
                text("auth.method", "oidc"),
                text("auth.issuer", "https://login.shop.example.com"),
                text("app.note", salad(random, 60..70)),
            ],
            _ => vec![
                text("http.request.method", "GET"),
                text("http.route", route),
                text("url.path", route.replace("{id}", "8c1f0a52")),
                text("url.scheme", "https"),
                int("http.response.status_code", 200),
                text("server.address", "shop.example.com"),
                text("user_agent.original", "Mozilla/5.0 (X11) Gecko"),
                text(
                    "client.address",
                    format!("10.4.{}.17", random.random_range(0..255)),
                ),
            ],
        };
        spans.push(SpanPlan {
            scope,
            name,
            kind,
            parent,
            start_nanos: total_nanos * start / 100,
            end_nanos: total_nanos * end / 100,
            attributes,
            has_conversation: false,
            events: Vec::new(),
            error: None,
        });
    }
    spans
}
