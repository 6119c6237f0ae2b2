//! Values while a condition is evaluated: borrowed from the wire or the condition where they can
//! be. How two of them compare and what arithmetic makes of them is the Collector's.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::policy::ottl::error::EvalError;
use crate::policy::ottl::syntax::Operator;
use crate::policy::ottl::time::Timestamp;
use crate::policy::ottl::token::Comparison;
use crate::wire::{
    AnyValue, LIST_TAG, any_value, attribute_value, elements, key_values, write_any_value,
    write_entry_bytes,
};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Mostly UTF-8. A part that was cut out of it need not be.
    Text(Cow<'a, [u8]>),
    /// Empty ones are equal to nil.
    Bytes(Cow<'a, [u8]>),
    TraceId([u8; 16]),
    SpanId([u8; 8]),
    Time(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    Map(Map<'a>),
    /// An ArrayValue: the list of an attribute or of JSON.
    Slice(Cow<'a, [u8]>),
    /// A list that the condition wrote. It is another type in Go, which shows: see [`compare`].
    List(List<'a>),
    /// What Split makes: a third type of list, which compares with nothing.
    Texts(Vec<Cow<'a, [u8]>>),
    Opaque(Opaque),
}

/// KeyValues in a message under a tag: a KeyValueList, or the attributes of a span.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Map<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) tag: u32,
}

/// `Cow` would be invariant in its lifetime.
#[derive(Debug, Clone)]
pub(super) enum List<'a> {
    Borrowed(&'a [Value<'a>]),
    Owned(Vec<Value<'a>>),
}

/// What can only be counted, and is equal to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opaque {
    Status,
    Events(u32),
    Links(u32),
}

/// Values one inside the other that are looked into. The scan refuses what is nested deeper than
/// 64; this is for those whose bytes nobody checked.
pub(super) const DEPTH_MAX: u32 = 128;

impl PartialEq for List<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.values() == other.values()
    }
}

impl<'a> List<'a> {
    pub(super) fn values(&self) -> &[Value<'a>] {
        match self {
            Self::Borrowed(values) => values,
            Self::Owned(values) => values,
        }
    }
}

impl<'a> Map<'a> {
    pub(super) fn empty() -> Self {
        Self {
            bytes: Cow::Borrowed(&[]),
            tag: LIST_TAG,
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        key_values(&self.bytes, self.tag)
    }

    /// The first entry with this key.
    pub(super) fn get(self, key: &[u8]) -> Option<Value<'a>> {
        fn find<'b>(bytes: &'b [u8], tag: u32, key: &[u8]) -> Option<&'b [u8]> {
            key_values(bytes, tag)
                .find(|(name, _)| *name == key)
                .map(|(_, key_value)| key_value)
        }
        match self.bytes {
            Cow::Borrowed(bytes) => {
                find(bytes, self.tag, key).map(|it| Value::from(attribute_value(it)))
            }
            Cow::Owned(bytes) => {
                find(&bytes, self.tag, key).map(|it| Value::from(attribute_value(it)).into_owned())
            }
        }
    }

    /// As the value of an attribute.
    fn into_list_bytes(self) -> Cow<'a, [u8]> {
        if self.tag == LIST_TAG {
            return self.bytes;
        }
        let mut out = Vec::new();
        for (_, key_value) in self.entries() {
            write_entry_bytes(key_value, &mut out);
        }
        Cow::Owned(out)
    }
}

