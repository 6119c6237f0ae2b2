//! Takes kept traces from a shard, reads them back, and sees them to the backend.
//!
//! The exporter pulls: a shard never pushes and never waits. Traces are grouped into messages by
//! bytes and within a message by resource; a trace larger than a message goes out in several. Only
//! of what the backend has, or a dead letter, does the shard hear, and only then may the log forget
//! it. What becomes of a message that is refused for good is `isolation`'s.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::task::JoinHandle;

use crate::log::{Buffers, Disk, ReadError, StoredFragment, Volume};
use crate::model::{Extent, FragmentHash, Member, SteadyClock};
use crate::net::metadata;
use crate::wire::{Attribute, scope_with};
use crate::worker::dead_letters::DeadLetters;
use crate::worker::export::{Batch, Delivery, Destination, Refusal};
use crate::worker::export_memory::{ExportMemory, bytes_of};
use crate::worker::isolation::{Isolation, Trust};
use crate::worker::labels::Labels;
use crate::worker::message::{Message, Origin, Seen, Source};
use crate::worker::metrics::WorkerMetrics;
use crate::worker::shard::ExportWork;
use crate::worker::shard_thread::ShardHandle;

/// Traces in one piece of work. Their verdict IDs travel in one header: 4 kB, 5.5 kB as base64,
/// below the 8 kB that proxies take.
const TRACES_MAX: usize = 1_000;
/// Fragments that are remembered to be sent in part: 100 kB.
const BEGUN_MAX: usize = 4_096;
/// Read back at a time.
pub(crate) const READ_BYTES: u64 = 2 << 20;

/// Exporters a shard. One reads while another waits for the backend.
pub(crate) const EXPORTERS_PER_SHARD: usize = 2;

pub(crate) struct Exporter<D: Disk> {
    pub(crate) member: Member,
    pub(crate) shard: ShardHandle,
    pub(crate) volume: Arc<Volume<D>>,
    pub(crate) destination: Arc<Destination>,
    pub(crate) dead_letters: Arc<DeadLetters<D>>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) begun: Arc<Begun>,
    pub(crate) clock: SteadyClock,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) dedup_seed: u64,
    pub(crate) labels: Arc<Labels>,
    /// For messages.
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) memory: Arc<ExportMemory>,
}

/// How far fragments have come that were stuck in the middle: the log knows whole ones only. Lost
/// with the process; what a backend has of such a fragment then comes to it a second time.
#[derive(Debug, Default)]
pub(crate) struct Begun(Mutex<HashMap<FragmentHash, u32>>);

impl Begun {
    fn spans(&self, fragment: FragmentHash) -> u32 {
        let begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.get(&fragment).copied().unwrap_or(0)
    }

    fn note(&self, fragment: FragmentHash, spans: u32) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spans > 0 && (begun.len() < BEGUN_MAX || begun.contains_key(&fragment)) {
            begun.insert(fragment, spans);
        }
    }

    fn forget(&self, done: &ExportWork) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.is_empty() {
            return;
        }
        for fragment in done.traces.iter().flat_map(|it| &it.fragments) {
            begun.remove(&fragment.hash());
        }
    }
}

impl<D: Disk> Exporter<D> {
    pub(crate) fn spawn(self) -> JoinHandle<()> {
        tokio::spawn(self.run())
    }

    async fn run(self) {
        let exporter = Arc::new(self);
        while let Some(work) = exporter.shard.pull(READ_BYTES, TRACES_MAX).await {
            let bytes = bytes_of(&work, exporter.destination.is_compressed());
            let _held = exporter.memory.take(bytes).await;
            exporter.export(work).await;
        }
    }

