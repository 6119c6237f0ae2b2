//! The core of the language once more: a walk over the tree on decoded structs. Nothing here is
//! shared with the compiler but the text.

use opentelemetry_proto::tonic::common::v1::any_value::Value as V;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use proptest::prelude::*;

#[derive(Debug, Clone)]
pub(crate) enum Test {
    Const(bool),
    Compare(Value, &'static str, Value),
    HasPrefix(Value, &'static str),
    IsInt(Value),
    Not(Box<Self>),
    And(Vec<Self>),
    Or(Vec<Self>),
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'static str),
    Bytes(u8),
    /// Of the span or the resource, with what is written behind it.
    Attribute(bool, &'static str, Vec<Key>),
    Name,
    Kind,
    StatusCode,
    Calculated(Box<Self>, char, Box<Self>),
}

#[derive(Debug, Clone)]
pub(crate) enum Key {
    Text(&'static str),
    Int(i64),
}

/// An error for this span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

pub(crate) struct Case {
    pub(crate) resource: Resource,
    pub(crate) span: Span,
}

const KEYS: [&str; 5] = ["a", "b", "c", "l", "m"];
const TEXTS: [&str; 4] = ["", "a", "ab", "b"];

impl Test {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Const(value) => value.to_string(),
            Self::Compare(left, how, right) => format!("{} {how} {}", left.text(), right.text()),
            Self::HasPrefix(value, prefix) => format!("HasPrefix({}, \"{prefix}\")", value.text()),
            Self::IsInt(value) => format!("IsInt({})", value.text()),
            Self::Not(test) => format!("not ({})", test.text()),
            Self::And(tests) => Self::joined(tests, " and "),
            Self::Or(tests) => Self::joined(tests, " or "),
        }
    }

    fn joined(tests: &[Self], word: &str) -> String {
        let tests: Vec<String> = tests.iter().map(|it| format!("({})", it.text())).collect();
        tests.join(word)
    }

    /// What is known without a span: comparisons of literals, and what follows of them.
    fn constant(&self) -> Option<bool> {
        match self {
            Self::Const(value) => Some(*value),
            Self::Compare(left, how, right) => match (left.literal(), right.literal()) {
                (Some(left), Some(right)) => Some(compare(&left, how, &right)),
                _ => None,
            },
            Self::HasPrefix(..) | Self::IsInt(_) => None,
            Self::Not(test) => test.constant().map(|it| !it),
            Self::And(tests) => Self::constant_of(tests, false),
            Self::Or(tests) => Self::constant_of(tests, true),
        }
    }

    fn constant_of(tests: &[Self], decisive: bool) -> Option<bool> {
        let known: Vec<Option<bool>> = tests.iter().map(Self::constant).collect();
        if known.contains(&Some(decisive)) {
            Some(decisive)
        } else {
            known.iter().all(Option::is_some).then_some(!decisive)
        }
    }

    pub(crate) fn holds(&self, case: &Case) -> Result<bool, Failed> {
        if let Some(value) = self.constant() {
            return Ok(value);
        }
        match self {
            Self::Const(value) => Ok(*value),
            Self::Compare(left, how, right) => {
                let left = left.value(case)?;
                Ok(compare(&left, how, &right.value(case)?))
            }
            Self::HasPrefix(value, prefix) => match value.value(case)? {
                Some(V::StringValue(text)) => Ok(text.starts_with(prefix)),
                _ => Err(Failed),
            },
            Self::IsInt(value) => Ok(matches!(value.value(case)?, Some(V::IntValue(_)))),
            Self::Not(test) => Ok(!test.holds(case)?),
            Self::And(tests) => {
                for test in tests {
                    if !test.holds(case)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Or(tests) => {
                for test in tests {
                    if test.holds(case)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Nil => "nil".into(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => format!("{value:?}"),
            Self::Text(text) => format!("\"{text}\""),
            Self::Bytes(byte) => format!("0x{byte:02x}"),
            Self::Attribute(of_resource, key, keys) => {
                let root = if *of_resource { "resource." } else { "" };
                let keys: String = keys
                    .iter()
                    .map(|key| match key {
                        Key::Text(text) => format!("[\"{text}\"]"),
                        Key::Int(int) => format!("[{int}]"),
                    })
                    .collect();
                format!("{root}attributes[\"{key}\"]{keys}")
            }
            Self::Name => "name".into(),
            Self::Kind => "span.kind".into(),
            Self::StatusCode => "status.code".into(),
            Self::Calculated(left, operator, right) => {
                format!("({} {operator} {})", left.text(), right.text())
            }
        }
    }

    fn literal(&self) -> Option<Option<V>> {
        Some(match self {
            Self::Nil => None,
            Self::Bool(value) => Some(V::BoolValue(*value)),
            Self::Int(value) => Some(V::IntValue(*value)),
            Self::Float(value) => Some(V::DoubleValue(*value)),
            Self::Text(text) => Some(V::StringValue((*text).into())),
            Self::Bytes(byte) => Some(V::BytesValue(vec![*byte])),
            _ => return None,
        })
    }

    fn value(&self, case: &Case) -> Result<Option<V>, Failed> {
        if let Some(value) = self.literal() {
            return Ok(value);
        }
        match self {
            Self::Attribute(of_resource, key, keys) => {
                let attributes = match of_resource {
                    true => &case.resource.attributes,
                    false => &case.span.attributes,
                };
                let Some(mut value) = get(attributes, key) else {
                    return Ok(None);
                };
                for key in keys {
                    let inner = match (&value, key) {
                        (Some(V::KvlistValue(map)), Key::Text(key)) => {
                            match get(&map.values, key) {
                                Some(value) => value,
                                None => return Ok(None),
                            }
                        }
                        (Some(V::ArrayValue(list)), Key::Int(at)) => {
                            let at = usize::try_from(*at).map_err(|_| Failed)?;
                            list.values.get(at).ok_or(Failed)?.value.clone()
                        }
                        _ => return Err(Failed),
                    };
                    value = inner;
                }
                Ok(value)
            }
            Self::Name => Ok(Some(V::StringValue(case.span.name.clone()))),
            Self::Kind => Ok(Some(V::IntValue(case.span.kind.into()))),
            Self::StatusCode => {
                let status = case.span.status.as_ref();
                let code = status.map_or(0, |status| status.code);
                Ok(Some(V::IntValue(code.into())))
            }
            Self::Calculated(left, operator, right) => {
                let (left, right) = (left.value(case)?, right.value(case)?);
                let float = |left: f64, right: f64| match operator {
                    '+' => Ok(left + right),
                    '-' => Ok(left - right),
                    '*' => Ok(left * right),
                    _ if right == 0.0 => Err(Failed),
                    _ => Ok(left / right),
                };
                match (left, right) {
                    (Some(V::IntValue(left)), Some(V::IntValue(right))) => {
                        let value = match operator {
                            '+' => left.wrapping_add(right),
                            '-' => left.wrapping_sub(right),
                            '*' => left.wrapping_mul(right),
                            _ if right == 0 => return Err(Failed),
                            _ => left.wrapping_div(right),
                        };
                        Ok(Some(V::IntValue(value)))
                    }
                    (left, right) => {
                        let number = |value| match value {
                            Some(V::IntValue(value)) => Ok(value as f64),
                            Some(V::DoubleValue(value)) => Ok(value),
                            _ => Err(Failed),
                        };
                        let (left, right) = (number(left)?, number(right)?);
                        Ok(Some(V::DoubleValue(float(left, right)?)))
                    }
                }
            }
            _ => unreachable!("literals are done"),
        }
    }
}

/// The first one counts. Outer [`None`]: there is no such key.
fn get(attributes: &[KeyValue], key: &str) -> Option<Option<V>> {
    let found = attributes.iter().find(|it| it.key == key)?;
    Some(found.value.as_ref().and_then(|it| it.value.clone()))
}

fn compare(left: &Option<V>, how: &str, right: &Option<V>) -> bool {
    use std::cmp::Ordering;
    let unnil = |value: &Option<V>| match value {
        Some(V::BytesValue(bytes)) if bytes.is_empty() => None,
        value => value.clone(),
    };
    let (left, right) = (unnil(left), unnil(right));
    let by = |ordering: Option<Ordering>| match (ordering, how) {
        (None, how) => how == "!=",
        (Some(it), "==") => it.is_eq(),
        (Some(it), "!=") => it.is_ne(),
        (Some(it), "<") => it.is_lt(),
        (Some(it), "<=") => it.is_le(),
        (Some(it), ">") => it.is_gt(),
        (Some(it), _) => it.is_ge(),
    };
    let equal = |is: bool| (how == "==" && is) || (how == "!=" && !is);
    match (left, right) {
        (None, None) => by(Some(Ordering::Equal)),
        (Some(V::BoolValue(left)), Some(V::BoolValue(right))) => by(Some(left.cmp(&right))),
        (Some(V::IntValue(left)), Some(V::IntValue(right))) => by(Some(left.cmp(&right))),
        (Some(V::IntValue(left)), Some(V::DoubleValue(right))) => {
            by((left as f64).partial_cmp(&right))
        }
        (Some(V::DoubleValue(left)), Some(V::IntValue(right))) => {
            by(left.partial_cmp(&(right as f64)))
        }
        (Some(V::DoubleValue(left)), Some(V::DoubleValue(right))) => by(left.partial_cmp(&right)),
        (Some(V::StringValue(left)), Some(V::StringValue(right))) => {
            by(Some(left.as_bytes().cmp(right.as_bytes())))
        }
        (Some(V::BytesValue(left)), Some(V::BytesValue(right))) => by(Some(left.cmp(&right))),
        (Some(V::ArrayValue(left)), Some(V::ArrayValue(right))) => {
            equal(same_lists(&left.values, &right.values))
        }
        (Some(V::KvlistValue(left)), Some(V::KvlistValue(right))) => {
            equal(same_maps(&left.values, &right.values))
        }
        _ => equal(false),
    }
}

fn same_lists(left: &[AnyValue], right: &[AnyValue]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .all(|(left, right)| same(&left.value, &right.value))
}

fn same_maps(left: &[KeyValue], right: &[KeyValue]) -> bool {
    left.len() == right.len()
        && left.iter().all(|entry| {
            let value = entry.value.as_ref().and_then(|it| it.value.clone());
            get(right, &entry.key).is_some_and(|other| same(&value, &other))
        })
}

fn same(left: &Option<V>, right: &Option<V>) -> bool {
    match (left, right) {
        (Some(V::ArrayValue(left)), Some(V::ArrayValue(right))) => {
            same_lists(&left.values, &right.values)
        }
        (Some(V::KvlistValue(left)), Some(V::KvlistValue(right))) => {
            same_maps(&left.values, &right.values)
        }
        (left, right) => left == right,
    }
}

fn literals() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        (-2i64..4).prop_map(Value::Int),
        Just(Value::Int(i64::MAX)),
        (-2i32..4).prop_map(|it| Value::Float(f64::from(it) / 2.0)),
        prop::sample::select(&TEXTS[..]).prop_map(Value::Text),
        (1u8..3).prop_map(Value::Bytes),
    ]
}

fn paths() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        prop::sample::select(&KEYS[..]).prop_map(Key::Text),
        (0i64..3).prop_map(Key::Int),
    ];
    let keys = prop::collection::vec(key, 0..3);
    let attribute = (any::<bool>(), prop::sample::select(&KEYS[..]), keys)
        .prop_map(|(of_resource, key, keys)| Value::Attribute(of_resource, key, keys));
    prop_oneof![
        6 => attribute,
        1 => Just(Value::Name),
        1 => Just(Value::Kind),
        1 => Just(Value::StatusCode),
    ]
}

fn values() -> impl Strategy<Value = Value> {
    let number = prop_oneof![(0i64..3).prop_map(Value::Int), paths()];
    let calculated = number.prop_recursive(2, 6, 2, |inner| {
        let operator = prop::sample::select(&['+', '-', '*', '/'][..]);
        (inner.clone(), operator, inner)
            .prop_map(|(left, it, right)| Value::Calculated(left.into(), it, right.into()))
    });
    prop_oneof![3 => literals(), 5 => paths(), 1 => calculated]
}

pub(crate) fn tests() -> impl Strategy<Value = Test> {
    let how = prop::sample::select(&["==", "!=", "<", "<=", ">", ">="][..]);
    let leaf = prop_oneof![
        1 => any::<bool>().prop_map(Test::Const),
        10 => (values(), how, values())
            .prop_map(|(left, how, right)| Test::Compare(left, how, right)),
        2 => (paths(), prop::sample::select(&TEXTS[..]))
            .prop_map(|(value, prefix)| Test::HasPrefix(value, prefix)),
        1 => paths().prop_map(Test::IsInt),
    ];
    leaf.prop_recursive(4, 16, 3, |inner| {
        let some = prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            inner.prop_map(|it| Test::Not(it.into())),
            some.clone().prop_map(Test::And),
            some.prop_map(Test::Or),
        ]
    })
}

pub(crate) fn cases() -> impl Strategy<Value = Case> {
    let scalar = prop_oneof![
        Just(None),
        any::<bool>().prop_map(|it| Some(V::BoolValue(it))),
        (-2i64..4).prop_map(|it| Some(V::IntValue(it))),
        (-2i32..4).prop_map(|it| Some(V::DoubleValue(f64::from(it) / 2.0))),
        Just(Some(V::DoubleValue(f64::NAN))),
        prop::sample::select(&TEXTS[..]).prop_map(|it| Some(V::StringValue(it.into()))),
        prop::collection::vec(1u8..3, 0..2).prop_map(|it| Some(V::BytesValue(it))),
    ];
    let value = scalar
        .prop_map(|value| AnyValue { value })
        .prop_recursive(2, 8, 3, |inner| {
            let list = prop::collection::vec(inner.clone(), 0..3)
                .prop_map(|values| V::ArrayValue(ArrayValue { values }));
            let map = attributes(inner).prop_map(|values| V::KvlistValue(KeyValueList { values }));
            prop_oneof![list, map].prop_map(|value| AnyValue { value: Some(value) })
        })
        .boxed();
    let name = prop::sample::select(&TEXTS[..]);
    (
        attributes(value.clone()),
        attributes(value),
        name,
        0..4i32,
        prop::option::of(0..3i32),
    )
        .prop_map(|(of_resource, of_span, name, kind, code)| Case {
            resource: Resource {
                attributes: of_resource,
                ..Default::default()
            },
            span: Span {
                name: name.into(),
                kind,
                attributes: of_span,
                status: code.map(|code| Status {
                    code,
                    ..Default::default()
                }),
                ..Default::default()
            },
        })
}

/// Keys may come twice, and values may be missing.
fn attributes(
    value: impl Strategy<Value = AnyValue> + 'static,
) -> impl Strategy<Value = Vec<KeyValue>> {
    let entry = (
        prop::sample::select(&KEYS[..]),
        prop::option::weighted(0.9, value),
    );
    let entry = entry.prop_map(|(key, value)| KeyValue {
        key: key.into(),
        value,
        ..Default::default()
    });
    prop::collection::vec(entry, 0..6)
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (&self.resource.attributes, &self.span).fmt(f)
    }
}
