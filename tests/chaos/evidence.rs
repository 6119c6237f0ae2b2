//! A fleet whose books tell which spans have errors and when each was acknowledged, before workers that keep only
//! what has one: whether a trace was dropped that must have been kept.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tailring::app::ledger::{self, LedgerError, LedgerKind, Record};
use tailring::app::load::{PlayPlan, PlayReport, PlaybackPlan, Shape, play};
use tailring::model::{Moment, SpanId, TraceId};
use tailring::net::client::{Address, Target};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Findings, Plan};
use crate::process::{PATIENCE, until};
use crate::row::{Row, Scale};

/// One in a hundred has an error.
const TURNS_PER_SECOND: f64 = 200.0;
const ERRORS: &str =
    "  - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}\n";
/// An error that was acknowledged so long before the verdict must count.
const IN_TIME: Duration = Duration::from_secs(2);
/// Of the 99th percentile of decisions, beyond their wait.
const DELAY_MAX: Duration = Duration::from_secs(5);
const EXPORTED_WITHIN: Duration = Duration::from_secs(120);
/// The last turns take five seconds, and what is refused meanwhile is sent again.
const ENDS_WITHIN: Duration = Duration::from_secs(90);
const LEDGER: &str = "fleet.ledger";

/// See the module.
pub struct Evidence {
    pub cluster: Cluster,
    decision_wait: Duration,
    stop: oneshot::Sender<()>,
    playing: JoinHandle<Result<PlayReport, LedgerError>>,
}

/// One trace in the books.
#[derive(Debug, Default)]
struct Trace {
    /// Sent, acknowledged or not.
    sent: Vec<SpanId>,
    acknowledged: Vec<SpanId>,
    got: Vec<SpanId>,
    first_sent_at: Option<Moment>,
    /// When the first span with an error was acknowledged.
    error_at: Option<Moment>,
    first_got_at: Option<Moment>,
    /// Members that exported it, and verdicts under which they did.
    exports: Vec<(Option<String>, Option<u32>)>,
}

/// What the books say beside [`Findings`].
#[derive(Debug, Default, PartialEq, Eq)]
struct Errors {
    /// Traces with an error that was acknowledged in time, of which nothing came.
    wrongly_dropped: u64,
    /// Traces that came and have no error.
    wrongly_kept: u64,
    /// Traces with an error that was acknowledged in time.
    in_time: u64,
    /// Traces with an error that may have been too late.
    late: u64,
}

impl Evidence {
    /// A cluster and a fleet that sends to its first router until [`Self::finish`].
    pub async fn start(plan: Plan, decision_wait_seconds: u64) -> Self {
        let wait = match decision_wait_seconds {
            4 => "4s",
            10 => "10s",
            other => panic!("no text for {other} s"),
        };
        let plan = Plan {
            policies: ERRORS,
            decision_wait: wait,
            ..plan
        };
        let cluster = Cluster::start(plan).await;
        let target: Address = cluster.routers[0].grpc.to_string().parse().unwrap();
        let plan = PlayPlan {
            playback: PlaybackPlan {
                shape: Shape::Fleet,
                seed: 1,
                turns_per_second: TURNS_PER_SECOND,
                sites: 4,
            },
            duration: Duration::from_secs(3_600),
            targets: vec![Target::plain(target).unwrap()],
            ledger: cluster.dir().join(LEDGER),
        };
        let (stop, stopped) = oneshot::channel();
        let playing = tokio::spawn(play(plan, async { drop(stopped.await) }));
        let evidence = Self {
            cluster,
            decision_wait: Duration::from_secs(decision_wait_seconds),
            stop,
            playing,
        };
        evidence.goes_on(5_000).await;
        evidence
    }

