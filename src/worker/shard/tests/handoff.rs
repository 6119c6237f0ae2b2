//! Shards that hand traces over to each other, with messages in our hands; and random lives of two or three
//! of them, against what their clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::judge::{failed, file, span};
use super::*;
use crate::model::Member;
use crate::ring::{Seed, Table};
use crate::worker::handoff::{ConflictWon, GenerationEnd, ReceivedFate, intake, message};

const CHUNK: u64 = 1 << 20;

fn member(n: usize) -> Member {
    Member::parse(&format!("worker-{n}")).unwrap()
}

/// Made once: that takes milliseconds.
fn ring_of(members: &[usize]) -> Table {
    static MADE: Mutex<BTreeMap<Vec<usize>, Table>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap();
    let table = made
        .entry(members.to_vec())
        .or_insert_with(|| Table::build(members.iter().map(|n| member(*n)), Seed::DEFAULT, "test"));
    table.clone()
}

/// Traces `from..` of which this member is the owner.
fn traces_of(table: &Table, owner: usize) -> impl Iterator<Item = u64> {
    let table = table.clone();
    let owner = member(owner);
    (1_u64..).filter(move |n| table.owner(trace(*n)) == Some(&owner))
}

impl Bench {
    fn join(&mut self, table: &Table, me: usize, now: Moment) {
        let is_in = table.members().contains(&member(me));
        let ownership = if is_in {
            Ownership::new(table.clone(), member(me))
        } else {
            Ownership::of_leaving(table, member(me))
        };
        self.shard.set_ownership(ownership, now);
        self.shard.set_deciding(is_in);
    }

    /// What is to be handed over, as a message.
    fn hand_out(&mut self, bytes_max: u64, now: Moment) -> Option<(HandoffWork, Bytes)> {
        let work = self.shard.pull_handoff(bytes_max, now)?;
        let stored: Vec<Vec<_>> = work
            .traces
            .iter()
            .map(|it| {
                let extents: Vec<_> = it.fragments.iter().map(FragmentRef::extent).collect();
                self.volume.read(&extents).unwrap()
            })
            .collect();
        let stored = stored.iter().map(|it| &it[..]);
        let traces: Vec<_> = work.traces.iter().zip(stored).collect();
        let bytes = message::encode(&work.decisions, &traces, now);
        Some((work, bytes.into()))
    }

    /// Takes a message in. The answer counts once it is written.
    fn take_in(&mut self, bytes: &Bytes, now: Moment) -> Result<HandoffAnswer, AppendRefused> {
        let handed = message::decode(bytes, now).unwrap();
        let permit = Budget::new(1 << 40).try_take(1).unwrap();
        let (incoming, parts) = intake::divide(handed, permit, 1).unwrap();
        let answer = self.shard.receive(&incoming, &parts[0], now)?;
        let bytes = message::encode_answer(&answer, now);
        assert_eq!(message::decode_answer(&bytes, now), Ok(answer.clone()));
        Ok(answer)
    }

    /// Reads again what is to be, until nothing is.
    pub(super) fn read_again(&mut self, now: Moment) {
        while let Some(reopen) = self.shard.next_reopen() {
            let found = reopen.read(&self.volume).ok();
            self.shard.reopened(reopen, found, now);
            assert!(self.write_at(now));
        }
    }

    /// Traces with their span IDs that are exported now.
    pub(super) fn exports(&mut self, now: Moment) -> BTreeMap<TraceId, BTreeSet<u64>> {
        let mut got: BTreeMap<TraceId, BTreeSet<u64>> = BTreeMap::new();
        while let Some(work) = self.shard.pull(1 << 20, 10) {
            for export in &work.traces {
                let extents: Vec<_> = export.fragments.iter().map(FragmentRef::extent).collect();
                let ids = self.volume.read(&extents).unwrap();
                let scopes = ids.iter().flat_map(|it| &it.scopes);
                let spans = scopes.flat_map(|scope| crate::wire::spans_in(&scope.spans));
                let ids = spans.map(|(_, span)| {
                    let id = crate::wire::span_id_of(span).unwrap();
                    u64::from_be_bytes(*id.as_bytes()) - 1
                });
                got.entry(export.decision.trace).or_default().extend(ids);
            }
            self.shard.exported(work, now);
            assert!(self.write_at(now));
        }
        got
    }
}

/// Everything `from` has for `to`, with answers.
fn hand_all(from: &mut Bench, to: &mut Bench, now: Moment) -> usize {
    let mut messages = 0;
    while let Some((work, bytes)) = from.hand_out(CHUNK, now) {
        let answer = to.take_in(&bytes, now).unwrap();
        assert!(to.write_at(now));
        from.shard.handed_over(work, &answer, now);
        assert!(from.write_at(now));
        messages += 1;
    }
    messages
}

fn errors_are_kept() -> Arc<Rules> {
    file(
        "decision_wait: 30s\npolicies:\n  - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}\n",
    )
}

