//! Who is in the ring: names, incarnations, and the fingerprint of a view.

use std::fmt;
use std::sync::Arc;

/// A worker by its stable name: lower case, no trailing dot, printable ASCII. On Kubernetes the
/// pod's FQDN. Its address may change; the name may not, because the ring is keyed on it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member(Arc<str>);

/// Why a text is not a member name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    #[error(
        "a member name is empty; give the worker's stable DNS name, for example worker-0.workers.obs.svc.cluster.local"
    )]
    Empty,
    #[error("member name of {0} bytes is longer than a DNS name's 253")]
    TooLong(usize),
    #[error(
        "member name {name:?} has {found:?}; only letters, digits, '-', '_', '.', ':', '[' and ']' can stand in one"
    )]
    Character { name: String, found: char },
}

/// One life of a worker process. Grows with every start, so that of two processes with one name
/// the younger is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

/// Names a data dir: random, made with it. A new one under a known name tells that the log is empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub u128);

/// One life of one worker on one data dir. What peers check on every call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub member: Member,
    pub incarnation: Incarnation,
    pub store: StoreId,
}

/// What a worker says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// Gives no verdict yet: its log is being read, or its peers have not told what they hold for it.
    Joining,
    Ready,
    /// Was asked to stop: out of the ring, hands over what it holds.
    Draining,
}

/// Identifies what a process believes about the ring: cluster, seed, ring version and names.
/// Equal fingerprints mean equal placement of every trace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl Member {
    pub const BYTES_MAX: usize = 253;

    /// Normalises as DNS compares: lower case, one trailing dot removed.
    pub fn parse(text: &str) -> Result<Self, MemberError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() {
            return Err(MemberError::Empty);
        }
        if name.len() > Self::BYTES_MAX {
            return Err(MemberError::TooLong(name.len()));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
        if let Some(found) = name.chars().find(|c| !legal(*c)) {
            return Err(MemberError::Character { name, found });
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl MemberState {
    /// As in `/ring` and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Fingerprint {
    /// Reads the 16 hex digits that metadata carries.
    pub fn from_hex(text: &str) -> Option<Self> {
        (text.len() == 16)
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_compare_as_dns_does() {
        assert_eq!(
            Member::parse("Worker-0.Tail.svc.").unwrap(),
            Member::parse("worker-0.tail.svc").unwrap()
        );
    }

    #[test]
    fn a_bad_name_says_what_is_wrong_with_it() {
        assert_eq!(Member::parse("."), Err(MemberError::Empty));
        assert_eq!(
            Member::parse(&"a".repeat(254)),
            Err(MemberError::TooLong(254))
        );
        assert!(matches!(
            Member::parse("a b"),
            Err(MemberError::Character { found: ' ', .. })
        ));
    }
}
