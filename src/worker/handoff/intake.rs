//! From a received message to what each shard gets of it.

use super::message::{Handed, MessageError};

use crate::net::admission::Permit;
use crate::wire::ScanLimits;
use crate::worker::ingest::{Incoming, shard_of};
use crate::worker::shard::{Received, ReceivedTrace};

/// Spans were counted when their client sent them; a message is bounded in bytes.
const SPANS_MAX: u32 = 1 << 28;

/// The fragments of a message, and for each of `shards` its part.
pub(crate) fn divide(
    handed: Handed,
    permit: Permit,
    shards: usize,
) -> Result<(Incoming, Vec<Received>), MessageError> {
    let limits = ScanLimits {
        spans_max: SPANS_MAX,
        ..ScanLimits::default()
    };
    let parsed = Incoming::parse(handed.spans, &limits, permit);
    let incoming = parsed.map_err(|_| MessageError::Spans)?;
    let mut parts: Vec<Received> = (0..shards).map(|_| Received::default()).collect();
    for decision in handed.decisions {
        parts[shard_of(decision.trace, shards)]
            .decisions
            .push(decision);
    }
    let fragments = incoming.fragments.all();
    let mut next = 0;
    for trace in handed.traces {
        let mut found = Vec::with_capacity(trace.fragments.len());
        for (hash, arrival) in trace.fragments {
            let fragment = fragments.get(next).ok_or(MessageError::Spans)?;
            if (fragment.trace, fragment.hash) != (trace.trace, hash) {
                return Err(MessageError::Spans);
            }
            // A message is far shorter than 2^32 fragments.
            found.push((next as u32, arrival));
            next += 1;
        }
        parts[shard_of(trace.trace, shards)]
            .traces
            .push(ReceivedTrace {
                trace: trace.trace,
                generation: trace.generation,
                first_seen: trace.first_seen,
                last_seen: trace.last_seen,
                root_seen: trace.root_seen,
                has_more: trace.has_more,
                fragments: found,
            });
    }
    if next < fragments.len() {
        return Err(MessageError::Spans);
    }
    Ok((incoming, parts))
}

impl Received {
    pub(crate) fn is_empty(&self) -> bool {
        self.decisions.is_empty() && self.traces.is_empty()
    }
}
