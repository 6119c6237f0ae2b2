//! What a shard does with its log: what is freed and when, the byte bound, and a disk that fails.

use super::*;

#[test]
fn a_failed_write_forgets_its_fragments_and_writes_its_verdicts_again() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.write();
    // The verdict on trace 1 and a fragment of trace 2 are lost.
    let request = spans(2, 0..1, "b");
    bench.append(&request, at(30)).unwrap();
    bench.shard.tick(at(30));
    bench.disk.fail_writes_after(Some(0));
    assert!(!bench.write_at(at(30)));
    bench.disk.fail_writes_after(None);
    assert_eq!(
        bench.append(&request, at(30)),
        Err(AppendRefused::LogFailed)
    );
    assert!(
        bench.shard.pull(u64::MAX, 10).is_none(),
        "no verdict on disk"
    );
    bench.tick(at(32));
    assert_eq!(bench.export(at(32)).keys().collect::<Vec<_>>(), [&trace(1)]);
    // The client's retry is new to us.
    bench.append(&request, at(33)).unwrap();
    bench.tick(at(70));
    assert_eq!(bench.export(at(70))[&trace(2)].1, [0]);
    // And the next life sees it the same way.
    let mut bench = bench.restart(rules(wait(30), true), at(80));
    bench.tick(at(200));
    assert!(bench.export(at(200)).is_empty());
}

#[test]
fn segments_go_when_nothing_in_them_is_needed_and_decisions_outlive_them() {
    let space = |bench: &Bench| (bench.space.segments(), bench.space.used_bytes());
    let mut bench = Bench::of_small_segments(rules(wait(10), true));
    let name = "x".repeat(2_000);
    let mut first = None;
    let mut most = 0;
    for second in 0..200 {
        bench
            .append(&spans(second, 0..5, &name), at(second))
            .unwrap();
        bench.tick(at(second));
        let got = bench.export(at(second));
        first = first.or(got.get(&trace(0)).map(|(id, _)| *id));
        bench.tick(at(second));
        most = most.max(space(&bench).0);
    }
    // Ten traces of 10 kB wait at any time: two or three segments, of some thirty written.
    assert!(most <= 5, "{most} segments");
    let mut bench = Bench::on(
        bench.disk,
        rules(wait(10), true),
        u64::MAX,
        64 << 10,
        at(200),
    );
    bench.append(&spans(0, 9..10, "late"), at(201)).unwrap();
    bench.tick(at(201));
    assert_eq!(
        bench.export(at(201))[&trace(0)],
        (first.unwrap(), vec![9]),
        "its verdict was made thirty segments ago"
    );
}

#[test]
fn dropped_bytes_are_kept_for_drop_retain_and_then_go() {
    let mut bench = Bench::of_small_segments(rules(wait(10), false));
    let name = "x".repeat(2_000);
    for second in 0..100 {
        bench
            .append(&spans(second, 0..5, &name), at(second))
            .unwrap();
        bench.tick(at(second));
    }
    let full = bench.space.segments();
    assert!(full > 10, "{full}");
    bench.tick(at(110 + 119));
    bench.tick(at(110 + 120));
    bench.tick(at(110 + 120));
    assert!(bench.space.segments() <= 2, "{}", bench.space.segments());
    assert_eq!(bench.shard.index.len(), 0);
}

#[test]
fn a_log_that_is_full_with_its_open_segment_is_accepted_into_again_once_that_is_exported() {
    // Room for one segment: the one that is being written is all that can be freed.
    let segment_bytes = 64 << 10;
    let mut bench = Bench::on(
        SimulatedDisk::default(),
        rules(wait(10), true),
        3 * u64::from(segment_bytes),
        segment_bytes,
        at(0),
    );
    let name = "x".repeat(2_000);
    let mut taken = 0;
    while bench.append(&spans(taken, 0..5, &name), at(0)).is_ok() {
        taken += 1;
        bench.write();
    }
    assert!(taken > 0);
    bench.tick(at(10));
    assert_eq!(bench.export(at(10)).len() as u64, taken);
    let mut refused = 0;
    while bench.append(&spans(999, 0..5, &name), at(11)).is_err() {
        refused += 1;
        assert!(refused < 10, "nothing is held and the log is full for ever");
        bench.tick(at(11));
    }
}

