//! Bytes that JSON writes as text: hex and base64, decoded where they lie.

/// Replaces the hex digits from `start` on by the bytes they say; `None` when one is no digit.
/// An odd number of digits is an ID of no length that there is, so that it is rejected like one.
pub(super) fn hex(bytes: &mut Vec<u8>, start: usize) -> Option<()> {
    let text = bytes.get_mut(start..)?;
    let pairs = text.len() / 2;
    let is_odd = text.len() % 2 == 1;
    if is_odd && !text.last()?.is_ascii_hexdigit() {
        return None;
    }
    for at in 0..pairs {
        text[at] = nibble(text[2 * at])? << 4 | nibble(text[2 * at + 1])?;
    }
    if is_odd {
        text[0] = 0;
    }
    bytes.truncate(start + if is_odd { 1 } else { pairs });
    Some(())
}

#[inline]
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Replaces the base64 from `start` on, of either alphabet, by the bytes it says. Padding may be
/// missing, and the bits after the last byte may be anything, as for the decoders of Go and Java.
pub(super) fn base64(bytes: &mut Vec<u8>, start: usize) -> Option<()> {
    let text = bytes.get_mut(start..)?;
    let text = match text {
        [text @ .., b'=', b'='] if text.len() % 4 == 2 => text,
        [text @ .., b'='] if text.len() % 4 == 3 => text,
        text => text,
    };
    let rest = text.len() % 4;
    if rest == 1 {
        return None;
    }
    let mut written = 0;
    for at in (0..text.len()).step_by(4) {
        let characters = (text.len() - at).min(4);
        let mut bits = 0;
        for place in 0..4 {
            let value = if place < characters {
                sextet(text[at + place])?
            } else {
                0
            };
            bits = bits << 6 | u32::from(value);
        }
        let decoded = bits.to_be_bytes();
        for byte in &decoded[1..characters] {
            text[written] = *byte;
            written += 1;
        }
    }
    bytes.truncate(start + written);
    Some(())
}

#[inline]
fn sextet(character: u8) -> Option<u8> {
    Some(match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    fn decoded(decode: fn(&mut Vec<u8>, usize) -> Option<()>, text: &str) -> Option<Vec<u8>> {
        let mut bytes = [b"before", text.as_bytes()].concat();
        decode(&mut bytes, 6)?;
        assert!(bytes.starts_with(b"before"));
        Some(bytes.split_off(6))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
                prop_assert_eq!(decoded(base64, &engine.encode(&bytes)), Some(bytes.clone()));
            }
            let lower: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(decoded(hex, &lower), Some(bytes.clone()));
            prop_assert_eq!(decoded(hex, &lower.to_uppercase()), Some(bytes));
        }
    }

    #[test]
    fn what_is_no_hex_or_base64_is_refused() {
        for text in ["g", "0g", "0x", "é", "0123 "] {
            assert_eq!(decoded(hex, text), None, "{text}");
        }
        for text in ["A", "AAAAA", "AA=A", "=", "AA===", "A A=", "AAé="] {
            assert_eq!(decoded(base64, text), None, "{text}");
        }
        assert_eq!(decoded(hex, ""), Some(vec![]));
        assert_eq!(decoded(base64, ""), Some(vec![]));
    }

    #[test]
    fn an_odd_number_of_hex_digits_never_has_an_ids_length() {
        for len in (1..67).step_by(2) {
            let bytes = decoded(hex, &"a".repeat(len)).unwrap();
            assert_eq!(bytes.len(), 1);
        }
    }
}
