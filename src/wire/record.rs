//! Every scalar field of a span, an event, a scope and a resource in one walk over its bytes.
//!
//! [`crate::wire::read_span`] reads the few fields that simple policies ask for; this is for those
//! that may ask for any. Attributes go by a [`KeyFilter`] in both. What comes out is what prost
//! would decode; bytes that are not protobuf read as far as they go.

use std::borrow::Cow;

use crate::wire::KeyFilter;
use crate::wire::any_value::{bodies, message_in};
use crate::wire::extract::attribute_of;
use crate::wire::field::{Broken, Cursor};

/// The fields of a Span; those absent have protobuf's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpanRecord<'a> {
    pub bytes: &'a [u8],
    pub trace_id: &'a [u8],
    pub span_id: &'a [u8],
    pub parent_span_id: &'a [u8],
    pub trace_state: &'a [u8],
    pub name: &'a [u8],
    pub kind: i32,
    pub start_unix_nanos: u64,
    pub end_unix_nanos: u64,
    pub dropped_attributes: u32,
    pub events: u32,
    pub dropped_events: u32,
    pub links: u32,
    pub dropped_links: u32,
    pub status_code: i32,
    pub status_message: &'a [u8],
    pub flags: u32,
    /// The bytes from the first event on.
    events_from: &'a [u8],
}

/// The fields of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventRecord<'a> {
    pub bytes: &'a [u8],
    pub unix_nanos: u64,
    pub name: &'a [u8],
    pub dropped_attributes: u32,
}

/// An InstrumentationScope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScopeRecord<'a> {
    pub bytes: Cow<'a, [u8]>,
}

/// A Resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceRecord<'a> {
    pub bytes: Cow<'a, [u8]>,
}

/// Where the attributes stand in each message.
pub const SPAN_ATTRIBUTES: u32 = 0x4A;
pub const EVENT_ATTRIBUTES: u32 = 0x1A;
pub const SCOPE_ATTRIBUTES: u32 = 0x1A;
pub const RESOURCE_ATTRIBUTES: u32 = 0x0A;

impl<'a> SpanRecord<'a> {
    /// Attributes that pass `keys` go to `on_attribute` in the order of the wire, each as its key
    /// and its KeyValue.
    #[inline]
    pub fn read(
        bytes: &'a [u8],
        keys: &KeyFilter,
        on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
    ) -> Self {
        let mut record = Self {
            bytes,
            ..Self::default()
        };
        record.fields(keys, on_attribute).ok();
        record
    }

    #[inline(always)]
    fn fields(
        &mut self,
        keys: &KeyFilter,
        on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
    ) -> Result<(), Broken> {
        let mut cursor = Cursor::new(self.bytes);
        loop {
            while let [0x4A, len @ ..0x80, rest @ ..] = cursor.rest
                && let Some((attribute, rest)) = rest.split_at_checked(usize::from(*len))
            {
                if !keys.is_empty() {
                    attribute_of(attribute, keys, on_attribute);
                }
                cursor.rest = rest;
            }
            let here = cursor.rest;
            let Some(tag) = cursor.tag()? else {
                return Ok(());
            };
            match tag {
                0x0A => self.trace_id = cursor.body()?,
                0x12 => self.span_id = cursor.body()?,
                0x1A => self.trace_state = cursor.body()?,
                0x22 => self.parent_span_id = cursor.body()?,
                0x2A => self.name = cursor.body()?,
                0x30 => self.kind = cursor.varint()? as i32,
                0x39 => self.start_unix_nanos = u64::from_le_bytes(*cursor.fixed()?),
                0x41 => self.end_unix_nanos = u64::from_le_bytes(*cursor.fixed()?),
                0x4A => {
                    let attribute = cursor.body()?;
                    if !keys.is_empty() {
                        attribute_of(attribute, keys, on_attribute);
                    }
                }
                0x50 => self.dropped_attributes = cursor.varint()? as u32,
                0x5A => {
                    cursor.body()?;
                    if self.events == 0 {
                        self.events_from = here;
                    }
                    self.events += 1;
                }
                0x60 => self.dropped_events = cursor.varint()? as u32,
                0x6A => {
                    cursor.body()?;
                    self.links += 1;
                }
                0x70 => self.dropped_links = cursor.varint()? as u32,
                0x7A => self.status(cursor.body()?)?,
                0x85 => self.flags = u32::from_le_bytes(*cursor.fixed()?),
                _ => cursor.skip(tag, 0)?,
            }
        }
    }

    /// Instalments of one status are one message.
    fn status(&mut self, status: &'a [u8]) -> Result<(), Broken> {
        let mut cursor = Cursor::new(status);
        while let Some(tag) = cursor.tag()? {
            match tag {
                0x12 => self.status_message = cursor.body()?,
                0x18 => self.status_code = cursor.varint()? as i32,
                _ => cursor.skip(tag, 0)?,
            }
        }
        Ok(())
    }

