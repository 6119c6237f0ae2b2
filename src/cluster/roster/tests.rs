//! What follows from what, as tables; and what always holds, whatever comes in whatever order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::StoreId;

fn member(name: &str) -> Member {
    Member::parse(name).unwrap()
}

fn identity(name: &str, incarnation: u64) -> Identity {
    Identity {
        member: member(name),
        incarnation: Incarnation(incarnation),
        store: StoreId(7),
    }
}

fn at(millis: u64) -> Moment {
    Moment::from_unix_millis(1_000_000 + millis)
}

fn address(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], port))
}

fn said(name: &str, incarnation: u64, state: MemberState) -> Said {
    Said {
        identity: identity(name, incarnation),
        state,
        otlp: address(99, 1),
        peer: address(99, 2),
    }
}

fn listed(names: &[(&str, u8)]) -> BTreeMap<Member, Listed> {
    let row = |(name, last): &(&str, u8)| {
        let listed = Listed {
            otlp: vec![address(*last, 4317)],
            peer_port: 4319,
        };
        (member(name), listed)
    };
    names.iter().map(row).collect()
}

/// The roster of `me`, and its effects since they were last looked at.
struct Desk {
    roster: Roster,
    now: u64,
    effects: Effects,
}

impl Desk {
    fn new() -> Self {
        let me = identity("me", 100);
        Self {
            roster: Roster::new(RosterConfig::default(), me, address(1, 4317)),
            now: 0,
            effects: Effects::default(),
        }
    }

    /// Indexed, and DNS lists these.
    fn started(names: &[(&str, u8)]) -> Self {
        let mut desk = Self::new();
        desk.tell(Event::Tick);
        desk.tell(Event::Indexed);
        desk.tell(Event::Dns(&listed(names)));
        desk
    }

    /// Joined with one reachable peer, `a`.
    fn joined_with_a() -> Self {
        let mut desk = Self::started(&[("me", 1), ("a", 2)]);
        desk.answered("a", 5);
        desk.synced("a");
        assert_eq!(desk.state(), MemberState::Ready);
        desk.effects = Effects::default();
        desk
    }

    fn tell(&mut self, event: Event<'_>) {
        let mut new = self.roster.handle(event, at(self.now));
        let all = &mut self.effects;
        all.names_changed |= new.names_changed;
        all.addresses_changed |= new.addresses_changed;
        all.hello.append(&mut new.hello);
        all.sync.append(&mut new.sync);
        all.notes.append(&mut new.notes);
        all.refused = new.refused;
    }

    fn answered(&mut self, name: &str, incarnation: u64) {
        self.tell(Event::Answered(said(name, incarnation, MemberState::Ready)));
    }

    fn hello(&mut self, name: &str, incarnation: u64, state: MemberState) {
        self.tell(Event::Hello(said(name, incarnation, state)));
    }

    fn not_answered(&mut self, name: &str) {
        self.tell(Event::NotAnswered(member(name), NoAnswer::Unreachable));
    }

    /// Whoever was asked last has told all.
    fn synced(&mut self, name: &str) {
        let asked = self
            .effects
            .sync
            .iter()
            .rfind(|it| it.member == member(name));
        let sync = asked.expect("it was asked").clone();
        self.tell(Event::Synced(sync));
    }

    /// Ticks as a process does, while nobody answers.
    fn wait(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.now += 200;
            self.tell(Event::Tick);
            for member in std::mem::take(&mut self.effects.hello) {
                self.tell(Event::NotAnswered(member, NoAnswer::Unreachable));
            }
        }
    }

    /// Ticks while these answer every hello.
    fn wait_with(&mut self, millis: u64, answering: &[(&str, u64)]) {
        let end = self.now + millis;
        while self.now < end {
            self.now += 200;
            self.tell(Event::Tick);
            for to in std::mem::take(&mut self.effects.hello) {
                match answering.iter().find(|(name, _)| member(name) == to) {
                    Some((name, incarnation)) => self.answered(name, *incarnation),
                    None => self.tell(Event::NotAnswered(to, NoAnswer::Unreachable)),
                }
            }
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.roster.names().keys().map(Member::as_str).collect();
        names.join(" ")
    }

    fn state(&self) -> MemberState {
        self.roster.state()
    }

    fn asked(&self) -> String {
        let asked = self.effects.sync.iter().map(|it| it.member.as_str());
        asked.collect::<Vec<_>>().join(" ")
    }

    fn noted(&self, note: &Note) -> bool {
        self.effects.notes.contains(note)
    }
}

