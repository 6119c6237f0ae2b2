//! What is wrong with a JSON text, where in the message and where in the bytes.

use std::fmt::Write as _;

/// Why a text did not become a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// It is not JSON, or not an `ExportTraceServiceRequest`. The same text never will be.
    #[error("{path}: expected {expected}, found {found}, byte offset {offset}")]
    Unreadable {
        /// `resourceSpans[0].scopeSpans[2].spans[17].name`, the middle left out when it is long.
        path: String,
        expected: &'static str,
        /// A short piece of the text.
        found: String,
        offset: usize,
    },
    /// Smaller batches would do.
    #[error("the message has {bytes} bytes as protobuf, over the limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
}

/// A fault in the text; whoever walks it knows in which field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) offset: usize,
    pub(super) expected: &'static str,
}

/// Of the text that was found.
const FOUND_BYTES_MAX: usize = 24;
/// Steps of a path that are written from its beginning, and from its end.
const STEPS: (usize, usize) = (7, 4);

impl Fault {
    pub(super) fn new(offset: usize, expected: &'static str) -> Self {
        Self { offset, expected }
    }

    /// `steps`: the fields from the request down, with their places in lists.
    pub(super) fn at(self, steps: &[(&'static str, Option<u32>)], text: &[u8]) -> JsonError {
        JsonError::Unreadable {
            path: path(steps),
            expected: self.expected,
            found: found(text, self.offset),
            offset: self.offset,
        }
    }
}

fn path(steps: &[(&'static str, Option<u32>)]) -> String {
    let mut path = String::new();
    let hidden = STEPS.0..steps.len().saturating_sub(STEPS.1);
    for (place, (name, index)) in steps.iter().enumerate() {
        if hidden.contains(&place) {
            if place == hidden.start {
                path.push_str(".…");
            }
            continue;
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        if let Some(index) = index {
            // Writing into a String does not fail.
            let _always_ok = write!(path, "[{index}]");
        }
    }
    if path.is_empty() {
        path.push_str("the request");
    }
    path
}

fn found(text: &[u8], offset: usize) -> String {
    let rest = text.get(offset..).unwrap_or_default();
    if rest.is_empty() {
        return "the end of the text".to_owned();
    }
    // Up to where this token can end, so that not half of the text is quoted.
    let end = match rest {
        [b'"', inside @ ..] => inside
            .iter()
            .position(|byte| *byte == b'"')
            .map_or(rest.len(), |at| at + 2),
        [b'{' | b'}' | b'[' | b']' | b',' | b':', ..] => 1,
        _ => rest
            .iter()
            .position(|byte| b",:{}[] \t\r\n\"".contains(byte))
            .unwrap_or(rest.len())
            .max(1),
    };
    let shown = &rest[..end.min(FOUND_BYTES_MAX)];
    let mut found = String::new();
    for character in String::from_utf8_lossy(shown).chars() {
        if character.is_control() {
            found.extend(character.escape_default());
        } else {
            found.push(character);
        }
    }
    if end > FOUND_BYTES_MAX {
        found.push('…');
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_long_path_is_left_out() {
        let steps: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]
            .map(|name| (name, (name == "b").then_some(7)))
            .to_vec();
        assert_eq!(path(&steps[..0]), "the request");
        assert_eq!(path(&steps[..3]), "a.b[7].c");
        assert_eq!(path(&steps[..11]), "a.b[7].c.d.e.f.g.h.i.j.k");
        assert_eq!(path(&steps), "a.b[7].c.d.e.f.g.….i.j.k.l");
    }

    #[test]
    fn what_was_found_is_one_token_and_short() {
        for (text, expect) in [
            ("", "the end of the text"),
            ("12x,3", "12x"),
            ("\"a b\", 1", "\"a b\""),
            ("{\"a\":1}", "{"),
            (" x", " "),
            ("\u{1}", "\\u{1}"),
            (
                "\"0123456789012345678901234567\"",
                "\"01234567890123456789012…",
            ),
        ] {
            assert_eq!(found(text.as_bytes(), 0), expect);
        }
        assert_eq!(found(&[0xff, b','], 0), "\u{fffd}");
    }
}
