//! What the world outside the workers knows: what clients were told, what the backend got, and
//! which verdicts were given. Against these the whole cluster is held.

use std::collections::{BTreeMap, BTreeSet};

use tailring::model::{Decision, Verdict, VerdictId};

use crate::counters::Counters;
use crate::plan::{Millis, Plan};

/// How long before the verdict an acknowledgement must have reached its client for its span to count as
/// evidence that was there.
const HEARD_BEFORE: Millis = 2_000;

#[derive(Default)]
pub(crate) struct Books {
    /// By span: when its client first heard OK.
    acknowledged: BTreeMap<usize, Millis>,
    first_sent: BTreeMap<usize, Millis>,
    /// By trace: when the first of its spans was acknowledged.
    first_heard: BTreeMap<usize, Millis>,
    /// How much later than their deadlines traces were decided, first verdicts only.
    late: Vec<Millis>,
    /// By span: how often the backend got it.
    delivered: BTreeMap<usize, u32>,
    /// By trace.
    verdicts: BTreeMap<usize, BTreeMap<VerdictId, Given>>,
    /// By trace: under which verdicts it was exported.
    exported_under: BTreeMap<usize, BTreeSet<VerdictId>>,
    /// What a worker that looks says now, to see what it takes back.
    held: BTreeMap<(usize, usize), Decision>,
    /// Acknowledged, and maybe gone with the only disk that had them.
    lost_with_disk: BTreeSet<usize>,
    /// Traces that had begun then.
    forgotten_with_disk: BTreeSet<usize>,
    pub(crate) violations: Vec<String>,
    /// How often each branch of the protocol was taken, for whoever wonders what was tested.
    pub(crate) sometimes: BTreeMap<&'static str, u64>,
}

/// A trace that moves to a worker that comes is judged so much later at most, if nothing goes wrong.
const LATE_MOST: Millis = 8_000;

/// One verdict as it was first seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given {
    pub(crate) verdict: Verdict,
    pub(crate) at: Millis,
}

/// What came of one run.
#[derive(Default, Debug, Clone)]
pub(crate) struct Account {
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    pub(crate) doubled: u64,
    pub(crate) gave_up: u64,
    /// Traces of which some acknowledged spans were exported and some dropped.
    pub(crate) split: Vec<usize>,
    /// Dropped although an error was acknowledged before.
    pub(crate) wrong: Vec<usize>,
    pub(crate) judged_twice: u64,
    /// By how much verdicts came after the deadlines.
    pub(crate) late: Vec<Millis>,
}

impl Books {
    pub(crate) fn violation(&mut self, what: String) {
        // One is met again at each look.
        if !self.violations.contains(&what) {
            self.violations.push(what);
        }
    }

    pub(crate) fn note(&mut self, branch: &'static str) {
        *self.sometimes.entry(branch).or_default() += 1;
    }

    pub(crate) fn sent(&mut self, plan: &Plan, spans: &[usize], now: Millis) {
        for span in spans {
            let trace = plan.spans[*span].trace;
            self.first_sent.entry(trace).or_insert(now);
        }
    }

    pub(crate) fn acknowledged(&mut self, plan: &Plan, spans: &[usize], now: Millis) {
        for span in spans {
            let trace = plan.spans[*span].trace;
            self.first_heard.entry(trace).or_insert(now);
            self.acknowledged.entry(*span).or_insert(now);
        }
    }

    /// What a worker knows of a trace. `at`: when it was decided, by the clock of the world.
    pub(crate) fn look(
        &mut self,
        plan: &Plan,
        worker: usize,
        trace: usize,
        known: Option<(&Decision, Millis)>,
    ) {
        let Some((decision, at)) = known else {
            return;
        };
        let held = self.held.insert((worker, trace), *decision);
        if plan.is_told && held != Some(*decision) {
            eprintln!(
                "          worker {worker} knows {:?} {:?} of trace {trace}",
                decision.verdict, decision.id
            );
        }
        if let Some(held) = held
            && held.verdict == Verdict::Keep
            && decision.verdict == Verdict::Drop
        {
            let what = format!("KEEP of trace {trace} fell to DROP at worker {worker}");
            self.violation(what);
        }
        let given = self.verdicts.entry(trace).or_default();
        if given.contains_key(&decision.id) {
            return;
        }
        let is_first = given.is_empty();
        let verdict = decision.verdict;
        given.insert(decision.id, Given { verdict, at });
        let wait = plan.decision_wait.as_millis() as Millis;
        if is_first && let Some(heard) = self.first_heard.get(&trace) {
            let late = at.saturating_sub(heard + wait);
            self.late.push(late);
            if plan.is_punctual() && late > LATE_MOST {
                let what = format!("trace {trace} was decided {late} ms after its deadline");
                self.violation(what);
            }
        }
        let sent = self.first_sent.get(&trace).copied();
        let slack = 2 * plan.clocks_off_most + 2;
        if sent.is_none_or(|sent| at + slack < sent + wait) {
            let what = format!(
                "trace {trace} was decided at {at} by worker {worker}, before its deadline \
                 (first sent at {sent:?})"
            );
            self.violation(what);
        }
    }

