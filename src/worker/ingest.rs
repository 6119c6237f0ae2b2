//! From a received message to acknowledged fragments: scan, group by trace, give each shard its
//! share, wait until all is written, pass on what belongs elsewhere.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::cluster::{View, ViewHandle};
use crate::model::{Fingerprint, Member, TraceId};
use crate::net::admission::Permit;
use crate::net::client::Dial;
use crate::net::server::{Accepted, Ingest, IngestRequest};
use crate::net::status::{Refusal, RefusalReason};
use crate::wire::{
    FragmentView, Fragments, Part, RejectReason, Rejections, Scan, ScanError, ScanLimits, split,
};
use crate::worker::forward::Peers;
use crate::worker::shard::{AppendRefused, Placement};
use crate::worker::shard_thread::ShardHandle;
use crate::worker::{Worker, WorkerConfig, WorkerMetrics};

/// A message on its way to the shards, with the bytes it costs.
#[derive(Debug)]
pub struct Incoming {
    pub(crate) message: Bytes,
    pub(crate) scan: Scan,
    pub(crate) fragments: Fragments,
    /// Given back when the last shard has let go, even if the client went away before.
    permit: Permit,
}

/// What a scanned span costs beside its bytes, while its request is in flight: its entries in the
/// scan and in the fragments. A 30-byte span costs several times its size.
const SCANNED_SPAN_BYTES: u64 = 160;

impl Incoming {
    /// Reads a message with vectors of its own.
    pub fn parse(message: Bytes, limits: &ScanLimits, permit: Permit) -> Result<Self, ScanError> {
        let mut scan = Scan::default();
        scan.read(&message, limits)?;
        let mut fragments = Fragments::default();
        fragments.group(&message, &scan);
        Ok(Self {
            message,
            scan,
            fragments,
            permit,
        })
    }

    fn trace(&self, number: u32) -> TraceId {
        self.fragments.all()[number as usize].trace
    }

    pub(crate) fn view(&self, number: u32) -> FragmentView<'_> {
        self.fragments
            .view(&self.message, &self.scan, number as usize)
    }
}

/// Which shard of this worker a trace belongs to. Independent of the ring's slots.
pub(crate) fn shard_of(trace: TraceId, shards: usize) -> usize {
    const SHARD_SEED: u64 = 0x7368_6172_6473_0001;
    (xxhash_rust::xxh3::xxh3_64_with_seed(trace.as_bytes(), SHARD_SEED) % shards as u64) as usize
}

/// All that a request meets on its way to the shards. The same in a process and in a simulation.
#[derive(Debug)]
pub(crate) struct Intake {
    name: Member,
    limits: ScanLimits,
    view: ViewHandle,
    shards: Vec<ShardHandle>,
    peers: Arc<Peers>,
    metrics: WorkerMetrics,
    /// Scans and fragment lists that are warm. Bounded: a burst's surplus is dropped.
    parsed: Mutex<Vec<(Scan, Fragments)>>,
}

const PARSED_KEPT: usize = 64;
/// A request of some 5,000 spans. The largest ones make 40 MiB, and 64 of those would never be
/// given back.
const PARSED_BYTES_MAX: usize = 1 << 20;

impl Ingest for Worker {
    async fn ingest(self: &Arc<Self>, request: IngestRequest) -> Result<Accepted, Refusal> {
        let accepted = self.intake.take_in(request).await?;
        let now = self.clock.now().unix_millis();
        self.last_request.store(now, Ordering::Relaxed);
        Ok(accepted)
    }

    fn fingerprint(&self) -> Fingerprint {
        self.view.load().fingerprint()
    }
}

impl Intake {
    pub(crate) fn new(
        config: &WorkerConfig,
        view: ViewHandle,
        shards: Vec<ShardHandle>,
        dial: Arc<dyn Dial>,
        metrics: WorkerMetrics,
    ) -> Self {
        Self {
            name: config.name.clone(),
            limits: config.scan,
            view,
            shards,
            peers: Arc::new(Peers::new(dial)),
            metrics,
            parsed: Mutex::default(),
        }
    }