#[test]
fn a_worker_alone_joins_with_the_first_answer_of_dns() {
    let mut desk = Desk::new();
    desk.tell(Event::Dns(&listed(&[("me", 1)])));
    desk.tell(Event::Tick);
    assert_eq!(
        (desk.names(), desk.state()),
        ("me".into(), MemberState::Joining)
    );
    assert_eq!(desk.roster.may_decide_until(), None);
    desk.tell(Event::Indexed);
    assert_eq!(desk.state(), MemberState::Ready);
    assert_eq!(desk.roster.may_decide_until(), Some(at(2000)));
    // The other way round: nobody is asked before it is known who is there.
    let mut desk = Desk::new();
    desk.tell(Event::Indexed);
    desk.wait(60_000);
    assert_eq!(desk.state(), MemberState::Joining);
    desk.tell(Event::Dns(&listed(&[("me", 1)])));
    assert_eq!(desk.state(), MemberState::Ready);
}

#[test]
fn a_hello_puts_a_name_in_at_once_and_keeps_it_a_minute() {
    let mut desk = Desk::started(&[("me", 1)]);
    desk.effects = Effects::default();
    desk.hello("b", 9, MemberState::Joining);
    assert!(desk.effects.names_changed && desk.noted(&Note::Joined(member("b"))));
    assert_eq!(desk.names(), "b me");
    // It has to hear of us, and where it said that it is.
    assert_eq!(desk.effects.hello, [member("b")]);
    let peers: Vec<_> = desk
        .roster
        .peers()
        .map(|(m, at, life)| (m.clone(), at, life))
        .collect();
    assert_eq!(peers, [(member("b"), address(99, 2), Some(Incarnation(9)))]);
    desk.wait(59_800);
    assert_eq!(desk.names(), "b me");
    desk.wait(200);
    assert_eq!(desk.names(), "me");
    assert!(desk.noted(&Note::Suspected(member("b"))));
}

#[test]
fn a_name_that_dns_lists_is_suspect_only_after_a_minute_of_silence() {
    let mut desk = Desk::joined_with_a();
    desk.wait(59_800);
    assert_eq!(desk.names(), "a me");
    desk.wait(200);
    assert_eq!(desk.names(), "me");
    assert!(desk.noted(&Note::Suspected(member("a"))));
    // It is asked on, and is in with its first word.
    desk.wait(10_000);
    desk.hello("a", 5, MemberState::Ready);
    assert_eq!(desk.names(), "a me");
}

#[test]
fn a_name_that_was_never_heard_is_dns_alone() {
    let mut desk = Desk::started(&[("me", 1), ("old", 2)]);
    desk.wait(600_000);
    assert_eq!(desk.names(), "me old");
    desk.tell(Event::Dns(&listed(&[("me", 1)])));
    desk.wait(59_800);
    assert_eq!(desk.names(), "me old");
    desk.wait(200);
    assert_eq!(desk.names(), "me");
    assert!(desk.noted(&Note::Left(member("old"))));
}

#[test]
fn a_name_that_only_vanished_from_dns_stays_while_it_is_heard() {
    let mut desk = Desk::joined_with_a();
    desk.tell(Event::Dns(&listed(&[("me", 1)])));
    desk.wait_with(300_000, &[("a", 5)]);
    assert_eq!(desk.names(), "a me");
    desk.wait(60_000);
    assert_eq!(desk.names(), "me");
    assert!(desk.roster.describe(at(desk.now)).len() == 1, "forgotten");
}

#[test]
fn draining_leaves_at_once_and_only_another_life_comes_back() {
    let mut desk = Desk::joined_with_a();
    desk.hello("a", 5, MemberState::Draining);
    assert!(desk.noted(&Note::Drained(member("a"))));
    assert_eq!(desk.names(), "me");
    // A hello that was overtaken.
    desk.hello("a", 5, MemberState::Ready);
    assert_eq!(desk.names(), "me");
    desk.hello("a", 6, MemberState::Joining);
    assert_eq!(desk.names(), "a me");
}

