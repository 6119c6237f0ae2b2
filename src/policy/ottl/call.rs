//! What the functions do with what they are given.

use std::borrow::Cow;

use crate::policy::Pattern;
use crate::policy::ottl::cidr::{self, Network};
use crate::policy::ottl::error::EvalError;
use crate::policy::ottl::eval::Record;
use crate::policy::ottl::expr::{Call, Expr, Prepared};
use crate::policy::ottl::function::{Function, Kind};
use crate::policy::ottl::text::{
    TEXT_MAX, find, lower, parse_bool, parse_float, parse_int, parse_json, split, text_like, trim,
    truncated, upper, utf8,
};
use crate::policy::ottl::time::{self, Civil, Timestamp};
use crate::policy::ottl::token::Comparison;
use crate::policy::ottl::value::{Map, Opaque, Value, compare};
use crate::wire::{
    AnyValue, LIST_TAG, any_value, attribute_value, elements, key_values, write_any_value,
};

type Text<'a> = Cow<'a, [u8]>;

/// Whether a literal can be given where `kind` is wanted.
pub(super) fn check(kind: Kind, value: &Value<'_>) -> Result<(), EvalError> {
    let value = value.borrowed();
    match kind {
        Kind::Any | Kind::AnyList | Kind::TextLikeList | Kind::TextList | Kind::Literal(_) => {}
        Kind::Text => drop(text(value)?),
        Kind::TextLike => drop(text_like(value)?),
        Kind::Int => drop(int(value)?),
        Kind::IntLike => drop(int_like(value)?),
        Kind::FloatLike => drop(float_like(value)?),
        Kind::BoolLike => drop(bool_like(value)?),
        Kind::BytesLike => drop(bytes_like(value)?),
        Kind::Slice => drop(slice(value)?),
        Kind::Time => drop(instant(value)?),
        Kind::Duration => drop(duration(value)?),
        Kind::Bool => wanted(matches!(value, Value::Bool(_)), &value)?,
        Kind::Float => wanted(matches!(value, Value::Float(_)), &value)?,
        Kind::Map => wanted(matches!(value, Value::Map(_)), &value)?,
    }
    Ok(())
}

/// Whether a literal is an ID for this function.
pub(super) fn check_id(function: Function, value: &Value<'_>) -> Result<(), EvalError> {
    match function {
        Function::SpanId => id::<8>(value.borrowed()).map(drop),
        _ => id::<16>(value.borrowed()).map(drop),
    }
}

fn wanted(is_it: bool, value: &Value<'_>) -> Result<(), EvalError> {
    if is_it { Ok(()) } else { Err(wrong(value)) }
}

fn wrong(value: &Value<'_>) -> EvalError {
    match value {
        Value::Nil => EvalError::Missing,
        _ => EvalError::WrongType,
    }
}

fn text(value: Value<'_>) -> Result<Text<'_>, EvalError> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(wrong(&other)),
    }
}

fn int(value: Value<'_>) -> Result<i64, EvalError> {
    match value {
        Value::Int(value) => Ok(value),
        other => Err(wrong(&other)),
    }
}

fn instant(value: Value<'_>) -> Result<Timestamp, EvalError> {
    match value {
        Value::Time(time) => Ok(time),
        other => Err(wrong(&other)),
    }
}

fn duration(value: Value<'_>) -> Result<i64, EvalError> {
    match value {
        Value::Duration(nanos) => Ok(nanos),
        other => Err(wrong(&other)),
    }
}