/// Two members of a ring, and the traces that the second one owns.
fn pair(rules: &Arc<Rules>) -> (Bench, Bench, Vec<u64>) {
    let table = ring_of(&[0, 1]);
    let (mut a, mut b) = (Bench::new(rules.clone()), Bench::new(rules.clone()));
    a.join(&table, 0, at(0));
    b.join(&table, 1, at(0));
    (a, b, traces_of(&table, 1).take(8).collect())
}

#[test]
fn a_trace_in_custody_goes_to_its_owner_and_keeps_its_deadline() {
    let (mut a, mut b, of_b) = pair(&rules(wait(30), true));
    let n = of_b[0];
    a.append_as(&spans(n, 1..3, "a"), Placement::Custody, at(0))
        .unwrap();
    assert!(a.write_at(at(0)));
    b.append(&spans(n, 3..4, "b"), at(10)).unwrap();
    assert!(b.write_at(at(10)));
    assert_eq!(hand_all(&mut a, &mut b, at(20)), 1);
    assert!(a.shard.index.is_empty());
    assert_eq!(a.space.segments(), 1);
    b.tick(at(29));
    assert!(b.exports(at(29)).is_empty());
    b.tick(at(30));
    assert_eq!(b.exports(at(30))[&trace(n)], BTreeSet::from([1, 2, 3]));
    // Both sides start again: nothing is there a second time.
    for bench in [a, b] {
        let mut bench = bench.restart(rules(wait(30), true), at(40));
        assert!(bench.shard.index.is_empty());
        bench.tick(at(100));
        assert!(bench.exports(at(100)).is_empty());
    }
}

#[test]
fn what_comes_while_a_generation_is_under_way_is_the_next_one_and_only_that_stays() {
    let (mut a, mut b, of_b) = pair(&rules(wait(30), true));
    let n = of_b[0];
    a.append_as(&spans(n, 1..3, "a"), Placement::Custody, at(0))
        .unwrap();
    a.write();
    let (work, bytes) = a.hand_out(CHUNK, at(1)).unwrap();
    a.append_as(&spans(n, 3..4, "late"), Placement::Custody, at(2))
        .unwrap();
    // A client's retry of what is under way is held, by one of the two.
    let mut retry = a.shard.index.get(trace(n)).unwrap().fragments().len();
    a.append_as(&spans(n, 1..3, "a"), Placement::Custody, at(2))
        .unwrap();
    assert_eq!(
        a.shard.index.get(trace(n)).unwrap().fragments().len(),
        retry
    );
    a.write();
    let answer = b.take_in(&bytes, at(3)).unwrap();
    b.write();
    a.shard.handed_over(work, &answer, at(3));
    a.write();
    retry = a.shard.index.get(trace(n)).unwrap().fragments().len();
    assert_eq!((retry, a.shard.index.undecided_spans()), (1, 1));
    // Killed here, it has the next generation and not the one before.
    let table = ring_of(&[0, 1]);
    let mut a = a.restart(rules(wait(30), true), at(4));
    assert_eq!(a.shard.index.undecided_spans(), 1);
    a.join(&table, 0, at(4));
    hand_all(&mut a, &mut b, at(4));
    b.tick(at(30));
    assert_eq!(b.exports(at(30))[&trace(n)], BTreeSet::from([1, 2, 3]));
}

#[test]
fn of_two_handoffs_of_one_trace_that_cross_neither_deletes_the_last_copy() {
    let (mut a, mut b, of_b) = pair(&rules(wait(30), true));
    let n = of_b[0];
    let other = ring_of(&[0]);
    // Both have it, from a client whose first OK was lost; each believes that the other owns it.
    for bench in [&mut a, &mut b] {
        bench
            .append_as(&spans(n, 1..3, "a"), Placement::Custody, at(0))
            .unwrap();
        bench.write();
    }
    b.join(&other, 1, at(1));
    let (a_work, a_bytes) = a.hand_out(CHUNK, at(1)).unwrap();
    let (b_work, b_bytes) = b.hand_out(CHUNK, at(1)).unwrap();
    let to_b = a.take_in(&b_bytes, at(2)).unwrap();
    let to_a = b.take_in(&a_bytes, at(2)).unwrap();
    a.write();
    b.write();
    a.shard.handed_over(a_work, &to_a, at(3));
    b.shard.handed_over(b_work, &to_b, at(3));
    a.write();
    b.write();
    // Whatever of the two ends now, it is there.
    let held = |bench: &Bench| bench.shard.index.get(trace(n)).map(|it| it.spans);
    assert_eq!((held(&a), held(&b)), (Some(2), Some(2)));
    let a = a.restart(rules(wait(30), true), at(4));
    let mut b = b.restart(rules(wait(30), true), at(4));
    assert_eq!((held(&a), held(&b)), (Some(2), Some(2)));
    let mut a = a;
    a.join(&ring_of(&[0, 1]), 0, at(4));
    b.join(&ring_of(&[0, 1]), 1, at(4));
    hand_all(&mut a, &mut b, at(5));
    assert_eq!((held(&a), held(&b)), (None, Some(2)));
    b.tick(at(40));
    assert_eq!(b.exports(at(40))[&trace(n)], BTreeSet::from([1, 2]));
}

