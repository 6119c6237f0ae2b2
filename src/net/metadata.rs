//! The metadata (gRPC) and headers (HTTP) that Tailring's processes exchange beside OTLP.
//!
//! Values are visible ASCII:
//! - `tailring-to`: `name`, or `name;incarnation` with the incarnation in decimal,
//! - `tailring-hop`: decimal,
//! - `tailring-view`: 16 hex digits,
//! - `tailring-surrogate-for`, `tailring-member`: `name`,
//! - `tailring-verdicts-bin`: base64, as gRPC does with names in `-bin`.
//!
//! A value that does not read is an error, never ignored: a router that writes nonsense must not
//! have its traces placed by chance. What the values mean is the tiers' business.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::model::{Fingerprint, Incarnation, Member, VerdictId};

/// The member that a router means to reach; a reused address is found out by it.
pub const TO: &str = "tailring-to";
/// How many workers have passed the message on already.
pub const HOP: &str = "tailring-hop";
/// Fingerprint of the sender's view; in every response, the receiver's.
pub const VIEW: &str = "tailring-view";
/// The owner in whose stead the receiver is asked to hold the traces.
pub const SURROGATE_FOR: &str = "tailring-surrogate-for";
/// On exports: who exports.
pub const MEMBER: &str = "tailring-member";
/// On exports: one u32 (big endian) for each distinct trace of the message, in ascending order of
/// trace ID: the verdict under which it is exported.
pub const VERDICTS: &str = "tailring-verdicts-bin";

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What a request said beside its body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestMetadata {
    pub to: Option<(Member, Option<Incarnation>)>,
    pub hop: u32,
    pub view: Option<Fingerprint>,
    pub surrogate_for: Option<Member>,
    /// What the client said it will wait (`grpc-timeout`).
    pub timeout: Option<Duration>,
    /// On exports: who exports.
    pub member: Option<Member>,
    /// On exports: see [`VERDICTS`].
    pub verdicts: Option<Vec<VerdictId>>,
}

impl RequestMetadata {
    /// Sets the `tailring-` headers; absent values and hop 0 are not written, and `timeout` is left
    /// to the client, which counts it from the moment of sending.
    pub fn write_to(&self, headers: &mut HeaderMap) {
        if let Some((member, incarnation)) = &self.to {
            let text = match incarnation {
                Some(incarnation) => format!("{member};{incarnation}"),
                None => member.to_string(),
            };
            insert(headers, TO, &text);
        }
        if self.hop > 0 {
            headers.insert(HeaderName::from_static(HOP), HeaderValue::from(self.hop));
        }
        if let Some(view) = self.view {
            headers.insert(HeaderName::from_static(VIEW), view_value(view));
        }
        if let Some(member) = &self.surrogate_for {
            insert(headers, SURROGATE_FOR, member.as_str());
        }
        if let Some(member) = &self.member {
            insert(headers, MEMBER, member.as_str());
        }
        if let Some(verdicts) = &self.verdicts {
            headers.insert(HeaderName::from_static(VERDICTS), verdicts_value(verdicts));
        }
    }

    /// The error names the header and what it should have been.
    pub fn read_from(headers: &HeaderMap) -> Result<Self, String> {
        Ok(Self {
            to: read(headers, TO, "name or name;incarnation", parse_to)?,
            hop: read(headers, HOP, "a number of hops", |text| text.parse().ok())?.unwrap_or(0),
            view: read(headers, VIEW, "16 hex digits", Fingerprint::from_hex)?,
            surrogate_for: read(headers, SURROGATE_FOR, "a member name", |text| {
                Member::parse(text).ok()
            })?,
            timeout: read(
                headers,
                GRPC_TIMEOUT,
                "1 to 8 digits and one of H M S m u n",
                parse_timeout,
            )?,
            member: read(headers, MEMBER, "a member name", |text| {
                Member::parse(text).ok()
            })?,
            verdicts: read(
                headers,
                VERDICTS,
                "base64 of four bytes for each trace",
                parse_verdicts,
            )?,
        })
    }
}

/// Value of [`VIEW`].
pub fn view_value(view: Fingerprint) -> HeaderValue {
    #[expect(clippy::expect_used, reason = "16 hex digits are a header value")]
    HeaderValue::from_str(&view.to_string()).expect("hex digits")
}

/// Value of [`VERDICTS`]: one for each distinct trace of the message, in ascending order of trace
/// ID. A receiver's bound on all headers together (16 KiB on our own servers) bounds an export to
/// some 2900 traces that carry verdicts.
pub fn verdicts_value(verdicts: &[VerdictId]) -> HeaderValue {
    let bytes: Vec<u8> = verdicts.iter().flat_map(|v| v.0.to_be_bytes()).collect();
    #[expect(clippy::expect_used, reason = "base64 is visible ASCII")]
    HeaderValue::from_str(&STANDARD_NO_PAD.encode(bytes)).expect("base64 is a header value")
}