    pub(crate) async fn take_in(&self, request: IngestRequest) -> Result<Accepted, Refusal> {
        let IngestRequest {
            message,
            permit,
            metadata,
        } = request;
        if let Some((to, _)) = &metadata.to
            && *to != self.name
        {
            return Err(Refusal::new(
                RefusalReason::WrongMember,
                format!("this is {}, the message is for {to}", self.name),
            ));
        }
        let (mut scan, mut fragments) = self.take_parsed();
        if let Err(error) = scan.read(&message, &self.limits) {
            self.give_parsed((scan, fragments));
            let reason = match error {
                ScanError::Malformed { .. } => RefusalReason::InvalidRequest,
                ScanError::TooManySpans { .. } => RefusalReason::TooManySpans,
            };
            return Err(Refusal::new(reason, error.to_string()));
        }
        let accepted = self.count_scanned(&scan);
        if accepted.rejected_spans > 0 && metadata.to.is_some() {
            // A router checked these spans by the same rules: it is of another version.
            self.give_parsed((scan, fragments));
            return Err(Refusal::new(
                RefusalReason::InvalidRequest,
                accepted.message,
            ));
        }
        if scan.spans().is_empty() {
            self.give_parsed((scan, fragments));
            return Ok(accepted);
        }
        // Its copy for the log, too: a shard's batches wait for the disk as long as it takes.
        let beside = scan.spans().len() as u64 * SCANNED_SPAN_BYTES + message.len() as u64;
        if !permit.grow(beside) {
            self.give_parsed((scan, fragments));
            return Err(Refusal::new(
                RefusalReason::MemoryPressure,
                "there is no memory for this request now; send again later",
            ));
        }
        fragments.group(&message, &scan);
        let incoming = Arc::new(Incoming {
            message,
            scan,
            fragments,
            permit,
        });
        let view = self.view.load();
        // A message that was passed on already, or that a router could not give to its owner, is
        // held here whatever our own ring says: it must not bounce.
        let foreign = if metadata.hop > 0 || metadata.surrogate_for.is_some() {
            Placement::Custody
        } else {
            Placement::Elsewhere
        };
        let clock = tokio::time::Instant::now();
        let elsewhere = self
            .append(&incoming, all_by_shard(self, &incoming, &view, foreign))
            .await?;
        if !elsewhere.is_empty() {
            self.pass_on(&incoming, &elsewhere, &view).await?;
        }
        self.metrics
            .append_seconds
            .observe(clock.elapsed().as_secs_f64());
        if let Some(Incoming {
            scan, fragments, ..
        }) = Arc::into_inner(incoming)
        {
            self.give_parsed((scan, fragments));
        }
        Ok(accepted)
    }
}

/// Each shard's fragments, and whether their traces may begin here.
fn all_by_shard(
    intake: &Intake,
    incoming: &Incoming,
    view: &View,
    foreign: Placement,
) -> Vec<Vec<(u32, Placement)>> {
    let me = view.index_of(&intake.name);
    let mut shares = vec![Vec::new(); intake.shards.len()];
    for (number, fragment) in incoming.fragments.all().iter().enumerate() {
        let placement = if me.is_some() && view.table.owner_index(fragment.trace) == me {
            Placement::Mine
        } else {
            foreign
        };
        shares[shard_of(fragment.trace, intake.shards.len())].push((number as u32, placement));
    }
    shares
}

/// What the owners of these fragments get, by their places in the view. Nothing if there is no
/// memory for it: headers go with every part, and a sender can make them large.
fn parts_elsewhere(incoming: &Incoming, elsewhere: &[u32], view: &View) -> Vec<Part> {
    // One destination more, for the traces that are here already.
    let here = u16::try_from(view.table.members().len()).unwrap_or(u16::MAX);
    let destinations = here.saturating_add(1);
    let growth = incoming.scan.split_growth_max(destinations) + incoming.message.len() as u64;
    if !incoming.permit.grow(growth) {
        return Vec::new();
    }
    let traces: HashSet<TraceId, foldhash::fast::RandomState> = elsewhere
        .iter()
        .map(|number| incoming.trace(*number))
        .collect();
    let owner_of = |trace: TraceId| match view.table.owner_index(trace) {
        Some(owner) if traces.contains(&trace) => owner,
        _ => here,
    };
    let mut parts = split(&incoming.message, &incoming.scan, destinations, owner_of);
    parts.retain(|part| part.destination != here);
    parts
}