impl<'a> From<AnyValue<'a>> for Value<'a> {
    #[inline]
    fn from(value: AnyValue<'a>) -> Self {
        match value {
            AnyValue::Empty => Self::Nil,
            AnyValue::Str(text) => Self::Text(text),
            AnyValue::Bool(value) => Self::Bool(value),
            AnyValue::Int(value) => Self::Int(value),
            AnyValue::Double(value) => Self::Float(value),
            AnyValue::Array(array) => Self::Slice(array),
            AnyValue::Map(bytes) => Self::Map(Map {
                bytes,
                tag: LIST_TAG,
            }),
            AnyValue::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

impl<'a> Value<'a> {
    pub(super) fn text(text: &'a [u8]) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    pub(super) fn owned_text(text: impl Into<Vec<u8>>) -> Self {
        Self::Text(Cow::Owned(text.into()))
    }

    /// The same without a copy of what is behind it.
    #[inline]
    pub(super) fn borrowed(&'a self) -> Self {
        match self {
            Self::Nil => Self::Nil,
            Self::Bool(value) => Self::Bool(*value),
            Self::Int(value) => Self::Int(*value),
            Self::Float(value) => Self::Float(*value),
            Self::Text(text) => Self::Text(Cow::Borrowed(text)),
            Self::Bytes(bytes) => Self::Bytes(Cow::Borrowed(bytes)),
            Self::TraceId(id) => Self::TraceId(*id),
            Self::SpanId(id) => Self::SpanId(*id),
            Self::Time(time) => Self::Time(*time),
            Self::Duration(nanos) => Self::Duration(*nanos),
            Self::Map(map) => Self::Map(Map {
                bytes: Cow::Borrowed(&map.bytes),
                tag: map.tag,
            }),
            Self::Slice(bytes) => Self::Slice(Cow::Borrowed(bytes)),
            Self::List(list) => Self::List(List::Borrowed(list.values())),
            Self::Texts(texts) => {
                Self::Texts(texts.iter().map(|text| Cow::Borrowed(&text[..])).collect())
            }
            Self::Opaque(opaque) => Self::Opaque(*opaque),
        }
    }

    pub(super) fn into_owned(self) -> Value<'static> {
        let own = |bytes: Cow<'_, [u8]>| Cow::Owned(bytes.into_owned());
        match self {
            Self::Nil => Value::Nil,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Float(value) => Value::Float(value),
            Self::Text(text) => Value::Text(own(text)),
            Self::Bytes(bytes) => Value::Bytes(own(bytes)),
            Self::TraceId(id) => Value::TraceId(id),
            Self::SpanId(id) => Value::SpanId(id),
            Self::Time(time) => Value::Time(time),
            Self::Duration(nanos) => Value::Duration(nanos),
            Self::Map(map) => Value::Map(Map {
                bytes: own(map.bytes),
                tag: map.tag,
            }),
            Self::Slice(bytes) => Value::Slice(own(bytes)),
            Self::List(list) => Value::List(List::Owned(
                list.values()
                    .iter()
                    .cloned()
                    .map(Value::into_owned)
                    .collect(),
            )),
            Self::Texts(texts) => Value::Texts(texts.into_iter().map(own).collect()),
            Self::Opaque(opaque) => Value::Opaque(opaque),
        }
    }

    /// As the value of an attribute; an error for what an attribute cannot hold.
    pub(super) fn into_any_value(self) -> Result<AnyValue<'a>, EvalError> {
        self.any_value_at(0)
    }

    fn any_value_at(self, depth: u32) -> Result<AnyValue<'a>, EvalError> {
        if depth > DEPTH_MAX {
            return Err(EvalError::TooLarge);
        }
        Ok(match self {
            Self::Nil => AnyValue::Empty,
            Self::Bool(value) => AnyValue::Bool(value),
            Self::Int(value) => AnyValue::Int(value),
            Self::Float(value) => AnyValue::Double(value),
            Self::Text(text) => AnyValue::Str(text),
            Self::Bytes(bytes) => AnyValue::Bytes(bytes),
            Self::Map(map) => AnyValue::Map(map.into_list_bytes()),
            Self::List(list) => {
                let mut out = Vec::new();
                for value in list.values() {
                    // A map may stand in a list; below that Go takes plain values only.
                    if depth > 0 && matches!(value, Value::Map(_)) {
                        return Err(EvalError::WrongType);
                    }
                    let value = value.clone().any_value_at(depth + 1)?;
                    write_any_value(LIST_TAG as u8, &value, &mut out);
                }
                AnyValue::Array(Cow::Owned(out))
            }
            _ => return Err(EvalError::WrongType),
        })
    }
}

