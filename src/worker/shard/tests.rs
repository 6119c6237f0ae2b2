//! The shard against a simulated disk, with time in our hands.

mod handoff;
mod judge;
mod log;
mod model;
mod pressure;

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prometheus_client::registry::Registry;
use prost::Message;

use super::*;
use crate::log::{SimulatedDisk, SpaceConfig, Volume, recover};
use crate::model::VerdictId;
use crate::net::admission::Budget;
use crate::policy::{Limits, Policy, PolicyKind, Timing};
use crate::wire::ScanLimits;
use crate::worker::disk::{self, AckLevel};
use crate::worker::start::fold_again;

const MIB: u32 = 1 << 20;

fn at(seconds: u64) -> Moment {
    Moment::from_unix_millis(1_800_000_000_000) + Duration::from_secs(seconds)
}

fn trace(n: u64) -> TraceId {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    TraceId::new(id).unwrap()
}

fn rules(timing: Timing, keep: bool) -> Arc<Rules> {
    let only = Policy {
        name: "only".into(),
        kind: if keep {
            PolicyKind::AlwaysSample
        } else {
            PolicyKind::Probabilistic(None)
        },
    };
    Arc::new(Rules::new(timing, vec![only]))
}

fn wait(decision: u64) -> Timing {
    Timing {
        decision_wait: Duration::from_secs(decision),
        quiet_period: None,
        decision_wait_after_root_received: None,
    }
}