#[test]
fn without_an_answer_a_generation_merges_back_and_is_offered_again() {
    let (mut a, mut b, of_b) = pair(&errors_are_kept());
    let n = of_b[0];
    a.append_as(&span(n, 1, 0, failed), Placement::Custody, at(0))
        .unwrap();
    a.write();
    let (work, bytes) = a.hand_out(CHUNK, at(1)).unwrap();
    a.append_as(&span(n, 2, 0, |_| ()), Placement::Custody, at(1))
        .unwrap();
    a.write();
    // The receiver has it, and its answer is lost.
    b.take_in(&bytes, at(1)).unwrap();
    b.write();
    a.shard.handoff_failed(work, at(2));
    assert!(
        a.hand_out(CHUNK, at(2)).is_none(),
        "the receiver is left alone"
    );
    assert_eq!(hand_all(&mut a, &mut b, at(3)), 1);
    assert!(a.shard.index.is_empty());
    let metrics = &b.shard.metrics.handoff;
    assert_eq!(metrics.count_of_received(ReceivedFate::Duplicate), 1);
    assert_eq!(b.shard.index.undecided_spans(), 2);
    b.tick(at(30));
    assert_eq!(b.exports(at(30))[&trace(n)], BTreeSet::from([1, 2]));
    assert_eq!(
        a.shard
            .metrics
            .handoff
            .count_of_ends(GenerationEnd::MergedBack),
        1
    );
}

#[test]
fn what_no_commit_names_is_dropped_at_a_start() {
    let (mut a, mut b, of_b) = pair(&rules(wait(30), true));
    let n = of_b[0];
    a.append_as(&spans(n, 1..3, "a"), Placement::Custody, at(0))
        .unwrap();
    a.write();
    let (work, bytes) = a.hand_out(CHUNK, at(1)).unwrap();
    b.take_in(&bytes, at(1)).unwrap();
    // All of it reaches the disk but the last record, the COMMIT.
    let (_, ops) = b.shard.take_batch().unwrap();
    disk::apply(&b.volume, AckLevel::Written, ops, &mut Vec::new()).unwrap();
    let name = crate::log::Disk::list(&b.disk).unwrap().remove(0);
    let file = b.disk.content(&name).unwrap();
    b.disk.set_content(&name, file[..file.len() - 20].to_vec());
    let mut b = b.restart(rules(wait(30), true), at(2));
    assert!(b.shard.index.is_empty());
    b.join(&ring_of(&[0, 1]), 1, at(2));
    a.shard.handoff_failed(work, at(3));
    hand_all(&mut a, &mut b, at(10));
    b.tick(at(30));
    assert_eq!(b.exports(at(30))[&trace(n)], BTreeSet::from([1, 2]));
}

#[test]
fn a_trace_is_not_judged_when_half_of_it_has_arrived() {
    let (mut a, mut b, of_b) = pair(&rules(wait(5), true));
    let n = of_b[0];
    let name = "x".repeat(2_000);
    for id in 0..6 {
        a.append_as(&spans(n, id..id + 1, &name), Placement::Custody, at(0))
            .unwrap();
    }
    a.write();
    let (work, bytes) = a.hand_out(5_000, at(20)).unwrap();
    assert!(work.traces[0].has_more);
    let answer = b.take_in(&bytes, at(20)).unwrap();
    b.write();
    a.shard.handed_over(work, &answer, at(20));
    a.write();
    b.tick(at(21));
    assert!(
        b.exports(at(21)).is_empty(),
        "long overdue, and not all here"
    );
    // The sender's own state knows more than it has; it has nothing to judge by.
    hand_all(&mut a, &mut b, at(22));
    assert!(a.shard.index.is_empty());
    assert_eq!(a.shard.index.undecided_spans(), 0);
    b.tick(at(23));
    assert_eq!(b.exports(at(23))[&trace(n)], (0..6).collect());
}

#[test]
fn what_is_under_way_is_not_judged_though_it_belongs_here_again() {
    let (mut a, _, of_b) = pair(&rules(wait(30), true));
    let n = of_b[0];
    a.append_as(&spans(n, 1..3, "a"), Placement::Custody, at(0))
        .unwrap();
    a.write();
    let (work, _) = a.hand_out(CHUNK, at(1)).unwrap();
    a.append_as(&spans(n, 3..4, "b"), Placement::Custody, at(2))
        .unwrap();
    a.write();
    a.join(&ring_of(&[0]), 0, at(2));
    a.tick(at(40));
    assert!(
        a.shard.verdict(trace(n)).is_none(),
        "a part may be elsewhere"
    );
    a.shard.handoff_failed(work, at(41));
    a.tick(at(42));
    assert_eq!(a.exports(at(42))[&trace(n)], BTreeSet::from([1, 2, 3]));
}

#[test]
fn planted_bugs_that_no_simulation_meets_are_found_here() {
    let tests: [(PlantedBug, fn()); 2] = [
        (
            PlantedBug::CopyOfLeavingRefused,
            of_two_handoffs_of_one_trace_that_cross_neither_deletes_the_last_copy,
        ),
        (
            PlantedBug::JudgedUnderWay,
            what_is_under_way_is_not_judged_though_it_belongs_here_again,
        ),
    ];
    for (bug, test) in tests {
        PlantedBug::plant(Some(bug));
        let found = std::panic::catch_unwind(test);
        PlantedBug::plant(None);
        assert!(found.is_err(), "{bug:?}");
    }
}

