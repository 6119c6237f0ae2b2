//! Verdicts and the probability that goes with them.
//!
//! Thresholds are those of the OpenTelemetry specification "Probability sampling with
//! TraceState": 56 bits, T = 2^56 × (1 − probability); a trace is kept if its randomness R ≥ T.

use crate::model::{Moment, TraceId};

/// What was decided about a whole trace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    Keep,
    Drop,
}

/// Tells two verdicts on one trace apart (a trace judged twice was split). Random enough that
/// two verdicts on the same trace differ; not an index into anything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerdictId(pub u32);

/// The rejection threshold T of a kept trace: 0 means it was certain to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Threshold(u64);

/// The trace's 56 random bits: what a span of it states (`rv`), else the low 7 bytes of its trace
/// ID. Placement hashes all 16 bytes with a seed and stays independent of these.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Randomness(u64);

/// A verdict with all that must be remembered of it: late spans obey it, exports carry it, and a
/// handed-over trace takes it along.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    pub trace: TraceId,
    pub verdict: Verdict,
    pub id: VerdictId,
    pub threshold: Threshold,
    /// The policy that kept it, by its place in the file.
    pub policy: Option<u16>,
    pub rules_version: u64,
    pub decided_at: Moment,
}

const RANGE: u64 = 1 << 56;
/// What the Collector and the specification recommend.
const DIGITS: u32 = 4;

/// How many hex digits of a threshold are all `0` or all `f` because `share`, above 0 and below 1,
/// is so small.
fn leading_digits(share: f64) -> u32 {
    // The exponent of frexp: share = 0.5 to 1 times 2 to it.
    let exponent = (share.to_bits() >> 52) as i32 - 1022;
    exponent.min(0).unsigned_abs() / 4
}

impl Threshold {
    /// Every trace passes.
    pub const ALWAYS: Self = Self(0);

    /// The threshold that keeps `share` (0 to 1) of all traces; `None` keeps nothing at all,
    /// which no 56-bit threshold can say.
    ///
    /// Rounded to [`DIGITS`] hex digits, more where the share is near 0 or 1: what decides is then
    /// bit for bit what is written as `th`. 1 % becomes 1.0000229 %, and spans count 99.998.
    pub fn keeping(share: f64) -> Option<Self> {
        // A NaN is in no range.
        if !(1.0 / RANGE as f64..).contains(&share) {
            return None;
        }
        let rejected = RANGE - (share.min(1.0) * RANGE as f64).round() as u64;
        if rejected == 0 {
            return Some(Self::ALWAYS);
        }
        let digits = DIGITS + leading_digits(share).max(leading_digits(1.0 - share));
        let shift = 4 * (14 - digits.min(14));
        let half = (1_u64 << shift) / 2;
        Some(Self(((rejected + half) >> shift << shift).min(RANGE - 1)))
    }

    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits < RANGE).then_some(Self(bits))
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    pub fn admits(self, randomness: Randomness) -> bool {
        randomness.0 >= self.0
    }
}

impl Randomness {
    pub fn of(trace: TraceId) -> Self {
        let bytes = trace.as_bytes();
        let mut low = [0; 8];
        low[1..].copy_from_slice(&bytes[9..]);
        Self(u64::from_be_bytes(low))
    }

    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits < RANGE).then_some(Self(bits))
    }

    pub fn bits(self) -> u64 {
        self.0
    }
}

impl Verdict {
    pub fn label(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Drop => "drop",
        }
    }
}

impl std::fmt::Debug for VerdictId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl std::fmt::Display for VerdictId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_follow_the_specification() {
        assert_eq!(Threshold::keeping(1.0), Some(Threshold::ALWAYS));
        assert_eq!(Threshold::keeping(0.5).unwrap().bits(), RANGE / 2);
        assert_eq!(Threshold::keeping(0.25).unwrap().bits(), RANGE / 4 * 3);
        assert_eq!(Threshold::keeping(0.0), None);
        assert_eq!(Threshold::keeping(f64::NAN), None);
        assert_eq!(Threshold::keeping(-0.5), None);
        assert_eq!(Threshold::keeping(1e-17), None);
        assert_eq!(
            Threshold::keeping(1.0 - 1e-16).map(Threshold::bits),
            Some(8)
        );
    }

    #[test]
    fn thresholds_have_four_digits_and_more_near_the_ends() {
        for (share, text) in [
            (1.0 / 3.0, "aaab"),
            (0.1, "e666"),
            (0.01, "fd70a"),
            (0.001, "ffbe77"),
            (1e-6, "ffffef39"),
            (0.5, "8"),
            (0.125, "e"),
            (0.05, "f3333"),
            (0.0625, "f"),
            // The specification's own algorithm gives no digits at all here.
            (0.999_999, "000010c7"),
        ] {
            let bits = Threshold::keeping(share).unwrap().bits();
            let digits = format!("{bits:014x}");
            assert_eq!(digits.trim_end_matches('0'), text, "{share}");
        }
        let all_bits = 1.0 / RANGE as f64;
        assert_eq!(Threshold::keeping(all_bits).unwrap().bits(), RANGE - 1);
    }

    #[test]
    fn randomness_is_the_low_seven_bytes() {
        let mut id = [0xff; 16];
        id[9..].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0]);
        let trace = TraceId::new(id).unwrap();
        assert_eq!(Randomness::of(trace).bits(), RANGE / 2);
        assert!(
            Threshold::keeping(0.5)
                .unwrap()
                .admits(Randomness::of(trace))
        );
        assert!(
            !Threshold::keeping(0.49)
                .unwrap()
                .admits(Randomness::of(trace))
        );
    }
}