/// Spans `ids` of one trace in one request; span 0 is the root.
fn spans(n: u64, ids: std::ops::Range<u64>, name: &str) -> Incoming {
    let spans = ids
        .map(|id| Span {
            trace_id: trace(n).as_bytes().to_vec(),
            span_id: (id + 1).to_be_bytes().to_vec(),
            parent_span_id: if id == 0 { vec![] } else { vec![1; 8] },
            name: name.into(),
            ..Span::default()
        })
        .collect();
    let message = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource::default()),
            scope_spans: vec![ScopeSpans {
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    Incoming::parse(
        message.encode_to_vec().into(),
        &ScanLimits::default(),
        Budget::new(1 << 30).try_take(1).unwrap(),
    )
    .unwrap()
}

struct Bench {
    shard: Shard,
    space: Arc<Space>,
    disk: SimulatedDisk,
    volume: Arc<Volume<SimulatedDisk>>,
    limits: Option<Limits<TraceId>>,
}

impl Bench {
    fn new(rules: Arc<Rules>) -> Self {
        Self::on(SimulatedDisk::default(), rules, u64::MAX, MIB, at(0))
    }

    /// So small that a few hundred spans fill several.
    fn of_small_segments(rules: Arc<Rules>) -> Self {
        Self::on(SimulatedDisk::default(), rules, u64::MAX, 64 << 10, at(0))
    }

    fn on(
        disk: SimulatedDisk,
        rules: Arc<Rules>,
        log_max_bytes: u64,
        segment_bytes: u32,
        now: Moment,
    ) -> Self {
        let space = Space::new(SpaceConfig {
            segment_bytes,
            log_max_bytes,
            shards: 1,
        });
        let volume = Volume::new(disk.clone());
        let config = ShardConfig {
            trace_spans_max: 1_000,
            trace_bytes_max: 1 << 20,
            index_bytes_max: 1 << 20,
            on_pressure: OnPressure::Refuse,
            spare_buffer_bytes_max: usize::MAX,
            drop_retain: Duration::from_secs(120),
            decision_memory: DecisionMemory {
                bytes_max: 1 << 20,
                decisions: Duration::from_secs(600),
                exported_hashes: Duration::from_secs(300),
            },
            verdict_seed: now.unix_nanos,
        };
        let metrics = WorkerMetrics::register(&mut Registry::default());
        let writer = Writer::new(0, space.clone(), 1);
        let limits = Limits::of(&rules, now);
        let mut shard = Shard::new(0, config, rules, writer, space.clone(), metrics);
        recover(&volume, &space, &mut |record| shard.recover(record)).unwrap();
        fold_again(&volume, &mut shard).unwrap();
        shard.recovered(now);
        shard.set_deciding(true);
        let mut bench = Self {
            shard,
            space,
            disk,
            volume,
            limits,
        };
        bench.write();
        bench
    }

    /// A process that died and came back.
    fn restart(self, rules: Arc<Rules>, now: Moment) -> Self {
        Self::on(self.disk, rules, u64::MAX, MIB, now)
    }

    fn append(&mut self, incoming: &Incoming, now: Moment) -> Result<Vec<u32>, AppendRefused> {
        self.append_as(incoming, Placement::Mine, now)
    }

    fn append_as(
        &mut self,
        incoming: &Incoming,
        placement: Placement,
        now: Moment,
    ) -> Result<Vec<u32>, AppendRefused> {
        let all: Vec<_> = (0..incoming.fragments.all().len() as u32)
            .map(|number| (number, placement))
            .collect();
        self.shard.append(incoming, &all, now)
    }

    /// Everything pending goes to disk; false if it failed.
    fn write_at(&mut self, now: Moment) -> bool {
        while let Some((number, ops)) = self.shard.take_batch() {
            let mut buffers = Vec::new();
            let result = disk::apply(&self.volume, AckLevel::Written, ops, &mut buffers);
            for buffer in buffers {
                self.shard.recycle(buffer);
            }
            let Ok(applied) = result else {
                self.shard.batch_failed(number, now);
                return false;
            };
            self.shard.batch_written(number);
            if applied.unlink_failed {
                self.shard.unlink_failed(now);
            }
        }
        true
    }

    fn write(&mut self) {
        assert!(self.write_at(at(0)));
    }

    /// What is pending is lost on its way to disk.
    fn fail(&mut self, now: Moment) {
        self.disk.fail_writes_after(Some(0));
        assert!(!self.write_at(now));
        self.disk.fail_writes_after(None);
    }

    fn tick(&mut self, now: Moment) {
        self.shard.tick(now);
        self.ask_limits(now);
        assert!(self.write_at(now));
    }

    /// What the limits' thread does.
    fn ask_limits(&mut self, now: Moment) {
        let mut answers = Vec::new();
        while let Some(ask) = self.shard.next_ask() {
            let to = ask.waits.then_some(ask.of.trace);
            let limits = self.limits.as_mut().expect("who asks has limits");
            limits.ask(ask.of, to, now, &mut answers);
        }
        if let Some(limits) = &mut self.limits {
            limits.close(now, &mut answers);
        }
        for answer in answers {
            self.shard.answered(answer.to, &answer.answers, now);
        }
    }

    /// Pulls what is there; per trace its verdict ID and span IDs, and confirms the export.
    fn export(&mut self, now: Moment) -> BTreeMap<TraceId, (VerdictId, Vec<u64>)> {
        let mut got = BTreeMap::new();
        while let Some(work) = self.shard.pull(1 << 20, 10) {
            for export in &work.traces {
                let extents: Vec<_> = export.fragments.iter().map(FragmentRef::extent).collect();
                let mut ids = Vec::new();
                for stored in self.volume.read(&extents).unwrap() {
                    assert_eq!(stored.trace, export.decision.trace);
                    for scope in stored.scopes {
                        ids.extend(crate::wire::spans_in(&scope.spans).map(|(_, span)| {
                            let id = crate::wire::span_id_of(span).unwrap();
                            u64::from_be_bytes(*id.as_bytes()) - 1
                        }));
                    }
                }
                let old = got.insert(export.decision.trace, (export.decision.id, ids));
                assert!(old.is_none(), "a trace is in one piece of work at a time");
            }
            self.shard.exported(work, now);
            self.write();
        }
        got
    }
}

#[test]
fn a_trace_is_exported_whole_after_its_wait_and_once() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 1..3, "a"), at(0)).unwrap();
    bench.append(&spans(1, 0..1, "root"), at(29)).unwrap();
    bench.write();
    bench.tick(at(29));
    assert!(bench.export(at(29)).is_empty());
    bench.tick(at(30));
    let got = bench.export(at(30));
    assert_eq!(got[&trace(1)].1, [1, 2, 0]);
    bench.tick(at(31));
    assert!(bench.export(at(31)).is_empty());
    assert_eq!(bench.shard.awaiting_export(), 0);
}

