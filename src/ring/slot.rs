//! Where a trace falls: the slot, and the seed that hides it from outsiders.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::model::TraceId;

/// How many shares all traces are divided into.
pub const SLOTS: usize = 65_536;

/// Keeps secrets from being mistaken for other hashed bytes. Arbitrary ("seedring").
const SECRET_SEED: u64 = 0x7365_6564_7269_6e67;

/// Keeps outsiders from aiming traces at one worker. Equal in all processes of a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

/// One of 65,536 shares of all traces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u16);

impl Seed {
    /// For clusters that were given no secret: anyone can compute where a trace falls.
    pub const DEFAULT: Self = Self(0);

    /// From the content of a secret file, best 16 random bytes or more. White space at the end is
    /// no part of the secret: editors and `echo` add a newline, `kubectl create secret` does not.
    pub fn from_secret(secret: &[u8]) -> Self {
        Self(xxh3_64_with_seed(secret.trim_ascii_end(), SECRET_SEED))
    }

    /// What the fingerprint, which everyone may read, says about the seed.
    ///
    /// SipHash keyed with the seed, because XXH3 can be inverted: with it one response header would
    /// give the seed away.
    #[expect(
        deprecated,
        reason = "std keeps SipHasher, which is SipHash-2-4 with given keys, and only discourages it for maps"
    )]
    pub(super) fn id(self) -> u64 {
        use std::hash::{Hasher, SipHasher};

        let mut hasher = SipHasher::new_with_keys(self.0, !self.0);
        hasher.write(b"tailring seed");
        hasher.finish()
    }
}

/// Hides the value: the seed may be a secret, and settings are logged.
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::DEFAULT {
            "Seed(default)"
        } else {
            "Seed(secret)"
        })
    }
}

impl Slot {
    /// All 16 bytes count. Trace IDs are not always random (some put a time first, some fill half
    /// with zeros), and sampling reads the low 7 bytes, from which placement must be independent.
    pub fn of(trace: TraceId, seed: Seed) -> Self {
        Self((xxh3_64_with_seed(trace.as_bytes(), seed.0) >> 48) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newline_at_the_end_of_the_secret_file_changes_nothing() {
        let seed = Seed::from_secret(b"correct horse battery staple");
        assert_eq!(seed, Seed::from_secret(b"correct horse battery staple\r\n"));
        assert_ne!(seed, Seed::from_secret(b"correct horse battery stable"));
        assert_ne!(seed, Seed::from_secret(b" correct horse battery staple"));
    }

    #[test]
    fn a_seed_is_not_printed() {
        let seed = Seed::from_secret(b"hush");
        assert_eq!(format!("{seed:?}"), "Seed(secret)");
        assert_ne!(seed.id(), seed.0);
    }
}
