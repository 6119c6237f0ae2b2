//! The text of a trace state: what its `ot` member says of sampling, and the same text with
//! another `th`.
//!
//! ```text
//! tracestate = member *( "," member )          W3C; blanks around members are allowed
//! member     = key "=" value                   ours is `ot`, of which there may be one
//! value      = sub *( ";" sub )                at most 256 characters
//! sub        = [a-z][a-z0-9]* ":" [A-Za-z0-9._-]*
//! ```
//!
//! Source: "TraceState handling" and "Probability sampling with TraceState" of the OpenTelemetry
//! specification, W3C Trace Context 2 for the list. Members of others are passed on as bytes and
//! not judged. What a `th` has to be, and of which span this is, is known to `weight`.

use crate::model::{Randomness, Threshold};

/// Characters of the whole value of `ot`.
pub(super) const VALUE_MAX: usize = 256;
/// Members of the list.
pub(super) const MEMBERS_MAX: usize = 32;
/// W3C asks everybody to pass on at least so many characters of a list; beyond, a member may be
/// thrown away on the way, and not necessarily ours.
pub(super) const LIST_MAX: usize = 512;

/// What a trace state says of sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sampling {
    pub(super) threshold: Incoming,
    /// There is at least one sub-key `th`, legal or not.
    pub(super) has_th: bool,
    /// `rv`, if it is legal. Another one is no randomness and is passed on.
    pub(super) randomness: Option<Randomness>,
    members: usize,
    has_ours: bool,
    /// Characters of our value beside `th`, with a separator for it if it needs one.
    beside_th: usize,
}

/// The threshold in a trace state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Incoming {
    Absent,
    Known(Threshold),
    /// Not 1 to 14 lower-case hex digits, or in an `ot` that is no list of unique sub-keys: nobody
    /// can say what it means.
    Malformed,
}

/// `th:X`, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThText {
    text: [u8; TH_MAX],
    len: u8,
}

const TH_MAX: usize = 3 + DIGITS;
const DIGITS: usize = 14;
const BLANKS: [u8; 2] = *b" \t";

impl ThText {
    /// Trailing zeros are left out, leading ones never: `08` rejects one trace in 32, `8` every
    /// second one.
    pub(super) fn of(threshold: Threshold) -> Self {
        let mut text = *b"th:00000000000000";
        let mut len = 4;
        for (index, digit) in text[3..].iter_mut().enumerate() {
            let nibble = threshold.bits() >> (4 * (DIGITS - 1 - index)) & 0xf;
            if nibble != 0 {
                *digit = b"0123456789abcdef"[nibble as usize];
                len = 4 + index as u8;
            }
        }
        Self { text, len }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.len)]
    }
}

/// The digits of `th`, as a span has them: `fd70a`, and `0` for what is always kept.
pub fn th_digits(threshold: Threshold) -> String {
    String::from_utf8_lossy(&ThText::of(threshold).as_bytes()[3..]).into_owned()
}

impl Sampling {
    pub(super) fn read(text: &[u8]) -> Self {
        let mut sampling = Self {
            threshold: Incoming::Absent,
            has_th: false,
            randomness: None,
            members: 0,
            has_ours: false,
            beside_th: 0,
        };
        for member in members(text) {
            sampling.members += 1;
            if let Some(value) = value_of_ours(member) {
                sampling.read_value(value);
            }
        }
        sampling
    }

    fn read_value(&mut self, value: &[u8]) {
        let mut is_lawful = !self.has_ours && value.len() <= VALUE_MAX;
        let mut has_rv = false;
        self.has_ours = true;
        for sub in value.split(|byte| *byte == b';') {
            let (key, value) = match sub.iter().position(|byte| *byte == b':') {
                Some(colon) => (&sub[..colon], &sub[colon + 1..]),
                None => (sub, &[][..]),
            };
            is_lawful &= key.len() < sub.len() && is_key(key) && value.iter().all(is_value);
            match key {
                b"th" => {
                    is_lawful &= !self.has_th;
                    self.has_th = true;
                    match threshold(value) {
                        Some(threshold) => self.threshold = Incoming::Known(threshold),
                        None => is_lawful = false,
                    }
                    continue;
                }
                b"rv" => {
                    is_lawful &= !has_rv;
                    has_rv = true;
                    self.randomness = randomness(value);
                }
                _ => {}
            }
            self.beside_th += sub.len() + 1;
        }
        if !is_lawful {
            self.threshold = Incoming::Malformed;
        }
    }

    /// Whether the text stays within all bounds when `th` is put in. `len` is its length now,
    /// `new_len` the length of what [`rewrite`] makes of it. Text that is beyond a bound already
    /// may not grow.
    pub(super) fn has_room(&self, len: usize, new_len: usize, th: &ThText) -> bool {
        let members = self.members + usize::from(!self.has_ours);
        self.beside_th + th.as_bytes().len() <= VALUE_MAX
            && (self.has_ours || members <= MEMBERS_MAX)
            && new_len <= LIST_MAX.max(len)
    }
}

