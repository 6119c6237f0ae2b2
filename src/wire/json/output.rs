//! Protobuf as it is written: into a buffer of a size that was known before.

use super::error::JsonError;
use crate::wire::field::{LEN, varint_len};

/// Longest tag and scalar: two bytes and ten.
const SCALAR_BYTES_MAX: usize = 12;

/// A buffer that never grows beyond what was allocated for it.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    bytes_max: usize,
}

/// A message (or a text) whose length is not known yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    start: usize,
    /// Kept before it for the length.
    length_bytes: usize,
}

/// The text would become more than was reckoned with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Full;

impl Output {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes_max),
            bytes_max,
        }
    }

    /// To be asked before anything is written: a scalar, and `more` bytes.
    #[inline]
    pub(super) fn room_for(&self, more: usize) -> Result<(), Full> {
        let needed = self.bytes.len() + SCALAR_BYTES_MAX + more;
        if needed > self.bytes_max {
            return Err(Full);
        }
        Ok(())
    }

    pub(super) fn too_large(&self) -> JsonError {
        JsonError::TooLarge {
            bytes: self.bytes.len(),
            bytes_max: self.bytes_max,
        }
    }

    #[inline]
    pub(super) fn tag(&mut self, number: u8, wire_type: u32) {
        self.varint(u64::from(u32::from(number) << 3 | wire_type));
    }

    #[inline]
    pub(super) fn varint(&mut self, value: u64) {
        let mut value = value;
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Opens a field with a length, for which `length_bytes` are kept.
    #[inline]
    pub(super) fn open(&mut self, number: u8, length_bytes: usize) -> Body {
        self.tag(number, LEN);
        self.bytes.extend_from_slice(&[0; 5][..length_bytes.min(5)]);
        Body {
            start: self.bytes.len(),
            length_bytes: length_bytes.min(5),
        }
    }

    /// Writes the length of what came since, minimal; moves it when that needs more or fewer
    /// bytes than were kept. Each byte is moved once a level at most.
    #[inline]
    pub(super) fn close(&mut self, body: Body) {
        let len = self.bytes.len() - body.start;
        let length_bytes = varint_len(len);
        if length_bytes != body.length_bytes {
            self.fit(body, length_bytes);
        }
        let mut value = len;
        let from = body.start - body.length_bytes;
        for byte in &mut self.bytes[from..from + length_bytes] {
            *byte = value as u8 | 0x80;
            value >>= 7;
        }
        self.bytes[from + length_bytes - 1] &= 0x7f;
    }

    #[inline(never)]
    fn fit(&mut self, body: Body, length_bytes: usize) {
        let end = self.bytes.len();
        if let Some(more) = length_bytes.checked_sub(body.length_bytes) {
            self.bytes.extend_from_slice(&[0; 10][..more]);
            self.bytes.copy_within(body.start..end, body.start + more);
        } else {
            let less = body.length_bytes - length_bytes;
            self.bytes.copy_within(body.start..end, body.start - less);
            self.bytes.truncate(end - less);
        }
    }
}