#[test]
fn draining_is_told_to_all_at_once_and_ends_verdicts() {
    let mut desk = Desk::joined_with_a();
    desk.wait_with(400, &[("a", 5)]);
    desk.effects = Effects::default();
    desk.tell(Event::Drain);
    assert_eq!(desk.effects.hello, [member("a")]);
    assert_eq!(
        (desk.names(), desk.state()),
        ("a".into(), MemberState::Draining)
    );
    assert_eq!(desk.roster.may_decide_until(), None);
}

#[test]
fn a_worker_that_drains_alone_keeps_its_ring_and_its_verdicts() {
    let mut desk = Desk::started(&[("me", 1)]);
    desk.tell(Event::Drain);
    assert_eq!(desk.names(), "me");
    assert!(desk.roster.may_decide_until().is_some());
    // Somebody comes: there is another one to give things to.
    desk.hello("b", 1, MemberState::Joining);
    assert_eq!(desk.names(), "b");
    assert!(desk.roster.may_decide_until().is_none());
}

#[test]
fn an_older_life_of_a_name_is_never_believed() {
    let mut desk = Desk::joined_with_a();
    for (event, life) in [(false, 4), (true, 4), (false, 1), (true, 1)] {
        let old = said("a", life, MemberState::Draining);
        desk.tell(if event {
            Event::Answered(old)
        } else {
            Event::Hello(old)
        });
        let known = Incarnation(5);
        assert_eq!(desk.effects.refused, Some(Distrust::Stale { known }));
        assert_eq!(desk.names(), "a me");
    }
    // Not even when the name is gone for long.
    desk.tell(Event::Dns(&listed(&[("me", 1)])));
    desk.wait(200_000);
    assert_eq!(desk.names(), "me");
    desk.hello("a", 4, MemberState::Ready);
    assert!(desk.effects.refused.is_some() && desk.names() == "me");
    desk.hello("a", 6, MemberState::Ready);
    assert_eq!(
        (desk.effects.refused.clone(), desk.names()),
        (None, "a me".into())
    );
}

#[test]
fn who_is_fenced_may_give_away_what_nobody_else_has() {
    let mut desk = Desk::joined_with_a();
    let older = said("a", 5, MemberState::Draining).identity;
    let mut younger = said("a", 6, MemberState::Ready);
    desk.tell(Event::Hello(younger.clone()));
    assert!(desk.roster.distrust_of_giver(&older).is_some(), "one store");
    younger.identity.incarnation = Incarnation(7);
    younger.identity.store = StoreId(8);
    desk.tell(Event::Hello(younger.clone()));
    assert!(desk.roster.distrust(&older).is_some());
    assert_eq!(desk.roster.distrust_of_giver(&older), None);
    let mut copy = younger.identity;
    copy.store = StoreId(9);
    assert_eq!(desk.roster.distrust_of_giver(&copy), Some(Distrust::Copy));
}

#[test]
fn a_copy_of_a_data_dir_is_not_believed_and_a_new_one_is_noted() {
    let mut desk = Desk::joined_with_a();
    let mut other = said("a", 5, MemberState::Ready);
    other.identity.store = StoreId(8);
    desk.tell(Event::Hello(other.clone()));
    assert_eq!(desk.effects.refused, Some(Distrust::Copy));
    other.identity.incarnation = Incarnation(6);
    desk.tell(Event::Hello(other));
    assert!(desk.noted(&Note::StoreReplaced(member("a"))));
}

#[test]
fn a_younger_process_of_my_name_ends_my_verdicts() {
    let mut desk = Desk::joined_with_a();
    desk.hello("me", 99, MemberState::Ready);
    assert!(
        desk.roster.may_decide_until().is_some(),
        "that one is older"
    );
    desk.hello("me", 101, MemberState::Ready);
    assert!(desk.noted(&Note::Fenced(Incarnation(101))));
    assert_eq!(desk.roster.may_decide_until(), None);
    assert_eq!(desk.roster.state(), MemberState::Draining);
    // By way of a peer that knows the younger one.
    let mut desk = Desk::joined_with_a();
    desk.tell(Event::NotAnswered(member("a"), NoAnswer::WeAreStale));
    assert!(desk.roster.fenced_by().is_some());
    assert_eq!(desk.roster.may_decide_until(), None);
}