fn map(value: Value<'_>) -> Result<Map<'_>, EvalError> {
    match value {
        Value::Map(map) => Ok(map),
        other => Err(wrong(&other)),
    }
}

/// Any list as one of attributes.
fn slice(value: Value<'_>) -> Result<Text<'_>, EvalError> {
    match value {
        Value::Slice(slice) => Ok(slice),
        Value::Texts(texts) => {
            let mut out = Vec::new();
            for text in texts {
                write_any_value(LIST_TAG as u8, &AnyValue::Str(text), &mut out);
            }
            Ok(Cow::Owned(out))
        }
        Value::List(list) => {
            // A map is no raw value, so a list that holds one is no list of attributes.
            if list.values().iter().any(|it| matches!(it, Value::Map(_))) {
                return Err(EvalError::WrongType);
            }
            match Value::List(list).into_any_value()? {
                AnyValue::Array(array) => Ok(array),
                _ => Err(EvalError::WrongType),
            }
        }
        other => Err(wrong(&other)),
    }
}

/// A text that is no number is nil.
fn int_like(value: Value<'_>) -> Result<Option<i64>, EvalError> {
    match value {
        Value::Nil => Ok(None),
        Value::Int(value) => Ok(Some(value)),
        Value::Text(text) => Ok(parse_int(&text)),
        Value::Float(value) => Ok(Some(truncated(value))),
        Value::Bool(value) => Ok(Some(value.into())),
        other => Err(wrong(&other)),
    }
}

/// A text that is no number is an error.
fn float_like(value: Value<'_>) -> Result<Option<f64>, EvalError> {
    match value {
        Value::Nil => Ok(None),
        Value::Float(value) => Ok(Some(value)),
        Value::Int(value) => Ok(Some(value as f64)),
        Value::Text(text) => parse_float(&text).map(Some).ok_or(EvalError::Unreadable),
        Value::Bool(value) => Ok(Some(f64::from(u8::from(value)))),
        other => Err(wrong(&other)),
    }
}

fn bool_like(value: Value<'_>) -> Result<Option<bool>, EvalError> {
    match value {
        Value::Nil => Ok(None),
        Value::Bool(value) => Ok(Some(value)),
        Value::Int(value) => Ok(Some(value != 0)),
        Value::Float(value) => Ok(Some(value != 0.0)),
        Value::Text(text) => parse_bool(&text).map(Some).ok_or(EvalError::Unreadable),
        other => Err(wrong(&other)),
    }
}

/// Numbers as their eight bytes, the highest first.
fn bytes_like(value: Value<'_>) -> Result<Option<Text<'_>>, EvalError> {
    match value {
        Value::Nil => Ok(None),
        Value::Bytes(bytes) | Value::Text(bytes) => Ok(Some(bytes)),
        Value::Int(value) => Ok(Some(Cow::Owned(value.to_be_bytes().to_vec()))),
        Value::Float(value) => Ok(Some(Cow::Owned(value.to_be_bytes().to_vec()))),
        Value::Bool(value) => Ok(Some(Cow::Owned(vec![value.into()]))),
        other => Err(wrong(&other)),
    }
}

/// Raw bytes, or the digits of as many.
fn id<const N: usize>(value: Value<'_>) -> Result<[u8; N], EvalError> {
    let bytes = bytes_like(value)?.ok_or(EvalError::Missing)?;
    if let Ok(id) = <[u8; N]>::try_from(&bytes[..]) {
        return Ok(id);
    }
    let mut id = [0; N];
    if bytes.len() != 2 * N {
        return Err(EvalError::Unreadable);
    }
    for (byte, [high, low]) in id.iter_mut().zip(bytes.as_chunks::<2>().0) {
        let digit = |c: u8| char::from(c).to_digit(16).ok_or(EvalError::Unreadable);
        *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
    }
    Ok(id)
}

impl Call {
    /// The value before its keys are looked at.
    pub(super) fn value<'a>(&'a self, record: &Record<'a>) -> Result<Value<'a>, EvalError> {
        let given = |at: usize| self.args.get(at).and_then(Option::as_ref);
        // The compiler gives every argument that is not optional.
        let arg = |at: usize| given(at).map_or(Ok(Value::Nil), |expr| expr.value(record));
        let time_part = |part: fn(Civil) -> i64| Ok(Value::Int(part(instant(arg(0)?)?.civil())));
        let time_unit = |unit: i128| {
            Ok(Value::Int(
                instant(arg(0)?)?.unix_nanos().div_euclid(unit) as i64
            ))
        };
        let is = |is_it: fn(&Value<'_>) -> bool| Ok(Value::Bool(is_it(&arg(0)?)));
        match self.signature.function {
            Function::IsMatch => self.is_match(arg(0)?, given(1), record),
            Function::IsRootSpan => Ok(Value::Bool(record.is_root())),
            Function::HasPrefix => Ok(Value::Bool(text(arg(0)?)?.starts_with(&text(arg(1)?)?))),
            Function::HasSuffix => Ok(Value::Bool(text(arg(0)?)?.ends_with(&text(arg(1)?)?))),
            Function::Int => Ok(int_like(arg(0)?)?.map_or(Value::Nil, Value::Int)),
            Function::Double => Ok(float_like(arg(0)?)?.map_or(Value::Nil, Value::Float)),
            Function::Bool => Ok(bool_like(arg(0)?)?.map_or(Value::Nil, Value::Bool)),
            Function::String => Ok(text_like(arg(0)?)?.map_or(Value::Nil, Value::Text)),
            Function::Len => len(&arg(0)?),
            Function::Duration => {
                if let Prepared::Duration(nanos) = self.prepared {
                    return Ok(Value::Duration(nanos));
                }
                let text = text(arg(0)?)?;
                let nanos = time::duration(&utf8(&text)).ok_or(EvalError::Unreadable)?;
                Ok(Value::Duration(nanos))
            }
            Function::IsString => is(|it| matches!(it, Value::Text(_))),
            Function::IsInt => is(|it| matches!(it, Value::Int(_))),
            Function::IsDouble => is(|it| matches!(it, Value::Float(_))),
            Function::IsBool => is(|it| matches!(it, Value::Bool(_))),
            Function::IsMap => is(|it| matches!(it, Value::Map(_))),
            Function::IsList => is(|it| {
                matches!(
                    it,
                    Value::Slice(_)
                        | Value::List(_)
                        | Value::Texts(_)
                        | Value::Opaque(Opaque::Events(_) | Opaque::Links(_))
                )
            }),
            Function::Concat => concat(given(0), &text(arg(1)?)?, record),
            Function::ToLowerCase => Ok(Value::owned_text(lower(&utf8(&text(arg(0)?)?)))),
            Function::ToUpperCase => Ok(Value::owned_text(upper(&utf8(&text(arg(0)?)?)))),
            Function::ConvertCase => {
                let target = text(arg(0)?)?;
                // An empty text stays as it is. The compiler takes no third case.
                Ok(Value::owned_text(match &*text(arg(1)?)? {
                    b"upper" => upper(&utf8(&target)),
                    _ => lower(&utf8(&target)),
                }))
            }
            Function::Split => {
                let delimiter = text(arg(1)?)?;
                Ok(Value::Texts(match text(arg(0)?)? {
                    Cow::Borrowed(text) => split(text, &delimiter)
                        .into_iter()
                        .map(Cow::Borrowed)
                        .collect(),
                    Cow::Owned(text) => split(&text, &delimiter)
                        .into_iter()
                        .map(|part| Cow::Owned(part.to_vec()))
                        .collect(),
                }))
            }
            Function::ContainsValue => {
                let list = slice(arg(0)?)?;
                let item = arg(1)?;
                Ok(Value::Bool(position(&list, &item)?.is_some()))
            }
            Function::Index => index(arg(0)?, &arg(1)?),
            Function::Substring => {
                let start = int(arg(1)?)?;
                let length = int(arg(2)?)?;
                let safe = matches!(arg(3)?, Value::Bool(true));
                substring(text(arg(0)?)?, start, length, safe)
            }
            Function::Trim => {
                let cutset = match given(1) {
                    Some(_) => text(arg(1)?)?,
                    None => Cow::Borrowed(&b" "[..]),
                };
                let cutset = utf8(&cutset).into_owned();
                Ok(Value::Text(part(text(arg(0)?)?, |it| trim(it, &cutset))))
            }
            Function::TrimPrefix => {
                let prefix = text(arg(1)?)?;
                let cut = |it: &[u8]| it.strip_prefix(&*prefix).map_or(0, |_| prefix.len());
                let target = text(arg(0)?)?;
                let begin = cut(&target);
                Ok(Value::Text(range(target, begin, usize::MAX)))
            }
            Function::TrimSuffix => {
                let suffix = text(arg(1)?)?;
                let target = text(arg(0)?)?;
                let end = target
                    .strip_suffix(&*suffix)
                    .map_or(target.len(), <[u8]>::len);
                Ok(Value::Text(range(target, 0, end)))
            }
            Function::Coalesce => {
                let Some(Expr::List(values)) = given(0) else {
                    return literal_list(given(0))
                        .iter()
                        .find(|it| **it != Value::Nil)
                        .map_or(Ok(Value::Nil), |it| Ok(it.borrowed()));
                };
                for value in values {
                    let value = value.value(record)?;
                    if value != Value::Nil {
                        return Ok(value);
                    }
                }
                Ok(Value::Nil)
            }
            Function::SpanId => Ok(Value::SpanId(id(arg(0)?)?)),
            Function::TraceId => Ok(Value::TraceId(id(arg(0)?)?)),
            Function::Now => Ok(Value::Time(Timestamp::from_unix_nanos(
                record.now.unix_nanos.into(),
            ))),
            Function::Nanoseconds => Ok(Value::Int(duration(arg(0)?)?)),
            Function::Microseconds => Ok(Value::Int(duration(arg(0)?)? / 1_000)),
            Function::Milliseconds => Ok(Value::Int(duration(arg(0)?)? / 1_000_000)),
            Function::Seconds => Ok(Value::Float(time::in_units(
                duration(arg(0)?)?,
                1_000_000_000,
            ))),
            Function::Minutes => Ok(Value::Float(time::in_units(
                duration(arg(0)?)?,
                60_000_000_000,
            ))),
            Function::Hours => Ok(Value::Float(time::in_units(
                duration(arg(0)?)?,
                3_600_000_000_000,
            ))),
            Function::UnixNano => time_unit(1),
            Function::UnixMicro => time_unit(1_000),
            Function::UnixMilli => time_unit(1_000_000),
            Function::UnixSeconds => time_unit(1_000_000_000),
            Function::Unix => {
                let seconds = int(arg(0)?)?;
                let nanos = match given(1) {
                    Some(_) => int(arg(1)?)?,
                    None => 0,
                };
                Ok(Value::Time(Timestamp::from_unix(seconds, nanos)))
            }
            Function::TruncateTime => {
                let time = instant(arg(0)?)?;
                Ok(Value::Time(time.truncated(duration(arg(1)?)?)))
            }
            Function::Year => time_part(|it| it.year),
            Function::Month => time_part(|it| it.month.into()),
            Function::Day => time_part(|it| it.day.into()),
            Function::Hour => time_part(|it| it.hour.into()),
            Function::Minute => time_part(|it| it.minute.into()),
            Function::Second => time_part(|it| it.second.into()),
            Function::Nanosecond => time_part(|it| it.nanos.into()),
            Function::Weekday => time_part(|it| it.weekday.into()),
            Function::IsInCidr => self.is_in_cidr(&text(arg(0)?)?, given(1), record),
            Function::ParseJson => parse_json(&text(arg(0)?)?).ok_or(EvalError::Unreadable),
            Function::Keys => {
                let map = map(arg(0)?)?;
                let mut out = Vec::new();
                for (key, _) in map.entries() {
                    let key = AnyValue::Str(Cow::Borrowed(key));
                    write_any_value(LIST_TAG as u8, &key, &mut out);
                }
                Ok(Value::Slice(Cow::Owned(out)))
            }
            Function::Values => {
                let map = map(arg(0)?)?;
                let mut out = Vec::new();
                for (_, key_value) in key_values(&map.bytes, map.tag) {
                    write_any_value(LIST_TAG as u8, &attribute_value(key_value), &mut out);
                }
                Ok(Value::Slice(Cow::Owned(out)))
            }
            Function::Hex => {
                let bytes = bytes_like(arg(0)?)?.unwrap_or_default();
                Ok(text_like(Value::Bytes(bytes))?.map_or(Value::Nil, Value::Text))
            }
        }
    }

    fn is_match<'a>(
        &'a self,
        target: Value<'a>,
        pattern: Option<&'a Expr>,
        record: &Record<'a>,
    ) -> Result<Value<'a>, EvalError> {
        if let (Value::Text(text), Prepared::Pattern(pattern)) = (&target, &self.prepared) {
            return Ok(Value::Bool(matches(pattern, text)));
        }
        // The pattern is looked at first, as in Go, so that a bad one is an error for every span.
        let compiled;
        let pattern = match (&self.prepared, pattern) {
            (Prepared::Pattern(pattern), _) => pattern,
            (_, Some(expr)) => {
                let written = text(expr.value(record)?)?;
                compiled = Pattern::new(&utf8(&written)).map_err(|_| EvalError::Pattern)?;
                &compiled
            }
            (_, None) => return Err(EvalError::Missing),
        };
        Ok(Value::Bool(match text_like(target)? {
            Some(text) => matches(pattern, &text),
            None => false,
        }))
    }

    fn is_in_cidr<'a>(
        &'a self,
        target: &[u8],
        networks: Option<&'a Expr>,
        record: &Record<'a>,
    ) -> Result<Value<'a>, EvalError> {
        let Some(address) = cidr::address(target) else {
            return Ok(Value::Bool(false));
        };
        if let Prepared::Networks(networks) = &self.prepared {
            return Ok(Value::Bool(networks.iter().any(|it| it.contains(address))));
        }
        let Some(Expr::List(networks)) = networks else {
            return Err(EvalError::Missing);
        };
        for network in networks {
            let network = text(network.value(record)?)?;
            let network = Network::parse(&network).ok_or(EvalError::Unreadable)?;
            if network.contains(address) {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
    }
}

/// The text of a span is UTF-8; parts cut out of it may not be.
fn matches(pattern: &Pattern, text: &[u8]) -> bool {
    match utf8(text) {
        Cow::Borrowed(text) => pattern.is_match(text.as_bytes()),
        Cow::Owned(text) => pattern.is_match(text.as_bytes()),
    }
}

fn literal_list(expr: Option<&Expr>) -> &[Value<'static>] {
    match expr {
        Some(Expr::Literal(Value::List(list))) => list.values(),
        _ => &[],
    }
}

fn concat<'a>(
    list: Option<&'a Expr>,
    delimiter: &[u8],
    record: &Record<'a>,
) -> Result<Value<'a>, EvalError> {
    let mut out = Vec::new();
    let mut first = true;
    let mut add = |value: Value<'_>| {
        if !std::mem::take(&mut first) {
            out.extend_from_slice(delimiter);
        }
        match text_like(value)? {
            Some(text) => out.extend_from_slice(&text),
            None => out.extend_from_slice(b"<nil>"),
        }
        if out.len() > TEXT_MAX {
            return Err(EvalError::TooLarge);
        }
        Ok(())
    };
    match list {
        Some(Expr::List(values)) => {
            for value in values {
                add(value.value(record)?)?;
            }
        }
        other => {
            for value in literal_list(other) {
                add(value.borrowed())?;
            }
        }
    }
    Ok(Value::owned_text(out))
}

