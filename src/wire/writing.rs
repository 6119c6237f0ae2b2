//! Writes a message into a buffer that was made for it: pieces as they are, tags and lengths.

use crate::wire::field::prefix;

/// What of a buffer is not written yet. What finds no room is left
/// out.
pub(super) struct Writing<'a> {
    rest: &'a mut [u8],
}

impl<'a> Writing<'a> {
    /// All of the buffer will be written.
    pub(super) fn new(rest: &'a mut [u8]) -> Self {
        Self { rest }
    }

    #[inline(always)]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        let rest = std::mem::take(&mut self.rest);
        let (now, later) = rest.split_at_mut(bytes.len().min(rest.len()));
        now.copy_from_slice(&bytes[..now.len()]);
        self.rest = later;
    }

    /// Writes all of `bytes`, which is quick because its length is a constant, and goes on after
    /// the first `len` of them: what is written next covers the others, or the buffer has room for
    /// no more than `len` and gets no more.
    #[inline(always)]
    pub(super) fn put_first<const N: usize>(&mut self, bytes: &[u8; N], len: usize) {
        if let Some(place) = self.rest.first_chunk_mut::<N>() {
            *place = *bytes;
            self.rest = &mut std::mem::take(&mut self.rest)[len..];
        } else {
            self.put(&bytes[..len]);
        }
    }

    /// A one-byte tag and a length.
    #[inline(always)]
    pub(super) fn put_prefix(&mut self, tag: u8, len: usize) {
        match len {
            0..0x80 => self.put_first(&[tag, len as u8, 0, 0], 2),
            0x80..0x4000 => self.put_first(&[tag, len as u8 | 0x80, (len >> 7) as u8, 0], 3),
            _ => self.put_long_prefix(tag, len),
        }
    }

    #[inline(never)]
    fn put_long_prefix(&mut self, tag: u8, len: usize) {
        let (prefix, len) = prefix(tag, len);
        self.put(&prefix[..len]);
    }
}
