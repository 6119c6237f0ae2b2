//! Takes kept traces from a shard, reads them back, and sees them to the backend.
//!
//! The exporter pulls: a shard never pushes and never waits. Traces are grouped into messages by
//! bytes and within a message by resource; a trace larger than a message goes out in several. Only
//! what the backend has does the shard hear of, and only then may the log forget it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::log::{Buffers, Disk, ReadError, StoredFragment, Volume};
use crate::model::{Extent, Member, Randomness, TraceId, VerdictId};
use crate::net::metadata;
use crate::wire::{BatchBuilder, Weight, leading_span_id, spans_in};
use crate::worker::export::{Batch, Delivery, Destination};
use crate::worker::metrics::WorkerMetrics;
use crate::worker::shard::ExportWork;
use crate::worker::shard_thread::ShardHandle;

/// A message is closed before it has more bytes, unless a single span has, or a resource is heavy.
const MESSAGE_BYTES: usize = 1 << 20;
/// What most backends take: grpc-go servers refuse more than 4 MiB by default.
const ACCEPTED_BYTES: usize = (4 << 20) - (64 << 10);
/// A resource that leaves less than this to its spans in what backends take is too heavy for them.
const WORTHWHILE_BYTES: usize = 256 << 10;
/// Traces in one piece of work. Their verdict IDs travel in one header: 4 kB, 5.5 kB as base64,
/// below the 8 kB that proxies take.
const TRACES_MAX: usize = 1_000;
/// Read back at a time.
const READ_BYTES: u64 = 2 << 20;

/// Exporters a shard. One reads while another waits for the backend.
pub(crate) const EXPORTERS_PER_SHARD: usize = 2;

pub(crate) struct Exporter<D: Disk> {
    pub(crate) member: Member,
    pub(crate) shard: ShardHandle,
    pub(crate) volume: Arc<Volume<D>>,
    pub(crate) destination: Arc<Destination>,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) dedup_seed: u64,
    /// Whether spans without `th` were certain to come, as the rules say.
    pub(crate) assume_unsampled_upstream: bool,
    /// For messages.
    pub(crate) buffers: Arc<Buffers>,
}

/// A message being put together.
#[derive(Default)]
struct Message {
    builder: BatchBuilder,
    traces: Vec<(TraceId, VerdictId)>,
    spans: u32,
}

impl Message {
    /// A heavy resource goes out with every message that has a span of it: a thousand traces below
    /// 4 MiB of attributes would make 4 GiB, if each filled a message. So its spans get as much
    /// room as itself, if the backend takes that.
    fn bytes_max(&self) -> usize {
        let heaviest = self.builder.heaviest_header();
        let doubled = MESSAGE_BYTES.max(2 * heaviest);
        if heaviest + WORTHWHILE_BYTES <= ACCEPTED_BYTES {
            doubled.min(ACCEPTED_BYTES)
        } else {
            doubled
        }
    }
}

/// The spans of one trace that went into messages, to leave out copies.
#[derive(Default)]
struct Seen {
    /// By the span ID it begins with, the first span that had it.
    first: hashbrown::HashMap<[u8; 8], SeenSpan, foldhash::fast::RandomState>,
    /// Sections of this trace that went into the message being put together.
    sections: Vec<Bytes>,
    /// Hashes of others that had the same ID.
    others: Vec<u64>,
    duplicates: u64,
    conflicts: u64,
}

/// A span, to compare another with. Its bytes as long as the message is not out, its hash
/// afterwards: most IDs never come again, and most spans are never hashed.
#[derive(Clone, Copy)]
enum SeenSpan {
    /// Of the last sections.
    At {
        section: u32,
        start: u32,
        end: u32,
    },
    Hash(u64),
}

impl<D: Disk> Exporter<D> {
    pub(crate) fn spawn(self) -> JoinHandle<()> {
        tokio::spawn(self.run())
    }

    async fn run(self) {
        let exporter = Arc::new(self);
        while let Some(work) = exporter.shard.pull(READ_BYTES, TRACES_MAX).await {
            exporter.export(work).await;
        }
    }