impl Intake {
    fn take_parsed(&self) -> (Scan, Fragments) {
        self.parsed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    fn give_parsed(&self, parsed: (Scan, Fragments)) {
        let (scan, fragments) = &parsed;
        if scan.heap_bytes() + fragments.heap_bytes() > PARSED_BYTES_MAX {
            return;
        }
        let mut kept = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < PARSED_KEPT {
            kept.push(parsed);
        }
    }

    fn count_scanned(&self, scan: &Scan) -> Accepted {
        let rejections: &Rejections = scan.rejections();
        let rejected = u64::from(rejections.total());
        self.metrics
            .spans_received
            .inc_by(scan.spans().len() as u64 + rejected);
        if rejected == 0 {
            return Accepted::default();
        }
        for reason in RejectReason::ALL {
            self.metrics
                .rejected(reason, u64::from(rejections.count(reason)));
        }
        Accepted {
            rejected_spans: rejected,
            message: rejections.to_string(),
        }
    }

    /// Gives every shard its share and waits for all of them. Returns what must be passed on.
    async fn append(
        &self,
        incoming: &Arc<Incoming>,
        shares: Vec<Vec<(u32, Placement)>>,
    ) -> Result<Vec<u32>, Refusal> {
        let mut answers = Vec::with_capacity(shares.len());
        let mut refused = None;
        for (shard, share) in self.shards.iter().zip(shares) {
            if share.is_empty() {
                continue;
            }
            match shard.append(incoming.clone(), share) {
                Some(answer) => answers.push(answer),
                None => {
                    refused = Some(Refusal::new(
                        RefusalReason::ShardBusy,
                        "a shard's queue is full; send again later",
                    ));
                }
            }
        }
        let mut elsewhere = Vec::new();
        for answer in answers {
            match answer.await {
                Ok(Ok(some)) => elsewhere.extend(some),
                Ok(Err(AppendRefused::LogFull)) => {
                    refused = Some(Refusal::new(
                        RefusalReason::LogFull,
                        "the log is at its byte bound, or its volume is full; send again later",
                    ));
                }
                Ok(Err(AppendRefused::MemoryFull)) => {
                    refused = Some(Refusal::new(
                        RefusalReason::MemoryPressure,
                        "the traces in hand take as much memory as they may; send again later",
                    ));
                }
                Ok(Err(AppendRefused::LogFailed)) => {
                    refused = Some(Refusal::new(
                        RefusalReason::LogFailed,
                        "the log cannot be written; send again later",
                    ));
                }
                Err(_) => {
                    refused = Some(Refusal::new(
                        RefusalReason::Unready,
                        "this worker is stopping; send again",
                    ));
                }
            }
        }
        match refused {
            Some(refusal) => Err(refusal),
            None => Ok(elsewhere),
        }
    }

    /// Passes fragments of other members' traces on, once. What cannot be passed on is held here:
    /// acknowledged, judged and exported by this member (custody).
    async fn pass_on(
        &self,
        incoming: &Arc<Incoming>,
        elsewhere: &[u32],
        view: &Arc<View>,
    ) -> Result<(), Refusal> {
        // Owners are asked at the same time: one that hangs must not use up the others' time.
        let mut asked = tokio::task::JoinSet::new();
        for part in parts_elsewhere(incoming, elsewhere, view) {
            let Some(owner) = view.table.members().get(usize::from(part.destination)) else {
                continue;
            };
            let (owner, peers, view) = (owner.clone(), self.peers.clone(), view.clone());
            asked.spawn(async move {
                let passed = peers.pass_on(&owner, part.message, &view).await;
                (part.destination, owner, passed)
            });
        }
        let mut passed_to = BTreeSet::new();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((owner, _, Ok(()))) => {
                    passed_to.insert(owner);
                }
                Ok((_, owner, Err(error))) => {
                    self.metrics.forwards_failed.inc();
                    tracing::warn!(%owner, %error, "cannot pass traces on to their owner; holding them here");
                }
                Err(error) => tracing::error!(%error, "passing traces on was cut short"),
            }
        }
        let is_held = |number: &u32| {
            let owner = view.table.owner_index(incoming.trace(*number));
            owner.is_none_or(|owner| !passed_to.contains(&owner))
        };
        let held: Vec<u32> = elsewhere.iter().copied().filter(is_held).collect();
        if held.is_empty() {
            return Ok(());
        }
        let mut shares = vec![Vec::new(); self.shards.len()];
        for number in held {
            let trace = incoming.trace(number);
            shares[shard_of(trace, self.shards.len())].push((number, Placement::Custody));
        }
        self.append(incoming, shares).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_spread_evenly_over_shards() {
        let mut counts = [0; 4];
        for n in 1..=40_000_u128 {
            let trace = TraceId::new(n.to_be_bytes()).unwrap();
            counts[shard_of(trace, 4)] += 1;
        }
        for count in counts {
            assert!((9_500..10_500).contains(&count), "{counts:?}");
        }
    }
}
