//! What the paths of a condition mean: which field of which message, or which attribute.

use crate::policy::mistake::nearest;
use crate::policy::ottl::Context;
use crate::policy::ottl::compile::Compiler;
use crate::policy::ottl::error::{Error, EvalError, Warning};
use crate::policy::ottl::expr::{Expr, Field, Key, Level};
use crate::policy::ottl::syntax::{Path, PathField};
use crate::policy::ottl::value::{Map, Value};

/// What a path begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    Resource,
    Scope,
    Span,
    Event,
    Collector,
}

const SPAN_FIELDS: &[(&str, Field)] = &[
    ("dropped_attributes_count", Field::DroppedAttributes),
    ("dropped_events_count", Field::DroppedEvents),
    ("dropped_links_count", Field::DroppedLinks),
    ("end_time", Field::End),
    ("end_time_unix_nano", Field::EndUnixNano),
    ("events", Field::Events),
    ("flags", Field::Flags),
    ("kind", Field::Kind),
    ("kind.deprecated_string", Field::KindDeprecatedText),
    ("kind.string", Field::KindText),
    ("links", Field::Links),
    ("name", Field::Name),
    ("parent_span_id", Field::ParentId),
    ("parent_span_id.string", Field::ParentIdText),
    ("span_id", Field::SpanId),
    ("span_id.string", Field::SpanIdText),
    ("start_time", Field::Start),
    ("start_time_unix_nano", Field::StartUnixNano),
    ("status", Field::Status),
    ("status.code", Field::StatusCode),
    ("status.message", Field::StatusMessage),
    ("trace_id", Field::TraceId),
    ("trace_id.string", Field::TraceIdText),
    ("trace_state", Field::TraceState),
];
const RESOURCE_FIELDS: &[(&str, Field)] = &[("dropped_attributes_count", Field::ResourceDropped)];
const SCOPE_FIELDS: &[(&str, Field)] = &[
    ("dropped_attributes_count", Field::ScopeDropped),
    ("name", Field::ScopeName),
    ("version", Field::ScopeVersion),
];
const EVENT_FIELDS: &[(&str, Field)] = &[
    ("dropped_attributes_count", Field::EventDropped),
    ("name", Field::EventName),
    ("time", Field::EventTime),
    ("time_unix_nano", Field::EventUnixNano),
];
/// Fields that are not in the tables, for the names in a message.
const OTHERS: &[(Root, &str)] = &[
    (Root::Resource, "attributes"),
    (Root::Resource, "schema_url"),
    (Root::Scope, "attributes"),
    (Root::Scope, "schema_url"),
    (Root::Span, "attributes"),
    (Root::Span, "cache"),
    (Root::Event, "attributes"),
    (Root::Event, "cache"),
    (Root::Event, "event_index"),
];
/// Attributes that nobody sets on a span, by the semantic conventions.
const RESOURCE_KEYS: &[&[u8]] = &[
    b"deployment.environment",
    b"deployment.environment.name",
    b"host.name",
    b"k8s.cluster.name",
    b"k8s.deployment.name",
    b"k8s.namespace.name",
    b"k8s.node.name",
    b"k8s.pod.name",
    b"service.instance.id",
    b"service.name",
    b"service.namespace",
    b"service.version",
    b"telemetry.sdk.language",
    b"telemetry.sdk.name",
];

impl Root {
    fn named(name: &str, context: Context) -> Option<Self> {
        match name {
            "resource" => Some(Self::Resource),
            "scope" | "instrumentation_scope" => Some(Self::Scope),
            "span" => Some(Self::Span),
            "spanevent" if context == Context::SpanEvent => Some(Self::Event),
            "otelcol" => Some(Self::Collector),
            _ => None,
        }
    }

    fn own(context: Context) -> Self {
        match context {
            Context::Span => Self::Span,
            Context::SpanEvent => Self::Event,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Scope => "scope",
            Self::Span => "span",
            Self::Event => "spanevent",
            Self::Collector => "otelcol",
        }
    }

