//! Evaluates a compiled condition on one span, or on one of its events.

use std::borrow::Cow;

use crate::model::Moment;
use crate::policy::ottl::error::EvalError;
use crate::policy::ottl::expr::{Expr, Field, Key, Level, Test};
use crate::policy::ottl::time::Timestamp;
use crate::policy::ottl::tracestate;
use crate::policy::ottl::value::{List, Map, Opaque, Value, calculate, compare, negated};
use crate::wire::{
    EVENT_ATTRIBUTES, EventRecord, RESOURCE_ATTRIBUTES, ResourceRecord, SCOPE_ATTRIBUTES,
    SPAN_ATTRIBUTES, ScopeRecord, SpanRecord, any_value, attribute_value, elements,
};

/// KeyValues by slot.
pub(super) type Slots<'a> = &'a [Option<&'a [u8]>];

/// What a condition sees.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) resource: &'a ResourceRecord<'a>,
    pub(super) scope: &'a ScopeRecord<'a>,
    pub(super) span: &'a SpanRecord<'a>,
    /// All defaults for a condition on spans.
    pub(super) event: &'a EventRecord<'a>,
    /// By [`Level`].
    pub(super) slots: [Slots<'a>; 4],
    pub(super) now: Moment,
}

impl Test {
    pub(super) fn holds(&self, record: &Record<'_>) -> Result<bool, EvalError> {
        match self {
            Self::Const(value) => Ok(*value),
            Self::Compare(sides, how) => {
                // For borrows that last as long as the shorter of the two.
                fn sides_of<'a>(
                    sides: &'a (Expr, Expr),
                    record: &Record<'a>,
                ) -> Result<(Value<'a>, Value<'a>), EvalError> {
                    Ok((sides.0.value(record)?, sides.1.value(record)?))
                }
                let (left, right) = sides_of(sides, record)?;
                compare(&left, *how, &right)
            }
            Self::CompareLiteral(sides, how) => {
                let (expr, literal) = &**sides;
                match expr {
                    // Neither copied nor dropped: most spans do not have the attribute.
                    Expr::Attribute { level, slot, .. } if record.slot(*level, *slot).is_none() => {
                        compare(&Value::Nil, *how, literal)
                    }
                    expr => compare(&expr.value(record)?, *how, literal),
                }
            }
            Self::Call(expr) => match expr.value(record)? {
                Value::Bool(value) => Ok(value),
                _ => Err(EvalError::NotBool),
            },
            Self::Not(test) => Ok(!test.holds(record)?),
            Self::And(tests) => {
                for test in tests {
                    if !test.holds(record)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Or(tests) => {
                for test in tests {
                    if test.holds(record)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

impl Expr {
    pub(super) fn value<'a>(&'a self, record: &Record<'a>) -> Result<Value<'a>, EvalError> {
        match self {
            Self::Literal(value) | Self::Constant(value) => Ok(value.borrowed()),
            Self::Field(field) => Ok(record.field(*field)),
            Self::Attribute { level, slot, keys } => match record.slot(*level, *slot) {
                None => Ok(Value::Nil),
                Some(key_value) => descend(Value::from(attribute_value(key_value)), keys, record),
            },
            Self::Attributes { level, keys } => {
                let map = record.attributes(*level);
                match keys.split_first() {
                    None => Ok(Value::Map(map)),
                    Some((first, rest)) => match key_value(first, record)? {
                        KeyValue::Text(key) => match map.get(&key) {
                            Some(value) => descend(value, rest, record),
                            None => Ok(Value::Nil),
                        },
                        KeyValue::Int(_) => Err(EvalError::Index),
                    },
                }
            }
            Self::TraceState(key) => Ok(
                tracestate::member(record.span.trace_state, key).map_or(Value::Nil, Value::text)
            ),
            Self::Call(call) => {
                let mut value = call.value(record)?;
                for key in &call.keys {
                    // What is calculated is no key of a result: the Collector looks at literals.
                    if let Key::Expr(_) = key {
                        return Err(EvalError::Index);
                    }
                    value =
                        element(value, &key_value(key, record)?)?.ok_or(EvalError::NoSuchKey)?;
                }
                Ok(value)
            }
            Self::Negative(inner) => negated(&inner.value(record)?),
            Self::Math(first, rest) => {
                let mut value = first.value(record)?;
                for (operator, next) in rest {
                    value = calculate(&value, *operator, &next.value(record)?)?;
                }
                Ok(value)
            }
            Self::List(values) => {
                let values: Result<Vec<_>, _> =
                    values.iter().map(|value| value.value(record)).collect();
                Ok(Value::List(List::Owned(values?)))
            }
            Self::Map(entries) => {
                let mut out = Vec::new();
                for (key, value) in entries {
                    let value = value.value(record)?.into_any_value()?;
                    crate::wire::write_entry(key, &value, &mut out);
                }
                Ok(Value::Map(Map {
                    bytes: Cow::Owned(out),
                    tag: crate::wire::LIST_TAG,
                }))
            }
            Self::Fails(why) => Err(*why),
        }
    }
}

enum KeyValue<'a> {
    Text(Cow<'a, [u8]>),
    Int(i64),
}

fn key_value<'a>(key: &'a Key, record: &Record<'a>) -> Result<KeyValue<'a>, EvalError> {
    match key {
        Key::Text(text) => Ok(KeyValue::Text(Cow::Borrowed(text))),
        Key::Int(int) => Ok(KeyValue::Int(*int)),
        Key::Expr(expr) => match expr.value(record)? {
            Value::Text(text) => Ok(KeyValue::Text(text)),
            Value::Int(int) => Ok(KeyValue::Int(int)),
            _ => Err(EvalError::Index),
        },
    }
}

/// Below an attribute a key that is not there makes the whole path nil; the keys behind it are not
/// looked at.
fn descend<'a>(
    mut value: Value<'a>,
    keys: &'a [Key],
    record: &Record<'a>,
) -> Result<Value<'a>, EvalError> {
    for key in keys {
        match element(value, &key_value(key, record)?)? {
            Some(inner) => value = inner,
            None => return Ok(Value::Nil),
        }
    }
    Ok(value)
}

/// [`None`] for a map without the key.
fn element<'a>(value: Value<'a>, key: &KeyValue<'_>) -> Result<Option<Value<'a>>, EvalError> {
    match (value, key) {
        (Value::Map(map), KeyValue::Text(key)) => Ok(map.get(key)),
        (value, KeyValue::Int(at)) => {
            let at = usize::try_from(*at).map_err(|_| EvalError::Index)?;
            let element = match value {
                Value::Slice(Cow::Borrowed(slice)) => {
                    elements(slice).nth(at).map(|it| Value::from(any_value(it)))
                }
                Value::Slice(Cow::Owned(slice)) => elements(&slice)
                    .nth(at)
                    .map(|it| Value::from(any_value(it)).into_owned()),
                Value::List(List::Borrowed(values)) => values.get(at).map(Value::borrowed),
                Value::List(List::Owned(values)) => values.into_iter().nth(at),
                Value::Texts(texts) => texts.into_iter().nth(at).map(Value::Text),
                _ => None,
            };
            element.map(Some).ok_or(EvalError::Index)
        }
        _ => Err(EvalError::Index),
    }
}

impl<'a> Record<'a> {
    #[inline]
    fn slot(&self, level: Level, slot: u32) -> Option<&'a [u8]> {
        let slots = self.slots[level as usize];
        slots.get(slot as usize).copied().flatten()
    }

    pub(super) fn is_root(&self) -> bool {
        self.span.parent_span_id.iter().all(|byte| *byte == 0)
    }

    fn attributes(&self, level: Level) -> Map<'a> {
        let (bytes, tag) = match level {
            Level::Resource => (&self.resource.bytes[..], RESOURCE_ATTRIBUTES),
            Level::Scope => (&self.scope.bytes[..], SCOPE_ATTRIBUTES),
            Level::Span => (self.span.bytes, SPAN_ATTRIBUTES),
            Level::Event => (self.event.bytes, EVENT_ATTRIBUTES),
        };
        Map {
            bytes: Cow::Borrowed(bytes),
            tag,
        }
    }

    #[inline]
    fn field(&self, field: Field) -> Value<'a> {
        let span = self.span;
        let int = |value: u32| Value::Int(value.into());
        let time = |nanos: u64| Value::Time(Timestamp::of_span(nanos));
        match field {
            Field::Name => Value::text(span.name),
            Field::Kind => Value::Int(span.kind.into()),
            Field::KindText => Value::text(match span.kind {
                0 => b"Unspecified",
                1 => b"Internal",
                2 => b"Server",
                3 => b"Client",
                4 => b"Producer",
                5 => b"Consumer",
                _ => b"",
            }),
            Field::KindDeprecatedText => Value::text(match span.kind {
                0 => b"SPAN_KIND_UNSPECIFIED",
                1 => b"SPAN_KIND_INTERNAL",
                2 => b"SPAN_KIND_SERVER",
                3 => b"SPAN_KIND_CLIENT",
                4 => b"SPAN_KIND_PRODUCER",
                5 => b"SPAN_KIND_CONSUMER",
                _ => b"",
            }),
            Field::Status => Value::Opaque(Opaque::Status),
            Field::StatusCode => Value::Int(span.status_code.into()),
            Field::StatusMessage => Value::text(span.status_message),
            Field::TraceId => Value::TraceId(padded(span.trace_id)),
            Field::TraceIdText => hex(&padded::<16>(span.trace_id)),
            Field::SpanId => Value::SpanId(padded(span.span_id)),
            Field::SpanIdText => hex(&padded::<8>(span.span_id)),
            Field::ParentId => Value::SpanId(padded(span.parent_span_id)),
            Field::ParentIdText => hex(&padded::<8>(span.parent_span_id)),
            Field::TraceState => Value::text(span.trace_state),
            Field::StartUnixNano => Value::Int(span.start_unix_nanos as i64),
            Field::EndUnixNano => Value::Int(span.end_unix_nanos as i64),
            Field::Start => time(span.start_unix_nanos),
            Field::End => time(span.end_unix_nanos),
            Field::DroppedAttributes => int(span.dropped_attributes),
            Field::DroppedEvents => int(span.dropped_events),
            Field::DroppedLinks => int(span.dropped_links),
            Field::Events => Value::Opaque(Opaque::Events(span.events)),
            Field::Links => Value::Opaque(Opaque::Links(span.links)),
            Field::Flags => int(span.flags),
            Field::ResourceDropped => int(self.resource.dropped_attributes()),
            Field::ScopeName => Value::text(self.scope.name()),
            Field::ScopeVersion => Value::text(self.scope.version()),
            Field::ScopeDropped => int(self.scope.dropped_attributes()),
            Field::EventName => Value::text(self.event.name),
            Field::EventUnixNano => Value::Int(self.event.unix_nanos as i64),
            Field::EventTime => time(self.event.unix_nanos),
            Field::EventDropped => int(self.event.dropped_attributes),
        }
    }
}

/// An ID that is not there is all zeros.
fn padded<const N: usize>(id: &[u8]) -> [u8; N] {
    id.try_into().unwrap_or([0; N])
}

fn hex<'a>(id: &[u8]) -> Value<'a> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = id
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| DIGITS[usize::from(digit)]);
    Value::Text(Cow::Owned(digits.collect()))
}
