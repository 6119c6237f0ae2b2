//! Reads the fields of spans and resources that a policy asks for, and no others.
//!
//! For bytes that [`crate::wire::Scan`] accepted before; what comes out is what prost would decode:
//! of a singular field the last one counts, messages that come in instalments are merged. What the
//! fields mean for a trace is the policies' business.

use crate::model::Randomness;
use crate::wire::field::{Broken, Cursor};
use crate::wire::tracestate::Sampling;

/// What is to be read of a span; the rest is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    pub times: bool,
    pub status: bool,
    pub trace_state: bool,
    pub flags: bool,
}

/// What was read. A field that is absent, or was not wanted, has protobuf's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpanFields<'a> {
    pub start_unix_nanos: u64,
    pub end_unix_nanos: u64,
    pub status_code: i32,
    pub trace_state: &'a [u8],
    pub flags: u32,
}

/// The value of an attribute, as far as anybody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar<'a> {
    String(&'a [u8]),
    Bool(bool),
    Int(i64),
    /// Nothing, a double, bytes, a list or a map.
    Other,
}

/// Which attributes are worth a look: a filter over the lengths and the first bytes of the keys
/// that are asked for. It passes every such key, and some others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyFilter {
    /// Bit n: a key of n bytes; bit 63: of 63 and more.
    lens: u64,
    first: [u64; 4],
}

impl KeyFilter {
    pub fn add(&mut self, key: &[u8]) {
        self.lens |= 1 << key.len().min(63);
        match key.first() {
            Some(&byte) => self.first[usize::from(byte >> 6)] |= 1 << (byte & 63),
            // Whatever byte is read where the key would be.
            None => self.first = [u64::MAX; 4],
        }
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.lens == 0
    }

    #[inline(always)]
    fn passes(&self, len: usize, first: u8) -> bool {
        self.lens >> len.min(63) & 1 == 1
            && self.first[usize::from(first >> 6)] >> (first & 63) & 1 == 1
    }

    fn passes_key(&self, key: &[u8]) -> bool {
        self.passes(key.len(), key.first().copied().unwrap_or_default())
    }
}

/// Reads a Span message. Attributes that pass `keys` go to `on_attribute` in the order of the
/// wire, each as its key and the KeyValue it came from (for [`string_value`]).
#[inline]
pub fn read_span<'a>(
    span: &'a [u8],
    wanted: Wanted,
    keys: &KeyFilter,
    on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
) -> SpanFields<'a> {
    let mut fields = SpanFields::default();
    // Cannot break off: the scan accepted these bytes, and the log checks what it gives back.
    span_fields(span, wanted, keys, on_attribute, &mut fields).ok();
    fields
}

#[inline(always)]
fn span_fields<'a>(
    span: &'a [u8],
    wanted: Wanted,
    keys: &KeyFilter,
    on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
    fields: &mut SpanFields<'a>,
) -> Result<(), Broken> {
    let mut cursor = Cursor::new(span);
    loop {
        // Attributes come in a row, are short, and are most of a span.
        while let [0x4A, len @ ..0x80, rest @ ..] = cursor.rest
            && let Some((attribute, rest)) = rest.split_at_checked(usize::from(*len))
        {
            if !keys.is_empty() {
                attribute_of(attribute, keys, on_attribute);
            }
            cursor.rest = rest;
        }
        let Some(tag) = cursor.tag()? else {
            return Ok(());
        };
        match tag {
            0x4A => {
                let attribute = cursor.body()?;
                if !keys.is_empty() {
                    attribute_of(attribute, keys, on_attribute);
                }
            }
            0x39 => fields.start_unix_nanos = u64::from_le_bytes(*cursor.fixed()?),
            0x41 => fields.end_unix_nanos = u64::from_le_bytes(*cursor.fixed()?),
            0x1A if wanted.trace_state => fields.trace_state = cursor.body()?,
            0x85 if wanted.flags => fields.flags = u32::from_le_bytes(*cursor.fixed()?),
            0x7A if wanted.status => {
                let status = cursor.body()?;
                if !status.is_empty() {
                    status_code(status, &mut fields.status_code)?;
                }
            }
            _ => cursor.skip(tag, 0)?,
        }
    }
}

/// Instalments of one status are one message: one without a code changes nothing.
fn status_code(status: &[u8], code: &mut i32) -> Result<(), Broken> {
    let mut cursor = Cursor::new(status);
    while let Some(tag) = cursor.tag()? {
        if tag == 0x18 {
            // An enum has 32 bits; what a varint has beyond is cut.
            *code = cursor.varint()? as i32;
        } else {
            cursor.skip(tag, 0)?;
        }
    }
    Ok(())
}

/// Reads the attributes of a resource out of a piece of a ResourceSpans' header. A resource that
/// comes in instalments has the attributes of all of them, in the order of the wire.
pub fn read_resource<'a>(
    header: &'a [u8],
    keys: &KeyFilter,
    on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
) {
    if !keys.is_empty() {
        // As in `read_span`.
        resource_attributes(header, keys, on_attribute).ok();
    }
}

