//! What the services made, by their own lists; what the backend got; and where the two differ.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
pub struct Books {
    spans: Vec<Made>,
    exported: usize,
    trouble: Vec<String>,
}

/// One span of a service's list.
#[derive(Deserialize)]
pub struct Made {
    pub sampled: bool,
    service: String,
    trace_id: String,
    span_id: String,
    parent_span_id: String,
    name: String,
    #[serde(flatten)]
    more: serde_json::Map<String, Value>,
}

impl Books {
    /// Of one process; it has no trouble, and every sampled span of it was exported.
    pub fn parse(line: &str) -> Self {
        let books: Self = serde_json::from_str(line).unwrap();
        assert!(books.trouble.is_empty(), "{:#?}", books.trouble);
        let sampled = books.spans.iter().filter(|span| span.sampled).count();
        assert_eq!(books.exported, sampled, "spans that the SDK exported");
        books
    }

    pub fn add(&mut self, other: Self) {
        self.spans.extend(other.spans);
        self.exported += other.exported;
    }

    /// The traces with such a span.
    pub fn traces(&self, such: impl Fn(&Made) -> bool) -> BTreeSet<&str> {
        let spans = self.spans.iter().filter(|span| such(span));
        spans.map(|span| &*span.trace_id).collect()
    }

    /// The spans of these traces, in the form of [`received`] without the member.
    pub fn spans_of(&self, traces: &BTreeSet<&str>) -> Vec<Value> {
        let spans = self
            .spans
            .iter()
            .filter(|span| traces.contains(&*span.trace_id));
        let values = spans.map(|span| {
            let mut value = Value::Object(span.more.clone());
            value["service"] = (*span.service).into();
            value["trace_id"] = (*span.trace_id).into();
            value["span_id"] = (*span.span_id).into();
            value["parent_span_id"] = (*span.parent_span_id).into();
            value["name"] = (*span.name).into();
            value
        });
        values.collect()
    }