#[test]
fn evidence_after_a_drop_raises_it_with_all_that_the_log_still_holds() {
    let (mut a, mut b, of_b) = pair(&errors_are_kept());
    let n = of_b[0];
    for id in 2..5 {
        b.append(&span(n, id, 0, |_| ()), at(0)).unwrap();
    }
    b.write();
    a.append_as(&span(n, 1, 0, failed), Placement::Custody, at(1))
        .unwrap();
    a.write();
    b.tick(at(30));
    assert_eq!(b.shard.verdict(trace(n)).unwrap().verdict, Verdict::Drop);
    hand_all(&mut a, &mut b, at(60));
    b.read_again(at(60));
    assert_eq!(b.shard.verdict(trace(n)).unwrap().verdict, Verdict::Keep);
    assert_eq!(b.exports(at(60))[&trace(n)], BTreeSet::from([1, 2, 3, 4]));
    // The verdict that rose is told to the other, which learned the first one.
    assert_eq!(a.shard.verdict(trace(n)).unwrap().verdict, Verdict::Drop);
    b.tick(at(61));
    hand_all(&mut b, &mut a, at(62));
    assert_eq!(a.shard.verdict(trace(n)).unwrap().verdict, Verdict::Keep);
    for second in 100..400 {
        b.tick(at(second));
    }
    assert!(b.space.segments() <= 2, "nothing is held of it");
}

#[test]
fn what_comes_late_under_a_drop_goes_out_when_that_rises() {
    for has_restarted in [false, true] {
        let (mut a, mut b, of_b) = pair(&errors_are_kept());
        let n = of_b[0];
        b.append(&span(n, 2, 0, |_| ()), at(0)).unwrap();
        b.write();
        a.append_as(&span(n, 1, 0, failed), Placement::Custody, at(1))
            .unwrap();
        a.write();
        b.tick(at(30));
        // Twice, as of a client that heard no answer.
        for second in [31, 32] {
            b.append(&span(n, 3, 0, |_| ()), at(second)).unwrap();
            assert!(b.write_at(at(second)));
        }
        if has_restarted {
            b = b.restart(errors_are_kept(), at(33));
            b.join(&ring_of(&[0, 1]), 1, at(33));
        }
        hand_all(&mut a, &mut b, at(60));
        b.read_again(at(60));
        assert_eq!(b.exports(at(60))[&trace(n)], BTreeSet::from([1, 2, 3]));
        for second in 100..400 {
            b.tick(at(second));
        }
        assert!(b.space.segments() <= 2, "nothing is held of it");
    }
}

#[test]
fn what_a_failed_batch_takes_from_a_drop_that_rises_is_released_once() {
    let (_, mut b, of_b) = pair(&errors_are_kept());
    let n = of_b[0];
    b.append(&span(n, 2, 0, |_| ()), at(0)).unwrap();
    b.write();
    b.tick(at(30));
    let live = |bench: &Bench| bench.space.live_and_used_bytes().0;
    let before = live(&b);
    b.append(&span(n, 3, 0, |_| ()), at(31)).unwrap();
    let keep = Decision {
        verdict: Verdict::Keep,
        ..*b.shard.verdict(trace(n)).unwrap()
    };
    b.shard.learn(&[keep], at(31));
    b.fail(at(31));
    b.tick(at(40));
    b.read_again(at(40));
    assert_eq!(live(&b), before);
    let held = b.shard.index.get(trace(n)).map(|it| it.spans);
    assert_eq!(held, Some(1), "the late one was never acknowledged");
}

#[test]
fn evidence_that_changes_nothing_stays_dropped_and_so_does_what_comes_too_late() {
    let (mut a, mut b, of_b) = pair(&errors_are_kept());
    let (n, m) = (of_b[0], of_b[1]);
    for trace in [n, m] {
        b.append(&span(trace, 2, 0, |_| ()), at(0)).unwrap();
    }
    b.write();
    b.tick(at(30));
    a.append_as(&span(n, 1, 0, |_| ()), Placement::Custody, at(1))
        .unwrap();
    a.write();
    hand_all(&mut a, &mut b, at(60));
    b.read_again(at(60));
    assert_eq!(b.shard.verdict(trace(n)).unwrap().verdict, Verdict::Drop);
    a.append_as(&span(m, 1, 0, failed), Placement::Custody, at(100))
        .unwrap();
    a.write();
    hand_all(&mut a, &mut b, at(151));
    b.read_again(at(151));
    assert_eq!(b.shard.verdict(trace(m)).unwrap().verdict, Verdict::Drop);
    assert_eq!(b.shard.metrics.handoff.upgrades_missed.get(), 1);
    assert!(b.shard.index.is_empty() && a.shard.index.is_empty());
    for second in 152..400 {
        b.tick(at(second));
    }
    assert!(b.space.segments() <= 2, "nothing is held of them");
}

