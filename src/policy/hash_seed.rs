//! The Collector's own way to keep a share of traces: FNV-1a over a salt and the trace ID, bit for
//! bit, so that a Collector with the same salt keeps the same traces.
//!
//! The hash has nothing to do with the randomness that other samplers go by. Therefore nobody can
//! say how likely a trace was to be kept by both, and what is kept by it gets no threshold.

use crate::model::TraceId;

/// What the Collector takes for an empty salt.
const DEFAULT_SALT: &str = "default-hash-seed";

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// See the module. Kept are hashes up to the bound, so that even a share of nothing keeps one of
/// 2^64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashSeed {
    salt: String,
    bound: u64,
    /// FNV-1a over the salt alone.
    salted: u64,
}

impl HashSeed {
    /// `percentage` is a number; those below 0 and above 100 are like 0 and 100.
    pub fn new(salt: &str, percentage: f64) -> Self {
        let salt = if salt.is_empty() { DEFAULT_SALT } else { salt };
        Self {
            salted: fnv(OFFSET, salt.as_bytes()),
            salt: salt.to_owned(),
            bound: bound_of(percentage / 100.0),
        }
    }

    pub fn admits(&self, trace: TraceId) -> bool {
        self.hash(trace) <= self.bound
    }

    pub(super) fn salt(&self) -> &str {
        &self.salt
    }

    pub(super) fn bound(&self) -> u64 {
        self.bound
    }

    fn hash(&self, trace: TraceId) -> u64 {
        fnv(self.salted, trace.as_bytes())
    }
}

fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

/// `ratio` × (2^64 - 1) as Go's big floats of 64 bits have it: the exact product, rounded to 64
/// significant bits with ties to even, and then cut to a whole number.
fn bound_of(ratio: f64) -> u64 {
    if ratio.is_nan() || ratio <= 0.0 {
        return 0;
    }
    if ratio >= 1.0 {
        return u64::MAX;
    }
    let bits = ratio.to_bits();
    let (fraction, exponent) = (bits & ((1 << 52) - 1), bits >> 52);
    // ratio = significand × 2^exponent
    let (significand, exponent) = match exponent {
        0 => (fraction, -1074),
        exponent => (fraction | 1 << 52, exponent as i32 - 1075),
    };
    let product = u128::from(significand) * u128::from(u64::MAX);
    let beyond = 64_u32.saturating_sub(product.leading_zeros());
    let mut rounded = product >> beyond;
    if beyond > 0 {
        let half = 1_u128 << (beyond - 1);
        let rest = product & ((1 << beyond) - 1);
        if rest > half || rest == half && rounded & 1 == 1 {
            rounded += 1;
        }
    }
    let exponent = exponent + beyond as i32;
    let whole = if exponent >= 0 {
        rounded.checked_shl(exponent as u32).unwrap_or(u128::MAX)
    } else {
        rounded.checked_shr(exponent.unsigned_abs()).unwrap_or(0)
    };
    u64::try_from(whole).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(hex: u128) -> TraceId {
        TraceId::new(hex.to_be_bytes()).unwrap()
    }

    #[test]
    fn bounds_are_those_of_go() {
        for (percentage, bound) in [
            (0.1, 0x0041_8937_4bc6_a7ef),
            (1.0, 0x028f_5c28_f5c2_8f5f),
            (10.0, 0x1999_9999_9999_99ff),
            (25.0, 0x3fff_ffff_ffff_ffff),
            (33.0, 0x547a_e147_ae14_7bff),
            (33.3, 0x553f_7ced_9168_6fff),
            (50.0, 0x7fff_ffff_ffff_ffff),
            (99.9, 0xffbe_76c8_b439_5fff),
            (100.0, u64::MAX),
            (250.0, u64::MAX),
            (0.0, 0),
            (-1.0, 0),
            (f64::NAN, 0),
            (f64::MIN_POSITIVE, 0),
            (5e-324, 0),
        ] {
            let bound_is = HashSeed::new("", percentage).bound;
            assert_eq!(bound_is, bound, "{percentage} %: {bound_is:016x}");
        }
    }

    #[test]
    fn hashes_and_verdicts_are_those_of_the_collector() {
        let shares = [1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 99.0];
        for (id, hash, kept) in [
            (
                0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
                0xdbcf_64d5_420f_4cad,
                0b000_0011,
            ),
            (
                0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
                0xa545_33ba_2e49_70b5,
                0b000_0111,
            ),
            (u128::MAX, 0x17be_c373_9634_fe2d, 0b011_1111),
            (0x5296_9a89_5557_1a3f, 0x7728_3e41_55b1_a1f3, 0b000_1111),
            (
                0x1ecf_6cc9_132c_89d3_482a_3a6e_6c70_f0a3,
                0x4d19_0764_e128_3339,
                0b000_1111,
            ),
        ] {
            assert_eq!(HashSeed::new("", 1.0).hash(trace(id)), hash, "{id:032x}");
            for (place, share) in shares.into_iter().enumerate() {
                let expected = kept >> (shares.len() - 1 - place) & 1 == 1;
                let seed = HashSeed::new(DEFAULT_SALT, share);
                assert_eq!(seed.admits(trace(id)), expected, "{id:032x} at {share} %");
            }
        }
        // The trace ID of zeroes, which no trace has.
        assert_eq!(
            fnv(HashSeed::new("", 1.0).salted, &[0; 16]),
            0xe195_36ee_d1bb_ac3d
        );
        let salted = HashSeed::new("test-salt", 1.0);
        assert_eq!(fnv(salted.salted, &[0; 16]), 0x8149_711e_6987_5cc0);
        let id = trace(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        assert_eq!(salted.hash(id), 0x08ee_52de_da92_3930);
    }
}
