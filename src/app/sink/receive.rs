//! What a sink does with one request: counts it, writes it down, or plays a broken backend.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::SinkAnswer;
use super::traces::TraceFile;
use crate::app::ledger::{GotExport, GotSpan, LedgerQueue, Record, SpanKey};
use crate::model::{Fingerprint, SteadyClock, TraceId, VerdictId};
use crate::net::server::{Accepted, Ingest, IngestRequest};
use crate::net::status::{Refusal, RefusalReason};
use crate::wire::{Scan, ScanLimits};

/// Backends take what fits the byte limit. The smallest legal span has 30 bytes, so a 64 MiB
/// message cannot have more than this.
const SPANS_MAX: u32 = 4_000_000;
/// What --answer unavailable asks for: soon enough for a test, late enough to be seen waiting.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Members told apart in the summary; the rest is counted as one.
const MEMBERS_MAX: usize = 1000;

/// How to treat requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behaviour {
    pub(super) answer: SinkAnswer,
    pub(super) delay: Duration,
    pub(super) reads_messages: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Receiver {
    behaviour: Behaviour,
    ledger: Option<LedgerQueue>,
    traces: Option<TraceFile>,
    clock: SteadyClock,
    requests: AtomicU64,
    bytes: AtomicU64,
    spans: AtomicU64,
    rejected_spans: AtomicU64,
    refused_requests: AtomicU64,
    mismatched_verdicts: AtomicU64,
    members: Mutex<BTreeMap<String, u64>>,
}

/// What a sink has received.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SinkReport {
    /// Taken, with their uncompressed bytes.
    pub requests: u64,
    pub bytes: u64,
    /// Zero with --null, which does not look.
    pub spans: u64,
    /// Spans that no backend could take, answered with a partial success.
    pub rejected_spans: u64,
    /// Not taken, because that was asked for or because they could not be read.
    pub refused_requests: u64,
    /// Requests whose verdicts are not one for each trace; written down without.
    pub mismatched_verdicts: u64,
    /// Spans by exporting member.
    pub members: BTreeMap<String, u64>,
}

impl Receiver {
    pub(super) fn new(
        behaviour: Behaviour,
        ledger: Option<LedgerQueue>,
        traces: Option<TraceFile>,
    ) -> Self {
        Self {
            behaviour,
            ledger,
            traces,
            clock: SteadyClock::start(),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            spans: AtomicU64::new(0),
            rejected_spans: AtomicU64::new(0),
            refused_requests: AtomicU64::new(0),
            mismatched_verdicts: AtomicU64::new(0),
            members: Mutex::new(BTreeMap::new()),
        }
    }

    pub(super) fn ledger_is_stopped(&self) -> bool {
        self.ledger.as_ref().is_some_and(LedgerQueue::is_stopped)
    }