    /// Waits until `spans` more are acknowledged than now.
    pub async fn goes_on(&self, spans: u64) {
        let accepted = async || {
            let spans = "tailring_router_spans_accepted_total";
            self.cluster.routers[0].metric(spans, &[]).await
        };
        let before = accepted().await;
        until("the fleet goes on", PATIENCE * 2, async || {
            (accepted().await > before + spans).then_some(())
        })
        .await;
    }

    /// Ends the fleet and waits for everything to be judged; compares the books.
    pub async fn finish(mut self, row: &mut Row, scale: Scale) {
        // Who does not listen any more has ended, which its report says.
        let _told = self.stop.send(());
        let report = tokio::time::timeout(ENDS_WITHIN, self.playing).await;
        let report = report.expect("the fleet ends").unwrap().unwrap();
        row.must(report.spans_acknowledged == report.spans_sent, || {
            format!("not all was acknowledged: {report:?}")
        });
        self.cluster.settled(EXPORTED_WITHIN).await;
        self.cluster.stop_sink().await;
        let dir = self.cluster.dir();
        let traces = read(&dir.join(LEDGER), &dir.join("got.ledger"));
        let (found, errors) = judge(&traces, self.decision_wait);
        row.judge(found);
        row.must(errors.wrongly_dropped == 0, || {
            format!("{} traces with an error dropped", errors.wrongly_dropped)
        });
        row.must(errors.wrongly_kept == 0, || {
            format!("{} traces without an error kept", errors.wrongly_kept)
        });
        let delay = delay_p99(&traces);
        row.figure(scale, delay <= self.decision_wait + DELAY_MAX, || {
            format!("decision delay p99 {delay:.1?}")
        });
        row.note(format!(
            "from the first span to the export: p99 {:.1} s with a decision_wait of {:?}",
            delay.as_secs_f64(),
            self.decision_wait
        ));
        row.must(errors.in_time > 0, || "no trace has an error".to_owned());
        row.note(format!(
            "{} of {} traces have an error that was acknowledged {IN_TIME:?} before the verdict, {} a later one; {} retries",
            errors.in_time,
            traces.len(),
            errors.late,
            report.retries
        ));
    }
}

/// Of the traces that were kept.
fn delay_p99(traces: &HashMap<TraceId, Trace>) -> Duration {
    let delays = traces.values().filter_map(|trace| {
        let (sent, got) = (trace.first_sent_at?, trace.first_got_at?);
        Some(got.since(sent))
    });
    let mut delays: Vec<_> = delays.collect();
    delays.sort_unstable();
    let last = delays.len().saturating_sub(1);
    delays.get(last * 99 / 100).copied().unwrap_or_default()
}

fn read(sent: &Path, got: &Path) -> HashMap<TraceId, Trace> {
    let mut traces = HashMap::<TraceId, Trace>::new();
    let end = ledger::read(sent, LedgerKind::Sent, |record| match record {
        Record::Sent { spans, .. } => {
            for key in spans.iter() {
                traces.entry(key.trace).or_default().sent.push(key.span);
            }
        }
        Record::Played(batch) => {
            for facts in batch.spans.iter() {
                let trace = traces.entry(facts.key.trace).or_default();
                trace.acknowledged.push(facts.key.span);
                let first = trace.first_sent_at.get_or_insert(batch.sent_at);
                *first = (*first).min(batch.sent_at);
                if facts.has_error {
                    let at = trace.error_at.get_or_insert(batch.acknowledged_at);
                    *at = (*at).min(batch.acknowledged_at);
                }
            }
        }
        Record::Acknowledged { .. } | Record::Got(_) => {}
    });
    end.unwrap();
    let end = ledger::read(got, LedgerKind::Got, |record| {
        let Record::Got(export) = record else { return };
        let member = export.member.as_ref().map(ToString::to_string);
        let export_at = export.at;
        for span in &export.spans {
            let trace = traces.entry(span.key.trace).or_default();
            trace.got.push(span.key.span);
            let at = trace.first_got_at.get_or_insert(export_at);
            *at = (*at).min(export_at);
            let export = (member.clone(), span.verdict.map(|verdict| verdict.0));
            if !trace.exports.contains(&export) {
                trace.exports.push(export);
            }
        }
    });
    end.unwrap();
    traces
}