#[test]
fn joining_waits_for_what_every_reachable_peer_has_and_for_no_other() {
    let mut desk = Desk::started(&[("me", 1), ("a", 2), ("b", 3), ("dead", 4)]);
    assert_eq!(desk.effects.hello.len(), 3);
    desk.answered("a", 5);
    assert_eq!(desk.asked(), "a");
    desk.synced("a");
    assert_eq!(
        desk.state(),
        MemberState::Joining,
        "b and dead were not heard of"
    );
    desk.not_answered("dead");
    assert_eq!(desk.state(), MemberState::Joining, "b may still answer");
    desk.answered("b", 5);
    assert_eq!(desk.asked(), "a b");
    assert_eq!(desk.state(), MemberState::Joining);
    desk.synced("b");
    assert_eq!(
        desk.state(),
        MemberState::Joining,
        "dead may only have been late"
    );
    desk.not_answered("dead");
    assert_eq!(desk.state(), MemberState::Ready);
    assert!(desk.noted(&Note::Ready { forced: false }));
}

#[test]
fn a_sync_that_fails_is_asked_again_and_one_of_before_does_not_count() {
    let mut desk = Desk::started(&[("me", 1), ("a", 2)]);
    desk.answered("a", 5);
    let first = desk.effects.sync[0].clone();
    desk.tell(Event::NotSynced(first.clone()));
    desk.wait_with(800, &[("a", 5)]);
    assert_eq!(desk.asked(), "a");
    desk.wait_with(200, &[("a", 5)]);
    assert_eq!(desk.asked(), "a a");
    // Stopped for three seconds: everything is asked anew.
    desk.now += 3_000;
    desk.tell(Event::Synced(first));
    assert_eq!(desk.state(), MemberState::Joining);
    desk.wait_with(400, &[("a", 5)]);
    desk.synced("a");
    assert_eq!(desk.state(), MemberState::Ready);
}

#[test]
fn a_peer_that_never_tells_is_waited_for_half_a_minute() {
    let mut desk = Desk::started(&[("me", 1), ("a", 2)]);
    desk.wait_with(29_800, &[("a", 5)]);
    assert_eq!(desk.state(), MemberState::Joining);
    desk.wait_with(200, &[("a", 5)]);
    assert_eq!(desk.state(), MemberState::Ready);
    assert!(desk.noted(&Note::Ready { forced: true }));
}

#[test]
fn with_nobody_reachable_joining_takes_five_seconds() {
    let mut desk = Desk::started(&[("me", 1), ("a", 2)]);
    desk.wait(4_800);
    assert_eq!(desk.state(), MemberState::Joining);
    desk.wait(200);
    assert_eq!(desk.state(), MemberState::Ready);
}

#[test]
fn a_stall_joins_again_whatever_event_wakes_the_process() {
    let mut desk = Desk::joined_with_a();
    desk.wait_with(1_000, &[("a", 5)]);
    let until = desk.roster.may_decide_until().unwrap();
    desk.now += 2_200;
    assert!(
        until < at(desk.now),
        "the shards know it without being told"
    );
    desk.hello("a", 5, MemberState::Ready);
    assert_eq!(desk.state(), MemberState::Joining);
    assert!(desk.noted(&Note::Stalled(Duration::from_millis(2_200))));
    desk.wait_with(400, &[("a", 5)]);
    desk.synced("a");
    assert_eq!(desk.state(), MemberState::Ready);
}

#[test]
fn a_worker_that_nobody_answers_joins_again_then_and_when_they_are_back() {
    let mut desk = Desk::joined_with_a();
    desk.wait(5_000);
    assert!(desk.noted(&Note::Isolated));
    assert_eq!(desk.state(), MemberState::Joining);
    desk.wait(5_000);
    assert_eq!(desk.state(), MemberState::Ready, "a is not reachable");
    desk.wait(20_000);
    assert_eq!(desk.state(), MemberState::Ready, "once is enough");
    desk.effects.notes.clear();
    desk.answered("a", 5);
    assert_eq!(
        desk.state(),
        MemberState::Joining,
        "a may hold something for me"
    );
    desk.wait_with(2_200, &[("a", 5)]);
    desk.synced("a");
    assert_eq!(desk.state(), MemberState::Ready);
}

