//! The records of a handoff as bytes: COMMIT at the receiver, MOVED at the sender. What they mean for a
//! trace is `worker/shard/handoff`'s to say.

use crate::log::format::{COMMIT_FIXED_BYTES, Fields, MOVED_FIXED_BYTES};
use crate::model::{FragmentHash, Moment, TraceId};

/// All of a generation was appended by the member that received it. Before this record its fragments are
/// not held, and a start drops them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub trace: TraceId,
    /// The sender's number.
    pub generation: u64,
    /// Of the trace, over all members that held it before; in this member's time.
    pub first_seen: Moment,
    pub last_seen: Moment,
    pub root_seen: Option<Moment>,
    pub fragments: Vec<FragmentHash>,
}

/// Another member has acknowledged a generation: these fragments are held here no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    pub trace: TraceId,
    pub generation: u64,
    /// xxh3 of the member's name.
    pub to: u64,
    pub fragments: Vec<FragmentHash>,
}

impl Commit {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.trace.as_bytes());
        let root_seen = self.root_seen.unwrap_or(Moment::ZERO);
        for word in [
            self.generation,
            self.first_seen.unix_nanos,
            self.last_seen.unix_nanos,
            root_seen.unix_nanos,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        encode_hashes(&self.fragments, out);
    }

    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(payload);
        let trace = TraceId::new(fields.take()?)?;
        let generation = fields.u64()?;
        let mut moment = || {
            let unix_nanos = fields.u64()?;
            Some(Moment { unix_nanos })
        };
        let (first_seen, last_seen, root_seen) = (moment()?, moment()?, moment()?);
        Some(Self {
            trace,
            generation,
            first_seen,
            last_seen,
            root_seen: (root_seen > Moment::ZERO).then_some(root_seen),
            fragments: decode_hashes(fields.u32()?, payload.get(COMMIT_FIXED_BYTES..)?)?,
        })
    }
}

impl Moved {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.trace.as_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.to.to_le_bytes());
        encode_hashes(&self.fragments, out);
    }

    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(payload);
        Some(Self {
            trace: TraceId::new(fields.take()?)?,
            generation: fields.u64()?,
            to: fields.u64()?,
            fragments: decode_hashes(fields.u32()?, payload.get(MOVED_FIXED_BYTES..)?)?,
        })
    }
}

/// Whoever makes such a record bounds a generation far below 2^32 fragments.
fn encode_hashes(hashes: &[FragmentHash], out: &mut Vec<u8>) {
    let count = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
    for hash in hashes {
        out.extend_from_slice(&hash.0.to_le_bytes());
    }
}

fn decode_hashes(count: u32, bytes: &[u8]) -> Option<Vec<FragmentHash>> {
    let (hashes, rest) = bytes.as_chunks::<16>();
    if hashes.len() != count as usize || !rest.is_empty() {
        return None;
    }
    let hash = |bytes: &[u8; 16]| FragmentHash(u128::from_le_bytes(*bytes));
    Some(hashes.iter().map(hash).collect())
}