fn judge(traces: &HashMap<TraceId, Trace>, decision_wait: Duration) -> (Findings, Errors) {
    let mut found = Findings {
        sent: 0,
        acknowledged: 0,
        got: 0,
        lost: 0,
        doubled: 0,
        split: 0,
        unknown: 0,
    };
    let mut errors = Errors::default();
    for trace in traces.values() {
        found.sent += trace.sent.len() as u64;
        found.acknowledged += trace.acknowledged.len() as u64;
        found.got += trace.got.len() as u64;
        let mut got = trace.got.clone();
        got.sort_unstable();
        got.dedup();
        found.doubled += (trace.got.len() - got.len()) as u64;
        let unknown = got.iter().filter(|span| !trace.sent.contains(span));
        found.unknown += unknown.count() as u64;
        let missing = trace.acknowledged.iter();
        let missing = missing.filter(|span| got.binary_search(span).is_err());
        let missing = missing.count() as u64;
        let is_kept = !got.is_empty();
        let is_partial = is_kept && missing > 0;
        found.split += u64::from(trace.exports.len() > 1 || is_partial);
        let first_sent_at = trace.first_sent_at.unwrap_or_default();
        match trace.error_at {
            // The verdict is not before: the owner counts from when the first span came to it.
            Some(at) if at.since(first_sent_at) + IN_TIME <= decision_wait => {
                errors.in_time += 1;
                errors.wrongly_dropped += u64::from(!is_kept);
                found.lost += missing;
            }
            Some(_) => errors.late += 1,
            None => errors.wrongly_kept += u64::from(is_kept),
        }
    }
    (found, errors)
}

#[test]
fn errors_in_time_must_be_kept_whole_and_nothing_else() {
    let second = |seconds: u64| Moment::ZERO + Duration::from_secs(seconds);
    let span = |number| SpanId::new([number; 8]).unwrap();
    let judged = |error_at: Option<u64>, got: &[u8], exports: usize| {
        let trace = Trace {
            sent: vec![span(1), span(2)],
            acknowledged: vec![span(1), span(2)],
            got: got.iter().map(|number| span(*number)).collect(),
            first_sent_at: Some(second(1)),
            first_got_at: None,
            error_at: error_at.map(second),
            exports: (0..exports)
                .map(|verdict| (None, Some(verdict as u32)))
                .collect(),
        };
        let traces = HashMap::from([(TraceId::new([1; 16]).unwrap(), trace)]);
        let (found, errors) = judge(&traces, Duration::from_secs(4));
        (
            [found.lost, found.doubled, found.split, found.unknown],
            [
                errors.wrongly_dropped,
                errors.wrongly_kept,
                errors.in_time,
                errors.late,
            ],
        )
    };
    assert_eq!(judged(None, &[], 0), ([0; 4], [0; 4]));
    assert_eq!(judged(None, &[1, 2], 1), ([0; 4], [0, 1, 0, 0]));
    assert_eq!(judged(Some(3), &[1, 2], 1), ([0; 4], [0, 0, 1, 0]));
    assert_eq!(judged(Some(3), &[], 0), ([2, 0, 0, 0], [1, 0, 1, 0]));
    assert_eq!(judged(Some(3), &[1], 1), ([1, 0, 1, 0], [0, 0, 1, 0]));
    assert_eq!(
        judged(Some(3), &[1, 2, 2, 3], 1),
        ([0, 1, 0, 1], [0, 0, 1, 0])
    );
    assert_eq!(judged(Some(3), &[1, 2], 2), ([0, 0, 1, 0], [0, 0, 1, 0]));
    // 2 s before 5 s is 3 s.
    assert_eq!(judged(Some(4), &[], 0), ([0; 4], [0, 0, 0, 1]));
}