/// The same list with `th` in our member, or without one; bit by bit to `put`. Our member, which
/// is changed by this, goes to the front, as W3C demands; if it has nothing left to say it is gone.
/// All else is as it was: other sub-keys before `th`, other members behind ours. With more than one
/// member of ours there can be no `th` to put in.
pub(super) fn rewrite(text: &[u8], th: Option<&ThText>, mut put: impl FnMut(&[u8])) {
    let mut is_first = true;
    for value in members(text).filter_map(value_of_ours) {
        let mut separator: &[u8] = if is_first { b"ot=" } else { b",ot=" };
        let others = |sub: &&[u8]| !sub.is_empty() && !is_th(sub);
        for sub in value.split(|byte| *byte == b';').filter(others) {
            put(separator);
            put(sub);
            separator = b";";
            is_first = false;
        }
    }
    if let Some(th) = th {
        put(if is_first { b"ot=" } else { b";" });
        put(th.as_bytes());
        is_first = false;
    }
    for member in members(text).filter(|member| value_of_ours(member).is_none()) {
        if !is_first {
            put(b",");
        }
        put(member);
        is_first = false;
    }
}

/// The members with the blanks around them. W3C allows empty ones, which say nothing and are left
/// out.
fn members(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b',')
        .filter(|member| !member.iter().all(|byte| BLANKS.contains(byte)))
}

/// The value, if the member is ours. `tenant@ot` is not.
fn value_of_ours(member: &[u8]) -> Option<&[u8]> {
    let blank = |byte: &&u8| BLANKS.contains(byte);
    let start = member.iter().take_while(blank).count();
    let end = member.len() - member.iter().rev().take_while(blank).count();
    member.get(start..end)?.strip_prefix(b"ot=")
}

fn is_th(sub: &[u8]) -> bool {
    sub.starts_with(b"th:") || sub == b"th"
}

fn is_key(key: &[u8]) -> bool {
    let [b'a'..=b'z', rest @ ..] = key else {
        return false;
    };
    rest.iter()
        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'))
}

fn is_value(byte: &u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-')
}

/// 1 to 14 digits, the missing ones being zeros at the end.
fn threshold(digits: &[u8]) -> Option<Threshold> {
    if digits.is_empty() || digits.len() > DIGITS {
        return None;
    }
    Threshold::from_bits(number(digits)? << (4 * (DIGITS - digits.len())))
}

