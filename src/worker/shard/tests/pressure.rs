//! Full memory and full logs, with `--on-pressure refuse` and `decide`.

use super::*;
use crate::trace::DecideReason;

/// Traces of one span of so many bytes, until one is refused. Returns the first that was.
fn fill(bench: &mut Bench, bytes: usize, now: Moment) -> (u64, AppendRefused) {
    let name = "a".repeat(bytes);
    for n in 0.. {
        if let Err(refused) = bench.append(&spans(n, 0..1, &name), now) {
            bench.write();
            return (n, refused);
        }
        if n % 64 == 0 {
            bench.write();
        }
    }
    unreachable!("nothing is endless")
}

fn decided(bench: &Bench, reason: DecideReason) -> u64 {
    bench.shard.metrics.decided_so_far(reason)
}

fn bench(keep: bool, on_pressure: OnPressure, log_max_bytes: u64) -> Bench {
    let disk = SimulatedDisk::default();
    let mut bench = Bench::on(disk, rules(wait(100), keep), log_max_bytes, 64 << 10, at(0));
    bench.shard.config.on_pressure = on_pressure;
    bench
}

#[test]
fn by_default_full_memory_refuses_and_every_trace_gets_its_time() {
    let mut bench = bench(true, OnPressure::Refuse, u64::MAX);
    let (taken, refused) = fill(&mut bench, 1, at(0));
    assert_eq!(refused, AppendRefused::MemoryFull);
    for second in 1..100 {
        bench.tick(at(second));
        let again = bench.append(&spans(taken, 0..1, "a"), at(second));
        assert_eq!(again, Err(AppendRefused::MemoryFull));
    }
    assert_eq!(decided(&bench, DecideReason::Pressure), 0);
    bench.tick(at(100));
    assert_eq!(decided(&bench, DecideReason::DecisionWait), taken);
}

#[test]
fn full_memory_judges_the_oldest_early_only_with_decide_and_counts_why() {
    let mut bench = bench(true, OnPressure::Decide, u64::MAX);
    bench.append(&spans(1_000_000, 0..1, "a"), at(0)).unwrap();
    let (taken, refused) = fill(&mut bench, 1, at(1));
    assert_eq!(refused, AppendRefused::MemoryFull);
    bench.tick(at(2));
    let early = decided(&bench, DecideReason::Pressure);
    assert!(
        (taken / 9..=taken / 7).contains(&early),
        "{early} of {taken}"
    );
    assert!(
        bench.shard.verdict(trace(1_000_000)).is_some(),
        "the oldest"
    );
    let kept = bench.export(at(2));
    assert_eq!(kept.len() as u64, early);
    assert!(bench.append(&spans(taken, 0..1, "a"), at(2)).is_ok());
    // Nobody was refused since.
    bench.tick(at(3));
    assert_eq!(decided(&bench, DecideReason::Pressure), early);
    bench.tick(at(102));
    assert_eq!(
        decided(&bench, DecideReason::DecisionWait),
        taken + 2 - early
    );
}

#[test]
fn a_span_that_comes_after_an_early_verdict_obeys_it() {
    let mut bench = bench(true, OnPressure::Decide, u64::MAX);
    fill(&mut bench, 1, at(0));
    bench.tick(at(1));
    bench.export(at(1));
    bench.append(&spans(0, 1..2, "late"), at(2)).unwrap();
    bench.write();
    assert_eq!(bench.export(at(2))[&trace(0)].1, [1]);
}

/// A log of eight segments whose dropped traces would stay for two minutes.
#[test]
fn a_full_log_lets_go_of_dropped_traces_first_and_then_judges_early() {
    for on_pressure in [OnPressure::Refuse, OnPressure::Decide] {
        let mut bench = bench(false, on_pressure, 10 * (64 << 10));
        let (taken, refused) = fill(&mut bench, 2_000, at(0));
        assert_eq!(refused, AppendRefused::LogFull);
        let mut resumed = None;
        for second in 1..60 {
            bench.tick(at(second));
            bench.tick(at(second));
            let again = bench.append(&spans(taken, 0..1, "a"), at(second));
            if again.is_ok() {
                resumed = Some(second);
                break;
            }
            assert_eq!(again, Err(AppendRefused::LogFull));
        }
        let early = decided(&bench, DecideReason::Pressure);
        match on_pressure {
            OnPressure::Refuse => assert_eq!((resumed, early), (None, 0)),
            OnPressure::Decide => {
                assert!(resumed.is_some_and(|second| second < 10), "{resumed:?}");
                assert!((1..taken).contains(&early), "{early} of {taken}");
            }
        }
    }
}

#[test]
fn a_trace_at_its_bound_is_judged_at_once_and_what_comes_later_obeys() {
    for keep in [true, false] {
        let mut bench = Bench::new(rules(wait(100), keep));
        bench.append(&spans(1, 0..999, "a"), at(0)).unwrap();
        bench.write();
        assert!(bench.export(at(0)).is_empty());
        bench.append(&spans(1, 999..1_000, "a"), at(1)).unwrap();
        bench.write();
        assert_eq!(decided(&bench, DecideReason::TraceBound), 1);
        bench
            .append(&spans(1, 1_000..1_001, "late"), at(2))
            .unwrap();
        bench.write();
        bench.tick(at(3));
        let got = bench.export(at(3));
        let counts: Vec<_> = got.values().map(|(_, ids)| ids.len()).collect();
        assert_eq!(counts, if keep { vec![1_001] } else { vec![] });
        assert_eq!(decided(&bench, DecideReason::TraceBound), 1);
        // By its bytes: 1 MiB here.
        let long = "x".repeat(600 << 10);
        bench.append(&spans(2, 0..1, &long), at(4)).unwrap();
        assert_eq!(decided(&bench, DecideReason::TraceBound), 1);
        bench.append(&spans(2, 1..2, &long), at(4)).unwrap();
        assert_eq!(decided(&bench, DecideReason::TraceBound), 2);
    }
}

#[test]
fn dropped_traces_that_are_retained_cost_memory_too() {
    let mut bench = bench(false, OnPressure::Refuse, u64::MAX);
    let (taken, _) = fill(&mut bench, 1, at(0));
    bench.tick(at(100));
    let retained = bench.shard.traces_bytes();
    assert!(retained as u64 >= taken * 64, "{retained} for {taken}");
    assert!(bench.shard.memory_bytes() > retained);
    bench.tick(at(221));
    bench.tick(at(222));
    assert!(bench.shard.traces_bytes() < retained / 4);
}