    /// The Event messages, in order.
    pub fn events(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        bodies(self.events_from, 0x5A)
    }
}

impl<'a> EventRecord<'a> {
    #[inline]
    pub fn read(
        bytes: &'a [u8],
        keys: &KeyFilter,
        on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
    ) -> Self {
        let mut record = Self {
            bytes,
            ..Self::default()
        };
        record.fields(keys, on_attribute).ok();
        record
    }

    fn fields(
        &mut self,
        keys: &KeyFilter,
        on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
    ) -> Result<(), Broken> {
        let mut cursor = Cursor::new(self.bytes);
        while let Some(tag) = cursor.tag()? {
            match tag {
                0x09 => self.unix_nanos = u64::from_le_bytes(*cursor.fixed()?),
                0x12 => self.name = cursor.body()?,
                0x1A => {
                    let attribute = cursor.body()?;
                    if !keys.is_empty() {
                        attribute_of(attribute, keys, on_attribute);
                    }
                }
                0x20 => self.dropped_attributes = cursor.varint()? as u32,
                _ => cursor.skip(tag, 0)?,
            }
        }
        Ok(())
    }
}

impl<'a> ScopeRecord<'a> {
    /// From the header of a ScopeSpans: see [`crate::wire::HeaderView`].
    pub fn read(header: Cow<'a, [u8]>) -> Self {
        Self {
            bytes: message_of(header),
        }
    }

    pub fn name(&self) -> &[u8] {
        bodies(&self.bytes, 0x0A).last().unwrap_or_default()
    }

    pub fn version(&self) -> &[u8] {
        bodies(&self.bytes, 0x12).last().unwrap_or_default()
    }

    pub fn dropped_attributes(&self) -> u32 {
        number(&self.bytes, 0x20)
    }
}

impl<'a> ResourceRecord<'a> {
    /// From the header of a ResourceSpans.
    pub fn read(header: Cow<'a, [u8]>) -> Self {
        Self {
            bytes: message_of(header),
        }
    }

    pub fn dropped_attributes(&self) -> u32 {
        number(&self.bytes, 0x10)
    }
}

/// The header's message: field 1 of both ScopeSpans and ResourceSpans.
fn message_of(header: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    match header {
        Cow::Borrowed(header) => message_in(header, 0x0A).unwrap_or_default(),
        Cow::Owned(header) => {
            Cow::Owned(message_in(&header, 0x0A).unwrap_or_default().into_owned())
        }
    }
}

fn number(message: &[u8], wanted: u32) -> u32 {
    let mut number = 0;
    let mut cursor = Cursor::new(message);
    while let Ok(Some(tag)) = cursor.tag() {
        if tag == wanted {
            let Ok(value) = cursor.varint() else { break };
            number = value as u32;
        } else if cursor.skip(tag, 0).is_err() {
            break;
        }
    }
    number
}

/// Attributes under `tag` that pass `keys`, in the order of the wire.
pub fn read_attributes<'a>(
    message: &'a [u8],
    tag: u32,
    keys: &KeyFilter,
    on_attribute: &mut impl FnMut(&'a [u8], &'a [u8]),
) {
    if !keys.is_empty() {
        for attribute in bodies(message, tag) {
            attribute_of(attribute, keys, on_attribute);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1 as proto;
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_last_of_a_field_counts_and_a_status_in_instalments_is_one() {
        let first = proto::Span {
            trace_id: vec![1; 16],
            name: "first".into(),
            kind: 3,
            flags: 257,
            events: vec![proto::span::Event::default(); 2],
            links: vec![proto::span::Link::default()],
            status: Some(proto::Status {
                message: "boom".into(),
                code: 0,
            }),
            ..Default::default()
        };
        let second = proto::Span {
            name: "second".into(),
            start_time_unix_nano: 5,
            end_time_unix_nano: 7,
            dropped_links_count: 30,
            status: Some(proto::Status {
                message: String::new(),
                code: 2,
            }),
            ..Default::default()
        };
        let bytes = [first.encode_to_vec(), second.encode_to_vec()].concat();
        let record = SpanRecord::read(&bytes, &KeyFilter::default(), &mut |_, _| {});
        let merged = proto::Span::decode(&bytes[..]).unwrap();
        assert_eq!(record.name, b"second");
        assert_eq!(record.trace_id, merged.trace_id);
        assert_eq!((record.kind, record.flags), (merged.kind, merged.flags));
        assert_eq!(record.events().count(), 2);
        assert_eq!((record.events, record.links), (2, 1));
        assert_eq!(record.dropped_links, 30);
        assert_eq!((record.start_unix_nanos, record.end_unix_nanos), (5, 7));
        let status = merged.status.unwrap();
        assert_eq!(record.status_code, status.code);
        assert_eq!(record.status_message, status.message.as_bytes());
    }
}