#[test]
fn a_drop_by_a_policy_that_says_so_is_final() {
    let rules = file(
        "decision_wait: 30s\npolicies:\n  - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}\n  - {name: no, type: drop, drop: {drop_sub_policy: [{name: short, type: span_count, span_count: {min_spans: 1, max_spans: 1}}]}}\n",
    );
    let (mut a, mut b, of_b) = pair(&rules);
    let n = of_b[0];
    b.append(&span(n, 2, 0, |_| ()), at(0)).unwrap();
    b.write();
    b.tick(at(30));
    assert!(b.shard.verdict(trace(n)).unwrap().is_final());
    a.append_as(&span(n, 1, 0, failed), Placement::Custody, at(1))
        .unwrap();
    a.write();
    hand_all(&mut a, &mut b, at(60));
    b.read_again(at(60));
    assert_eq!(b.shard.verdict(trace(n)).unwrap().verdict, Verdict::Drop);
    assert!(a.shard.index.is_empty() && b.shard.index.is_empty());
}

#[test]
fn a_keep_that_another_member_gave_takes_what_was_dropped_here_along() {
    let (mut a, mut b, of_b) = pair(&errors_are_kept());
    let n = of_b[0];
    b.append(&span(n, 2, 0, |_| ()), at(0)).unwrap();
    b.write();
    b.tick(at(30));
    // The other could not reach the owner for a minute and a half.
    a.append_as(&span(n, 1, 0, failed), Placement::Custody, at(0))
        .unwrap();
    a.write();
    a.tick(at(119));
    assert!(a.exports(at(119)).is_empty());
    a.tick(at(121));
    assert_eq!(a.exports(at(121))[&trace(n)], BTreeSet::from([1]));
    a.tick(at(121));
    hand_all(&mut a, &mut b, at(122));
    b.read_again(at(122));
    assert_eq!(b.exports(at(122))[&trace(n)], BTreeSet::from([2]));
    let id = |bench: &Bench| bench.shard.verdict(trace(n)).unwrap().id;
    assert_eq!(id(&a), id(&b), "one verdict");
    let conflicts = b
        .shard
        .metrics
        .handoff
        .count_of_conflicts(ConflictWon::Keep);
    assert_eq!(conflicts, 1);
    // A start in between would have done the same.
    let mut b = b.restart(errors_are_kept(), at(123));
    b.read_again(at(123));
    assert!(b.exports(at(123)).is_empty());
}

#[test]
fn who_drains_gives_everything_away_kept_traces_and_verdicts_too() {
    let (mut a, mut b, of_b) = pair(&errors_are_kept());
    let of_a: Vec<u64> = traces_of(&ring_of(&[0, 1]), 0).take(3).collect();
    let (kept, dropped, undecided) = (of_a[0], of_a[1], of_a[2]);
    a.append(&span(kept, 1, 0, failed), at(0)).unwrap();
    a.append(&span(dropped, 1, 0, |_| ()), at(0)).unwrap();
    a.write();
    a.tick(at(30));
    a.append(&span(undecided, 1, 0, failed), at(31)).unwrap();
    a.write();
    let alone = ring_of(&[1]);
    a.join(&alone, 0, at(32));
    b.join(&alone, 1, at(32));
    assert!(!a.shard.is_drained());
    a.tick(at(33));
    hand_all(&mut a, &mut b, at(33));
    a.tick(at(33));
    hand_all(&mut a, &mut b, at(33));
    assert!(a.shard.is_drained(), "{:?}", a.shard.handing);
    assert_eq!(a.shard.held_bytes(), 0);
    assert_eq!(b.exports(at(34)).keys().collect::<Vec<_>>(), [&trace(kept)]);
    assert_eq!(
        b.shard.verdict(trace(dropped)).unwrap().verdict,
        Verdict::Drop
    );
    b.tick(at(62));
    assert_eq!(
        b.exports(at(62)).keys().collect::<Vec<_>>(),
        [&trace(undecided)]
    );
    assert!(!of_b.is_empty());
}

#[test]
fn who_comes_asks_for_what_is_its_own_until_nothing_is_left() {
    let (mut a, mut b, of_b) = pair(&errors_are_kept());
    a.append_as(&span(of_b[0], 1, 0, failed), Placement::Custody, at(0))
        .unwrap();
    a.write();
    a.tick(at(1));
    assert!(a.shard.sync(&member(1), true).unwrap() > 0);
    assert_eq!(a.shard.sync(&member(7), true), None);
    a.tick(at(1));
    hand_all(&mut a, &mut b, at(1));
    assert_eq!(a.shard.sync(&member(1), false), Some(0));
}

/// One member.
struct Node {
    bench: Bench,
    ring: Vec<usize>,
    /// What it must be told of before it decides, by member, and whether it asked already.
    syncing: BTreeMap<usize, bool>,
    /// Of the batch that is being filled: clients, and members who handed something over.
    clients: Vec<(u64, u64)>,
    receipts: Vec<(usize, HandoffAnswer)>,
    life: u32,
}

/// A message, its sender's life, and what is to become of its content.
struct Flight {
    from: usize,
    life: u32,
    to: usize,
    bytes: Bytes,
    work: Option<HandoffWork>,
    is_lost: bool,
}

