//! Spans that the backend will never take, in a file beside the log: a line each, with the reason.
//!
//! A line is OTLP/JSON with one more field, `deadLetter`, which receivers ignore as they do all
//! unknown ones: it can be sent again as it is. The file is opened for each letter, so an operator may
//! move it away at any time. Nobody here deletes it, and it is bounded.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::json;

use crate::log::{Disk, DiskFile, Volume};
use crate::model::{Moment, SpanId, TraceId};
use crate::net::json;
use crate::worker::export::{Fault, Refusal};

/// In the data dir.
pub(crate) const FILE: &str = "dead-letters.jsonl";
/// Of the log's bound, and beside it.
const LOG_SHARE: u64 = 20;
const BYTES_MAX: u64 = 1 << 30;
/// Read at once while looking back for the end of a line.
const BLOCK_BYTES: u64 = 64 << 10;

/// See the module.
pub(crate) struct DeadLetters<D: Disk> {
    volume: Arc<Volume<D>>,
    bytes_max: u64,
    metrics: DeadLetterMetrics,
    /// Held while a letter is written. True once a sync failed: the kernel forgets what it could
    /// not write, and the next sync of that file would say nothing about it.
    unsafe_now: Mutex<bool>,
}

/// Why a letter is not in the file. Its span stays in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoLetter {
    #[error(
        "{FILE} has {has} bytes and would have more than {most}; move it away and there is room"
    )]
    Full { has: u64, most: u64 },
    #[error("{FILE} cannot be written: {0}")]
    Failed(#[from] io::Error),
}

/// What is counted about dead letters; cheap to clone.
#[derive(Clone, Debug)]
pub struct DeadLetterMetrics {
    spans: Vec<Counter>,
    traces: Counter,
    full: Counter,
    failed: Counter,
    bytes: Gauge,
}

impl DeadLetterMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        type ByReason = Family<[(&'static str, &'static str); 1], Counter>;
        let spans = ByReason::default();
        registry.register(
            "worker_dead_letter_spans",
            "Spans that the backend refused for good, written to dead-letters.jsonl, by what is wrong with them",
            spans.clone(),
        );
        let traces = Counter::default();
        registry.register(
            "worker_dead_letter_traces",
            "Traces of them; one that takes several messages may be counted in each",
            traces.clone(),
        );
        let failures = ByReason::default();
        registry.register(
            "worker_dead_letter_failures",
            "Times that dead-letters.jsonl was full, or could not be written; the trace stays in the log and is offered again",
            failures.clone(),
        );
        let bytes = Gauge::default();
        registry.register(
            "worker_dead_letter_bytes",
            "Size of dead-letters.jsonl in the data dir",
            bytes.clone(),
        );
        let of = |family: &ByReason, reason| family.get_or_create_owned(&[("reason", reason)]);
        Self {
            spans: Fault::ALL.map(|fault| of(&spans, fault.label())).into(),
            traces,
            full: of(&failures, "full"),
            failed: of(&failures, "failed"),
            bytes,
        }
    }

    /// A letter was written; the first of its trace or not.
    pub(crate) fn written(&self, fault: Fault, is_first: bool) {
        self.spans[fault as usize].inc();
        self.traces.inc_by(u64::from(is_first));
    }

    pub(crate) fn not_written(&self, error: &NoLetter) {
        match error {
            NoLetter::Full { .. } => &self.full,
            NoLetter::Failed(_) => &self.failed,
        }
        .inc();
    }
}

/// What a letter says.
pub(crate) struct Letter<'a> {
    /// An `ExportTraceServiceRequest` of one span.
    pub(crate) message: &'a [u8],
    pub(crate) trace: TraceId,
    pub(crate) span: Option<SpanId>,
    pub(crate) refusal: &'a Refusal,
    pub(crate) destination: &'a str,
    pub(crate) at: Moment,
}