fn insert(headers: &mut HeaderMap, name: &'static str, text: &str) {
    #[expect(
        clippy::expect_used,
        reason = "a Member is letters, digits and -_.:[] by construction"
    )]
    let value = HeaderValue::from_str(text).expect("visible ASCII");
    headers.insert(HeaderName::from_static(name), value);
}

fn read<T>(
    headers: &HeaderMap,
    name: &'static str,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, String> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(format!("metadata {name} is given twice; send it once"));
    }
    match value.to_str().ok().and_then(parse) {
        Some(read) => Ok(Some(read)),
        None => Err(format!("metadata {name} is {value:?}; expected {expected}")),
    }
}

fn parse_to(text: &str) -> Option<(Member, Option<Incarnation>)> {
    let (name, incarnation) = match text.split_once(';') {
        Some((name, digits)) => (name, Some(Incarnation(digits.parse().ok()?))),
        None => (text, None),
    };
    Some((Member::parse(name).ok()?, incarnation))
}

/// gRPC lets senders pad and asks receivers to take both.
fn parse_verdicts(text: &str) -> Option<Vec<VerdictId>> {
    let bytes = STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    let (verdicts, odd) = bytes.as_chunks::<4>();
    odd.is_empty().then(|| {
        verdicts
            .iter()
            .map(|bytes| VerdictId(u32::from_be_bytes(*bytes)))
            .collect()
    })
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600), // at most 10^8 hours: far from u64's end
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member() -> impl Strategy<Value = Member> {
        "[a-z0-9_.:-]{1,40}[a-z0-9]".prop_map(|name| Member::parse(&name).unwrap())
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            to in proptest::option::of((member(), proptest::option::of(any::<u64>().prop_map(Incarnation)))),
            hop in any::<u32>(),
            view in proptest::option::of(any::<u64>().prop_map(Fingerprint)),
            surrogate_for in proptest::option::of(member()),
            exporter in proptest::option::of(member()),
            verdicts in proptest::option::of(proptest::collection::vec(any::<u32>().prop_map(VerdictId), 0..600)),
        ) {
            let written = RequestMetadata {
                to, hop, view, surrogate_for, timeout: None, member: exporter, verdicts,
            };
            let mut headers = HeaderMap::new();
            written.write_to(&mut headers);
            prop_assert_eq!(RequestMetadata::read_from(&headers), Ok(written));
        }

        #[test]
        fn any_value_is_read_or_named(name in 0..7_usize, value in proptest::collection::vec(0x20_u8..=0xff, 0..30)) {
            let name = [TO, HOP, VIEW, SURROGATE_FOR, GRPC_TIMEOUT, MEMBER, VERDICTS][name];
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(name, value);
            }
            if let Err(text) = RequestMetadata::read_from(&headers) {
                prop_assert!(text.contains(name), "{}", text);
            }
        }
    }

    fn read_one(name: &'static str, value: &'static str) -> Result<RequestMetadata, String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        RequestMetadata::read_from(&headers)
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let timeout = |value| read_one(GRPC_TIMEOUT, value).map(|m| m.timeout);
        assert_eq!(timeout("2H"), Ok(Some(Duration::from_secs(7200))));
        assert_eq!(timeout("3M"), Ok(Some(Duration::from_secs(180))));
        assert_eq!(timeout("10S"), Ok(Some(Duration::from_secs(10))));
        assert_eq!(
            timeout("9999999m"),
            Ok(Some(Duration::from_millis(9_999_999)))
        );
        assert_eq!(timeout("5u"), Ok(Some(Duration::from_micros(5))));
        assert_eq!(
            timeout("99999999n"),
            Ok(Some(Duration::from_nanos(99_999_999)))
        );
        for wrong in ["", "S", "1", "123456789S", "-1S", "1.5S", "1h", "+1S"] {
            assert!(timeout(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn verdicts_read_with_padding_and_without() {
        let verdicts = Ok(Some(vec![VerdictId(1), VerdictId(u32::MAX)]));
        for text in ["AAAAAf////8", "AAAAAf////8="] {
            assert_eq!(read_one(VERDICTS, text).map(|m| m.verdicts), verdicts);
        }
        assert_eq!(read_one(VERDICTS, "").map(|m| m.verdicts), Ok(Some(vec![])));
    }

    #[test]
    fn nonsense_is_refused_and_never_ignored() {
        for (name, wrong) in [
            (TO, ""),
            (TO, "a b"),
            (TO, "a;"),
            (TO, "a;x"),
            (HOP, "-1"),
            (HOP, "4294967296"),
            (VIEW, "12"),
            (VIEW, "zzzzzzzzzzzzzzzz"),
            (SURROGATE_FOR, "."),
            (MEMBER, "a b"),
            (VERDICTS, "AAA"),
            (VERDICTS, "?"),
        ] {
            let text = read_one(name, wrong).unwrap_err();
            assert!(text.contains(name), "{text}");
        }
        let mut twice = HeaderMap::new();
        twice.append(TO, HeaderValue::from_static("a"));
        twice.append(TO, HeaderValue::from_static("b"));
        assert!(
            RequestMetadata::read_from(&twice)
                .unwrap_err()
                .contains("twice")
        );
    }
}