struct Cluster {
    nodes: Vec<Node>,
    ring: Vec<usize>,
    random: SmallRng,
    millis: u64,
    flights: Vec<Flight>,
    acknowledged: BTreeSet<(u64, u64)>,
    sent: Vec<(u64, u64, bool)>,
    exported: BTreeMap<(u64, u64), u32>,
    traces: u64,
    told: bool,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let members = random.random_range(2..=3);
        let ring: Vec<usize> = (0..members).collect();
        let node = |n: usize| Node {
            bench: Bench::on(
                SimulatedDisk::new(seed * 10 + n as u64),
                errors_are_kept(),
                u64::MAX,
                16 << 10,
                at(0),
            ),
            ring: ring.clone(),
            syncing: BTreeMap::new(),
            clients: Vec::new(),
            receipts: Vec::new(),
            life: 0,
        };
        let mut nodes: Vec<Node> = (0..members).map(node).collect();
        for (n, node) in nodes.iter_mut().enumerate() {
            node.bench.join(&ring_of(&ring), n, at(0));
        }
        Self {
            nodes,
            ring,
            random,
            millis: 0,
            flights: Vec::new(),
            acknowledged: BTreeSet::new(),
            sent: Vec::new(),
            exported: BTreeMap::new(),
            traces: 8,
            told: std::env::var("TAILRING_TELL").is_ok(),
        }
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.told {
            eprintln!("{:>7} {}", self.millis, what());
        }
    }

    fn now(&self) -> Moment {
        at(0) + Duration::from_millis(self.millis)
    }

    fn any(&mut self) -> usize {
        self.random.random_range(0..self.nodes.len())
    }

    fn step(&mut self, clients_send: bool) {
        let n = self.any();
        match self.random.random_range(0..100) {
            0..20 if clients_send => self.send(),
            0..28 => self.write(n),
            28..40 => self.tick(n),
            40..55 => self.take(n),
            55..75 => self.fly(),
            75..80 => self.read_again(n),
            80..85 => self.export(n),
            85..91 => self.adopt(n),
            91..94 => self.change_ring(),
            94..97 => self.sync(n),
            97 => self.crash(n),
            _ => self.millis += self.random.random_range(0..2_000),
        }
    }

    fn send(&mut self) {
        let request = if !self.sent.is_empty() && self.random.random_range(0..5) == 0 {
            self.sent[self.random.random_range(0..self.sent.len())]
        } else {
            let id = self.sent.len() as u64;
            let trace = self.random.random_range(1..=self.traces);
            let request = (trace, id, self.random.random_range(0..12) == 0);
            self.sent.push(request);
            request
        };
        let (n, id, is_error) = request;
        let table = ring_of(&self.ring);
        let owner = table.owner(trace(n)).cloned();
        let by_ring = (0..self.nodes.len()).find(|it| Some(member(*it)) == owner);
        let to = match by_ring {
            Some(owner) if self.random.random_range(0..4) > 0 => owner,
            _ => self.any(),
        };
        let now = self.now();
        let incoming = span(n, id, 0, |span| {
            if is_error {
                failed(span);
            }
        });
        let node = &mut self.nodes[to];
        let mine = ring_of(&node.ring).owner(trace(n)) == Some(&member(to));
        let placement = if mine {
            Placement::Mine
        } else {
            Placement::Custody
        };
        if node.bench.append_as(&incoming, placement, now).is_ok() {
            node.clients.push((n, id));
        }
        self.tell(|| format!("{to}: span {id} of {n}, error {is_error}, {placement:?}"));
    }

    fn write(&mut self, n: usize) {
        let now = self.now();
        let node = &mut self.nodes[n];
        if self.random.random_range(0..25) == 0 {
            node.bench
                .disk
                .fail_writes_after(Some(self.random.random_range(0..3)));
        }
        let is_written = node.bench.write_at(now);
        node.bench.disk.fail_writes_after(None);
        let clients = std::mem::take(&mut node.clients);
        let receipts = std::mem::take(&mut node.receipts);
        if !is_written {
            self.tell(|| format!("{n}: a write failed"));
        }
        if is_written {
            self.acknowledged.extend(clients);
        }
        for (flight, answer) in receipts {
            let Some(flight) = self.flights.get_mut(flight) else {
                continue;
            };
            let (from, life) = (flight.from, flight.life);
            let Some(work) = flight.work.take() else {
                continue;
            };
            let is_heard = is_written && self.random.random_range(0..5) > 0;
            let sender = &mut self.nodes[from];
            if sender.life != life {
                continue;
            }
            if is_heard {
                sender.bench.shard.handed_over(work, &answer, now);
            } else {
                sender.bench.shard.handoff_failed(work, now);
            }
            self.tell(|| format!("{from}: answer of {n} is heard: {is_heard}, {answer:?}"));
        }
    }

    fn tick(&mut self, n: usize) {
        self.millis += self.random.random_range(0..200);
        let now = self.now();
        self.nodes[n].bench.shard.tick(now);
    }

    fn take(&mut self, n: usize) {
        let now = self.now();
        let bytes_max = if self.random.random() { 300 } else { CHUNK };
        let node = &mut self.nodes[n];
        let Some((work, bytes)) = node.bench.hand_out(bytes_max, now) else {
            return;
        };
        let to = (0..3).find(|to| member(*to) == work.to).unwrap();
        let life = node.life;
        self.tell(|| format!("{n} to {to}: {work:?}"));
        self.flights.push(Flight {
            from: n,
            life,
            to,
            bytes,
            work: Some(work),
            is_lost: false,
        });
    }

    /// Any message arrives, or is lost, or arrives once more.
    fn fly(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.flights.len());
        self.arrive(at, true);
    }

    fn arrive(&mut self, place: usize, may_be_lost: bool) {
        let now = self.now();
        let flight = &mut self.flights[place];
        let (from, to, life) = (flight.from, flight.to, flight.life);
        let is_first = flight.work.is_some();
        if may_be_lost && self.random.random_range(0..6) == 0 {
            // Nobody waits any more; it may arrive all the same, later.
            if let Some(work) = flight.work.take()
                && self.nodes[from].life == life
            {
                self.nodes[from].bench.shard.handoff_failed(work, now);
            }
            self.tell(|| format!("{from} to {to}: given up"));
            return;
        }
        if flight.is_lost && !is_first {
            return;
        }
        flight.is_lost = true;
        let bytes = flight.bytes.clone();
        self.tell(|| format!("{from} to {to}: arrives"));
        match self.nodes[to].bench.take_in(&bytes, now) {
            Ok(answer) => self.nodes[to].receipts.push((place, answer)),
            Err(_) => {
                if let Some(work) = self.flights[place].work.take()
                    && self.nodes[from].life == life
                {
                    self.nodes[from].bench.shard.handoff_failed(work, now);
                }
            }
        }
    }

    fn read_again(&mut self, n: usize) {
        let now = self.now();
        let compacts = self.random.random_range(0..3) == 0;
        let bench = &mut self.nodes[n].bench;
        if let Some(reopen) = bench.shard.next_reopen() {
            let found = reopen.read(&bench.volume).ok();
            bench.shard.reopened(reopen, found, now);
        }
        // What a failed write took out of a trace is made good by folding it again.
        while bench.refold_one(now) {}
        if compacts {
            let now = bench.compact(now);
            self.millis = now.since(at(0)).as_millis() as u64;
        }
    }

    fn export(&mut self, n: usize) {
        let now = self.now();
        let bench = &mut self.nodes[n].bench;
        let Some(work) = bench.shard.pull(1 << 20, 3) else {
            return;
        };
        for export in &work.traces {
            let extents: Vec<_> = export.fragments.iter().map(FragmentRef::extent).collect();
            let stored = bench.volume.read(&extents).unwrap();
            let scopes = stored.iter().flat_map(|it| &it.scopes);
            for (_, span) in scopes.flat_map(|scope| crate::wire::spans_in(&scope.spans)) {
                let id = crate::wire::span_id_of(span).unwrap();
                let id = u64::from_be_bytes(*id.as_bytes()) - 1;
                let key = (self.sent[id as usize].0, id);
                *self.exported.entry(key).or_default() += 1;
            }
        }
        bench.shard.exported(work, now);
    }

    fn change_ring(&mut self) {
        let all = 0..self.nodes.len();
        let mut ring: Vec<usize> = all.filter(|_| self.random.random_range(0..3) > 0).collect();
        if ring.is_empty() {
            ring.push(0);
        }
        self.tell(|| format!("the ring is {ring:?}"));
        self.ring = ring;
    }

    fn adopt(&mut self, n: usize) {
        let now = self.now();
        let ring = self.ring.clone();
        let node = &mut self.nodes[n];
        if node.ring == ring {
            return;
        }
        node.ring = ring;
        node.bench.join(&ring_of(&node.ring), n, now);
        if !node.syncing.is_empty() {
            node.bench.shard.set_deciding(false);
        }
        let ring = node.ring.clone();
        self.tell(|| format!("{n}: believes in {ring:?}"));
    }

    /// One that has come back asks another one.
    fn sync(&mut self, n: usize) {
        let Some((&other, &has_asked)) = self.nodes[n].syncing.iter().next() else {
            return;
        };
        self.nodes[n].syncing.insert(other, true);
        let left = self.nodes[other].bench.shard.sync(&member(n), !has_asked);
        if left == Some(0) || (left.is_none() && self.nodes[other].ring == self.ring) {
            let node = &mut self.nodes[n];
            node.syncing.remove(&other);
            if node.syncing.is_empty() && node.ring.contains(&n) {
                node.bench.shard.set_deciding(true);
                self.tell(|| format!("{n}: decides again"));
            }
        }
    }

    fn crash(&mut self, n: usize) {
        self.tell(|| format!("{n}: ends"));
        let now = self.now();
        let disk = self.nodes[n].bench.disk.clone();
        disk.kill();
        let others = (0..self.nodes.len()).filter(|other| *other != n);
        let node = &mut self.nodes[n];
        node.life += 1;
        node.clients.clear();
        node.receipts.clear();
        node.syncing = others.map(|other| (other, false)).collect();
        node.bench = Bench::on(disk, errors_are_kept(), u64::MAX, 16 << 10, now);
        node.bench.join(&ring_of(&node.ring), n, now);
        node.bench.shard.set_deciding(false);
    }

    /// Everything works and everybody believes in the same.
    fn settle(&mut self) {
        self.ring = (0..self.nodes.len()).collect();
        for round in 0..400 {
            self.millis += 1_000;
            for n in 0..self.nodes.len() {
                self.adopt(n);
                self.sync(n);
                let now = self.now();
                let node = &mut self.nodes[n];
                node.bench.shard.tick(now);
                self.write_well(n);
                self.take(n);
            }
            for place in 0..self.flights.len() {
                if self.flights[place].work.is_some() {
                    self.arrive(place, false);
                }
            }
            for n in 0..self.nodes.len() {
                self.write_well(n);
                self.read_again(n);
                self.write_well(n);
                self.export(n);
                self.write_well(n);
            }
            if round % 50 == 0 {
                self.flights.retain(|flight| flight.work.is_some());
            }
        }
    }

    fn write_well(&mut self, n: usize) {
        let now = self.now();
        assert!(self.nodes[n].bench.write_at(now));
        let node = &mut self.nodes[n];
        self.acknowledged.extend(std::mem::take(&mut node.clients));
        for (flight, answer) in std::mem::take(&mut node.receipts) {
            let flight = &mut self.flights[flight];
            let (from, life) = (flight.from, flight.life);
            if let Some(work) = flight.work.take()
                && self.nodes[from].life == life
            {
                let sender = &mut self.nodes[from].bench.shard;
                sender.handed_over(work, &answer, now);
            }
        }
    }

    fn check(&self, seed: u64) {
        for n in 1..=self.traces {
            let mut acknowledged = self.acknowledged.iter().filter(|key| key.0 == n);
            let has_error = acknowledged.clone().any(|key| self.sent[key.1 as usize].2);
            let got = |key: &(u64, u64)| self.exported.contains_key(key);
            if has_error {
                let lost: Vec<_> = acknowledged.filter(|key| !got(key)).collect();
                assert!(
                    lost.is_empty(),
                    "seed {seed}: {n} is kept and lacks {lost:?}"
                );
            } else {
                // A span that was never acknowledged may be there, and an error at that.
                let all_sent = self.sent.iter().filter(|it| it.0 == n);
                if all_sent.clone().any(|it| it.2) {
                    let any = acknowledged.clone().any(got);
                    assert!(!any || acknowledged.all(got), "seed {seed}: {n} is split");
                } else {
                    assert!(!acknowledged.any(got), "seed {seed}: {n} is exported");
                }
            }
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let shard = &node.bench.shard;
            assert!(
                shard.index.is_empty(),
                "seed {seed}: {n} holds {:?}",
                shard.index
            );
            assert_eq!(shard.index.undecided_spans(), 0, "seed {seed}: {n}");
            assert_eq!(shard.index.bytes(), 0, "seed {seed}: {n}");
            assert!(shard.is_drained(), "seed {seed}: {n}");
            let segments = node.bench.space.segments();
            assert!(segments <= 2, "seed {seed}: {n} has {segments} segments");
            let conflicts = shard.metrics.handoff.count_of_conflicts(ConflictWon::Drop);
            assert_eq!(conflicts, 0, "seed {seed}: {n}");
        }
    }
}

