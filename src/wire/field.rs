//! Protobuf fields: tags, varints, lengths, and skipping what is not understood.
//!
//! The rules are those that prost (and every other decoder we met) applies: varints of at most ten
//! bytes, over-long ones included; tags below 2^32 with a field number above 0; groups closed by
//! their own number. Which fields a message has is known to `check` and `scan`.

/// Nested messages and groups below the request. prost, C++ and Java refuse a whole batch at 100;
/// one less leaves room for an unknown field in the deepest message, which prost counts as well.
pub(super) const DEPTH_MAX: u32 = 99;

pub(super) const VARINT: u32 = 0;
pub(super) const FIXED64: u32 = 1;
pub(super) const LEN: u32 = 2;
const GROUP_START: u32 = 3;
const GROUP_END: u32 = 4;
pub(super) const FIXED32: u32 = 5;

/// Why bytes are not protobuf fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Truncated,
    Varint,
    Tag,
    WireType,
    Group,
    TooDeep,
}

/// What is left to read of one message. Every read moves it forward or fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) rest: &'a [u8],
}

impl Broken {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Truncated => "a field goes beyond the end of its message",
            Self::Varint => "a varint of more than 64 bits",
            Self::Tag => "an illegal field number or wire type",
            Self::WireType => "a known field with the wrong wire type",
            Self::Group => "a group that is not closed",
            Self::TooDeep => "groups nested too deep",
        }
    }
}

impl<'a> Cursor<'a> {
    #[inline(always)]
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    #[inline(always)]
    pub(super) fn varint(&mut self) -> Result<u64, Broken> {
        match *self.rest {
            [byte, ref rest @ ..] if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            // Lengths of 128 to 16,383: most spans and events.
            [low, high, ref rest @ ..] if high < 0x80 => {
                self.rest = rest;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.long_varint(),
        }
    }

    #[inline(never)]
    fn long_varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                if index == 9 && byte > 1 {
                    return Err(Broken::Varint);
                }
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 {
            Broken::Truncated
        } else {
            Broken::Varint
        })
    }

    /// The next field's tag, `number << 3 | wire type`; `None` at the end. The wire type is not
    /// judged here: whoever does not know the field calls [`Cursor::skip`], which does.
    #[inline(always)]
    pub(super) fn tag(&mut self) -> Result<Option<u32>, Broken> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = u32::try_from(self.varint()?).map_err(|_| Broken::Tag)?;
        if tag < 8 {
            return Err(Broken::Tag);
        }
        Ok(Some(tag))
    }

    /// The bytes of a field with a length.
    #[inline(always)]
    pub(super) fn body(&mut self) -> Result<&'a [u8], Broken> {
        let len = self.varint()?;
        let (body, rest) = usize::try_from(len)
            .ok()
            .and_then(|len| self.rest.split_at_checked(len))
            .ok_or(Broken::Truncated)?;
        self.rest = rest;
        Ok(body)
    }

    #[inline(always)]
    pub(super) fn fixed<const N: usize>(&mut self) -> Result<&'a [u8; N], Broken> {
        let (value, rest) = self.rest.split_first_chunk().ok_or(Broken::Truncated)?;
        self.rest = rest;
        Ok(value)
    }

    /// Passes over the field whose tag was just read. `depth` is that of its message.
    pub(super) fn skip(&mut self, tag: u32, depth: u32) -> Result<(), Broken> {
        match tag & 7 {
            GROUP_START => self.skip_group(tag, depth),
            _ => self.skip_flat(tag),
        }
    }

    #[inline(always)]
    pub(super) fn skip_flat(&mut self, tag: u32) -> Result<(), Broken> {
        match tag & 7 {
            VARINT => self.varint().map(|_| ()),
            FIXED64 => self.fixed::<8>().map(|_| ()),
            LEN => self.body().map(|_| ()),
            FIXED32 => self.fixed::<4>().map(|_| ()),
            GROUP_END => Err(Broken::Group),
            _ => Err(Broken::Tag),
        }
    }

    /// Groups carry no length, so the open ones are kept on a stack: an attacker chooses how many.
    #[inline(never)]
    fn skip_group(&mut self, tag: u32, depth: u32) -> Result<(), Broken> {
        let mut open = [0; DEPTH_MAX as usize];
        let mut levels = 0;
        let mut tag = tag;
        loop {
            match tag & 7 {
                GROUP_START => {
                    // The fields inside the group are one level below it.
                    if depth as usize + levels + 1 >= open.len() {
                        return Err(Broken::TooDeep);
                    }
                    open[levels] = tag >> 3;
                    levels += 1;
                }
                GROUP_END => {
                    levels -= 1;
                    if open[levels] != tag >> 3 {
                        return Err(Broken::Group);
                    }
                    if levels == 0 {
                        return Ok(());
                    }
                }
                _ => self.skip_flat(tag)?,
            }
            tag = self.tag()?.ok_or(Broken::Group)?;
        }
    }
}

