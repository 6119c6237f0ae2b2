//! What one member hands to another, as bytes, and its answer.
//!
//! ```text
//! message  := version u8 (1)  decisions u32  traces u32  decision*  trace*  spans (the rest)
//! decision := trace [16]  verdict u8 (1 KEEP, 2 DROP)  id u32  threshold u64  policy u16  rules version u64  age u64
//! trace    := trace [16]  generation u64  flags u8 (bit 0: there is more, bit 1: a root was seen)
//!             age of its first, last and root arrival u64 × 3  fragments u32  (hash u128  age of its arrival u64)*
//! spans    := an ExportTraceServiceRequest: a ResourceSpans for each fragment, in the same order
//! answer   := version u8 (1)  flags u8 (bit 0: not all was taken)  committed u32  verdicts u32  untold u32
//!             generation u64 *  decision *  trace [16] *
//! sync     := version u8 (1)  first u8 (1: of its round)
//! left     := version u8 (1)  left u64
//! ```
//!
//! Integers are little-endian; ages are nanoseconds, because the members' clocks differ. Numbers above mean the
//! same as in the log. A message of another version is refused before anything is taken in: its sender holds on
//! to what it has.

use bytes::Bytes;

use crate::log::StoredFragment;
use crate::model::{Decision, FragmentHash, Moment, Threshold, TraceId, Verdict, VerdictId};
use crate::wire::{request_len, write_request};
use crate::worker::shard::{HandoffAnswer, HandoffTrace};