/// `TAILRING_HANDOFF_SEEDS=1-10000` for others, `TAILRING_TELL=1` for the story of one.
#[test]
fn whatever_becomes_of_messages_and_members_nothing_acknowledged_is_lost_or_split() {
    let asked = std::env::var("TAILRING_HANDOFF_SEEDS").unwrap_or_else(|_| "1-300".into());
    let (first, last) = asked.split_once('-').unwrap_or((&asked, &asked));
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let mut seen = BTreeMap::<&str, u64>::new();
    for seed in first..=last {
        let mut cluster = Cluster::new(seed);
        while cluster.millis < 20_000 {
            cluster.step(true);
        }
        for _ in 0..400 {
            cluster.step(false);
        }
        cluster.settle();
        cluster.check(seed);
        let nodes = cluster.nodes.iter();
        for metrics in nodes.map(|node| &node.bench.shard.metrics.handoff) {
            let mut saw = |what, times| *seen.entry(what).or_default() += times;
            saw("moved", metrics.count_of_ends(GenerationEnd::Moved));
            saw(
                "merged back",
                metrics.count_of_ends(GenerationEnd::MergedBack),
            );
            saw(
                "duplicate",
                metrics.count_of_received(ReceivedFate::Duplicate),
            );
            saw(
                "late kept",
                metrics.count_of_received(ReceivedFate::LateKept),
            );
            saw(
                "reopened",
                metrics.count_of_received(ReceivedFate::Reopened),
            );
            saw("raised", metrics.verdicts_raised.get());
            saw("learned", metrics.decisions_learned.get());
        }
        seen.entry("exported")
            .and_modify(|it| *it += cluster.exported.len() as u64)
            .or_default();
    }
    eprintln!("{seen:?}");
    if last - first > 100 {
        assert!(seen.values().all(|times| *times > 0), "{seen:?}");
    }
}