#[test]
fn an_address_that_a_hello_said_beats_that_of_dns_while_it_is_fresh() {
    let mut desk = Desk::started(&[("me", 1), ("a", 2)]);
    assert_eq!(desk.roster.names()[&member("a")], address(2, 4317));
    desk.hello("a", 5, MemberState::Ready);
    assert_eq!(desk.roster.names()[&member("a")], address(99, 1));
    desk.wait(9_000);
    desk.tell(Event::Dns(&listed(&[("me", 1), ("a", 2)])));
    assert_eq!(desk.roster.names()[&member("a")], address(99, 1));
    desk.wait(1_000);
    desk.tell(Event::Dns(&listed(&[("me", 1), ("a", 2)])));
    assert_eq!(desk.roster.names()[&member("a")], address(2, 4317));
}

#[test]
fn a_worker_that_dns_does_not_list_is_in_once_a_peer_heard_it() {
    let mut desk = Desk::started(&[("a", 2)]);
    assert_eq!(desk.names(), "a");
    desk.answered("a", 5);
    assert_eq!(desk.names(), "a me");
    assert!(!desk.roster.was_listed());
}

#[test]
fn what_a_peer_tells_of_another_is_where_to_look_and_no_more() {
    let hint = |name: &str, last| Hint {
        member: member(name),
        peer: address(last, 4319),
    };
    let at = |desk: &Desk, name: &str| {
        let mut peers = desk.roster.peers();
        peers.find(|(it, ..)| **it == member(name)).unwrap().1
    };
    let mut desk = Desk::started(&[("me", 1), ("a", 2), ("b", 3)]);
    desk.answered("a", 5);
    desk.not_answered("b");
    desk.effects.hello.clear();
    // DNS is wrong about b, and does not know c; a was heard by ourselves.
    desk.tell(Event::Told(&[
        hint("a", 70),
        hint("b", 71),
        hint("c", 72),
        hint("me", 73),
    ]));
    assert_eq!(desk.effects.hello, [member("b"), member("c")]);
    assert_eq!(
        (at(&desk, "b"), at(&desk, "c")),
        (address(71, 4319), address(72, 4319))
    );
    assert_eq!(desk.names(), "a b me");
    desk.answered("c", 1);
    assert_eq!(desk.names(), "a b c me");
    desk.not_answered("b");
    assert_eq!(at(&desk, "b"), address(3, 4319), "DNS again");
    // Told again and again, and never there.
    for _ in 0..400 {
        desk.tell(Event::Told(&[hint("d", 80)]));
        desk.wait_with(200, &[("a", 5)]);
    }
    assert_eq!(desk.names(), "a b me");
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Dns(BTreeSet<usize>),
    Hello(usize, u64, u8),
    Answer(usize, u64, u8),
    NoAnswer(usize, u8),
    Synced(bool),
    Told(usize),
    Drain,
}

const NAMES: [&str; 5] = ["me", "a", "b", "c", "d"];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![Just(200u64), Just(1_000), Just(4_000), Just(70_000)].prop_map(Step::Wait),
        2 => proptest::collection::btree_set(0..NAMES.len(), 0..5).prop_map(Step::Dns),
        3 => (0..NAMES.len(), 1..4u64, 0..3u8).prop_map(|(n, i, s)| Step::Hello(n, i, s)),
        4 => (0..NAMES.len(), 1..4u64, 0..3u8).prop_map(|(n, i, s)| Step::Answer(n, i, s)),
        2 => (0..NAMES.len(), 0..3u8).prop_map(|(n, w)| Step::NoAnswer(n, w)),
        3 => any::<bool>().prop_map(Step::Synced),
        1 => (0..NAMES.len()).prop_map(Step::Told),
        1 => Just(Step::Drain),
    ]
}