impl Letter<'_> {
    /// The reason comes first: lines are long, and people read their beginning.
    pub(crate) fn line(&self) -> Vec<u8> {
        let otlp = json::line(self.message);
        let mut why = json!({
            "unixMillis": self.at.unix_millis(),
            "code": self.refusal.code,
            "message": self.refusal.message,
            "destination": self.destination,
            "traceId": self.trace.to_string(),
        });
        if let Some(span) = self.span {
            why["spanId"] = span.to_string().into();
        }
        match &otlp {
            Ok(otlp) => {
                let fields = otlp.trim_start_matches('{');
                format!("{{\"deadLetter\":{why},{fields}").into_bytes()
            }
            // It has no form in JSON. Whoever can read it finds all of it here.
            Err(error) => {
                why["notJson"] = error.to_string().into();
                why["protobuf"] = STANDARD.encode(self.message).into();
                format!("{{\"deadLetter\":{why}}}\n").into_bytes()
            }
        }
    }
}

impl<D: Disk> DeadLetters<D> {
    pub(crate) fn new(
        volume: Arc<Volume<D>>,
        log_max_bytes: u64,
        metrics: DeadLetterMetrics,
    ) -> Self {
        Self {
            volume,
            bytes_max: (log_max_bytes / LOG_SHARE).min(BYTES_MAX),
            metrics,
            unsafe_now: Mutex::new(false),
        }
    }

    /// Bytes of the file; 0 if there is none.
    fn len(&self) -> io::Result<u64> {
        match self.volume.disk().open(FILE) {
            Ok(file) => file.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Whether so many bytes more find room.
    pub(crate) fn has_room(&self, bytes: u64) -> Result<(), NoLetter> {
        let has = self.len()?;
        if has + bytes > self.bytes_max {
            return Err(NoLetter::Full {
                has,
                most: self.bytes_max,
            });
        }
        Ok(())
    }

    /// The line is on the disk when this returns, or the file is as it was. Blocks.
    pub(crate) fn append(&self, line: &[u8]) -> Result<(), NoLetter> {
        let mut unsafe_now = self
            .unsafe_now
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *unsafe_now {
            let error = "an earlier sync of it failed; start the worker again";
            return Err(io::Error::other(error).into());
        }
        self.has_room(line.len() as u64)?;
        let disk = self.volume.disk();
        let file = match disk.open(FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(FILE)?,
            file => file?,
        };
        let end = whole_lines(&file)?;
        if end == 0 {
            // Its name, too, has to survive the host.
            disk.sync_dir()?;
        }
        if let Err(error) = file.write_at(end, line) {
            // If this fails as well, the next letter cuts it.
            if let Err(error) = file.truncate(end) {
                tracing::warn!(%error, "half a dead letter could not be cut back");
            }
            return Err(error.into());
        }
        if let Err(error) = file.sync() {
            *unsafe_now = true;
            if let Err(error) = file.truncate(end) {
                tracing::warn!(%error, "a dead letter could not be cut back");
            }
            return Err(error.into());
        }
        self.metrics.bytes.set((end + line.len() as u64) as i64);
        Ok(())
    }
}

/// The file's size, for those who do not know what disk it is on.
pub(crate) trait LetterSize: Send + Sync {
    /// Puts it into the gauge: people take the file away, too.
    fn show(&self);
}

impl<D: Disk> LetterSize for DeadLetters<D> {
    fn show(&self) {
        if let Ok(bytes) = self.len() {
            self.metrics.bytes.set(bytes as i64);
        }
    }
}

impl std::fmt::Debug for dyn LetterSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(FILE)
    }
}

/// Cuts half a line off the end, which a process that died left there. Its span is still in the
/// log. Returns the length.
fn whole_lines(file: &impl DiskFile) -> io::Result<u64> {
    let len = file.len()?;
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        let mut block = vec![0; (end - start) as usize];
        file.read_at(start, &mut block)?;
        if let Some(newline) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + newline as u64 + 1;
            break;
        }
        end = start;
    }
    if end < len {
        tracing::warn!(bytes = len - end, "cut half a line off {FILE}");
        file.truncate(end)?;
    }
    Ok(end)
}
