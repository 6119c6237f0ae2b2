//! Attributes that are written into spans and scopes, by an edit of their bytes.
//!
//! A new one goes to the end, which is right for whatever stands before, for field order is free.
//! What came with its key goes, wherever it stands: of two the first one would count.

use bytes::Bytes;

use crate::wire::any_value::{AnyValue, bodies, key_in, write_any_value, write_body};
use crate::wire::field::{Broken, Cursor, field_len, prefix};
use crate::wire::record::SCOPE_ATTRIBUTES;

/// A KeyValue as bytes. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    key: &'static str,
    key_value: Bytes,
}

/// The InstrumentationScope in a ScopeSpans.
const SCOPE: u8 = 0x0A;

impl Attribute {
    pub fn text(key: &'static str, text: &str) -> Self {
        Self::new(key, &AnyValue::Str(text.as_bytes().into()))
    }

    pub fn truth(key: &'static str, truth: bool) -> Self {
        Self::new(key, &AnyValue::Bool(truth))
    }

    fn new(key: &'static str, value: &AnyValue<'_>) -> Self {
        let mut key_value = Vec::new();
        write_body(0x0A, key.as_bytes(), &mut key_value);
        write_any_value(0x12, value, &mut key_value);
        Self {
            key,
            key_value: key_value.into(),
        }
    }

    /// Whether a KeyValue is of the same key.
    pub(super) fn replaces(&self, key_value: &[u8]) -> bool {
        key_in(key_value) == self.key.as_bytes()
    }

    /// Bytes of it as a field.
    pub(super) fn field_len(&self) -> usize {
        field_len(self.key_value.len())
    }

    pub(super) fn put(&self, tag: u8, put: &mut impl FnMut(&[u8])) {
        let (prefix, len) = prefix(tag, self.key_value.len());
        put(&prefix[..len]);
        put(&self.key_value);
    }
}

/// The fields of a message without those of this tag that are `gone`, in stretches. What cannot be
/// read is passed on.
pub(super) fn without(
    message: &[u8],
    tag: u32,
    gone: impl Fn(&[u8]) -> bool,
    put: &mut impl FnMut(&[u8]),
) {
    let mut cursor = Cursor::new(message);
    let mut kept_from = 0;
    loop {
        let start = message.len() - cursor.rest.len();
        let is_gone = match cursor.tag() {
            Ok(Some(found)) if found == tag => cursor.body().map(&gone),
            Ok(Some(other)) => cursor.skip(other, 0).map(|()| false),
            Ok(None) => break,
            Err(error) => Err(error),
        };
        match is_gone {
            Ok(true) => {
                put(&message[kept_from..start]);
                kept_from = message.len() - cursor.rest.len();
            }
            Ok(false) => {}
            Err(_) => break,
        }
    }
    put(&message[kept_from..]);
}

/// The header of a ScopeSpans whose scope has these attributes. A scope may come in instalments; the
/// last one gets them.
pub fn scope_with(header: &[u8], attributes: &[Attribute]) -> Bytes {
    // Was accepted once, so it can be read; else it goes out as it is.
    let written = write_scope(header, attributes);
    written.map_or_else(|_| Bytes::copy_from_slice(header), Bytes::from)
}

fn write_scope(header: &[u8], attributes: &[Attribute]) -> Result<Vec<u8>, Broken> {
    let scope_of = |instalment: &[u8], is_last: bool, out: &mut Vec<u8>| {
        let mut scope = Vec::new();
        let mut put = |piece: &[u8]| scope.extend_from_slice(piece);
        let gone = |key_value: &[u8]| attributes.iter().any(|it| it.replaces(key_value));
        without(instalment, SCOPE_ATTRIBUTES, gone, &mut put);
        if is_last {
            for attribute in attributes {
                attribute.put(SCOPE_ATTRIBUTES as u8, &mut put);
            }
        }
        write_body(SCOPE, &scope, out);
    };
    let instalments = bodies(header, u32::from(SCOPE)).count();
    let mut out = Vec::new();
    let mut seen = 0;
    let mut cursor = Cursor::new(header);
    loop {
        let field = cursor.rest;
        match cursor.tag()? {
            None => break,
            Some(tag) if tag == u32::from(SCOPE) => {
                seen += 1;
                scope_of(cursor.body()?, seen == instalments, &mut out);
            }
            Some(tag) => {
                cursor.skip(tag, 0)?;
                out.extend_from_slice(&field[..field.len() - cursor.rest.len()]);
            }
        }
    }
    if instalments == 0 {
        scope_of(&[], true, &mut out);
    }
    Ok(out)
}
