//! Segments that go before their turn: what they hold is elsewhere by then, and what they say, too.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::log::{ReadError, Recovered};
use crate::worker::compactor;

const SEGMENT: u32 = 64 << 10;

fn timing() -> Timing {
    Timing {
        decision_wait: Duration::from_secs(600),
        quiet_period: Some(Duration::from_secs(10)),
        decision_wait_after_root_received: None,
    }
}

impl Bench {
    /// Until the compactor has nothing to do, and it is how late then.
    pub(super) fn compact(&mut self, now: Moment) -> Moment {
        let budget = Budget::new(1 << 30);
        let mut now = now;
        let mut idle = 0;
        while idle < 3 {
            assert!(self.write_at(now));
            match self.shard.next_compaction(now) {
                Some(job) => {
                    idle = 0;
                    let done = compactor::carry_out(&self.volume, &budget, job);
                    self.shard.compacted(done.answer, now);
                }
                // Reads come every 10 ms, and a batch may have to be written first.
                None => {
                    idle += 1;
                    now = now + Duration::from_millis(60);
                    self.shard.tick(now);
                }
            }
        }
        assert!(self.write_at(now));
        now
    }

    /// Frames of undecided and kept traces, and of dropped ones that are young, and what is remembered of others.
    fn live_bytes(&self) -> u64 {
        let held = self.shard.index.traces();
        let held = held.flat_map(|(_, entry)| entry.fragments());
        let held: u64 = held.map(|it| u64::from(it.extent().len)).sum();
        let retained = self.shard.retained.iter().flat_map(|it| &it.fragments);
        let remembered = self.shard.decisions.recorded_bytes();
        held + retained.map(|(_, frames)| frames.bytes).sum::<u64>() + remembered
    }

    fn assert_within_bound(&self, when: &str) {
        let (_, used) = self.space.live_and_used_bytes();
        let live = self.live_bytes();
        assert!(
            used <= 2 * live + 2 * u64::from(SEGMENT),
            "{when}: {used} bytes in segments, {live} of them live"
        );
    }

    /// One trace that goes on and on, among many that are exported or dropped after ten seconds.
    fn live_through(&mut self, seconds: std::ops::Range<u64>) {
        let name = "x".repeat(2_000);
        for second in seconds {
            let long = spans(0, second..second + 1, "long");
            self.append(&long, at(second)).unwrap();
            let short = spans(1_000 + second, 0..5, &name);
            self.append(&short, at(second)).unwrap();
            self.tick(at(second));
            self.export(at(second));
            self.tick(at(second));
            self.compact(at(second));
        }
    }
}

#[test]
fn a_log_stays_within_twice_what_is_live_and_two_segments_whatever_lives_how_long() {
    let mut compacted = 0;
    for seed in 1..=12 {
        let mut random = SmallRng::seed_from_u64(seed);
        let keeps = random.random_range(0..3) > 0;
        let mut bench = Bench::of_small_segments(rules(timing(), keeps));
        bench.shard.config.index_bytes_max = 64 << 20;
        bench.shard.config.drop_retain = Duration::from_secs(20);
        let mut next = 0;
        let mut living: Vec<(u64, u64)> = Vec::new();
        for second in 0..240 {
            let now = at(second);
            for _ in 0..random.random_range(0..6) {
                next += 1;
                // Most come once; some every few seconds for minutes.
                let lasts = if random.random_range(0..40) == 0 {
                    200
                } else {
                    0
                };
                living.push((next, second + lasts));
            }
            for (trace, until) in &living {
                if random.random_range(0..3) > 0 {
                    let size = random.random_range(10..if *until > second { 300 } else { 6_000 });
                    let incoming = spans(*trace, second..second + 1, &"x".repeat(size));
                    bench.append(&incoming, now).unwrap();
                }
            }
            living.retain(|(_, until)| *until > second);
            bench.tick(now);
            // A tenth of the traces is refused by the backend, for minutes.
            while let Some(work) = bench.shard.pull(8 << 10, 3) {
                let is_refused =
                    |it: &ExportTrace| it.decision.trace.as_bytes()[7].is_multiple_of(10);
                if work.traces.iter().any(is_refused) && second < 200 {
                    bench.shard.put_back(work, now);
                } else {
                    bench.shard.exported(work, now);
                }
            }
            bench.tick(now);
            bench.compact(now);
            bench.assert_within_bound(&format!("seed {seed}, second {second}"));
        }
        for second in (240..1_100).step_by(20) {
            bench.tick(at(second));
            bench.export(at(second));
            bench.tick(at(second));
            bench.compact(at(second));
            bench.assert_within_bound(&format!("seed {seed}, at rest at {second}"));
        }
        assert_eq!(bench.live_bytes(), 0, "seed {seed}");
        assert!(bench.space.segments() <= 2);
        compacted += bench.shard.metrics.log_segments_compacted.get();
    }
    assert!(compacted > 60, "{compacted} segments were compacted");
}

