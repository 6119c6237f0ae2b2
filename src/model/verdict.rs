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

/// The trace's 56 random bits: the low 7 bytes of its trace ID. Placement hashes all 16 bytes
/// with a seed and stays independent of these.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Randomness(u64);

/// A verdict with all that must be remembered of it: late spans obey it, exports carry it, and a
/// handed-over trace takes it along.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    pub trace: TraceId,
    pub verdict: Verdict,
    pub id: VerdictId,
    /// With which the trace was kept; [`None`] if nobody can say how likely that was. Of a drop,
    /// [`None`] says that it is final.
    pub threshold: Option<Threshold>,
    /// The policy that kept it, by its place in the file.
    pub policy: Option<u16>,
    pub rules_version: u64,
    pub decided_at: Moment,
}

impl Decision {
    /// Whether no evidence can change it: a KEEP, and a DROP by a policy that says so or for the size of
    /// the trace.
    pub fn is_final(&self) -> bool {
        self.verdict == Verdict::Keep || self.threshold.is_none()
    }
}

const RANGE: u64 = 1 << 56;
/// Hex digits of a threshold.
const DIGITS: u32 = 14;
/// Of those, digits that a configured share gives, after the leading `0`s or `f`s: what the
/// specification recommends.
const PRECISION: u32 = 4;

impl Threshold {
    /// Every trace passes.
    pub const ALWAYS: Self = Self(0);

    /// The threshold that keeps `share` (0 to 1) of all traces, rounded to four significant hex
    /// digits: verdicts and the `th` on every span agree to the bit, and `th` stays short.
    /// [`Threshold::share`] is what it keeps in truth. `None` keeps nothing at all, which no
    /// 56-bit threshold can say.
    pub fn keeping(share: f64) -> Option<Self> {
        if share <= 0.0 || share.is_nan() {
            return None;
        }
        // Of the kept share, since a float has more digits near 0 than near 1.
        let kept = (share.min(1.0) * RANGE as f64).round() as u64;
        (kept > 0).then(|| Self(RANGE - kept).rounded())
    }

    /// Near 0 and near 1 there are more digits: `ffffef39` for one in a million, `0004` and not
    /// `0` for all but one in 16,384.
    fn rounded(self) -> Self {
        let leading = |bits: u64| (bits << 8).leading_zeros() / 4;
        let digits = PRECISION + leading(self.0).max(leading(!self.0));
        let step = 1 << (4 * DIGITS.saturating_sub(digits));
        // Never up to 2^56: the digit after the leading `f`s is none.
        Self((self.0 + step / 2) / step * step)
    }

    /// The share of all traces that it keeps, above 0 and up to 1. Each kept trace stands for
    /// `1 / share` traces.
    pub fn share(self) -> f64 {
        (RANGE - self.0) as f64 / RANGE as f64
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

    /// `None` for more than 56 bits.
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
        assert_eq!(Threshold::keeping(1e-18), None);
    }

    #[test]
    fn shares_are_rounded_to_four_digits_as_in_the_table_of_the_specification() {
        let rows = [
            (1.0 / 3.0, 0xaa_ab00_0000_0000),
            (2.0 / 3.0, 0x55_5500_0000_0000),
            (1.0 / 10.0, 0xe6_6600_0000_0000),
            (1.0 / 100.0, 0xfd_70a0_0000_0000),
            (1.0 / 1000.0, 0xff_be77_0000_0000),
            (1e-6, 0xff_ffef_3900_0000),
            // Near 1, where the algorithm printed in the specification gives no digit at all.
            (0.95, 0x0c_ccd0_0000_0000),
            (0.9999, 0x00_068d_c000_0000),
            (0.999_999, 0x00_0010_c700_0000),
            (2f64.powi(-56), RANGE - 1),
            (1.0 - 2f64.powi(-53), 8),
        ];
        for (share, bits) in rows {
            let threshold = Threshold::keeping(share).unwrap();
            assert_eq!(threshold.bits(), bits, "{share}: {:014x}", threshold.bits());
            assert!((threshold.share() / share - 1.0).abs() < 1e-4, "{share}");
        }
        for power in 0..=56 {
            let share = 2f64.powi(-power);
            let threshold = Threshold::keeping(share).unwrap();
            assert_eq!(threshold.bits(), RANGE - (RANGE >> power));
            assert_eq!(threshold.share(), share);
        }
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