    /// The services did what is tested here: each trace is a tree over all of them, with pairs of client and server.
    pub fn assert_turns(&self) {
        let mut traces: BTreeMap<&str, Vec<&Made>> = BTreeMap::new();
        for span in &self.spans {
            traces.entry(&span.trace_id).or_default().push(span);
        }
        for (trace, spans) in traces {
            let by_id: BTreeMap<&str, &Made> =
                spans.iter().map(|span| (&*span.span_id, *span)).collect();
            assert_eq!(by_id.len(), spans.len(), "{trace}");
            let services: BTreeSet<&str> = spans.iter().map(|span| &*span.service).collect();
            let all = ["assistant", "mcp-tools", "model-gateway", "planner"];
            assert_eq!(services, BTreeSet::from(all), "{trace}");
            for span in &spans {
                let root = span.name == "POST /assist";
                let parent = by_id.get(&*span.parent_span_id);
                assert_eq!(parent.is_none(), root, "{trace}: {}", span.name);
                if let Some(parent) = parent
                    && span.more["kind"] == "SERVER"
                {
                    assert_eq!(parent.more["kind"], "CLIENT", "{trace}: {}", span.name);
                    assert_eq!(parent.name, span.name, "{trace}");
                    assert_ne!(parent.service, span.service, "{trace}: {}", span.name);
                }
            }
            let roots = spans.iter().filter(|span| span.parent_span_id.is_empty());
            assert_eq!(roots.count(), 1, "{trace}");
            // Root and planner, and 11 spans for each of 1 to 3 steps.
            assert!(
                [15, 26, 37].contains(&spans.len()),
                "{trace}: {} spans",
                spans.len()
            );
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn plain(value: Option<&AnyValue>) -> Value {
    match value.and_then(|value| value.value.as_ref()) {
        None => Value::Null,
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::BoolValue(flag)) => json!(flag),
        Some(Any::IntValue(number)) => json!(number),
        Some(Any::DoubleValue(number)) => json!(number),
        Some(Any::ArrayValue(array)) => array
            .values
            .iter()
            .map(|value| plain(Some(value)))
            .collect(),
        Some(other) => panic!("the services send no {other:?}"),
    }
}

fn attributes(attributes: &[KeyValue]) -> Value {
    let pairs = attributes
        .iter()
        .map(|pair| (pair.key.clone(), plain(pair.value.as_ref())));
    let map: serde_json::Map<String, Value> = pairs.collect();
    assert_eq!(map.len(), attributes.len(), "a key came twice");
    Value::Object(map)
}

/// The spans of a resource, in the form of the services' lists; with `member`, which exported them.
pub fn received(resource: &ResourceSpans, sdk: &str, member: &str) -> Vec<Value> {
    let about = attributes(&resource.resource.as_ref().unwrap().attributes);
    assert_eq!(about["telemetry.sdk.language"], sdk, "{about}");
    assert_eq!(about["deployment.environment.name"], "test", "{about}");
    let mut spans = Vec::new();
    for scope in &resource.scope_spans {
        let about_scope = scope.scope.as_ref().unwrap();
        assert_eq!(
            (&*about_scope.name, &*about_scope.version),
            ("fleet.service", "1.2.3")
        );
        for span in &scope.spans {
            let mut value = received_span(span);
            value["service"] = about["service.name"].clone();
            value["member"] = member.into();
            spans.push(value);
        }
    }
    spans
}

fn received_span(span: &Span) -> Value {
    let dropped = [
        span.dropped_attributes_count,
        span.dropped_events_count,
        span.dropped_links_count,
    ];
    assert_eq!(dropped, [0; 3], "{}", span.name);
    let events: Vec<Value> = span
        .events
        .iter()
        .map(|event| json!({"name": event.name, "attributes": attributes(&event.attributes)}))
        .collect();
    let link = |link: &Link| format!("{}/{}", hex(&link.trace_id), hex(&link.span_id));
    let links: Vec<String> = span.links.iter().map(link).collect();
    let (code, message) = match &span.status {
        None => (StatusCode::Unset, ""),
        Some(status) => (status.code(), &*status.message),
    };
    let kind = SpanKind::try_from(span.kind).unwrap().as_str_name();
    json!({
        "trace_id": hex(&span.trace_id),
        "span_id": hex(&span.span_id),
        "parent_span_id": hex(&span.parent_span_id),
        "name": span.name,
        "kind": kind.trim_start_matches("SPAN_KIND_"),
        "attributes": attributes(&span.attributes),
        "events": events,
        "links": links,
        "status": [code.as_str_name().trim_start_matches("STATUS_CODE_"), message],
        "start": span.start_time_unix_nano.to_string(),
        "end": span.end_time_unix_nano.to_string(),
    })
}

fn key(span: &Value) -> (String, String) {
    let text = |field: &str| span[field].as_str().unwrap().to_owned();
    (text("trace_id"), text("span_id"))
}

/// A line for each span that is lost, doubled, unknown or changed.
pub fn differences(sent: &[Value], got: &[Value]) -> Vec<String> {
    let mut arrived: BTreeMap<_, Vec<&Value>> = BTreeMap::new();
    for span in got {
        arrived.entry(key(span)).or_default().push(span);
    }
    let mut found = Vec::new();
    for span in sent {
        let came = arrived.remove(&key(span)).unwrap_or_default();
        match came[..] {
            [] => found.push(format!("lost: {span}")),
            [one] if one == span => {}
            [one] => found.push(format!("changed:\n  {span}\n  {one}")),
            [..] => found.push(format!("came {} times: {span}", came.len())),
        }
    }
    found.extend(
        arrived
            .into_keys()
            .map(|key| format!("was not to come: {key:?}")),
    );
    found
}

/// Every span came once and unchanged, and each trace from one member.
pub fn assert_same(sent: &[Value], got: &[Value]) {
    let mut got = got.to_vec();
    let mut members: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for span in &mut got {
        let member = span.as_object_mut().unwrap().remove("member").unwrap();
        let member = member.as_str().unwrap().to_owned();
        members.entry(key(span).0).or_default().insert(member);
    }
    let found = differences(sent, &got);
    let shown = found
        .iter()
        .take(5)
        .map(|line| line.chars().take(3000).collect::<String>());
    let shown: Vec<String> = shown.collect();
    assert!(
        found.is_empty(),
        "{} differences, the first:\n{}",
        found.len(),
        shown.join("\n")
    );
    for (trace, members) in members {
        assert_eq!(members.len(), 1, "{trace} came from {members:?}");
    }
}