    /// A disk is gone with all that was on it and nowhere else: nobody promised more. `promised`: spans for
    /// which a worker has said OK, though their clients may hear of it later.
    pub(crate) fn disk_lost(&mut self, promised: &BTreeSet<usize>) {
        let taken = self.acknowledged.keys().chain(promised);
        let gone = taken.filter(|span| !self.delivered.contains_key(span));
        self.lost_with_disk.extend(gone);
        // Verdicts were on it, too.
        self.forgotten_with_disk.extend(self.first_sent.keys());
    }

    /// A worker lost what it knew.
    pub(crate) fn forgotten(&mut self, worker: usize) {
        self.held.retain(|(of, _), _| *of != worker);
    }

    pub(crate) fn delivered(&mut self, trace: usize, decision: &Decision, spans: &[usize]) {
        if decision.verdict != Verdict::Keep {
            self.violation(format!("trace {trace} was exported under {decision:?}"));
        }
        let under = self.exported_under.entry(trace).or_default();
        under.insert(decision.id);
        for span in spans {
            *self.delivered.entry(*span).or_default() += 1;
        }
    }

    pub(crate) fn is_exported(&self, trace: usize) -> bool {
        self.exported_under.contains_key(&trace)
    }

    /// Nothing is on its way any more.
    pub(crate) fn settled(&mut self, plan: &Plan) -> Account {
        let mut account = Account {
            acknowledged: self.acknowledged.len() as u64,
            delivered: self.delivered.len() as u64,
            late: std::mem::take(&mut self.late),
            doubled: self.delivered.values().filter(|times| **times > 1).count() as u64,
            ..Account::default()
        };
        let mut missing: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for span in self.acknowledged.keys() {
            if !self.delivered.contains_key(span) && !self.lost_with_disk.contains(span) {
                missing
                    .entry(plan.spans[*span].trace)
                    .or_default()
                    .push(*span);
            }
        }
        for (trace, spans) in missing {
            let given = self.verdicts.get(&trace);
            let dropped = given
                .into_iter()
                .flatten()
                .find(|(_, given)| given.verdict == Verdict::Drop);
            match dropped {
                None => {
                    let what =
                        format!("spans {spans:?} of trace {trace} were acknowledged and are gone");
                    self.violation(what);
                }
                Some(_) if self.forgotten_with_disk.contains(&trace) => {}
                Some(_) if self.is_exported(trace) => {
                    if !plan.may_split() {
                        let story = self.story(plan, trace);
                        self.violation(format!("split: {story}"));
                    }
                    account.split.push(trace);
                }
                Some(_) => {}
            }
        }
        for (trace, given) in &self.verdicts {
            account.judged_twice += u64::from(given.len() > 1);
            if self.is_exported(*trace) {
                continue;
            }
            let Some(last) = given.values().map(|given| given.at).max() else {
                continue;
            };
            if self.forgotten_with_disk.contains(trace) {
                continue;
            }
            if plan.is_health[*trace] {
                continue; // dropped by a `drop` policy, whatever else is in it
            }
            let is_heard = |(span, heard): (&usize, &Millis)| {
                let plan = &plan.spans[*span];
                plan.trace == *trace
                    && plan.is_error
                    && heard + HEARD_BEFORE <= last
                    && !self.lost_with_disk.contains(span)
            };
            if self.acknowledged.iter().any(is_heard) {
                account.wrong.push(*trace);
            }
        }
        if !plan.may_split() {
            for trace in account.wrong.clone() {
                let story = self.story(plan, trace);
                self.violation(format!("dropped with an error: {story}"));
            }
        }
        account
    }

    /// The product's own counters against what was seen.
    pub(crate) fn compare(&mut self, counters: &Counters) {
        let given = self.verdicts.values().flat_map(BTreeMap::values);
        let (kept, dropped): (Vec<&Given>, Vec<&Given>) =
            given.partition(|given| given.verdict == Verdict::Keep);
        let decided = "worker_traces_decided_total{verdict=";
        let rows = [
            (format!("{decided}\"keep\""), kept.len(), true),
            (format!("{decided}\"drop\""), dropped.len(), false),
        ];
        for (name, seen, is_keep) in rows {
            let raised = counters.sum("worker_verdicts_raised_total");
            let counted = counters.sum(&name) + if is_keep { raised } else { 0 };
            if counted != seen as u64 {
                self.violation(format!("{name} counts {counted}, and {seen} were seen"));
            }
        }
    }

    /// All that is known of a trace, for whoever looks into a violation.
    pub(crate) fn story(&self, plan: &Plan, trace: usize) -> String {
        let spans: Vec<String> = plan
            .spans
            .iter()
            .enumerate()
            .filter(|(_, span)| span.trace == trace)
            .map(|(number, span)| {
                format!(
                    "{number}{} ok at {:?} exported {}",
                    if span.is_error { " (error)" } else { "" },
                    self.acknowledged.get(&number),
                    self.delivered.get(&number).copied().unwrap_or(0)
                )
            })
            .collect();
        let verdicts = self.verdicts.get(&trace);
        format!("trace {trace}: spans {spans:?}, verdicts {verdicts:?}")
    }
}