/// [Go's rules](https://github.com/open-telemetry/opentelemetry-collector-contrib/blob/main/pkg/ottl/LANGUAGE.md#comparison-rules):
/// by the type of the left side; what cannot be compared is not equal, and neither less nor greater.
pub(super) fn compare(
    left: &Value<'_>,
    how: Comparison,
    right: &Value<'_>,
) -> Result<bool, EvalError> {
    let equal = |is_equal: bool| match how {
        Comparison::Equal => is_equal,
        Comparison::NotEqual => !is_equal,
        _ => false,
    };
    Ok(match (left, right) {
        (Value::Text(left), Value::Text(right)) => match how {
            // Most comparisons; lengths differ mostly.
            Comparison::Equal => left == right,
            Comparison::NotEqual => left != right,
            _ => ordered(left.cmp(right), how),
        },
        (Value::Int(left), Value::Int(right)) => ordered(left.cmp(right), how),
        (Value::Int(left), Value::Float(right)) => floats(*left as f64, how, *right),
        (Value::Float(left), Value::Int(right)) => floats(*left, how, *right as f64),
        (Value::Float(left), Value::Float(right)) => floats(*left, how, *right),
        (Value::Bool(left), Value::Bool(right)) => ordered(left.cmp(right), how),
        _ if is_nil(left) || is_nil(right) => match how {
            Comparison::Equal | Comparison::LessOrEqual | Comparison::GreaterOrEqual => {
                is_nil(left) && is_nil(right)
            }
            Comparison::NotEqual => !(is_nil(left) && is_nil(right)),
            _ => false,
        },
        (Value::Bytes(left), Value::Bytes(right)) => ordered(left.cmp(right), how),
        (Value::Time(left), Value::Time(right)) => ordered(left.cmp(right), how),
        (Value::Duration(left), Value::Duration(right)) => ordered(left.cmp(right), how),
        (Value::TraceId(left), Value::TraceId(right)) => equal(left == right),
        (Value::SpanId(left), Value::SpanId(right)) => equal(left == right),
        (Value::Opaque(left), Value::Opaque(right)) => equal(left == right),
        (Value::Map(left), Value::Map(right)) => {
            equal(maps((&left.bytes, left.tag), (&right.bytes, right.tag), 0))
        }
        (Value::Slice(left), Value::Slice(right)) => equal(slices(left, right, 0)),
        (Value::Slice(slice), Value::List(list)) | (Value::List(list), Value::Slice(slice)) => {
            equal(slice_and_list(slice, list.values(), 0))
        }
        (Value::List(left), Value::List(right)) => equal(lists(left.values(), right.values(), 0)),
        // Go compares them as it compares anything, and dies of it.
        (Value::Texts(_), Value::Texts(_))
            if matches!(how, Comparison::Equal | Comparison::NotEqual) =>
        {
            return Err(EvalError::NotComparable);
        }
        _ => equal(false),
    })
}

fn is_nil(value: &Value<'_>) -> bool {
    match value {
        Value::Nil => true,
        Value::Bytes(bytes) => bytes.is_empty(),
        _ => false,
    }
}

fn ordered(ordering: Ordering, how: Comparison) -> bool {
    match how {
        Comparison::Equal => ordering.is_eq(),
        Comparison::NotEqual => ordering.is_ne(),
        Comparison::Less => ordering.is_lt(),
        Comparison::LessOrEqual => ordering.is_le(),
        Comparison::GreaterOrEqual => ordering.is_ge(),
        Comparison::Greater => ordering.is_gt(),
    }
}

fn floats(left: f64, how: Comparison, right: f64) -> bool {
    match how {
        Comparison::Equal => left == right,
        Comparison::NotEqual => left != right,
        Comparison::Less => left < right,
        Comparison::LessOrEqual => left <= right,
        Comparison::GreaterOrEqual => left >= right,
        Comparison::Greater => left > right,
    }
}

/// Every key of the left one has an equal value in the right one; of equal keys the right one shows
/// the first. So a map with a key twice is not even equal to itself.
fn maps(left: (&[u8], u32), right: (&[u8], u32), depth: u32) -> bool {
    let entries = |(bytes, tag)| key_values(bytes, tag);
    if depth > DEPTH_MAX || entries(left).count() != entries(right).count() {
        return false;
    }
    // Sorted, because an attacker's map would make a search for each key quadratic. The sort is
    // stable, so the first of equal keys stays the first.
    let mut index: Vec<(&[u8], &[u8])> = entries(right).collect();
    index.sort_by_key(|(key, _)| *key);
    entries(left).all(|(key, key_value)| {
        let first = index.partition_point(|(name, _)| *name < key);
        index.get(first).is_some_and(|(name, other)| {
            *name == key && any_values(&attribute_value(key_value), &attribute_value(other), depth)
        })
    })
}

fn slices(left: &[u8], right: &[u8], depth: u32) -> bool {
    depth <= DEPTH_MAX
        && elements(left).count() == elements(right).count()
        && elements(left)
            .zip(elements(right))
            .all(|(left, right)| any_values(&any_value(left), &any_value(right), depth))
}

