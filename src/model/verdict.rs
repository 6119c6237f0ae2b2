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
    pub threshold: Threshold,
    /// The policy that kept it, by its place in the file.
    pub policy: Option<u16>,
    pub rules_version: u64,
    pub decided_at: Moment,
}

const RANGE: u64 = 1 << 56;

impl Threshold {
    /// Every trace passes.
    pub const ALWAYS: Self = Self(0);

    /// The threshold that keeps `share` (0 to 1) of all traces; `None` keeps nothing at all,
    /// which no 56-bit threshold can say.
    pub fn keeping(share: f64) -> Option<Self> {
        if share <= 0.0 || share.is_nan() {
            return None;
        }
        let rejected = ((1.0 - share.min(1.0)) * RANGE as f64).round() as u64;
        (rejected < RANGE).then_some(Self(rejected))
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