/// Bytes of `value` as a minimal varint.
#[inline(always)]
pub(super) fn varint_len(value: usize) -> usize {
    // Seven bits a byte: (bits * 9 + 64) / 64 is ceil(bits / 7) for 1 to 64 bits.
    let bits = (usize::BITS - (value | 1).leading_zeros()) as usize;
    (bits * 9 + 64) / 64
}

/// Bytes of a whole field with a one-byte tag and `body_len` bytes of body.
#[inline(always)]
pub(super) fn field_len(body_len: usize) -> usize {
    1 + varint_len(body_len) + body_len
}

/// The tag and the length that go before a body, and how many bytes they are.
#[inline(always)]
pub(super) fn prefix(tag: u8, body_len: usize) -> ([u8; 11], usize) {
    let mut prefix = [0; 11];
    prefix[0] = tag;
    let mut len = 1;
    let mut value = body_len;
    while value >= 0x80 {
        prefix[len] = value as u8 | 0x80;
        value >>= 7;
        len += 1;
    }
    prefix[len] = value as u8;
    (prefix, len + 1)
}

/// Writes the tag and the length that go before a body.
#[inline(always)]
pub(super) fn write_prefix(tag: u8, body_len: usize, out: &mut Vec<u8>) {
    let (prefix, len) = prefix(tag, body_len);
    out.extend_from_slice(&prefix[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_lengths_are_those_that_are_written() {
        for bits in 0..64 {
            for value in [
                (1usize << bits) - 1,
                1 << bits,
                (1 << bits) + ((1 << bits) >> 1),
            ] {
                let mut out = Vec::new();
                write_prefix(0x0A, value, &mut out);
                assert_eq!(out.len(), 1 + varint_len(value), "{value:#x}");
                let mut cursor = Cursor::new(&out);
                assert_eq!(cursor.tag(), Ok(Some(0x0A)));
                assert_eq!(cursor.varint(), Ok(value as u64));
                assert!(cursor.rest.is_empty());
            }
        }
    }

    #[test]
    fn varints_read_as_prost_reads_them() {
        let rows: [&[u8]; 12] = [
            &[],
            &[0],
            &[0x80],
            &[0x80, 0],
            &[0xff, 0x7f],
            &[0x80, 0x80, 0],
            &[0xff; 9],
            &[0xff; 10],
            &[0xff; 11],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0],
        ];
        for row in rows {
            let ours = Cursor::new(row).varint().ok();
            let theirs = prost::encoding::decode_varint(&mut &row[..]).ok();
            assert_eq!(ours, theirs, "{row:x?}");
        }
    }

    #[test]
    fn groups_skip_when_closed_by_their_own_number_and_not_too_deep() {
        // 0x2B opens field 5, 0x2C closes it, 0x34 closes field 6.
        assert_eq!(Cursor::new(&[0x2C]).skip(0x2B, 1), Ok(()));
        assert_eq!(
            Cursor::new(&[0x08, 1, 0x2B, 0x2C, 0x2C]).skip(0x2B, 1),
            Ok(())
        );
        assert_eq!(Cursor::new(&[0x34]).skip(0x2B, 1), Err(Broken::Group));
        assert_eq!(Cursor::new(&[]).skip(0x2B, 1), Err(Broken::Group));
        assert_eq!(Cursor::new(&[0x01]).skip(0x2B, 1), Err(Broken::Tag));
        assert_eq!(Cursor::new(&[]).skip(0x2C, 1), Err(Broken::Group));
        assert_eq!(Cursor::new(&[0]).skip(0x2E, 1), Err(Broken::Tag));
        let deep = |levels: usize| [vec![0x2B; levels - 1], vec![0x2C; levels]].concat();
        assert_eq!(Cursor::new(&deep(90)).skip(0x2B, 1), Ok(()));
        assert_eq!(
            Cursor::new(&deep(100_000)).skip(0x2B, 1),
            Err(Broken::TooDeep)
        );
    }
}