fn resource_attributes<'a>(
    header: &'a [u8],
    keys: &KeyFilter,
    on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
) -> Result<(), Broken> {
    let mut header = Cursor::new(header);
    while let Some(tag) = header.tag()? {
        if tag != 0x0A {
            header.skip(tag, 0)?;
            continue;
        }
        let mut resource = Cursor::new(header.body()?);
        while let Some(tag) = resource.tag()? {
            if tag == 0x0A {
                attribute_of(resource.body()?, keys, on_attribute);
            } else {
                resource.skip(tag, 0)?;
            }
        }
    }
    Ok(())
}

#[inline(always)]
pub(super) fn attribute_of<'a>(
    attribute: &'a [u8],
    keys: &KeyFilter,
    on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
) {
    // As every SDK writes it: the key, the value, and nothing behind it.
    if let [0x0A, key_len @ ..0x80, rest @ ..] = attribute
        && let Some((key, [0x12, value_len @ ..0x80, value @ ..])) =
            rest.split_at_checked(usize::from(*key_len))
        && value.len() == usize::from(*value_len)
    {
        if keys.passes(key.len(), rest[0]) {
            on_attribute(key, attribute);
        }
        return;
    }
    if let Ok(key) = key_of(attribute)
        && keys.passes_key(key)
    {
        on_attribute(key, attribute);
    }
}

#[inline(never)]
fn key_of(attribute: &[u8]) -> Result<&[u8], Broken> {
    let mut cursor = Cursor::new(attribute);
    let mut key: &[u8] = &[];
    while let Some(tag) = cursor.tag()? {
        if tag == 0x0A {
            key = cursor.body()?;
        } else {
            cursor.skip(tag, 0)?;
        }
    }
    Ok(key)
}

/// The value of a KeyValue if it is a string. Anything else is empty, as the Collector's typed
/// getter has it.
pub fn string_value(attribute: &[u8]) -> &[u8] {
    match scalar_value(attribute) {
        Scalar::String(string) => string,
        _ => &[],
    }
}

/// The value of a KeyValue.
pub fn scalar_value(attribute: &[u8]) -> Scalar<'_> {
    scalar_in(attribute).unwrap_or(Scalar::Other)
}

fn scalar_in(attribute: &[u8]) -> Result<Scalar<'_>, Broken> {
    let mut cursor = Cursor::new(attribute);
    let mut scalar = Scalar::Other;
    while let Some(tag) = cursor.tag()? {
        if tag != 0x12 {
            cursor.skip(tag, 0)?;
            continue;
        }
        let mut value = Cursor::new(cursor.body()?);
        while let Some(tag) = value.tag()? {
            match tag {
                0x0A => scalar = Scalar::String(value.body()?),
                0x10 => scalar = Scalar::Bool(value.varint()? != 0),
                0x18 => scalar = Scalar::Int(value.varint()? as i64),
                // One of the others of the oneof: it is none of these any more.
                _ if (2..=8).contains(&(tag >> 3)) => {
                    scalar = Scalar::Other;
                    value.skip(tag, 0)?;
                }
                _ => value.skip(tag, 0)?,
            }
        }
    }
    Ok(scalar)
}

/// The randomness that a span states itself: `rv` in the `ot` member of its trace state. What is
/// not lawful says nothing.
pub fn stated_randomness(trace_state: &[u8]) -> Option<Randomness> {
    Sampling::read(trace_state).randomness
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_passes_every_key_it_was_told() {
        let long = vec![b'k'; 100];
        let keys: [&[u8]; 5] = [b"tenant.id", b"", b"a", "schlüssel".as_bytes(), &long];
        for key in keys {
            let mut filter = KeyFilter::default();
            assert!(filter.is_empty());
            filter.add(key);
            assert!(filter.passes_key(key), "{key:?}");
            assert!(!filter.passes_key(b"gen_ai.request.model"), "{key:?}");
        }
    }

    #[test]
    fn stated_randomness_is_read_from_ot_alone() {
        let rows: [(&str, Option<u64>); 12] = [
            ("", None),
            ("ot=rv:00000000000001", Some(1)),
            ("ot=th:c;rv:ffffffffffffff", Some((1 << 56) - 1)),
            (
                "vendor=1 , ot=rv:0123456789abcd;th:8",
                Some(0x0001_2345_6789_abcd),
            ),
            ("ot=th:c", None),
            ("ot=rv:0123456789ABCD", None),
            ("ot=rv:0123456789abc", None),
            ("ot=rv:0123456789abcd0", None),
            ("ot=rv:0123456789abcg", None),
            ("rot=rv:00000000000001", None),
            ("vendor=rv:00000000000001", None),
            ("ot=xrv:00000000000001", None),
        ];
        for (text, expected) in rows {
            let stated = stated_randomness(text.as_bytes());
            assert_eq!(stated.map(Randomness::bits), expected, "{text}");
        }
    }
}
