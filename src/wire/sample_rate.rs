//! `SampleRate`: how many spans one stands for, as a whole number in an attribute, for backends that
//! count by it (Honeycomb, ClickStack) and cannot read `th`.
//!
//! A count of 3.2 is written as 3 for four traces in five and as 4 for the fifth, so that sums are
//! right on average. Which one it is goes by a hash of the trace ID: all spans of a trace agree, so do
//! retries and late spans, and a trace's luck here has nothing to do with the randomness by which it
//! was kept.
//!
//! A rate that a span came with is what an earlier sampler wrote, read as Refinery reads it: of
//! `SampleRate` or `sampleRate` the first one, a number or digits; what is none, or below 1, says 1.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::model::{Threshold, TraceId};
use crate::wire::any_value::{AnyValue, attribute_value, key_in, key_values};
use crate::wire::field::prefix;
use crate::wire::record::SPAN_ATTRIBUTES;

const KEY: &[u8] = b"SampleRate";
const KEYS: [&[u8]; 2] = [KEY, b"sampleRate"];
/// The longest field: its tag and length, the key, and a value of at most 9 bytes.
pub(super) const FIELD_MAX: usize = 2 + 2 + KEY.len() + 2 + 1 + 9;
/// Frozen: a change of it would let spans of one trace disagree across releases.
const SEED: u64 = 0x5361_6d70_6c65_5261;

/// Up or down, for all spans of one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rounding(u64);

impl Rounding {
    pub(super) fn of(trace: TraceId) -> Self {
        Self(xxh3_64_with_seed(trace.as_bytes(), SEED))
    }

    /// `stated` spans for each that was kept with this threshold.
    pub(super) fn rate(self, stated: u64, threshold: Threshold) -> u64 {
        const RANGE: u128 = 1 << 56;
        let kept = RANGE - u128::from(threshold.bits());
        // Below 2^119: a stated rate has 63 bits.
        let spans = u128::from(stated) * RANGE;
        let (whole, part) = (spans / kept, spans % kept);
        let up = u128::from(self.0) * kept < part << 64;
        u64::try_from(whole + u128::from(up))
            .unwrap_or(u64::MAX)
            .min(i64::MAX as u64)
    }
}

pub(super) fn is_rate(key_value: &[u8]) -> bool {
    KEYS.contains(&key_in(key_value))
}

/// The rate that a span came with; 1 without one.
pub(super) fn stated(span: &[u8]) -> u64 {
    let stated = key_values(span, SPAN_ATTRIBUTES).find(|(key, _)| KEYS.contains(key));
    let number = stated.and_then(|(_, key_value)| match attribute_value(key_value) {
        AnyValue::Int(number) => Some(number),
        // Cuts at the ends of its range, as the number of a double must.
        AnyValue::Double(number) => Some(number as i64),
        AnyValue::Str(digits) => std::str::from_utf8(&digits).ok()?.parse().ok(),
        _ => None,
    });
    number.unwrap_or(1).max(1) as u64
}

/// The attribute as a field of a span.
pub(super) fn put_rate(rate: u64, put: &mut impl FnMut(&[u8])) {
    // A tag and a varint, which is what a length is, too.
    let (value, len) = prefix(0x18, usize::try_from(rate).unwrap_or(usize::MAX));
    let key_value_len = 2 + KEY.len() + 2 + len;
    put(&[
        SPAN_ATTRIBUTES as u8,
        key_value_len as u8,
        0x0A,
        KEY.len() as u8,
    ]);
    put(KEY);
    put(&[0x12, len as u8]);
    put(&value[..len]);
}
