//! OTLP's AnyValue as it lies on the wire: read with borrowed bytes, compared and written by others.
//!
//! As prost decodes it: of the oneof the last member counts, and messages that come in instalments
//! are merged. Bytes that are not protobuf read as far as they go.

use std::borrow::Cow;

use crate::wire::field::{Broken, Cursor, write_prefix};

/// A value one level deep. Lists and maps stay the bytes of their messages.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyValue<'a> {
    /// No member of the oneof, or one that says nothing here.
    Empty,
    Str(Cow<'a, [u8]>),
    Bool(bool),
    Int(i64),
    Double(f64),
    /// An ArrayValue: see [`elements`].
    Array(Cow<'a, [u8]>),
    /// A KeyValueList: see [`key_values`] with tag [`LIST_TAG`].
    Map(Cow<'a, [u8]>),
    Bytes(Cow<'a, [u8]>),
}

/// Of `values` in KeyValueList and ArrayValue.
pub const LIST_TAG: u32 = 0x0A;

impl AnyValue<'_> {
    fn into_owned(self) -> AnyValue<'static> {
        let own = |bytes: Cow<'_, [u8]>| Cow::Owned(bytes.into_owned());
        match self {
            Self::Empty => AnyValue::Empty,
            Self::Str(bytes) => AnyValue::Str(own(bytes)),
            Self::Bool(value) => AnyValue::Bool(value),
            Self::Int(value) => AnyValue::Int(value),
            Self::Double(value) => AnyValue::Double(value),
            Self::Array(bytes) => AnyValue::Array(own(bytes)),
            Self::Map(bytes) => AnyValue::Map(own(bytes)),
            Self::Bytes(bytes) => AnyValue::Bytes(own(bytes)),
        }
    }
}

/// The value of a KeyValue; one without a value is empty.
#[inline]
pub fn attribute_value(key_value: &[u8]) -> AnyValue<'_> {
    // As every SDK writes it: the key, the value, and nothing behind it.
    if let [0x0A, key_len @ ..0x80, rest @ ..] = key_value
        && let Some([0x12, value_len @ ..0x80, value @ ..]) = rest.get(usize::from(*key_len)..)
        && value.len() == usize::from(*value_len)
    {
        return any_value(value);
    }
    long_attribute_value(key_value)
}

#[inline(never)]
fn long_attribute_value(key_value: &[u8]) -> AnyValue<'_> {
    match message_in(key_value, 0x12) {
        Some(Cow::Borrowed(value)) => any_value(value),
        Some(Cow::Owned(value)) => any_value(&value).into_owned(),
        None => AnyValue::Empty,
    }
}

/// A singular message field: its instalments, one behind the other, are the merged message.
pub(super) fn message_in(bytes: &[u8], wanted: u32) -> Option<Cow<'_, [u8]>> {
    let mut found: Option<Cow<'_, [u8]>> = None;
    let mut cursor = Cursor::new(bytes);
    while let Ok(Some(tag)) = cursor.tag() {
        if tag != wanted {
            if cursor.skip(tag, 0).is_err() {
                break;
            }
            continue;
        }
        let Ok(body) = cursor.body() else { break };
        match &mut found {
            None => found = Some(Cow::Borrowed(body)),
            Some(message) => message.to_mut().extend_from_slice(body),
        }
    }
    found
}

/// Reads an AnyValue message.
#[inline]
pub fn any_value(bytes: &[u8]) -> AnyValue<'_> {
    match bytes {
        [] => return AnyValue::Empty,
        [0x0A, len @ ..0x80, text @ ..] if text.len() == usize::from(*len) => {
            return AnyValue::Str(Cow::Borrowed(text));
        }
        _ => {}
    }
    let mut value = AnyValue::Empty;
    let mut cursor = Cursor::new(bytes);
    while matches!(members(&mut cursor, &mut value), Ok(true)) {}
    value
}

