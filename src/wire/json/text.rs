//! Tokens of a JSON text (RFC 8259), found and checked; nothing is copied and nothing converted.

use super::error::Fault;

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;
/// Lists and objects inside a value that is passed over: the bits of `Text::skip`'s stack.
const SKIPPED_LEVELS_MAX: usize = 256;

/// What is left to read. Every read moves it forward or fails.
#[derive(Debug, Clone)]
pub(super) struct Text<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A string as it stands between its quotes: UTF-8, maybe with escapes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quoted<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) escaped: bool,
    /// Of the opening quote.
    pub(super) offset: usize,
}

/// A number by JSON's grammar.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) offset: usize,
}

impl<'a> Text<'a> {
    /// After the byte order mark, if there is one.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let at = if bytes.starts_with(b"\xEF\xBB\xBF") {
            3
        } else {
            0
        };
        Self { bytes, at }
    }

    pub(super) fn fault(&self, expected: &'static str) -> Fault {
        Fault::new(self.at, expected)
    }

    /// The next byte that is not white space; it stays.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    /// Takes `byte` if it is next.
    #[inline]
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    pub(super) fn end(&mut self) -> Result<(), Fault> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.fault("nothing after the request")),
        }
    }

    /// The next key of an object, with its colon; `None` at the object's end.
    #[inline]
    pub(super) fn key(&mut self, is_first: bool) -> Result<Option<Quoted<'a>>, Fault> {
        match self.peek() {
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            Some(b',') if !is_first => self.at += 1,
            Some(_) if is_first => {}
            _ if is_first => return Err(self.fault("a key or '}'")),
            _ => return Err(self.fault("',' or '}'")),
        }
        if self.peek() != Some(b'"') {
            return Err(self.fault("a key in double quotes"));
        }
        let key = self.string()?;
        if !self.take(b':') {
            return Err(self.fault("':' after a key"));
        }
        Ok(Some(key))
    }

    /// After an item: whether another one follows.
    #[inline]
    pub(super) fn next_item(&mut self) -> Result<bool, Fault> {
        if self.take(b',') {
            Ok(true)
        } else if self.take(b']') {
            Ok(false)
        } else {
            Err(self.fault("',' or ']'"))
        }
    }

    /// The rest of a word whose first letter was peeked.
    pub(super) fn word(&mut self, word: &'static str) -> Result<(), Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(self.fault(word));
        }
        self.at += word.len();
        Ok(())
    }

    /// The string whose quote was peeked.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Quoted<'a>, Fault> {
        let offset = self.at;
        let start = offset + 1;
        let mut at = start;
        let mut escaped = false;
        let mut high = 0;
        loop {
            at = stop(self.bytes, at, &mut high);
            match self.bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    at += 2;
                }
                Some(_) => return Err(Fault::new(at, "no control character in a string")),
                None => return Err(Fault::new(self.bytes.len(), "the end of a string, '\"'")),
            }
        }
        let bytes = &self.bytes[start..at];
        if high != 0
            && let Err(error) = simdutf8::compat::from_utf8(bytes)
        {
            return Err(Fault::new(start + error.valid_up_to(), "UTF-8"));
        }
        self.at = at + 1;
        Ok(Quoted {
            bytes,
            escaped,
            offset,
        })
    }

    /// The number whose first byte was peeked.
    #[inline]
    pub(super) fn number(&mut self) -> Result<Number<'a>, Fault> {
        let offset = self.at;
        let mut at = offset + usize::from(self.bytes.get(offset) == Some(&b'-'));
        let fault = |at| Err(Fault::new(at, "a digit"));
        let digits = |at: &mut usize| {
            let from = *at;
            while self.bytes.get(*at).is_some_and(u8::is_ascii_digit) {
                *at += 1;
            }
            *at > from
        };
        if self.bytes.get(at) == Some(&b'0') {
            at += 1;
        } else if !digits(&mut at) {
            return fault(at);
        }
        if self.bytes.get(at) == Some(&b'.') {
            at += 1;
            if !digits(&mut at) {
                return fault(at);
            }
        }
        if let Some(b'e' | b'E') = self.bytes.get(at) {
            at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(at) {
                at += 1;
            }
            if !digits(&mut at) {
                return fault(at);
            }
        }
        self.at = at;
        Ok(Number {
            bytes: &self.bytes[offset..at],
            offset,
        })
    }

    /// Passes over one value of any kind.
    pub(super) fn skip(&mut self) -> Result<(), Fault> {
        // One bit a level: whether it is a list.
        let mut lists = [0_u64; SKIPPED_LEVELS_MAX / 64];
        let mut levels = 0;
        loop {
            let mut is_opened = false;
            match self.peek() {
                Some(b'"') => drop(self.string()?),
                Some(b'-' | b'0'..=b'9') => drop(self.number()?),
                Some(b't') => self.word("true")?,
                Some(b'f') => self.word("false")?,
                Some(b'n') => self.word("null")?,
                Some(open @ (b'{' | b'[')) => {
                    if levels == SKIPPED_LEVELS_MAX {
                        return Err(self.fault("at most 256 levels in a value"));
                    }
                    self.at += 1;
                    let (word, bit) = (levels / 64, 1 << (levels % 64));
                    if open == b'[' {
                        lists[word] |= bit;
                    } else {
                        lists[word] &= !bit;
                    }
                    levels += 1;
                    is_opened = true;
                }
                _ => return Err(self.fault("a value")),
            }
            // On to the next value, over the ends that come before it.
            loop {
                let Some(level) = levels.checked_sub(1) else {
                    return Ok(());
                };
                let is_list = lists[level / 64] >> (level % 64) & 1 == 1;
                let goes_on = match (is_list, is_opened) {
                    (true, true) => !self.take(b']'),
                    (true, false) => self.next_item()?,
                    (false, _) => self.key(is_opened)?.is_some(),
                };
                is_opened = false;
                if goes_on {
                    break;
                }
                levels = level;
            }
        }
    }
}