fn len<'a>(value: &Value<'_>) -> Result<Value<'a>, EvalError> {
    let len = match value {
        Value::Text(bytes) | Value::Bytes(bytes) => bytes.len(),
        Value::Map(map) => map.entries().count(),
        Value::Slice(slice) => elements(slice).count(),
        Value::List(list) => list.values().len(),
        Value::Texts(texts) => texts.len(),
        Value::Opaque(Opaque::Events(count) | Opaque::Links(count)) => *count as usize,
        other => return Err(wrong(other)),
    };
    Ok(Value::Int(len as i64))
}

fn position(list: &[u8], item: &Value<'_>) -> Result<Option<usize>, EvalError> {
    for (at, element) in elements(list).enumerate() {
        if compare(&Value::from(any_value(element)), Comparison::Equal, item)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn index<'a>(source: Value<'_>, value: &Value<'_>) -> Result<Value<'a>, EvalError> {
    let at = match source {
        Value::Text(text) => match value {
            Value::Text(value) => find(&text, value),
            other => return Err(wrong(other)),
        },
        other => position(&slice(other)?, value)?,
    };
    Ok(Value::Int(at.map_or(-1, |at| at as i64)))
}

fn substring(text: Text<'_>, start: i64, length: i64, safe: bool) -> Result<Value<'_>, EvalError> {
    if start < 0 || length <= 0 {
        return Err(EvalError::Index);
    }
    let end = start.checked_add(length).ok_or(EvalError::Index)?;
    let (start, end) = (start as usize, usize::try_from(end).unwrap_or(usize::MAX));
    if end > text.len() {
        return Err(EvalError::Index);
    }
    if !safe {
        return Ok(Value::Text(range(text, start, end)));
    }
    let (begin, stop) = {
        let text = utf8(&text);
        let mut places = text.char_indices().map(|(at, _)| at).chain([text.len()]);
        let begin = places.nth(start).ok_or(EvalError::Index)?;
        let stop = places.nth(end - start - 1).ok_or(EvalError::Index)?;
        if let Cow::Owned(text) = text {
            return Ok(Value::owned_text(text.get(begin..stop).unwrap_or_default()));
        }
        (begin, stop)
    };
    Ok(Value::Text(range(text, begin, stop)))
}

fn range(text: Text<'_>, begin: usize, end: usize) -> Text<'_> {
    part(text, |it| {
        it.get(begin..end.min(it.len())).unwrap_or_default()
    })
}

fn part<'a>(text: Text<'a>, cut: impl Fn(&[u8]) -> &[u8]) -> Text<'a> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(cut(text)),
        Cow::Owned(text) => Cow::Owned(cut(&text).to_vec()),
    }
}