#[test]
fn nothing_is_exported_before_its_verdict_is_on_disk() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.write();
    bench.shard.tick(at(30));
    assert!(bench.shard.pull(u64::MAX, 10).is_none());
    bench.write();
    assert!(bench.shard.pull(u64::MAX, 10).is_some());
}

#[test]
fn the_quiet_period_the_root_and_the_bound_end_a_trace_before_its_wait() {
    let timing = Timing {
        decision_wait: Duration::from_secs(600),
        quiet_period: Some(Duration::from_secs(30)),
        decision_wait_after_root_received: Some(Duration::from_secs(5)),
    };
    let mut bench = Bench::new(rules(timing, true));
    // Not quiet for 30 s until second 20 + 30.
    bench.append(&spans(1, 1..2, "a"), at(0)).unwrap();
    bench.append(&spans(1, 2..3, "a"), at(20)).unwrap();
    // The root at second 21.
    bench.append(&spans(2, 1..2, "a"), at(0)).unwrap();
    bench.append(&spans(2, 0..1, "root"), at(21)).unwrap();
    // 1,000 spans at once.
    bench.append(&spans(3, 1..1001, "a"), at(0)).unwrap();
    bench.write();
    let mut decided_at = BTreeMap::new();
    for second in 0..60 {
        bench.tick(at(second));
        for trace in bench.export(at(second)).keys() {
            decided_at.insert(*trace, second);
        }
    }
    assert_eq!(decided_at[&trace(1)], 50);
    assert_eq!(decided_at[&trace(2)], 26);
    assert_eq!(decided_at[&trace(3)], 0);
}

#[test]
fn a_retry_is_recognised_before_and_after_the_verdict() {
    let mut bench = Bench::new(rules(wait(30), true));
    let request = spans(1, 0..3, "a");
    for second in [0, 1, 2] {
        bench.append(&request, at(second)).unwrap();
    }
    bench.write();
    bench.tick(at(30));
    // Kept, not exported yet.
    bench.append(&request, at(31)).unwrap();
    assert_eq!(bench.export(at(31))[&trace(1)].1, [0, 1, 2]);
    // Exported.
    bench.append(&request, at(32)).unwrap();
    bench.append(&request, at(31 + 299)).unwrap();
    bench.tick(at(31 + 299));
    assert!(bench.export(at(31 + 299)).is_empty());
}

#[test]
fn late_spans_obey_the_remembered_verdict() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.tick(at(30));
    let first = bench.export(at(30))[&trace(1)].0;
    bench.append(&spans(1, 1..2, "late"), at(100)).unwrap();
    bench.tick(at(100));
    let late = &bench.export(at(100))[&trace(1)];
    assert_eq!((late.0, late.1.as_slice()), (first, &[1][..]));

    let mut bench = Bench::new(rules(wait(30), false));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.tick(at(30));
    bench.append(&spans(1, 1..2, "late"), at(100)).unwrap();
    assert_eq!(bench.shard.index.len(), 0, "acknowledged and gone");
}

#[test]
fn a_late_span_that_comes_during_the_export_goes_out_after_it() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.tick(at(30));
    let work = bench.shard.pull(u64::MAX, 10).unwrap();
    bench.append(&spans(1, 1..2, "late"), at(31)).unwrap();
    bench.tick(at(31));
    assert!(bench.shard.pull(u64::MAX, 10).is_none(), "one at a time");
    bench.shard.exported(work, at(32));
    bench.tick(at(32));
    assert_eq!(bench.export(at(32))[&trace(1)].1, [1]);
}

#[test]
fn what_belongs_elsewhere_is_passed_on_unless_it_is_held_already() {
    let mut bench = Bench::new(rules(wait(30), true));
    let request = spans(1, 0..1, "a");
    let elsewhere = bench.append_as(&request, Placement::Elsewhere, at(0));
    assert_eq!(elsewhere, Ok(vec![0]));
    assert_eq!(bench.shard.index.len(), 0);
    bench
        .append_as(&request, Placement::Custody, at(0))
        .unwrap();
    let more = bench.append_as(&spans(1, 1..2, "b"), Placement::Elsewhere, at(1));
    assert_eq!(more, Ok(vec![]), "the holder comes first");
    bench.tick(at(30));
    assert_eq!(bench.export(at(30))[&trace(1)].1, [0, 1]);
}