    async fn export(self: &Arc<Self>, work: ExportWork) {
        let mut reader = Reader {
            work: Arc::new(work),
            trace: 0,
            fragment: 0,
            ahead: VecDeque::new(),
            seen: Seen::default(),
        };
        // Where the backend's share ends: in the middle of a trace that takes several messages, too.
        let mut delivered = (0, 0);
        let mut refused = false;
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
            match message {
                Ok(None) => {
                    delivered = (reader.trace, reader.fragment);
                    break;
                }
                Ok(Some(message)) => {
                    let unwritten = message.builder.unwritten();
                    let batch = self.batch(message);
                    match self.destination.deliver(&batch).await {
                        Delivery::Done { .. } => {
                            delivered = (reader.trace, reader.fragment);
                            self.metrics.spans_exported.inc_by(u64::from(batch.spans));
                            self.metrics.weights_unwritten(unwritten);
                        }
                        Delivery::Refused { code, message } => {
                            tracing::error!(
                                code,
                                message,
                                traces = batch.traces,
                                spans = batch.spans,
                                "the backend refused traces for good; they stay in the log and are offered again in a minute"
                            );
                            refused = true;
                            break;
                        }
                    }
                }
                Err(error) => {
                    self.metrics.log_read_failures.inc();
                    tracing::error!(%error, "kept traces cannot be read back; trying again in a minute");
                    refused = true;
                    break;
                }
            }
        }
        self.metrics
            .spans_deduplicated
            .inc_by(reader.seen.duplicates);
        self.metrics.span_id_conflicts.inc_by(reader.seen.conflicts);
        let Some(work) = Arc::into_inner(reader.work) else {
            return;
        };
        let (delivered, rest) = work.split_at(delivered.0, delivered.1);
        if !delivered.traces.is_empty() {
            self.shard.exported(delivered);
        }
        // Not refused: the process is stopping, and the next one goes on with it.
        if refused {
            self.shard.put_back(rest);
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

    fn batch(&self, mut message: Message) -> Batch {
        message.traces.sort_unstable();
        message.traces.dedup();
        let verdicts: Vec<u8> = message
            .traces
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
            traces: message.traces.len() as u32,
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
    /// Read and not yet in a message; of the first one, a part may be.
    ahead: VecDeque<Option<StoredFragment>>,
    seen: Seen,
}

impl Reader {
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
            let weight = Weight::new(
                export.decision.threshold,
                Randomness::of(export.decision.trace),
                exporter.assume_unsampled_upstream,
            );
            // Only one that is larger than a message is cut: should the backend refuse the second
            // part, the log knows no way to say that it has the first.
            let spans_len: usize = fragment.scopes.iter().map(|scope| scope.spans.len()).sum();
            let len_max = spans_len + fragment.spans as usize * weight.growth_max();
            if message.spans > 0 && message.builder.encoded_len() + len_max > message.bytes_max() {
                return false;
            }
            for (number, scope) in fragment.scopes.iter_mut().enumerate() {
                let before = message.spans;
                let added = self.seen.add(
                    message,
                    exporter.dedup_seed,
                    &weight,
                    &fragment.resource_header,
                    &scope.header,
                    &scope.spans,
                );
                if message.spans > before {
                    let verdict = (export.decision.trace, export.decision.id);
                    if message.traces.last() != Some(&verdict) {
                        message.traces.push(verdict);
                    }
                }
                if added < scope.spans.len() {
                    scope.spans = scope.spans.slice(added..);
                    fragment.scopes.drain(..number);
                    return false;
                }
            }
        }
        self.ahead.pop_front();
        self.fragment += 1;
        if self.fragment == export.fragments.len() {
            self.fragment = 0;
            self.trace += 1;
            self.seen.next_trace();
        }
        true
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

impl Seen {
    fn next_trace(&mut self) {
        self.first.clear();
        self.sections.clear();
        self.others.clear();
    }

    /// A message goes out in the middle of a trace: lets go of its buffers.
    fn next_message(&mut self, seed: u64) {
        let Self {
            first, sections, ..
        } = self;
        for span in first.values_mut() {
            if let SeenSpan::At { .. } = span {
                *span = SeenSpan::Hash(xxh3_64_with_seed(bytes_of(sections, *span), seed));
            }
        }
        sections.clear();
    }

    /// Whether the span at these places of the last section is new in the trace.
    fn is_new(&mut self, span: &[u8], start: usize, end: usize, seed: u64) -> bool {
        let Some(id) = leading_span_id(span) else {
            return true;
        };
        let first = match self.first.entry(id) {
            hashbrown::hash_map::Entry::Vacant(place) => {
                place.insert(SeenSpan::At {
                    section: self.sections.len() as u32 - 1,
                    start: start as u32,
                    end: end as u32,
                });
                return true;
            }
            hashbrown::hash_map::Entry::Occupied(held) => *held.get(),
        };
        let is_same = match first {
            SeenSpan::At { .. } => bytes_of(&self.sections, first) == span,
            SeenSpan::Hash(hash) => hash == xxh3_64_with_seed(span, seed),
        };
        if is_same {
            self.duplicates += 1;
            return false;
        }
        let hash = xxh3_64_with_seed(span, seed);
        if self.others.contains(&hash) {
            self.duplicates += 1;
            return false;
        }
        self.conflicts += 1;
        self.others.push(hash);
        true
    }

    /// Adds a section to the message without its copies: runs of new spans as they lie. Gives the
    /// length of what found room; an empty message has room for any one span.
    fn add(
        &mut self,
        message: &mut Message,
        seed: u64,
        weight: &Weight,
        resource: &[u8],
        scope: &[u8],
        section: &Bytes,
    ) -> usize {
        let mut run_start = 0;
        let mut run_spans = 0;
        let mut at = 0;
        let mut is_full = false;
        self.sections.push(section.clone());
        for (field, span) in spans_in(section) {
            let growth = (run_spans + 1) * weight.growth_max();
            let filled = message.builder.encoded_len() + at - run_start + growth;
            if message.spans > 0 && filled + field.len() > message.bytes_max() {
                is_full = true;
                break;
            }
            let end = at + field.len();
            if self.is_new(span, end - span.len(), end, seed) {
                message.spans += 1;
                run_spans += 1;
            } else {
                if run_start < at {
                    message
                        .builder
                        .add(resource, scope, section.slice(run_start..at), weight);
                }
                run_start = end;
                run_spans = 0;
            }
            at = end;
        }
        if run_start < at {
            message
                .builder
                .add(resource, scope, section.slice(run_start..at), weight);
        }
        // To the end, should what is there not parse: it would be met again and again.
        if is_full { at } else { section.len() }
    }
}

fn bytes_of(sections: &[Bytes], span: SeenSpan) -> &[u8] {
    match span {
        SeenSpan::At {
            section,
            start,
            end,
        } => &sections[section as usize][start as usize..end as usize],
        SeenSpan::Hash(_) => &[],
    }
}