/// One field; false at the end.
fn members<'a>(cursor: &mut Cursor<'a>, value: &mut AnyValue<'a>) -> Result<bool, Broken> {
    let Some(tag) = cursor.tag()? else {
        return Ok(false);
    };
    *value = match tag {
        0x0A => AnyValue::Str(Cow::Borrowed(cursor.body()?)),
        0x10 => AnyValue::Bool(cursor.varint()? != 0),
        0x18 => AnyValue::Int(cursor.varint()? as i64),
        0x21 => AnyValue::Double(f64::from_le_bytes(*cursor.fixed()?)),
        0x2A => {
            let body = cursor.body()?;
            AnyValue::Array(match std::mem::replace(value, AnyValue::Empty) {
                AnyValue::Array(earlier) => merged(earlier, body),
                _ => Cow::Borrowed(body),
            })
        }
        0x32 => {
            let body = cursor.body()?;
            AnyValue::Map(match std::mem::replace(value, AnyValue::Empty) {
                AnyValue::Map(earlier) => merged(earlier, body),
                _ => Cow::Borrowed(body),
            })
        }
        0x3A => AnyValue::Bytes(Cow::Borrowed(cursor.body()?)),
        // An index into a dictionary that traces do not have.
        0x40 => {
            cursor.varint()?;
            AnyValue::Empty
        }
        _ => {
            cursor.skip(tag, 0)?;
            return Ok(true);
        }
    };
    Ok(true)
}

fn merged<'a>(mut earlier: Cow<'a, [u8]>, later: &'a [u8]) -> Cow<'a, [u8]> {
    earlier.to_mut().extend_from_slice(later);
    earlier
}

/// The AnyValues of an ArrayValue, in order.
pub fn elements(array: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    bodies(array, LIST_TAG)
}

/// The KeyValues that stand in a message under `tag`, each with its key, in order.
pub fn key_values(message: &[u8], tag: u32) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    bodies(message, tag).map(|key_value| (key_in(key_value), key_value))
}

/// The bodies of all fields with this tag, in order.
pub(super) fn bodies(message: &[u8], wanted: u32) -> impl Iterator<Item = &[u8]> + Clone {
    let mut cursor = Cursor::new(message);
    std::iter::from_fn(move || {
        loop {
            let tag = cursor.tag().ok().flatten()?;
            if tag == wanted {
                return cursor.body().ok();
            }
            cursor.skip(tag, 0).ok()?;
        }
    })
}

/// The key of a KeyValue.
pub(super) fn key_in(key_value: &[u8]) -> &[u8] {
    if let [0x0A, len @ ..0x80, rest @ ..] = key_value
        && let Some((key, [0x12, ..])) = rest.split_at_checked(usize::from(*len))
        && let Some([value_len @ ..0x80, value @ ..]) = rest.get(usize::from(*len) + 1..)
        && value.len() == usize::from(*value_len)
    {
        return key;
    }
    bodies(key_value, 0x0A).last().unwrap_or_default()
}

/// Writes an AnyValue as a field with this tag.
pub fn write_any_value(tag: u8, value: &AnyValue<'_>, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    match value {
        AnyValue::Empty => {}
        AnyValue::Str(text) => write_body(0x0A, text, &mut body),
        AnyValue::Bool(value) => body.extend([0x10, u8::from(*value)]),
        AnyValue::Int(value) => {
            body.push(0x18);
            write_varint(*value as u64, &mut body);
        }
        AnyValue::Double(value) => {
            body.push(0x21);
            body.extend(value.to_le_bytes());
        }
        AnyValue::Array(array) => write_body(0x2A, array, &mut body),
        AnyValue::Map(map) => write_body(0x32, map, &mut body),
        AnyValue::Bytes(bytes) => write_body(0x3A, bytes, &mut body),
    }
    write_body(tag, &body, out);
}

/// Writes an entry of a KeyValueList.
pub fn write_entry(key: &[u8], value: &AnyValue<'_>, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    write_body(0x0A, key, &mut body);
    write_any_value(0x12, value, &mut body);
    write_entry_bytes(&body, out);
}

/// Writes an entry of a KeyValueList that is a KeyValue already.
pub fn write_entry_bytes(key_value: &[u8], out: &mut Vec<u8>) {
    write_body(LIST_TAG as u8, key_value, out);
}

