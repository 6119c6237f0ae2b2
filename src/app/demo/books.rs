//! What the two ledgers of a demo say of each turn. Only puts together; judging is `oracle`'s.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::app::ledger::{self, LedgerError, LedgerKind, Record};
use crate::model::{Moment, SpanId, TraceId};

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    /// Sent, acknowledged or not; sorted.
    pub(super) spans: Vec<SpanId>,
    pub(super) acknowledged_spans: usize,
    /// Before the first byte of its first span left, and when its last span was acknowledged.
    pub(super) first_sent_at: Moment,
    pub(super) last_acknowledged_at: Moment,
    /// By the spans' own times.
    pub(super) start_unix_nanos: u64,
    pub(super) end_unix_nanos: u64,
    pub(super) has_error: bool,
    pub(super) is_broken: bool,
    /// Of all its spans.
    pub(super) tenants: Vec<Arc<str>>,
    /// What the backend has, copies too; sorted.
    pub(super) got: Vec<SpanId>,
    /// Who exported under which verdict. More than one: the trace was split.
    pub(super) exports: Vec<(Option<String>, Option<u32>)>,
}

/// All turns of a demo.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) turns: HashMap<TraceId, Turn>,
    /// The backend has spans of traces that nobody sent.
    pub(super) unknown_traces: u64,
    pub(super) got_spans: u64,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            spans: Vec::new(),
            acknowledged_spans: 0,
            first_sent_at: Moment::NEVER,
            last_acknowledged_at: Moment::ZERO,
            start_unix_nanos: u64::MAX,
            end_unix_nanos: 0,
            has_error: false,
            is_broken: false,
            tenants: Vec::new(),
            got: Vec::new(),
            exports: Vec::new(),
        }
    }
}

impl Books {
    /// Reads both ledgers, whose writers have ended.
    pub(super) fn read(sent: &Path, got: &Path) -> Result<Self, LedgerError> {
        let mut books = Self::default();
        ledger::read(sent, LedgerKind::Sent, |record| books.enter_sent(&record))?;
        ledger::read(got, LedgerKind::Got, |record| books.enter_got(&record))?;
        for turn in books.turns.values_mut() {
            turn.spans.sort_unstable();
            turn.got.sort_unstable();
        }
        Ok(books)
    }

    fn enter_sent(&mut self, record: &Record) {
        match record {
            Record::Sent { spans, .. } => {
                for key in spans.iter() {
                    self.turns
                        .entry(key.trace)
                        .or_default()
                        .spans
                        .push(key.span);
                }
            }
            Record::Played(batch) => {
                for facts in batch.spans.iter() {
                    let turn = self.turns.entry(facts.key.trace).or_default();
                    turn.acknowledged_spans += 1;
                    turn.first_sent_at = turn.first_sent_at.min(batch.sent_at);
                    turn.last_acknowledged_at =
                        turn.last_acknowledged_at.max(batch.acknowledged_at);
                    turn.start_unix_nanos = turn.start_unix_nanos.min(facts.start_unix_nanos);
                    turn.end_unix_nanos = turn.end_unix_nanos.max(facts.end_unix_nanos);
                    turn.has_error |= facts.has_error;
                    turn.is_broken |= facts.of_broken_turn;
                    if let Some(tenant) = &facts.tenant
                        && !turn.tenants.contains(tenant)
                    {
                        turn.tenants.push(Arc::clone(tenant));
                    }
                }
            }
            Record::Acknowledged { .. } | Record::Got(_) => {}
        }
    }

    fn enter_got(&mut self, record: &Record) {
        let Record::Got(export) = record else { return };
        let member = export.member.as_ref().map(ToString::to_string);
        self.got_spans += export.spans.len() as u64;
        let mut unknown = None;
        for span in &export.spans {
            let Some(turn) = self.turns.get_mut(&span.key.trace) else {
                if unknown != Some(span.key.trace) {
                    unknown = Some(span.key.trace);
                    self.unknown_traces += 1;
                }
                continue;
            };
            turn.got.push(span.key.span);
            let under = (member.clone(), span.verdict.map(|verdict| verdict.0));
            if !turn.exports.contains(&under) {
                turn.exports.push(under);
            }
        }
    }
}