#[test]
fn what_was_dropped_stays_dropped_when_the_segment_that_says_so_went_first() {
    let mut bench = Bench::of_small_segments(rules(timing(), false));
    bench.shard.config.drop_retain = Duration::ZERO;
    bench.live_through(0..100);
    assert!(bench.shard.metrics.log_segments_compacted.get() > 5);
    assert_eq!(
        bench.shard.index.len(),
        11,
        "the long one, and what is not complete"
    );
    // Verdicts are forgotten by then.
    let mut bench = Bench::on(
        bench.disk,
        rules(timing(), true),
        u64::MAX,
        SEGMENT,
        at(101),
    );
    assert_eq!(bench.shard.index.len(), 11);
    bench.tick(at(900));
    let got = bench.export(at(900));
    assert_eq!(got.len(), 11, "nothing that was dropped came back");
    let mut long = got[&trace(0)].1.clone();
    long.sort_unstable();
    assert_eq!(long, (0..100).collect::<Vec<_>>());
}

#[test]
fn what_was_dropped_and_is_young_is_moved_and_found_when_its_drop_rises() {
    const RETAIN: Duration = Duration::from_secs(120);
    for has_restarted in [false, true] {
        let mut bench = Bench::of_small_segments(rules(timing(), false));
        bench.shard.config.drop_retain = Duration::ZERO;
        for second in 0..3 {
            // Fragments in three segments, of which memory has the last one's place.
            let few = spans(1, second..second + 1, "few");
            bench.append(&few, at(second)).unwrap();
            let beside = spans(2 + second, 0..5, &"x".repeat(8_000));
            bench.append(&beside, at(second)).unwrap();
        }
        bench.append(&spans(1, 3..4, "few"), at(8)).unwrap();
        bench.tick(at(13));
        bench.shard.config.drop_retain = RETAIN;
        bench.tick(at(20));
        let dropped = *bench.shard.verdict(trace(1)).unwrap();
        assert_eq!(dropped.verdict, Verdict::Drop);
        bench.append(&spans(1, 4..5, "late"), at(21)).unwrap();
        assert!(bench.write_at(at(21)));
        let segments = |bench: &Bench| -> BTreeSet<SegmentId> {
            let parts = bench.shard.retained.iter();
            let parts = parts.filter(|it| it.trace == trace(1));
            parts
                .flat_map(|it| it.fragments.iter().map(|(segment, _)| *segment))
                .collect()
        };
        let before = segments(&bench);
        assert!(before.len() >= 2, "{before:?}");
        bench.shard.config.drop_retain = Duration::ZERO;
        bench.live_through(22..80);
        assert!(segments(&bench).is_disjoint(&before), "all were moved");
        assert!(before.iter().all(|it| !bench.space.is_there(*it)));
        if has_restarted {
            bench = Bench::on(
                bench.disk,
                rules(timing(), false),
                u64::MAX,
                SEGMENT,
                at(81),
            );
        }
        bench.shard.config.drop_retain = RETAIN;
        let keep = Decision {
            verdict: Verdict::Keep,
            ..dropped
        };
        bench.shard.learn(&[keep], at(82));
        assert!(bench.write_at(at(82)));
        bench.read_again(at(82));
        let got = bench.exports(at(82));
        assert_eq!(got[&trace(1)], (0..5).collect(), "{has_restarted}");
    }
}

#[test]
fn what_is_out_with_an_exporter_is_found_again_where_it_was_moved() {
    let mut bench = Bench::of_small_segments(rules(timing(), true));
    bench.append(&spans(1, 0..3, "early"), at(0)).unwrap();
    bench.tick(at(10));
    let work = bench.shard.pull(1 << 20, 1).unwrap();
    let old = work.traces[0].fragments[0].extent();
    bench.live_through(11..60);
    assert!(!bench.space.is_there(old.segment), "its segment went");
    assert!(matches!(
        bench.volume.read(&[old]),
        Err(ReadError::Moved { .. })
    ));
    bench.shard.offer_again(work);
    let again = bench.shard.pull(1 << 20, 1).unwrap();
    let new = again.traces[0].fragments[0].extent();
    assert_ne!(old, new);
    assert_eq!(bench.volume.read(&[new]).unwrap()[0].spans, 3);

    // One that had been read by then is exported as if nothing had happened.
    bench.live_through(60..120);
    assert!(!bench.space.is_there(new.segment));
    bench.shard.exported(again, at(120));
    bench.tick(at(130));
    bench.export(at(130));
    bench.tick(at(131));
    bench.compact(at(131));
    assert_eq!(bench.shard.index.len(), 0);
    assert!(bench.space.segments() <= 2);
    let mut bench = bench.restart(rules(timing(), true), at(140));
    bench.tick(at(900));
    assert!(bench.export(at(900)).is_empty());
}