    fn fields(self) -> &'static [(&'static str, Field)] {
        match self {
            Self::Resource => RESOURCE_FIELDS,
            Self::Scope => SCOPE_FIELDS,
            Self::Span => SPAN_FIELDS,
            Self::Event => EVENT_FIELDS,
            Self::Collector => &[],
        }
    }

    fn field(self, name: &str) -> Option<Field> {
        let (_, field) = self.fields().iter().find(|(known, _)| *known == name)?;
        Some(*field)
    }

    fn level(self) -> Option<Level> {
        match self {
            Self::Resource => Some(Level::Resource),
            Self::Scope => Some(Level::Scope),
            Self::Span => Some(Level::Span),
            Self::Event => Some(Level::Event),
            Self::Collector => None,
        }
    }
}

/// As it is written behind its root: `status.code`.
pub(super) fn name_of(field: Field) -> &'static str {
    let tables = [RESOURCE_FIELDS, SCOPE_FIELDS, SPAN_FIELDS, EVENT_FIELDS];
    let mut known = tables.into_iter().flatten();
    known
        .find(|(_, it)| *it == field)
        .map_or("", |(name, _)| *name)
}

impl Compiler {
    pub(super) fn path(&mut self, path: &Path) -> Result<Expr, Error> {
        let own = Root::own(self.context);
        let (root, fields) = match path.fields.split_first() {
            Some((first, rest)) if !rest.is_empty() && first.keys.is_empty() => {
                match Root::named(&first.name, self.context) {
                    Some(root) => (root, rest),
                    None => (own, &path.fields[..]),
                }
            }
            _ => (own, &path.fields[..]),
        };
        let Some((first, rest)) = fields.split_first() else {
            return Err(Error::not_ottl(0, "an empty path"));
        };
        if root == Root::Collector {
            return self.collector(fields);
        }
        match (first.name.as_str(), root.level()) {
            ("attributes", Some(level)) if rest.is_empty() => self.attributes(level, first),
            ("schema_url", Some(Level::Resource | Level::Scope)) if rest.is_empty() => {
                no_keys(first)?;
                self.warn(
                    first.at,
                    "the schema URL is always empty in tail sampling",
                    None,
                );
                Ok(Expr::Constant(Value::text(b"")))
            }
            ("cache", _) if rest.is_empty() && root == own => {
                let keys = self.keys(&first.keys)?;
                Ok(Expr::Constant(match keys.is_empty() {
                    true => Value::Map(Map::empty()),
                    false => Value::Nil,
                }))
            }
            ("event_index", Some(Level::Event)) if rest.is_empty() => {
                no_keys(first)?;
                self.warn(
                    first.at,
                    "events have no index in tail sampling, so this is an error for every event",
                    None,
                );
                Ok(Expr::Fails(EvalError::EventIndex))
            }
            ("trace_state", Some(Level::Span)) if rest.is_empty() && !first.keys.is_empty() => {
                match &self.keys(&first.keys)?[..] {
                    [Key::Text(key)] => Ok(Expr::TraceState(key.clone())),
                    [_] => Ok(Expr::Fails(EvalError::Index)),
                    _ => Err(Error::not_ottl(
                        first.at,
                        "a member of the trace state has no members",
                    )),
                }
            }
            _ => self.field(root, first, rest),
        }
    }

    fn field(&self, root: Root, first: &PathField, rest: &[PathField]) -> Result<Expr, Error> {
        let field = match rest {
            [] => root.field(&first.name),
            [second] => root.field(&format!("{}.{}", first.name, second.name)),
            _ => None,
        };
        match field {
            Some(field) => {
                no_keys(first)?;
                rest.iter().try_for_each(no_keys)?;
                Ok(Expr::Field(field))
            }
            None => Err(self.no_field(root, first, rest)),
        }
    }