fn state_of(number: u8) -> MemberState {
    [
        MemberState::Joining,
        MemberState::Ready,
        MemberState::Draining,
    ][usize::from(number)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_always_holds(steps in proptest::collection::vec(step(), 1..60), long_gaps in any::<bool>()) {
        let mut desk = Desk::new();
        desk.tell(Event::Tick);
        desk.tell(Event::Indexed);
        let mut was_in = false;
        let mut highest = BTreeMap::<Member, u64>::new();
        // When each was last heard, as far as it was believed.
        let mut heard = BTreeMap::<Member, u64>::new();
        let mut asked = Vec::new();
        for step in steps {
            let names_before = desk.roster.names().clone();
            let mut is_failure = false;
            match step {
                // A process is stopped, or ticks.
                Step::Wait(millis) if long_gaps => {
                    desk.now += millis;
                    desk.tell(Event::Tick);
                }
                Step::Wait(millis) => {
                    let end = desk.now + millis;
                    while desk.now < end {
                        desk.now += 200;
                        desk.tell(Event::Tick);
                    }
                }
                Step::Dns(names) => {
                    let rows: Vec<_> = names.into_iter().map(|i| (NAMES[i], i as u8)).collect();
                    desk.tell(Event::Dns(&listed(&rows)));
                }
                Step::Hello(name, incarnation, state) | Step::Answer(name, incarnation, state) => {
                    let said = said(NAMES[name], incarnation, state_of(state));
                    let who = said.identity.member.clone();
                    desk.tell(match step {
                        Step::Hello(..) => Event::Hello(said),
                        _ => Event::Answered(said),
                    });
                    let highest = highest.entry(who.clone()).or_default();
                    let is_old = incarnation < *highest || name == 0;
                    prop_assert_eq!(desk.effects.refused.is_some(), is_old);
                    if !is_old {
                        *highest = incarnation;
                        heard.insert(who.clone(), desk.now);
                        let is_in = desk.roster.names().contains_key(&who);
                        let draining = desk.roster.others[&who].is_draining();
                        prop_assert!(is_in || draining, "in at once");
                        let last = desk.roster.names().len() == 1;
                        prop_assert!(!(is_in && draining) || last, "out at once");
                    }
                }
                Step::NoAnswer(name, number) => {
                    is_failure = true;
                    let why = [NoAnswer::Unreachable, NoAnswer::WeAreStale, NoAnswer::Impostor];
                    let why = why[usize::from(number)];
                    desk.tell(Event::NotAnswered(member(NAMES[name]), why));
                }
                Step::Synced(done) => {
                    if let Some(sync) = asked.pop() {
                        desk.tell(if done { Event::Synced(sync) } else { Event::NotSynced(sync) });
                    }
                }
                Step::Told(name) => {
                    is_failure = true; // as little as that it changes
                    let hint = Hint { member: member(NAMES[name]), peer: address(80, 4319) };
                    desk.tell(Event::Told(&[hint]));
                }
                Step::Drain => desk.tell(Event::Drain),
            }
            asked.append(&mut desk.effects.sync);
            desk.effects.hello.clear();
            let names = desk.roster.names();
            was_in |= !names.is_empty();
            prop_assert!(!was_in || !names.is_empty(), "never empty once not empty");
            prop_assert!(!is_failure || *names == names_before || long_gaps, "a failure changes nothing");
            for (who, entry) in &desk.roster.others {
                let lives = entry.said.as_ref().map(|said| said.identity.incarnation.0);
                prop_assert_eq!(lives, highest.get(who).copied().filter(|_| lives.is_some()));
            }
            for note in desk.effects.notes.drain(..) {
                match note {
                    Note::Suspected(who) => prop_assert!(desk.now - heard[&who] >= 60_000),
                    Note::Ready { forced: false } => {
                        // Everyone who answers has told.
                        for entry in desk.roster.others.values() {
                            let config = RosterConfig::default();
                            prop_assert!(
                                !entry.is_reachable(at(desk.now), &config)
                                    || entry.sync == entry::SyncState::Done
                            );
                        }
                    }
                    _ => {}
                }
            }
            if let Some(until) = desk.roster.may_decide_until() {
                prop_assert!(until >= at(desk.now), "not by what was known before a stall");
                prop_assert!(desk.roster.fenced_by().is_none());
            }
        }
    }
}