pub(super) fn write_body(tag: u8, body: &[u8], out: &mut Vec<u8>) {
    write_prefix(tag, body.len(), out);
    out.extend_from_slice(body);
}

fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1 as proto;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    /// One level of what prost decodes.
    fn decoded(bytes: &[u8]) -> AnyValue<'static> {
        use proto::any_value::Value;
        match proto::AnyValue::decode(bytes).unwrap().value {
            None | Some(Value::StringValueStrindex(_)) => AnyValue::Empty,
            Some(Value::StringValue(text)) => AnyValue::Str(text.into_bytes().into()),
            Some(Value::BoolValue(value)) => AnyValue::Bool(value),
            Some(Value::IntValue(value)) => AnyValue::Int(value),
            Some(Value::DoubleValue(value)) => AnyValue::Double(value),
            Some(Value::ArrayValue(array)) => AnyValue::Array(array.encode_to_vec().into()),
            Some(Value::KvlistValue(map)) => AnyValue::Map(map.encode_to_vec().into()),
            Some(Value::BytesValue(bytes)) => AnyValue::Bytes(bytes.into()),
        }
    }

    fn written() -> impl Strategy<Value = Vec<u8>> {
        let text = prop::collection::vec(b'a'..=b'z', 0..200).prop_map(|text| {
            let mut out = Vec::new();
            write_body(0x0A, &text, &mut out);
            out
        });
        let list = |tag: u8| {
            prop::collection::vec(any::<bool>(), 0..3).prop_map(move |values| {
                let mut inner = Vec::new();
                for value in values {
                    if tag == 0x32 {
                        write_entry(b"k", &AnyValue::Bool(value), &mut inner);
                    } else {
                        write_any_value(LIST_TAG as u8, &AnyValue::Bool(value), &mut inner);
                    }
                }
                let mut out = Vec::new();
                write_body(tag, &inner, &mut out);
                out
            })
        };
        let int = any::<i64>().prop_map(|int| {
            let mut out = vec![0x18];
            write_varint(int as u64, &mut out);
            out
        });
        let one = prop_oneof![
            text,
            int,
            list(0x2A),
            list(0x32),
            any::<bool>().prop_map(|it| vec![0x10, it.into()]),
            Just(vec![0x40, 7]),
            Just(vec![0x3A, 2, 1, 2]),
            Just(vec![0x78, 1]),
        ];
        prop::collection::vec(one, 0..4).prop_map(|all| all.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn values_read_as_prost_reads_them(bytes in written(), cut in 0usize..200) {
            let expected = decoded(&bytes);
            prop_assert_eq!(&any_value(&bytes), &expected);
            // The same in a KeyValue, whole and in two instalments.
            let fields = bodies_and_cut(&bytes, cut);
            prop_assert_eq!(&attribute_value(&fields), &expected);
        }

        #[test]
        fn what_is_written_is_what_was_meant(bytes in written()) {
            let value = any_value(&bytes);
            let mut out = Vec::new();
            write_entry(b"key", &value, &mut out);
            let read: Vec<_> = key_values(&out, LIST_TAG).collect();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(read[0].0, b"key");
            prop_assert_eq!(attribute_value(read[0].1), value);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            attribute_value(&bytes);
            any_value(&bytes);
            key_values(&bytes, LIST_TAG).for_each(drop);
        }
    }

    /// A KeyValue whose value comes in two pieces, cut between two fields if `cut` is there.
    fn bodies_and_cut(value: &[u8], cut: usize) -> Vec<u8> {
        let mut at = 0;
        let mut cursor = Cursor::new(value);
        while let Ok(Some(tag)) = cursor.tag() {
            let here = value.len() - cursor.rest.len() - 1;
            if here > cut {
                break;
            }
            at = here;
            cursor.skip(tag, 0).unwrap();
        }
        let mut out = Vec::new();
        write_body(0x0A, b"key", &mut out);
        write_body(0x12, &value[..at], &mut out);
        if cut.is_multiple_of(2) || at < value.len() {
            write_body(0x12, &value[at..], &mut out);
        }
        out
    }
}