/// Exactly 14 digits.
fn randomness(digits: &[u8]) -> Option<Randomness> {
    if digits.len() != DIGITS {
        return None;
    }
    Randomness::from_bits(number(digits)?)
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(nibble))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(bits: u64) -> Threshold {
        Threshold::from_bits(bits).unwrap()
    }

    #[test]
    fn a_threshold_reads_as_it_was_written() {
        let rows = [
            (0, "th:0"),
            (1, "th:00000000000001"),
            (0x08_0000_0000_0000, "th:08"),
            (0x80_0000_0000_0000, "th:8"),
            (0xc0_0000_0000_0000, "th:c"),
            (0xaa_ab00_0000_0000, "th:aaab"),
            (0xe6_6600_0000_0000, "th:e666"),
            (0xfd_70a0_0000_0000, "th:fd70a"),
            (0xff_ffff_ffff_ffff, "th:ffffffffffffff"),
            (0x10_0000_0000_0010, "th:1000000000001"),
        ];
        for (number, text) in rows {
            let th = ThText::of(bits(number));
            assert_eq!(std::str::from_utf8(th.as_bytes()), Ok(text));
            let read = Sampling::read(format!("ot={text}").as_bytes());
            assert_eq!(read.threshold, Incoming::Known(bits(number)), "{text}");
        }
    }

    #[test]
    fn shares_are_written_as_in_the_table_of_the_specification() {
        let rows = [
            (1.0, "th:0"),
            (1.0 / 2.0, "th:8"),
            (1.0 / 3.0, "th:aaab"),
            (1.0 / 4.0, "th:c"),
            (1.0 / 8.0, "th:e"),
            (1.0 / 10.0, "th:e666"),
            (1.0 / 16.0, "th:f"),
            (1.0 / 100.0, "th:fd70a"),
            (1.0 / 1000.0, "th:ffbe77"),
            (1e-6, "th:ffffef39"),
        ];
        for (share, text) in rows {
            let th = ThText::of(Threshold::keeping(share).unwrap());
            assert_eq!(std::str::from_utf8(th.as_bytes()), Ok(text));
        }
    }

    #[test]
    fn what_no_one_can_read_is_malformed() {
        let rows = [
            ("", Incoming::Absent),
            ("a=th:8", Incoming::Absent),
            ("tenant@ot=th:8", Incoming::Absent),
            ("ot=rv:c", Incoming::Absent),
            ("ot=th:8", Incoming::Known(bits(0x80_0000_0000_0000))),
            (
                " \tot=x:;th:8\t , b=1",
                Incoming::Known(bits(0x80_0000_0000_0000)),
            ),
            ("ot=", Incoming::Malformed),
            ("ot=th", Incoming::Malformed),
            ("ot=th:", Incoming::Malformed),
            ("ot=th:C", Incoming::Malformed),
            ("ot=th:0x8", Incoming::Malformed),
            ("ot=th:000000000000000", Incoming::Malformed),
            ("ot=th:8;th:8", Incoming::Malformed),
            ("ot=th:8,ot=rv:c", Incoming::Malformed),
            ("ot=rv:8;rv:8;th:8", Incoming::Malformed),
            ("ot=th:8;", Incoming::Malformed),
            ("ot=TH:8", Incoming::Malformed),
            ("ot=th:8;x", Incoming::Malformed),
            ("ot=th:8;x:é", Incoming::Malformed),
        ];
        for (text, incoming) in rows {
            assert_eq!(
                Sampling::read(text.as_bytes()).threshold,
                incoming,
                "{text}"
            );
        }
        let long = format!("ot=th:8;x:{}", "1".repeat(VALUE_MAX - 7));
        assert_ne!(
            Sampling::read(long.as_bytes()).threshold,
            Incoming::Malformed
        );
        let long = format!("{long}1");
        assert_eq!(
            Sampling::read(long.as_bytes()).threshold,
            Incoming::Malformed
        );
    }

    #[test]
    fn randomness_has_exactly_fourteen_lower_case_digits() {
        let of = |text: &str| Sampling::read(text.as_bytes()).randomness;
        let expect = Randomness::from_bits(0x01_2345_6789_abcd);
        assert_eq!(of("ot=rv:0123456789abcd"), expect);
        for none in [
            "ot=rv:0123456789abc",
            "ot=rv:0123456789abcde",
            "ot=rv:0123456789ABCD",
            "a=rv:0123456789abcd",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    fn rewritten(text: &str, th: Option<u64>) -> String {
        let th = th.map(|th| ThText::of(bits(th)));
        let mut out = Vec::new();
        rewrite(text.as_bytes(), th.as_ref(), |piece| {
            out.extend_from_slice(piece)
        });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_changed_member_goes_first_and_all_others_stay_as_they_are() {
        const C: u64 = 0xc0_0000_0000_0000;
        let rows = [
            ("", "ot=th:c", ""),
            (" ,", "ot=th:c", ""),
            ("ot=", "ot=th:c", ""),
            ("ot=th:8", "ot=th:c", ""),
            ("a=1", "ot=th:c,a=1", "a=1"),
            (
                "a=1, ot=th:8 ,,b=x:y;z",
                "ot=th:c,a=1,b=x:y;z",
                "a=1,b=x:y;z",
            ),
            (
                "a= é ,ot=x:1;th:8;rv:2",
                "ot=x:1;rv:2;th:c,a= é ",
                "ot=x:1;rv:2,a= é ",
            ),
            (
                "tenant@ot=th:8,b=1",
                "ot=th:c,tenant@ot=th:8,b=1",
                "tenant@ot=th:8,b=1",
            ),
        ];
        for (text, with, without) in rows {
            assert_eq!(rewritten(text, Some(C)), with, "{text}");
            assert_eq!(rewritten(text, None), without, "{text}");
        }
        // Malformed: only ever erased.
        let rows = [
            ("ot=th:8,b=1,ot=th:9;x:1", "ot=x:1,b=1"),
            ("ot=y:;th:8,ot=x:1;th:9", "ot=y:,ot=x:1"),
            ("ot=;th:8", ""),
            ("ot=th;x", "ot=x"),
        ];
        for (text, without) in rows {
            assert_eq!(rewritten(text, None), without, "{text}");
        }
    }

    #[test]
    fn bounds_hold_for_what_grows() {
        let th = ThText::of(bits(0xaa_ab00_0000_0000));
        let has_room = |text: &str| {
            let mut len = 0;
            rewrite(text.as_bytes(), Some(&th), |piece| len += piece.len());
            Sampling::read(text.as_bytes()).has_room(text.len(), len, &th)
        };
        let of_ours = |len: usize| format!("ot=x:{}", "1".repeat(len - 2));
        assert!(has_room(&of_ours(VALUE_MAX - 8)));
        assert!(!has_room(&of_ours(VALUE_MAX - 7)));
        assert!(has_room(&format!("{};th:8888", of_ours(VALUE_MAX - 8))));
        assert!(!has_room(&format!("{};th:8888", of_ours(VALUE_MAX - 7))));

        let members = |count: usize| vec!["a=1"; count].join(",");
        assert!(has_room(&members(MEMBERS_MAX - 1)));
        assert!(!has_room(&members(MEMBERS_MAX)));
        assert!(has_room(&format!("{},,ot=th:8", members(MEMBERS_MAX - 1))));
        assert!(has_room(&format!("ot=x:1,{}", members(MEMBERS_MAX + 9))));

        let of_others = |len: usize| format!("a={}", "1".repeat(len - 2));
        assert!(has_room(&of_others(LIST_MAX - 11)));
        assert!(!has_room(&of_others(LIST_MAX - 10)));
        assert!(has_room(&format!("ot=th:8888,{}", of_others(LIST_MAX))));
        assert!(!has_room(&format!("ot=th:888,{}", of_others(LIST_MAX))));
    }
}
