//! What the world outside a worker knows: what its clients were told, what its backend got, and
//! which verdicts are on disk. Against these a worker is held.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tailring::model::{Decision, Moment, Verdict};

use crate::plan::{Plan, SpanKey};

/// As long as verdicts are remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(crate) struct Books {
    pub(crate) acknowledged: BTreeSet<SpanKey>,
    /// A log that is nearly full does not keep what was exported for repetitions after a restart.
    pub(crate) is_log_bounded: bool,
    /// By trace: the earliest moment a span of it was sent, and the earliest one at which a span was acknowledged.
    first_sent: BTreeMap<usize, Moment>,
    first_acknowledged: BTreeMap<usize, Moment>,
    /// By trace, with whether it is on disk.
    verdicts: BTreeMap<usize, (Decision, bool)>,
    /// How often the backend got it, and in which life last.
    pub(crate) delivered: BTreeMap<SpanKey, (u32, u32)>,
    /// Delivered, and the tombstone was not on disk at a crash: delivered again, perhaps.
    in_window: BTreeSet<SpanKey>,
    /// Delivered in an earlier life, and sent again by its client in this one.
    repeated: BTreeSet<SpanKey>,
    /// By shard of this life.
    notes: Vec<[Notes; 2]>,
    pub(crate) doubled_in_window: u64,
    pub(crate) doubled_by_repetition: u64,
    pub(crate) violations: Vec<String>,
}

/// Of what the disk does not have yet: being filled, and at the disk thread.
#[derive(Default)]
struct Notes {
    verdicts: Vec<usize>,
    exported: Vec<SpanKey>,
}

impl Books {
    pub(crate) fn new(is_log_bounded: bool) -> Self {
        Self {
            is_log_bounded,
            ..Self::default()
        }
    }

    pub(crate) fn violation(&mut self, what: String) {
        // One is met again at each look.
        if !self.violations.contains(&what) {
            self.violations.push(what);
        }
    }

    pub(crate) fn begin_life(&mut self, shards: usize) {
        self.notes = (0..shards).map(|_| <[Notes; 2]>::default()).collect();
    }

    pub(crate) fn sent(&mut self, spans: &[SpanKey], life: u32, now: Moment) {
        for key in spans {
            self.first_sent.entry(key.0).or_insert(now);
            if self
                .delivered
                .get(key)
                .is_some_and(|(_, last)| *last < life)
            {
                self.repeated.insert(*key);
            }
        }
    }

    pub(crate) fn acknowledged(&mut self, spans: &[SpanKey], now: Moment) {
        for key in spans {
            self.acknowledged.insert(*key);
            self.first_acknowledged.entry(key.0).or_insert(now);
        }
    }

    /// What a worker knows of a trace, after a turn of its shard.
    pub(crate) fn look(
        &mut self,
        plan: &Plan,
        trace: usize,
        shard: usize,
        known: Option<&Decision>,
        now: Moment,
    ) {
        match (self.verdicts.get(&trace), known) {
            (Some((held, _)), Some(known)) if held == known => {}
            (Some((held, is_durable)), known) => {
                if *is_durable && now < held.decided_at + REMEMBERED {
                    let what = format!("verdict on {trace} was {held:?} and is {known:?}");
                    self.violation(what);
                }
            }
            (None, Some(known)) => {
                self.check_moment(plan, trace, known);
                self.verdicts.insert(trace, (*known, false));
                self.notes[shard][0].verdicts.push(trace);
            }
            (None, None) => {
                let due = self.first_acknowledged.get(&trace);
                if due.is_some_and(|at| *at + plan.decision_wait <= now) {
                    self.violation(format!("{trace} is not decided at its deadline"));
                }
            }
        }
    }

    fn check_moment(&mut self, plan: &Plan, trace: usize, decision: &Decision) {
        let wait = plan.decision_wait;
        let shortest = plan.quiet_period.map_or(wait, |quiet| quiet.min(wait));
        let sent = self.first_sent.get(&trace).copied();
        if sent.is_none_or(|sent| decision.decided_at < sent + shortest) {
            self.violation(format!("{trace} was decided before its deadline"));
        }
    }

    /// A shard handed over everything it had for the disk.
    pub(crate) fn handed_over(&mut self, shard: usize) {
        let [filling, flying] = &mut self.notes[shard];
        flying.verdicts.append(&mut filling.verdicts);
        flying.exported.append(&mut filling.exported);
    }

    pub(crate) fn written(&mut self, shard: usize, is_written: bool) {
        let [filling, flying] = &mut self.notes[shard];
        if !is_written {
            filling.verdicts.append(&mut flying.verdicts);
            filling.exported.append(&mut flying.exported);
            return;
        }
        flying.exported.clear();
        for trace in flying.verdicts.drain(..) {
            if let Some((_, is_durable)) = self.verdicts.get_mut(&trace) {
                *is_durable = true;
            }
        }
    }

    /// The backend has these spans.
    pub(crate) fn delivered(
        &mut self,
        shard: usize,
        trace: usize,
        decision: &Decision,
        spans: BTreeSet<SpanKey>,
        life: u32,
    ) {
        if decision.verdict != Verdict::Keep {
            self.violation(format!("{trace} was exported under {decision:?}"));
        }
        // Whatever was exported is decided for good, on disk or not.
        let (held, is_durable) = self.verdicts.entry(trace).or_insert((*decision, true));
        *is_durable = true;
        if held != decision {
            let what = format!("{trace} was exported under {decision:?} after {held:?}");
            self.violation(what);
        }
        for key in spans {
            let (times, last) = self.delivered.entry(key).or_insert((0, life));
            *times += 1;
            *last = life;
            if *times > 1 {
                // Each excuse counts once.
                if self.in_window.remove(&key) {
                    self.doubled_in_window += 1;
                } else if self.repeated.remove(&key) {
                    self.doubled_by_repetition += 1;
                    if !self.is_log_bounded {
                        self.violation(format!("{key:?} was exported again for a repetition"));
                    }
                } else {
                    self.violation(format!("{key:?} was exported twice"));
                }
            }
            self.notes[shard][0].exported.push(key);
        }
    }

    /// Everything that is not on disk is gone.
    pub(crate) fn crashed(&mut self) {
        for notes in std::mem::take(&mut self.notes).into_iter().flatten() {
            self.in_window.extend(notes.exported);
        }
        self.verdicts.retain(|_, (_, is_durable)| *is_durable);
    }

    /// With it went what was promised to survive processes only: all begins anew.
    pub(crate) fn host_died(&mut self) {
        self.acknowledged.clear();
        self.first_acknowledged.clear();
        self.verdicts.clear();
        self.in_window.extend(self.delivered.keys());
    }

    /// Nothing is on its way any more.
    pub(crate) fn settled(&mut self) {
        let lost: Vec<SpanKey> = self
            .acknowledged
            .iter()
            .filter(|key| {
                let dropped = self
                    .verdicts
                    .get(&key.0)
                    .is_some_and(|(held, _)| held.verdict == Verdict::Drop);
                !dropped && !self.delivered.contains_key(key)
            })
            .copied()
            .collect();
        for key in lost {
            self.violation(format!("{key:?} was acknowledged and is gone"));
        }
    }
}