#[test]
fn the_next_life_goes_on_where_this_one_ended() {
    let timing = wait(30);
    let mut bench = Bench::new(rules(timing, true));
    bench.append(&spans(1, 0..2, "exported"), at(0)).unwrap();
    bench.tick(at(30));
    let exported = bench.export(at(30));
    bench.append(&spans(2, 0..2, "kept"), at(31)).unwrap();
    bench.tick(at(61));
    bench.append(&spans(3, 0..2, "undecided"), at(62)).unwrap();
    bench.write();

    let mut bench = bench.restart(rules(timing, true), at(70));
    bench.tick(at(70));
    let got = bench.export(at(70));
    assert_eq!(got.keys().collect::<Vec<_>>(), [&trace(2)]);
    // Retries of what an earlier life exported are known, late spans have the old verdict.
    bench.append(&spans(1, 0..2, "exported"), at(71)).unwrap();
    bench.append(&spans(1, 5..6, "late"), at(71)).unwrap();
    bench.tick(at(71));
    let late = bench.export(at(71));
    assert_eq!(late[&trace(1)], (exported[&trace(1)].0, vec![5]));
    // The deadline of the undecided trace is the original one.
    bench.tick(at(91));
    assert!(bench.export(at(91)).is_empty());
    bench.tick(at(92));
    assert_eq!(bench.export(at(92))[&trace(3)].1, [0, 1]);
}

#[test]
fn a_late_span_of_an_earlier_life_is_exported_by_the_next_one() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.tick(at(30));
    let first = bench.export(at(30))[&trace(1)].0;
    bench.append(&spans(1, 1..2, "late"), at(31)).unwrap();
    bench.write();

    let mut bench = bench.restart(rules(wait(30), true), at(40));
    bench.tick(at(40));
    assert_eq!(bench.export(at(40))[&trace(1)], (first, vec![1]));
}

#[test]
fn a_late_span_goes_out_only_after_it_is_on_disk() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.tick(at(30));
    // The trace stands in the queue already; its late span is in memory only.
    bench.append(&spans(1, 1..2, "late"), at(31)).unwrap();
    let work = bench.shard.pull(u64::MAX, 10).unwrap();
    assert_eq!(work.traces[0].fragments.len(), 1);
    bench.write();
    bench.shard.exported(work, at(32));
    bench.write();
    assert_eq!(bench.export(at(32))[&trace(1)].1, [1]);
}

#[test]
fn what_was_put_back_is_offered_again_though_nothing_else_happens() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.tick(at(30));
    let work = bench.shard.pull(u64::MAX, 10).unwrap();
    bench.shard.put_back(work, at(31));
    bench.tick(at(90));
    assert!(bench.shard.pull(u64::MAX, 10).is_none());
    bench.tick(at(91));
    assert_eq!(bench.export(at(91)).len(), 1);
}

#[test]
fn what_waited_for_a_backend_longer_than_verdicts_are_remembered_is_exported_by_the_next_life() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.tick(at(30));
    let mut bench = bench.restart(rules(wait(30), true), at(2_000));
    bench.tick(at(2_000));
    assert_eq!(bench.export(at(2_000)).len(), 1);
}

#[test]
fn at_the_memory_bound_new_traces_are_refused_until_there_is_room() {
    let mut bench = Bench::new(rules(wait(10), true));
    let mut taken = 0;
    let refused = loop {
        match bench.append(&spans(taken, 0..1, "a"), at(0)) {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, AppendRefused::MemoryFull);
    assert!((1_000..5_000).contains(&taken), "{taken} traces in 1 MiB");
    // A retry of what is held is acknowledged even now.
    assert!(bench.append(&spans(0, 0..1, "a"), at(0)).is_ok());
    bench.tick(at(10));
    assert_eq!(bench.export(at(10)).len() as u64, taken);
    assert_eq!(bench.shard.index.bytes(), 0);
    assert!(bench.append(&spans(9_999, 0..1, "a"), at(11)).is_ok());
}