const VERSION: u8 = 1;
const FLAG_MORE: u8 = 1;
const FLAG_ROOT: u8 = 2;
const FLAG_REFUSED: u8 = 1;
const NO_POLICY: u16 = u16::MAX;
const NO_THRESHOLD: u64 = u64::MAX;
const DECISION_BYTES: usize = 47;
const TRACE_BYTES: usize = 53;
const FRAGMENT_BYTES: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("it is of version {0}, this build knows {VERSION}")]
    Version(u8),
    #[error("it ends in the middle of its {0}")]
    Cut(&'static str),
    #[error("there is no {0} like that")]
    Illegal(&'static str),
    #[error("its spans are not those of its fragments")]
    Spans,
}

/// A message, in the receiver's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    pub decisions: Vec<Decision>,
    pub traces: Vec<HandedTrace>,
    pub spans: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedTrace {
    pub trace: TraceId,
    pub generation: u64,
    pub first_seen: Moment,
    pub last_seen: Moment,
    pub root_seen: Option<Moment>,
    pub has_more: bool,
    pub fragments: Vec<(FragmentHash, Moment)>,
}

/// One generation and its fragments, read back in their order.
pub type ReadTrace<'a> = (&'a HandoffTrace, &'a [StoredFragment]);

/// The bytes that a fragment takes in a message.
pub fn fragment_len(fragment: &StoredFragment) -> usize {
    let scopes = fragment.scopes.iter();
    let lens = scopes.map(|scope| scope.header.len() + scope.spans.len());
    FRAGMENT_BYTES + request_len(fragment.resource_header.len(), lens)
}

pub fn encode(decisions: &[Decision], traces: &[ReadTrace<'_>], now: Moment) -> Vec<u8> {
    let fragments = traces.iter().flat_map(|(_, stored)| *stored);
    let len = fragments.map(fragment_len).sum::<usize>()
        + decisions.len() * DECISION_BYTES
        + traces.len() * TRACE_BYTES
        + 9;
    let mut out = Vec::with_capacity(len);
    out.push(VERSION);
    out.extend_from_slice(&count(decisions.len()));
    out.extend_from_slice(&count(traces.len()));
    for decision in decisions {
        encode_decision(decision, now, &mut out);
    }
    for (trace, stored) in traces {
        out.extend_from_slice(trace.trace.as_bytes());
        out.extend_from_slice(&trace.generation.to_le_bytes());
        let more = if trace.has_more { FLAG_MORE } else { 0 };
        let root = if trace.root_seen.is_some() {
            FLAG_ROOT
        } else {
            0
        };
        out.push(more | root);
        let root_seen = trace.root_seen.unwrap_or(now);
        for moment in [trace.first_seen, trace.last_seen, root_seen] {
            out.extend_from_slice(&age(moment, now));
        }
        out.extend_from_slice(&count(stored.len()));
        for fragment in *stored {
            out.extend_from_slice(&fragment.hash.0.to_le_bytes());
            out.extend_from_slice(&age(fragment.arrival, now));
        }
    }
    for fragment in traces.iter().flat_map(|(_, stored)| *stored) {
        let scopes = fragment.scopes.iter();
        let scopes = scopes.map(|scope| (&scope.header[..], &scope.spans[..]));
        write_request(&fragment.resource_header, scopes, &mut out);
    }
    out
}

pub fn decode(message: &Bytes, now: Moment) -> Result<Handed, MessageError> {
    let mut fields = Fields::of(message)?;
    let decisions = fields.u32("counts")?;
    let traces = fields.u32("counts")?;
    let decisions = fields.list(decisions, DECISION_BYTES, "decisions", |it| {
        it.decision(now)
    })?;
    let traces = fields.list(traces, TRACE_BYTES, "traces", |it| it.trace(now))?;
    Ok(Handed {
        decisions,
        traces,
        spans: message.slice(message.len() - fields.rest.len()..),
    })
}

pub fn encode_answer(answer: &HandoffAnswer, now: Moment) -> Vec<u8> {
    let mut out = vec![VERSION, if answer.has_refused { FLAG_REFUSED } else { 0 }];
    for len in [
        answer.committed.len(),
        answer.verdicts.len(),
        answer.untold.len(),
    ] {
        out.extend_from_slice(&count(len));
    }
    for generation in &answer.committed {
        out.extend_from_slice(&generation.to_le_bytes());
    }
    for decision in &answer.verdicts {
        encode_decision(decision, now, &mut out);
    }
    for trace in &answer.untold {
        out.extend_from_slice(trace.as_bytes());
    }
    out
}

pub fn decode_answer(bytes: &[u8], now: Moment) -> Result<HandoffAnswer, MessageError> {
    let mut fields = Fields::of(bytes)?;
    let [flags] = fields.take("flags")?;
    let committed = fields.u32("counts")?;
    let verdicts = fields.u32("counts")?;
    let untold = fields.u32("counts")?;
    Ok(HandoffAnswer {
        has_refused: flags & FLAG_REFUSED != 0,
        committed: fields.list(committed, 8, "generations", |it| it.u64("generations"))?,
        verdicts: fields.list(verdicts, DECISION_BYTES, "verdicts", |it| it.decision(now))?,
        untold: fields.list(untold, 16, "traces", |it| it.trace_id())?,
    })
}

/// Asks for what belongs to the sender. `is_first`: it may have lost what it was told before.
pub fn encode_sync(is_first: bool) -> Vec<u8> {
    vec![VERSION, is_first.into()]
}

pub fn decode_sync(bytes: &[u8]) -> Result<bool, MessageError> {
    let mut fields = Fields::of(bytes)?;
    let [first] = fields.take("flags")?;
    Ok(first == 1)
}

/// How much is left.
pub fn encode_left(left: u64) -> Vec<u8> {
    [&[VERSION][..], &left.to_le_bytes()].concat()
}

pub fn decode_left(bytes: &[u8]) -> Result<u64, MessageError> {
    Fields::of(bytes)?.u64("count")
}

fn encode_decision(decision: &Decision, now: Moment, out: &mut Vec<u8>) {
    out.extend_from_slice(decision.trace.as_bytes());
    out.push(match decision.verdict {
        Verdict::Keep => 1,
        Verdict::Drop => 2,
    });
    out.extend_from_slice(&decision.id.0.to_le_bytes());
    let threshold = decision.threshold.map_or(NO_THRESHOLD, Threshold::bits);
    out.extend_from_slice(&threshold.to_le_bytes());
    out.extend_from_slice(&decision.policy.unwrap_or(NO_POLICY).to_le_bytes());
    out.extend_from_slice(&decision.rules_version.to_le_bytes());
    out.extend_from_slice(&age(decision.decided_at, now));
}

fn age(moment: Moment, now: Moment) -> [u8; 8] {
    now.unix_nanos
        .saturating_sub(moment.unix_nanos)
        .to_le_bytes()
}

/// Whoever makes a message bounds it far below 4 GiB.
fn count(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

/// Reads off the front.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(message: &'a [u8]) -> Result<Self, MessageError> {
        let mut fields = Self { rest: message };
        match fields.take("version")? {
            [VERSION] => Ok(fields),
            [other] => Err(MessageError::Version(other)),
        }
    }

    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], MessageError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(MessageError::Cut(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, MessageError> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, MessageError> {
        self.take(what).map(u64::from_le_bytes)
    }

    /// Nothing is allocated for more than can be there.
    fn list<T>(
        &mut self,
        count: u32,
        least_bytes: usize,
        what: &'static str,
        mut one: impl FnMut(&mut Self) -> Result<T, MessageError>,
    ) -> Result<Vec<T>, MessageError> {
        let count = count as usize;
        if count > self.rest.len() / least_bytes {
            return Err(MessageError::Cut(what));
        }
        (0..count).map(|_| one(self)).collect()
    }

    fn trace_id(&mut self) -> Result<TraceId, MessageError> {
        TraceId::new(self.take("trace IDs")?).ok_or(MessageError::Illegal("trace ID"))
    }

    fn moment(&mut self, now: Moment) -> Result<Moment, MessageError> {
        let age = std::time::Duration::from_nanos(self.u64("ages")?);
        Ok(now.before(age))
    }

    fn decision(&mut self, now: Moment) -> Result<Decision, MessageError> {
        Ok(Decision {
            trace: self.trace_id()?,
            verdict: match self.take("decisions")? {
                [1] => Verdict::Keep,
                [2] => Verdict::Drop,
                [_] => return Err(MessageError::Illegal("verdict")),
            },
            id: VerdictId(self.u32("decisions")?),
            threshold: match self.u64("decisions")? {
                NO_THRESHOLD => None,
                bits => Some(Threshold::from_bits(bits).ok_or(MessageError::Illegal("threshold"))?),
            },
            policy: Some(u16::from_le_bytes(self.take("decisions")?))
                .filter(|policy| *policy != NO_POLICY),
            rules_version: self.u64("decisions")?,
            decided_at: self.moment(now)?,
        })
    }

    fn trace(&mut self, now: Moment) -> Result<HandedTrace, MessageError> {
        let trace = self.trace_id()?;
        let generation = self.u64("traces")?;
        let [flags] = self.take("traces")?;
        let first_seen = self.moment(now)?;
        let last_seen = self.moment(now)?;
        let root_seen = self.moment(now)?;
        let count = self.u32("traces")?;
        let fragments = self.list(count, FRAGMENT_BYTES, "fragments", |it| {
            let hash = FragmentHash(u128::from_le_bytes(it.take("fragments")?));
            Ok((hash, it.moment(now)?))
        })?;
        Ok(HandedTrace {
            trace,
            generation,
            first_seen,
            last_seen,
            root_seen: (flags & FLAG_ROOT != 0).then_some(root_seen),
            has_more: flags & FLAG_MORE != 0,
            fragments,
        })
    }
}

#[cfg(test)]
mod tests;