    async fn export(self: &Arc<Self>, work: ExportWork) {
        let mut reader = Reader {
            work: Arc::new(work),
            trace: 0,
            fragment: 0,
            span: 0,
            ahead: VecDeque::new(),
            seen: Seen::default(),
            scopes: Vec::new(),
        };
        // Up to where all is settled but what is stuck: in the middle of a trace that takes several
        // messages, too.
        let mut settled = reader.origin();
        let mut stuck = HashMap::new();
        let mut put_back = false;
        let mut is_moved = false;
        while !self.shard.exports_stopped() {
            let exporter = self.clone();
            // Reading is file I/O and hashing: not for the threads that serve sockets.
            let read = tokio::task::spawn_blocking(move || {
                let message = reader.next_message(&exporter);
                (reader, message)
            });
            let Ok((back, message)) = read.await else {
                // The runtime is shutting down; what was not confirmed stays in the log.
                return;
            };
            reader = back;
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => {
                    settled = reader.origin();
                    break;
                }
                Err(ReadError::Moved { .. }) => {
                    is_moved = true;
                    break;
                }
                Err(error) => {
                    self.metrics.log_read_failures.inc();
                    tracing::error!(%error, "kept traces cannot be read back; trying again in a minute");
                    put_back = true;
                    break;
                }
            };
            if let Err(refusal) = self.send(&message).await {
                let outcome = Isolation::new(self, &message).settle(refusal).await;
                for origin in outcome.stuck {
                    put_back = true;
                    reader.leave(origin.trace);
                    stuck.insert(origin.trace, origin);
                }
                if outcome.is_backend {
                    settled = reader.origin();
                    put_back = true;
                    break;
                }
            }
            settled = reader.origin();
        }
        self.metrics
            .spans_deduplicated
            .inc_by(reader.seen.duplicates);
        self.metrics.span_id_conflicts.inc_by(reader.seen.conflicts);
        let Some(work) = Arc::into_inner(reader.work) else {
            return;
        };
        let mut done = Vec::with_capacity(work.traces.len());
        for (trace, export) in work.traces.iter().enumerate() {
            let all = Origin {
                trace,
                fragment: export.fragments.len(),
                span: 0,
            };
            let none = Origin { fragment: 0, ..all };
            let until = match (stuck.get(&trace), trace.cmp(&settled.trace)) {
                (Some(stuck), _) => *stuck,
                (None, Ordering::Less) => all,
                (None, Ordering::Equal) => settled,
                (None, Ordering::Greater) => none,
            };
            if let Some(fragment) = export.fragments.get(until.fragment) {
                self.begun.note(fragment.hash(), until.span);
            }
            done.push(until.fragment);
        }
        let (done, rest) = work.split(&done);
        self.begun.forget(&done);
        if !done.traces.is_empty() {
            self.shard.exported(done);
        }
        // Else the process is stopping, and the next one goes on with it.
        if rest.traces.is_empty() {
            return;
        }
        if put_back {
            self.shard.put_back(rest);
        } else if is_moved {
            self.shard.offer_again(rest);
        }
    }

    /// Sends a message until the backend takes it or refuses it for good.
    pub(crate) async fn send(&self, message: &Message) -> Result<(), Refusal> {
        let batch = self.batch(message);
        match self.destination.deliver(&batch).await {
            Delivery::Done { .. } => {
                self.trust.taken();
                self.metrics.spans_exported.inc_by(u64::from(batch.spans));
                self.metrics.weights_unwritten(message.builder.unwritten());
                Ok(())
            }
            Delivery::Refused(refusal) => Err(refusal),
        }
    }

    /// Reads fragments. `None` for one that is damaged: a host crash in `--ack written` can leave a
    /// fragment whose header was never synced. It is counted and will not get better; the rest of
    /// its trace goes out.
    fn read(&self, extents: &[Extent]) -> Result<Vec<Option<StoredFragment>>, ReadError> {
        match self.volume.read(extents) {
            Ok(stored) => return Ok(stored.into_iter().map(Some).collect()),
            Err(ReadError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut stored = Vec::with_capacity(extents.len());
        for extent in extents {
            match self.volume.read(std::slice::from_ref(extent)) {
                Ok(one) => stored.extend(one.into_iter().map(Some)),
                Err(ReadError::Damaged {
                    segment,
                    offset,
                    what,
                }) => {
                    self.metrics.log_fragments_damaged.inc();
                    tracing::error!(%segment, offset, what, "a kept fragment is damaged in the log and is left out");
                    stored.push(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(stored)
    }

    fn batch(&self, message: &Message) -> Batch {
        let traces = message.verdicts();
        let verdicts: Vec<u8> = traces
            .iter()
            .flat_map(|(_, id)| id.0.to_be_bytes())
            .collect();
        let mut headers = HeaderMap::new();
        if let Ok(member) = HeaderValue::from_str(self.member.as_str()) {
            headers.insert(metadata::MEMBER, member);
        }
        use base64::Engine;
        let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(&verdicts);
        if let Ok(verdicts) = HeaderValue::from_str(&encoded) {
            headers.insert(metadata::VERDICTS, verdicts);
        }
        let mut encoded = self.buffers.take(message.builder.encoded_len());
        message.builder.write_to(encoded.bytes_mut());
        Batch {
            spans: message.spans,
            traces: traces.len() as u32,
            message: encoded.freeze(),
            metadata: headers,
        }
    }
}

/// How far a piece of work has gone into messages.
struct Reader {
    work: Arc<ExportWork>,
    trace: usize,
    fragment: usize,
    /// Spans of the fragment that were gone through.
    span: u32,
    /// Read and not yet in a message; of the first one, a part may be.
    ahead: VecDeque<Option<StoredFragment>>,
    seen: Seen,
    /// Headers of scopes, what was written into them, and what became of them.
    scopes: Vec<(Bytes, Vec<Attribute>, Bytes)>,
}

/// Headers that lie twice in memory, once with our attributes. Many fragments share one.
const SCOPES_MAX: usize = 16;

impl Reader {
    fn origin(&self) -> Origin {
        Origin {
            trace: self.trace,
            fragment: self.fragment,
            span: self.span,
        }
    }

    /// The next message of this work; `None` when all of it was read.
    fn next_message<D: Disk>(
        &mut self,
        exporter: &Exporter<D>,
    ) -> Result<Option<Message>, ReadError> {
        self.seen.next_message(exporter.dedup_seed);
        let mut message = Message::default();
        loop {
            if self.ahead.is_empty() {
                let extents = self.next_extents();
                if extents.is_empty() {
                    break;
                }
                self.ahead = exporter.read(&extents)?.into();
            }
            if !self.add_next(&mut message, exporter) {
                break;
            }
        }
        Ok((message.spans > 0).then_some(message))
    }

    /// Moves the next fragment into the message; false if there is no room for all of it.
    fn add_next<D: Disk>(&mut self, message: &mut Message, exporter: &Exporter<D>) -> bool {
        let Some(export) = self.work.traces.get(self.trace) else {
            self.ahead.clear();
            return true;
        };
        if let Some(Some(fragment)) = self.ahead.front_mut() {
            let weight = exporter.labels.weight(&export.decision);
            let of_scopes = exporter
                .labels
                .of_scopes(&export.decision, fragment.arrival);
            // Only one that is larger than a message is cut: should the process end in between, the
            // log knows no way to say that the backend has the first part.
            let spans_len: usize = fragment.scopes.iter().map(|scope| scope.spans.len()).sum();
            let len_max = spans_len + fragment.spans as usize * weight.growth_max();
            if message.spans > 0 && message.builder.encoded_len() + len_max > message.bytes_max() {
                return false;
            }
            let done = exporter.begun.spans(fragment.hash);
            let mut source = Source {
                verdict: (export.decision.trace, export.decision.id),
                weight,
                resource: fragment.resource_header.clone(),
                scope: Bytes::new(),
            };
            for (number, scope) in fragment.scopes.iter_mut().enumerate() {
                source.scope = with_attributes(&mut self.scopes, &scope.header, &of_scopes);
                let origin = Origin {
                    trace: self.trace,
                    fragment: self.fragment,
                    span: self.span,
                };
                let seed = exporter.dedup_seed;
                let (added, spans) =
                    self.seen
                        .add(message, seed, &source, origin, done, &scope.spans);
                self.span += spans;
                if added < scope.spans.len() {
                    scope.spans = scope.spans.slice(added..);
                    fragment.scopes.drain(..number);
                    return false;
                }
            }
        }
        self.ahead.pop_front();
        self.fragment += 1;
        self.span = 0;
        if self.fragment == export.fragments.len() {
            self.next_trace();
        }
        true
    }

    fn next_trace(&mut self) {
        self.fragment = 0;
        self.trace += 1;
        self.seen.next_trace();
    }

    /// Reads no more of this trace, should that be where it is.
    fn leave(&mut self, trace: usize) {
        let Some(export) = self.work.traces.get(trace) else {
            return;
        };
        if self.trace == trace {
            let rest = export.fragments.len() - self.fragment;
            self.ahead.drain(..rest.min(self.ahead.len()));
            self.span = 0;
            self.next_trace();
        }
    }

    /// Fragments still to read, in order, of one trace or of several, up to what one read takes.
    fn next_extents(&self) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut bytes = 0;
        let mut skip = self.fragment;
        for export in &self.work.traces[self.trace.min(self.work.traces.len())..] {
            for fragment in &export.fragments[skip..] {
                let extent = fragment.extent();
                bytes += u64::from(extent.len);
                if bytes > READ_BYTES && !extents.is_empty() {
                    return extents;
                }
                extents.push(extent);
            }
            skip = 0;
        }
        extents
    }
}

/// A scope's header with these attributes in it. Equal ones share one allocation.
fn with_attributes(
    known: &mut Vec<(Bytes, Vec<Attribute>, Bytes)>,
    header: &Bytes,
    attributes: &[Attribute],
) -> Bytes {
    if attributes.is_empty() {
        return header.clone();
    }
    let same = |(of, with, _): &&(Bytes, Vec<Attribute>, Bytes)| of == header && with == attributes;
    if let Some((.., written)) = known.iter().find(same) {
        return written.clone();
    }
    if known.len() == SCOPES_MAX {
        known.clear();
    }
    let written = scope_with(header, attributes);
    known.push((header.clone(), attributes.to_vec(), written.clone()));
    written
}
