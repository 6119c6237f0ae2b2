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
    /// From the outermost inwards.
    open: Vec<Body>,
}

/// A message (or a text) whose length is not known yet.
#[derive(Debug, Clone, Copy)]
struct Body {
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
            open: Vec::with_capacity(16),
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

    /// Opens a field with a length, for which `length_bytes` are kept, at most 5.
    #[inline]
    pub(super) fn open(&mut self, number: u8, length_bytes: usize) {
        self.tag(number, LEN);
        self.bytes.extend_from_slice(&[0; 5][..length_bytes]);
        self.open.push(Body {
            start: self.bytes.len(),
            length_bytes,
        });
    }

    /// Ends the field that was opened last: writes the length of what came since, minimal.
    #[inline]
    pub(super) fn close(&mut self) -> Result<(), Full> {
        let Some(mut body) = self.open.pop() else {
            return Ok(()); // not reached: every field that is closed was opened
        };
        let len = self.bytes.len() - body.start;
        let length_bytes = varint_len(len);
        if length_bytes > body.length_bytes {
            body = self.widen(body, length_bytes)?;
        } else if length_bytes < body.length_bytes {
            let less = body.length_bytes - length_bytes;
            self.bytes.copy_within(body.start.., body.start - less);
            self.bytes.truncate(self.bytes.len() - less);
            body.start -= less;
        }
        let mut value = len;
        for byte in &mut self.bytes[body.start - length_bytes..body.start] {
            *byte = value as u8 | 0x80;
            value >>= 7;
        }
        self.bytes[body.start - 1] &= 0x7f;
        Ok(())
    }

    /// Makes room for a longer length, and for no shorter ones in everything around it, which
    /// cannot be shorter. So a byte is moved once for each length that there is, and not once for
    /// each level: 64 MiB inside 190 levels were 12 GB to move.
    #[inline(never)]
    fn widen(&mut self, innermost: Body, length_bytes: usize) -> Result<Body, Full> {
        let more = |body: &Body| length_bytes.saturating_sub(body.length_bytes);
        let total = more(&innermost) + self.open.iter().map(more).sum::<usize>();
        self.room_for(total)?;
        let mut end = self.bytes.len();
        self.bytes.resize(end + total, 0);
        let mut innermost = innermost;
        let mut shift = total;
        for body in std::iter::once(&mut innermost).chain(self.open.iter_mut().rev()) {
            if shift == 0 {
                break;
            }
            self.bytes.copy_within(body.start..end, body.start + shift);
            end = body.start;
            body.start += shift;
            shift -= more(body);
            body.length_bytes = body.length_bytes.max(length_bytes);
        }
        Ok(innermost)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fields of number 1 one in the other, with bytes before and after each inner one.
    fn nested(levels: &[(usize, usize, usize)], output: &mut Output) -> Vec<u8> {
        let Some(((before, kept, after), inner)) = levels.split_first() else {
            return Vec::new();
        };
        let mut expect = Vec::new();
        output.open(1, *kept);
        output.bytes.extend(vec![7; *before]);
        expect.extend(vec![7; *before]);
        expect.extend(nested(inner, output));
        output.bytes.extend(vec![9; *after]);
        expect.extend(vec![9; *after]);
        output.close().unwrap();
        let mut field = Vec::new();
        crate::wire::field::write_prefix(0x0A, expect.len(), &mut field);
        field.extend(expect);
        field
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn lengths_fit_whatever_was_kept_for_them(
            levels in prop::collection::vec(
                (prop_oneof![0..3usize, 100..140usize, 16_300..16_400usize], 1..=5usize, 0..3usize), 1..12,
            ),
        ) {
            let mut output = Output::new(1 << 20);
            let expect = nested(&levels, &mut output);
            prop_assert!(output.bytes == expect);
            prop_assert!(output.open.is_empty());
        }
    }

    #[test]
    fn nothing_is_written_beyond_what_was_allocated() {
        let mut output = Output::new(200);
        output.open(1, 1);
        output.open(1, 1);
        output.bytes.extend([0; 185]);
        assert!(
            output.close().is_err(),
            "two bytes more, and a scalar's room"
        );
        assert!(output.bytes.capacity() < 400);
        assert!(output.room_for(100).is_err());
    }
}