/// Inside of maps and lists types are strict: 1 is not 1.0.
fn any_values(left: &AnyValue<'_>, right: &AnyValue<'_>, depth: u32) -> bool {
    match (left, right) {
        (AnyValue::Map(left), AnyValue::Map(right)) => {
            maps((left, LIST_TAG), (right, LIST_TAG), depth + 1)
        }
        (AnyValue::Array(left), AnyValue::Array(right)) => slices(left, right, depth + 1),
        (left, right) => left == right,
    }
}

/// The raw values of a slice beside those of a list. Maps and slices that the list holds are of
/// another type than the raw ones, so they are never equal.
fn slice_and_list(slice: &[u8], list: &[Value<'_>], depth: u32) -> bool {
    depth <= DEPTH_MAX
        && elements(slice).count() == list.len()
        && elements(slice)
            .zip(list)
            .all(|(left, right)| match (any_value(left), right) {
                (AnyValue::Empty, Value::Nil) => true,
                (AnyValue::Str(left), Value::Text(right)) => left == *right,
                (AnyValue::Bool(left), Value::Bool(right)) => left == *right,
                (AnyValue::Int(left), Value::Int(right)) => left == *right,
                (AnyValue::Double(left), Value::Float(right)) => left == *right,
                (AnyValue::Bytes(left), Value::Bytes(right)) => left == *right,
                (AnyValue::Array(left), Value::List(right)) => {
                    slice_and_list(&left, right.values(), depth + 1)
                }
                _ => false,
            })
}

fn lists(left: &[Value<'_>], right: &[Value<'_>], depth: u32) -> bool {
    depth <= DEPTH_MAX
        && left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .all(|(left, right)| match (left, right) {
                (Value::List(left), Value::List(right)) => {
                    lists(left.values(), right.values(), depth + 1)
                }
                (left, right) => left == right,
            })
}

/// Arithmetic is on numbers and times. Whole numbers wrap, and divide toward zero.
pub(super) fn calculate<'a>(
    left: &Value<'_>,
    operator: Operator,
    right: &Value<'_>,
) -> Result<Value<'a>, EvalError> {
    use Operator::{Add, Divide, Multiply, Subtract};
    let float = |left: f64, right: f64| {
        Ok(Value::Float(match operator {
            Add => left + right,
            Subtract => left - right,
            Multiply => left * right,
            Divide if right == 0.0 => return Err(EvalError::DivisionByZero),
            Divide => left / right,
        }))
    };
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => Ok(Value::Int(match operator {
            Add => left.wrapping_add(*right),
            Subtract => left.wrapping_sub(*right),
            Multiply => left.wrapping_mul(*right),
            Divide if *right == 0 => return Err(EvalError::DivisionByZero),
            Divide => left.wrapping_div(*right),
        })),
        (Value::Int(left), Value::Float(right)) => float(*left as f64, *right),
        (Value::Float(left), Value::Int(right)) => float(*left, *right as f64),
        (Value::Float(left), Value::Float(right)) => float(*left, *right),
        (Value::Time(left), Value::Time(right)) if operator == Subtract => {
            Ok(Value::Duration(left.since(*right)))
        }
        (Value::Time(time), Value::Duration(nanos)) if operator == Add => {
            Ok(Value::Time(time.plus((*nanos).into())))
        }
        (Value::Duration(nanos), Value::Time(time)) if operator == Add => {
            Ok(Value::Time(time.plus((*nanos).into())))
        }
        (Value::Time(time), Value::Duration(nanos)) if operator == Subtract => {
            Ok(Value::Time(time.plus(-i128::from(*nanos))))
        }
        (Value::Duration(left), Value::Duration(right)) if operator == Add => {
            Ok(Value::Duration(left.wrapping_add(*right)))
        }
        (Value::Duration(left), Value::Duration(right)) if operator == Subtract => {
            Ok(Value::Duration(left.wrapping_sub(*right)))
        }
        _ => Err(EvalError::Math),
    }
}

pub(super) fn negated<'a>(value: &Value<'_>) -> Result<Value<'a>, EvalError> {
    match value {
        Value::Int(value) => Ok(Value::Int(value.wrapping_neg())),
        Value::Float(value) => Ok(Value::Float(-value)),
        _ => Err(EvalError::Math),
    }
}