impl<'a> Quoted<'a> {
    /// The number that a string is, and nothing beside it.
    pub(super) fn number(&self) -> Option<Number<'a>> {
        let mut text = Text {
            bytes: self.bytes,
            at: 0,
        };
        let number = text.number().ok()?;
        (number.bytes.len() == self.bytes.len()).then_some(Number {
            bytes: self.bytes,
            offset: self.offset,
        })
    }

    /// Appends what the string says.
    pub(super) fn unescape(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let mut copied = 0;
        let mut at = 0;
        let mut high = 0;
        loop {
            at = stop(self.bytes, at, &mut high);
            out.extend_from_slice(&self.bytes[copied..at.min(self.bytes.len())]);
            if at >= self.bytes.len() {
                return Ok(());
            }
            // Here stands a backslash: quotes and control characters are only found after one.
            let fault = Fault::new(self.offset + 1 + at, "an escape that JSON has");
            let byte = match self.bytes.get(at + 1) {
                Some(byte @ (b'"' | b'\\' | b'/')) => *byte,
                Some(b'b') => 0x08,
                Some(b'f') => 0x0c,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'u') => {
                    let unit = unit(self.bytes, at).ok_or(fault)?;
                    at += 6;
                    let character = match unit {
                        0xD800..0xDC00 => match unit_escaped(self.bytes, at) {
                            Some(low @ 0xDC00..0xE000) => {
                                at += 6;
                                char::from_u32(0x1_0000 + ((unit - 0xD800) << 10) + low - 0xDC00)
                            }
                            _ => None,
                        },
                        unit => char::from_u32(unit),
                    };
                    let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
                    let mut encoded = [0; 4];
                    out.extend_from_slice(character.encode_utf8(&mut encoded).as_bytes());
                    copied = at;
                    continue;
                }
                _ => return Err(fault),
            };
            out.push(byte);
            at += 2;
            copied = at;
        }
    }
}

/// The UTF-16 unit of the `\uXXXX` that stands at `at`.
fn unit_escaped(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.starts_with(b"\\u").then_some(())?;
    unit(bytes, at)
}

fn unit(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at + 2..at + 6)?;
    digits.iter().try_fold(0, |unit, digit| {
        Some(unit << 4 | char::from(*digit).to_digit(16)?)
    })
}

/// Where the next quote, backslash or control character stands, or the end. `high` gathers the
/// high bits of what was passed over, and of a few bytes more.
#[inline]
fn stop(bytes: &[u8], from: usize, high: &mut u64) -> usize {
    let mut at = from;
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        *high |= word & HIGH;
        // Borrows go upwards, so the lowest mark is exact, and the lowest is all that counts.
        let below = |limit: u64, word: u64| word.wrapping_sub(LOW * limit) & !word & HIGH;
        let equal = |byte: u8| below(1, word ^ (LOW * u64::from(byte)));
        let marks = below(0x20, word) | equal(b'"') | equal(b'\\');
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while let Some(&byte) = bytes.get(at) {
        if byte < 0x20 || byte == b'"' || byte == b'\\' {
            break;
        }
        *high |= u64::from(byte) & HIGH;
        at += 1;
    }
    at
}