    pub(super) fn report(&self) -> SinkReport {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SinkReport {
            requests: read(&self.requests),
            bytes: read(&self.bytes),
            spans: read(&self.spans),
            rejected_spans: read(&self.rejected_spans),
            refused_requests: read(&self.refused_requests),
            mismatched_verdicts: read(&self.mismatched_verdicts),
            members: self
                .members
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    async fn misbehave(&self) -> Result<(), Refusal> {
        if !self.behaviour.delay.is_zero() {
            tokio::time::sleep(self.behaviour.delay).await;
        }
        match self.behaviour.answer {
            SinkAnswer::Ok => Ok(()),
            SinkAnswer::Hang => std::future::pending().await,
            SinkAnswer::Unavailable => Err(Refusal {
                reason: RefusalReason::Unready,
                detail: "this sink was started with --answer unavailable".into(),
                retry_after: Some(RETRY_AFTER),
            }),
            SinkAnswer::Invalid => Err(Refusal::new(
                RefusalReason::InvalidRequest,
                "this sink was started with --answer invalid",
            )),
        }
    }

    async fn take(&self, request: &IngestRequest) -> Result<Accepted, Refusal> {
        let mut accepted = Accepted::default();
        if self.behaviour.reads_messages {
            let mut scan = Scan::default();
            let limits = ScanLimits {
                spans_max: SPANS_MAX,
                ..ScanLimits::default()
            };
            scan.read(&request.message, &limits)
                .map_err(|error| Refusal::new(RefusalReason::InvalidRequest, error.to_string()))?;
            if let Some(traces) = &self.traces {
                // Before the ledger: what the books say arrived is in the file.
                let written = traces.append(request.message.clone()).await;
                written
                    .map_err(|error| Refusal::new(RefusalReason::LogFailed, error.to_string()))?;
            }
            if let Some(ledger) = &self.ledger {
                let record = Record::Got(self.book(request, &scan));
                ledger.put_written(record).await.map_err(|stopped| {
                    Refusal::new(RefusalReason::LogFailed, stopped.to_string())
                })?;
            }
            self.count_spans(request, scan.spans().len() as u64);
            let rejections = scan.rejections();
            if rejections.total() > 0 {
                accepted.rejected_spans = rejections.total().into();
                accepted.message = rejections.to_string();
                self.rejected_spans
                    .fetch_add(accepted.rejected_spans, Ordering::Relaxed);
            }
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes
            .fetch_add(request.message.len() as u64, Ordering::Relaxed);
        Ok(accepted)
    }

    fn book(&self, request: &IngestRequest, scan: &Scan) -> GotExport {
        let mut traces: Vec<TraceId> = scan.spans().iter().map(|span| span.trace).collect();
        traces.sort_unstable();
        traces.dedup();
        let verdicts = request.metadata.verdicts.as_deref();
        let verdicts = verdicts.filter(|verdicts| verdicts.len() == traces.len());
        if verdicts.is_none() && request.metadata.verdicts.is_some() {
            self.mismatched_verdicts.fetch_add(1, Ordering::Relaxed);
        }
        let verdict = |trace: &TraceId| -> Option<VerdictId> {
            verdicts?.get(traces.binary_search(trace).ok()?).copied()
        };
        GotExport {
            at: self.clock.now(),
            member: request.metadata.member.clone(),
            spans: scan
                .spans()
                .iter()
                .map(|span| GotSpan {
                    key: SpanKey {
                        trace: span.trace,
                        span: span.span,
                    },
                    verdict: verdict(&span.trace),
                })
                .collect(),
        }
    }

    fn count_spans(&self, request: &IngestRequest, spans: u64) {
        self.spans.fetch_add(spans, Ordering::Relaxed);
        let name = match &request.metadata.member {
            Some(member) => member.as_str(),
            None => "(unnamed)",
        };
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = members.get_mut(name) {
            *count += spans;
        } else if members.len() < MEMBERS_MAX {
            members.insert(name.to_owned(), spans);
        } else {
            *members.entry("(others)".into()).or_default() += spans;
        }
    }
}

impl Ingest for Receiver {
    async fn ingest(self: &Arc<Self>, request: IngestRequest) -> Result<Accepted, Refusal> {
        let answer = match self.misbehave().await {
            // A router's or a worker's, for the worker that had this address before.
            Ok(()) if request.metadata.to.is_some() => Err(Refusal::new(
                RefusalReason::WrongMember,
                "this is a sink, the message is for a worker",
            )),
            Ok(()) => self.take(&request).await,
            Err(refusal) => Err(refusal),
        };
        if answer.is_err() {
            self.refused_requests.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// A sink has no view of any ring.
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(0)
    }
}

impl SinkReport {
    pub(super) fn progress_line(&self, before: &Self, elapsed: Duration) -> String {
        format!(
            "{:>6.0}s {:>10} spans/s {:>12} spans {:>10} requests {:>10.1} MB {:>8} refused",
            elapsed.as_secs_f64(),
            self.spans - before.spans,
            self.spans,
            self.requests,
            self.bytes as f64 / 1e6,
            self.refused_requests,
        )
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, count) in [
            ("requests", self.requests),
            ("bytes", self.bytes),
            ("spans", self.spans),
            ("rejected spans", self.rejected_spans),
            ("refused requests", self.refused_requests),
            ("verdicts that do not fit", self.mismatched_verdicts),
        ] {
            text += &format!("{name:<26}{count:>14}\n");
        }
        for (member, spans) in &self.members {
            text += &format!("{:<26}{spans:>14}   {member}\n", "  exported by");
        }
        text
    }
}