    fn no_field(&self, root: Root, first: &PathField, rest: &[PathField]) -> Error {
        let written: Vec<&str> = std::iter::once(first)
            .chain(rest)
            .map(|field| field.name.as_str())
            .collect();
        let written = written.join(".");
        let name = root.name();
        // A longer path may begin well: what comes behind is wrong then.
        let at = match (root.field(&first.name), rest) {
            (Some(_), [second, ..]) => second.at,
            _ => first.at,
        };
        let error = Error::not_ottl(at, format!("`{name}` has no field `{written}`"));
        let path_name = |root: Root, field: &str| {
            if root == Root::own(self.context) {
                field.to_owned()
            } else {
                format!("{}.{field}", root.name())
            }
        };
        if (root, first.name.as_str()) == (Root::Span, "duration") {
            return error.hint(format!(
                "write {} - {} > Duration(\"1s\")",
                path_name(Root::Span, "end_time"),
                path_name(Root::Span, "start_time")
            ));
        }
        if root == Root::Span && first.name == "spanevent" {
            return error.hint("events are looked at by conditions of the `spanevent` list");
        }
        if root == Root::Span && first.name == "event" {
            return error.hint("events are looked at by conditions of the `spanevent` list");
        }
        if Root::named(&first.name, self.context).is_some() && rest.is_empty() {
            return error.hint(format!("write {}.name, for example", first.name));
        }
        if first.name == "attributes" {
            return error.hint("an attribute is written attributes[\"key\"]");
        }
        if root == Root::Event && Root::Span.field(&written).is_some() {
            return error.hint(format!("of the span it is span.{written}"));
        }
        let known = root.fields().iter().map(|(name, _)| *name).chain(
            OTHERS
                .iter()
                .filter(|(of, _)| *of == root)
                .map(|(_, it)| *it),
        );
        match nearest(&written, known) {
            Some(meant) => error.hint(format!("did you mean {}?", path_name(root, meant))),
            None => error.hint(format!(
                "an attribute is written {}[\"{written}\"]",
                path_name(root, "attributes")
            )),
        }
    }

    fn attributes(&mut self, level: Level, field: &PathField) -> Result<Expr, Error> {
        let mut keys = self.keys(&field.keys)?;
        if !matches!(keys.first(), Some(Key::Text(_))) {
            return Ok(Expr::Attributes { level, keys });
        }
        let Key::Text(first) = keys.remove(0) else {
            return Ok(Expr::Attributes { level, keys });
        };
        if matches!(level, Level::Span | Level::Event) && RESOURCE_KEYS.contains(&&first[..]) {
            let key = String::from_utf8_lossy(&first).into_owned();
            self.warn(
                field.at,
                &format!("`{key}` is an attribute of resources, which spans do not have"),
                Some(format!("write resource.attributes[\"{key}\"]")),
            );
        }
        let slot = self.slot(level, &first, field.at)?;
        Ok(Expr::Attribute { level, slot, keys })
    }

    /// Of the request that brought a span nothing is known any more when a trace is judged.
    fn collector(&mut self, fields: &[PathField]) -> Result<Expr, Error> {
        let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
        let Some((last, before)) = fields.split_last() else {
            return Err(Error::not_ottl(0, "an empty path"));
        };
        before.iter().try_for_each(no_keys)?;
        let keys = self.keys(&last.keys)?;
        let value = match (&names[..], keys.len()) {
            (["client", "addr"], 0) => Value::Nil,
            (["client", "metadata"] | ["grpc", "metadata"], 0)
            | (["client", "auth", "attributes"], 0) => Value::Map(Map::empty()),
            (["client", "metadata"] | ["grpc", "metadata"], 1 | 2)
            | (["client", "auth", "attributes"], 1) => Value::Nil,
            _ => {
                let message = format!("`otelcol` has no field `{}`", names.join("."));
                return Err(Error::not_ottl(last.at, message).hint(
                    "there are client.addr, client.metadata, client.auth.attributes and \
                     grpc.metadata",
                ));
            }
        };
        self.warn(
            last.at,
            "the request that brought a span is not known in tail sampling, so this is never there",
            None,
        );
        Ok(Expr::Constant(value))
    }

    pub(super) fn warn(&mut self, offset: usize, message: &str, hint: Option<String>) {
        self.warnings.push(Warning {
            offset,
            message: message.to_owned(),
            hint,
        });
    }
}

fn no_keys(field: &PathField) -> Result<(), Error> {
    match field.keys.first() {
        None => Ok(()),
        Some(key) => Err(Error::not_ottl(
            key.at,
            format!("`{}` has no elements", field.name),
        )),
    }
}
