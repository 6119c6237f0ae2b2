//! The services that a shape's spans come from: resources and instrumentation scopes, encoded.

use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use rand::Rng;
use rand::rngs::SmallRng;

use super::template::{Body, int, text, write_varint};

/// One kind of service in a shape: its possible names, and its scopes with their versions.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServiceKind {
    /// Each cell has one of them.
    pub(super) names: &'static [&'static str],
    pub(super) language: &'static str,
    pub(super) scopes: &'static [(&'static str, &'static str)],
}

/// A running instance: what a batch copies in front of its spans.
#[derive(Debug)]
pub(super) struct Service {
    /// Field 1 of a ResourceSpans, with tag and length.
    header: Vec<u8>,
    scopes: Vec<Scope>,
}

#[derive(Debug)]
struct Scope {
    /// Field 1 of a ScopeSpans, with tag and length.
    header: Vec<u8>,
    /// Spans of the batch being made, as fields 2 of a ScopeSpans.
    spans: Vec<u8>,
}

impl Service {
    pub(super) fn new(kind: &ServiceKind, cell: usize, random: &mut SmallRng) -> Self {
        let name = kind.names[cell % kind.names.len()];
        let mut header = Body::default();
        header.field(0x0a, &resource(kind, name, random).encode_to_vec());
        let scopes = kind
            .scopes
            .iter()
            .map(|(name, version)| {
                let scope = InstrumentationScope {
                    name: (*name).to_owned(),
                    version: (*version).to_owned(),
                    ..InstrumentationScope::default()
                };
                let mut header = Body::default();
                header.field(0x0a, &scope.encode_to_vec());
                Scope {
                    header: header.bytes,
                    spans: Vec::new(),
                }
            })
            .collect();
        Self {
            header: header.bytes,
            scopes,
        }
    }

    pub(super) fn scope_count(&self) -> usize {
        self.scopes.len()
    }

    /// Where to append spans of one scope.
    pub(super) fn spans_mut(&mut self, scope: usize) -> &mut Vec<u8> {
        &mut self.scopes[scope].spans
    }

    /// Bytes that [`Service::take`] will write at most.
    pub(super) fn pending_bytes_max(&self) -> usize {
        let scopes = self.scopes.iter();
        let inner: usize = scopes
            .map(|scope| scope.header.len() + scope.spans.len() + 12)
            .sum();
        self.header.len() + inner + 12
    }

    /// Writes one ResourceSpans with the spans appended so far, and forgets these.
    pub(super) fn take(&mut self, out: &mut Vec<u8>) {
        let used = |scope: &&mut Scope| !scope.spans.is_empty();
        let mut inner = 0;
        for scope in self.scopes.iter_mut().filter(used) {
            let len = scope.header.len() + scope.spans.len();
            inner += 1 + varint_len(len) + len;
        }
        if inner == 0 {
            return;
        }
        out.push(0x0a);
        write_varint(self.header.len() + inner, out);
        out.extend_from_slice(&self.header);
        for scope in self.scopes.iter_mut().filter(used) {
            out.push(0x12);
            write_varint(scope.header.len() + scope.spans.len(), out);
            out.extend_from_slice(&scope.header);
            out.extend_from_slice(&scope.spans);
            scope.spans.clear();
        }
    }
}

fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// What the k8s attributes processor and an SDK put on a resource: about 508 bytes.
fn resource(kind: &ServiceKind, name: &str, random: &mut SmallRng) -> Resource {
    let replica: u32 = random.random();
    let suffix: u16 = random.random();
    let uid: u128 = random.random();
    let node: u8 = random.random();
    let (runtime, version) = match kind.language {
        "python" => ("cpython", "3.13.1"),
        "go" => ("go", "go1.24.2"),
        "java" => ("openjdk", "21.0.6"),
        _ => ("nodejs", "22.14.0"),
    };
    Resource {
        attributes: vec![
            text("service.name", name),
            text("service.namespace", "agents"),
            text("service.version", "2026.11.3"),
            text("service.instance.id", uuid(uid)),
            text("deployment.environment.name", "production"),
            text("k8s.namespace.name", "agents"),
            text("k8s.node.name", format!("node-{node:03}")),
            text("k8s.pod.name", format!("{name}-{replica:08x}-{suffix:04x}")),
            int("process.pid", i64::from(random.random_range(7..4000))),
            text("process.runtime.name", runtime),
            text("process.runtime.version", version),
            text("telemetry.sdk.language", kind.language),
            text("telemetry.sdk.name", "opentelemetry"),
            text("telemetry.sdk.version", "1.45.2"),
        ],
        ..Resource::default()
    }
}

fn uuid(bits: u128) -> String {
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}