#[test]
fn at_the_byte_bound_new_bytes_are_refused_until_there_is_room() {
    let reserve = 2 * (64 << 10);
    let mut bench = Bench::on(
        SimulatedDisk::default(),
        rules(wait(10), true),
        reserve + 5 * (64 << 10),
        64 << 10,
        at(0),
    );
    let name = "x".repeat(2_000);
    let mut taken = 0;
    let refused = loop {
        match bench.append(&spans(taken, 0..5, &name), at(0)) {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
        bench.write();
    };
    assert_eq!(refused, AppendRefused::LogFull);
    assert!((20..35).contains(&taken), "{taken}");
    // A retry of what is held is acknowledged even now.
    assert!(bench.append(&spans(0, 0..5, &name), at(0)).is_ok());
    bench.tick(at(10));
    assert_eq!(bench.export(at(10)).len() as u64, taken);
    bench.tick(at(11));
    bench.tick(at(11));
    assert!(bench.append(&spans(999, 0..5, &name), at(11)).is_ok());
}

#[test]
fn a_late_span_that_failed_and_came_again_goes_out_once() {
    let mut bench = Bench::new(rules(wait(30), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.tick(at(30));
    bench.export(at(30));
    let late = spans(1, 1..2, "late");
    bench.append(&late, at(31)).unwrap();
    bench.fail(at(31));
    bench.tick(at(40));
    bench.append(&late, at(40)).unwrap();
    bench.tick(at(40));
    let first = bench.shard.pull(1, 1).unwrap();
    assert!(bench.shard.pull(1, 1).is_none(), "it is at an exporter");
    bench.shard.exported(first, at(41));
    bench.write();
    assert!(bench.export(at(41)).is_empty());
}

#[test]
fn a_failed_write_under_a_dropped_trace_frees_no_other_trace_of_its_segment() {
    let mut bench = Bench::new(rules(wait(30), false));
    // Trace 1 is acknowledged; of trace 2 the second half is not.
    bench
        .append(&spans(1, 0..1, "acknowledged"), at(20))
        .unwrap();
    bench.append(&spans(2, 0..1, "a"), at(0)).unwrap();
    bench.write();
    bench.append(&spans(2, 1..2, "lost"), at(30)).unwrap();
    bench.shard.tick(at(30));
    bench.fail(at(30));
    // Trace 2 is dropped and its bytes are old; trace 1 waits for a verdict that nobody gives.
    bench.shard.set_deciding(false);
    for second in [40, 160, 161, 162] {
        bench.tick(at(second));
    }
    let mut bench = bench.restart(rules(wait(30), true), at(170));
    bench.tick(at(170));
    assert_eq!(bench.export(at(170))[&trace(1)].1, [0]);
}

#[test]
fn segments_that_were_to_go_with_a_failed_batch_go_with_a_later_one() {
    let mut bench = Bench::of_small_segments(rules(wait(10), true));
    let name = "x".repeat(2_000);
    for n in 0..100 {
        bench.append(&spans(n, 0..5, &name), at(0)).unwrap();
        bench.write();
    }
    assert!(bench.space.segments() > 10);
    bench.tick(at(10));
    while let Some(work) = bench.shard.pull(1 << 20, 10) {
        bench.shard.exported(work, at(10));
    }
    // Everything is exported; the tombstones fail to be written, and the unlinks behind them.
    bench.shard.tick(at(10));
    bench.fail(at(10));
    for second in [20, 21, 22] {
        bench.tick(at(second));
    }
    assert!(bench.space.segments() <= 2, "{}", bench.space.segments());
}

#[test]
fn a_file_that_cannot_be_removed_refuses_no_spans_and_goes_later() {
    let mut bench = Bench::of_small_segments(rules(wait(10), true));
    let name = "x".repeat(2_000);
    for n in 0..50 {
        bench.append(&spans(n, 0..5, &name), at(0)).unwrap();
        bench.write();
    }
    bench.disk.fail_unlinks(true);
    bench.tick(at(10));
    bench.export(at(10));
    for second in 11..20 {
        bench
            .append(&spans(100 + second, 0..1, "a"), at(second))
            .unwrap();
        bench.tick(at(second));
    }
    assert!(bench.space.segments() > 5);
    bench.disk.fail_unlinks(false);
    bench.tick(at(21));
    bench.tick(at(22));
    assert!(bench.space.segments() <= 2, "{}", bench.space.segments());
}

#[test]
fn a_verdict_whose_segment_was_never_made_stays_in_the_log_while_it_is_remembered() {
    let mut bench = Bench::of_small_segments(rules(wait(10), true));
    bench.append(&spans(1, 0..1, "a"), at(0)).unwrap();
    bench.write();
    // The batch at the disk is about to fail; meanwhile the writer goes on to a segment that the
    // disk never hears of, and the verdict on trace 1 is recorded there.
    bench.append(&spans(2, 0..1, "b"), at(9)).unwrap();
    let (number, ops) = bench.shard.take_batch().unwrap();
    let name = "x".repeat(2_000);
    for n in 10..30 {
        bench.append(&spans(n, 0..5, &name), at(9)).unwrap();
    }
    bench.shard.tick(at(10));
    drop(ops);
    bench.shard.batch_failed(number, at(10));
    bench.tick(at(20));
    let first = bench.export(at(20))[&trace(1)].0;
    // Many segments later.
    for second in 20..100 {
        bench
            .append(&spans(1_000 + second, 0..5, &name), at(second))
            .unwrap();
        bench.tick(at(second));
        bench.export(at(second));
        bench.tick(at(second));
    }
    let mut bench = Bench::on(
        bench.disk,
        rules(wait(10), true),
        u64::MAX,
        64 << 10,
        at(101),
    );
    bench.append(&spans(1, 5..6, "late"), at(101)).unwrap();
    bench.tick(at(101));
    assert_eq!(bench.export(at(101))[&trace(1)], (first, vec![5]));
}

#[test]
fn a_long_outage_of_the_disk_multiplies_nothing() {
    let mut bench = Bench::of_small_segments(rules(wait(10), false));
    for n in 0..100 {
        bench.append(&spans(n, 0..1, "a"), at(0)).unwrap();
    }
    bench.write();
    bench.disk.fail_writes_after(Some(0));
    let mut backlog = 0;
    for second in 10..400 {
        bench.shard.tick(at(second));
        bench.write_at(at(second));
        if second == 150 {
            backlog = bench.shard.records_at_risk();
        }
    }
    assert!(bench.shard.records_at_risk() <= backlog);
    assert!(bench.space.segments() < 100, "{}", bench.space.segments());
    bench.disk.fail_writes_after(None);
    for second in 410..415 {
        bench.tick(at(second));
    }
    assert!(bench.space.segments() <= 2, "{}", bench.space.segments());
    // It takes spans again, and old verdicts are obeyed.
    bench.append(&spans(1, 5..6, "late"), at(415)).unwrap();
    assert_eq!(bench.shard.index.len(), 0);
}