#[test]
fn a_verdict_outlives_its_segment_as_long_as_its_trace_waits_for_the_backend() {
    let mut bench = Bench::of_small_segments(rules(timing(), true));
    bench.append(&spans(1, 0..3, "early"), at(0)).unwrap();
    bench.tick(at(10));
    let verdict = bench.shard.pull(1 << 20, 1).unwrap().traces[0].decision;
    // The backend does not answer. Late spans come, too.
    bench.live_through(11..400);
    bench.append(&spans(1, 5..6, "late"), at(400)).unwrap();
    bench.live_through(400..800);
    assert!(bench.shard.verdict(trace(1)).is_none(), "it is forgotten");
    // The next life drops whatever it judges.
    let mut bench = Bench::on(
        bench.disk,
        rules(timing(), false),
        u64::MAX,
        SEGMENT,
        at(801),
    );
    let mut got = bench.export(at(801));
    let (id, mut ids) = got.remove(&trace(1)).unwrap();
    ids.sort_unstable();
    assert_eq!((id, ids), (verdict.id, vec![0, 1, 2, 5]));
}

#[test]
fn a_request_that_was_exported_is_recognised_after_a_restart_when_its_segment_is_gone() {
    let mut bench = Bench::of_small_segments(rules(timing(), true));
    let request = spans(1, 0..3, "again");
    bench.append(&request, at(0)).unwrap();
    bench.tick(at(10));
    assert_eq!(bench.export(at(10)).len(), 1);
    bench.live_through(11..100);
    for start in [100, 200] {
        bench = Bench::on(
            bench.disk,
            rules(timing(), true),
            u64::MAX,
            SEGMENT,
            at(start),
        );
        bench.append(&request, at(start)).unwrap();
        bench.tick(at(start));
        let got = bench.export(at(start));
        assert!(!got.contains_key(&trace(1)), "{got:?}");
        bench.live_through(start..start + 90);
    }
}

#[test]
fn what_was_exported_is_carried_from_the_segment_that_it_was_carried_into() {
    let mut bench = Bench::of_small_segments(rules(timing(), true));
    for n in 0..3 {
        bench.append(&spans(n, 0..1, "kept"), at(0)).unwrap();
    }
    bench.tick(at(10));
    // Two of these lists do not fit into one segment.
    for n in 0..3 {
        let hashes = (0..3_000).map(FragmentHash);
        let decisions = &mut bench.shard.decisions;
        decisions.note_exported(trace(n), hashes, SegmentId(900), at(10));
    }
    let mut into = BTreeSet::new();
    bench.shard.carry_exports(SegmentId(900), &mut into);
    assert_eq!(into.len(), 3);
    for segment in into {
        assert_eq!(bench.shard.decisions.exports_in(segment).len(), 1);
    }
}

/// A crash left a fragment and its copy; then a segment that said that the first one is settled went, and left GONE.
fn held_of_two_copies() -> Vec<Extent> {
    let mut shard = Bench::of_small_segments(rules(timing(), true)).shard;
    for extent in [OLDER, YOUNGER] {
        shard.recover(Recovered::Fragment {
            extent,
            trace: trace(1),
            hash: FragmentHash(7),
            arrival: at(0),
            spans: 1,
            span_bytes: 80,
            has_root: false,
            is_received: false,
        });
    }
    let gone = GoneTrace {
        trace: trace(1),
        live: Vec::new(),
    };
    shard.recover(Recovered::Gone {
        segment: OLDER.segment,
        traces: vec![gone],
    });
    shard.recovered(at(1));
    let entry = shard.index.get(trace(1)).into_iter();
    let held = entry.flat_map(|entry| entry.fragments());
    held.map(FragmentRef::extent).collect()
}

const OLDER: Extent = Extent {
    segment: SegmentId(901),
    offset: 64,
    len: 100,
};
const YOUNGER: Extent = Extent {
    segment: SegmentId(905),
    offset: 640,
    len: 100,
};

#[test]
fn of_two_copies_a_start_holds_the_younger_one() {
    assert_eq!(held_of_two_copies(), [YOUNGER]);
    PlantedBug::plant(Some(PlantedBug::OlderCopyHeld));
    let held = held_of_two_copies();
    PlantedBug::plant(None);
    assert_eq!(held, [], "nobody finds this bug");
}
