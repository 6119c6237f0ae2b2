//! From JOINING to READY, and back: whether what this worker knows is enough to judge by.
//!
//! While a worker was away others held its traces, and may have given verdicts. So after a start, after a
//! stall, and after a time in which no peer answered, it asks every reachable peer what it holds, and gives no verdict
//! before they all have told. Who does not answer two hellos is not waited for.

use super::entry::SyncState;
use super::{Effects, Event, Note, Roster, SyncWith};
use crate::model::Moment;

/// So many hellos must end without an answer before a peer is left out. One may be late: in a simulated run it took more
/// than its second, the peer held a verdict, and the trace was judged a second time.
const HELLOS_TRIED: u32 = 2;

#[derive(Debug)]
pub(super) enum Phase {
    /// The log is being read.
    Indexing,
    Joining(Joining),
    Ready,
    Draining,
}

#[derive(Debug)]
pub(super) struct Joining {
    since: Moment,
}

impl Roster {
    /// Also before the event itself: what woke the process up may be anything.
    pub(super) fn notice_stall(&mut self, event: &Event<'_>, now: Moment, effects: &mut Effects) {
        if let Some(last) = self.last_tick
            && now.since(last) > self.config.stall
        {
            effects.notes.push(Note::Stalled(now.since(last)));
            // Nobody could answer to a process that did not run.
            self.last_answer = Some(now);
            self.last_tick = Some(now);
            self.rejoin(now, effects);
        }
        if matches!(event, Event::Tick) {
            self.last_tick = Some(now);
        }
    }

    pub(super) fn notice_isolation(&mut self, now: Moment, effects: &mut Effects) {
        let silent = self
            .last_answer
            .is_some_and(|at| now.since(at) >= self.config.isolated_after);
        // Peers that never said a word are none to be cut off from.
        let had_peers = self.others.values().any(|entry| entry.said.is_some());
        if silent && had_peers && !self.isolated {
            self.isolated = true;
            effects.notes.push(Note::Isolated);
            self.rejoin(now, effects);
        }
    }

    /// Everyone is asked anew.
    pub(super) fn rejoin(&mut self, now: Moment, effects: &mut Effects) {
        if matches!(self.phase, Phase::Ready | Phase::Joining(_)) {
            effects.notes.push(Note::Rejoining);
            self.join(now, effects);
        }
    }

    pub(super) fn join(&mut self, now: Moment, effects: &mut Effects) {
        self.round += 1;
        self.phase = Phase::Joining(Joining { since: now });
        for entry in self.others.values_mut() {
            entry.sync = SyncState::Due(now);
            entry.tried = 0;
        }
        self.say_hello_to_all(now, effects);
    }

    /// Until now nobody was known to be asked.
    pub(super) fn joining_begins_now(&mut self, now: Moment) {
        if let Phase::Joining(joining) = &mut self.phase {
            joining.since = now;
        }
    }

    pub(super) fn synced(&mut self, sync: &SyncWith, done: bool, now: Moment) {
        let again = now + self.config.sync_again;
        if sync.round == self.round
            && let Some(entry) = self.others.get_mut(&sync.member)
            && entry.sync == SyncState::Asked
        {
            entry.sync = if done {
                SyncState::Done
            } else {
                SyncState::Due(again)
            };
        }
    }

    /// Asks who can be asked, and is READY when all have told.
    pub(super) fn go_on_joining(&mut self, now: Moment, effects: &mut Effects) {
        let Phase::Joining(joining) = &self.phase else {
            return;
        };
        if !self.dns_seen {
            return; // nobody is known to be asked
        }
        let (since, round) = (joining.since, self.round);
        let (mut waits, mut reachable, mut expected) = (false, false, false);
        for (member, entry) in &mut self.others {
            if entry.is_suspect(now, &self.config) {
                continue;
            }
            expected = true;
            if !entry.is_reachable(now, &self.config) {
                waits |= entry.tried < HELLOS_TRIED;
                continue;
            }
            reachable = true;
            waits |= entry.sync != SyncState::Done;
            if matches!(entry.sync, SyncState::Due(at) if at <= now) {
                entry.sync = SyncState::Asked;
                effects.sync.push(SyncWith {
                    member: member.clone(),
                    round,
                });
            }
        }
        let waited = now.since(since);
        // Alone because nobody is up yet, or because of us.
        let looks = expected && !reachable && waited < self.config.hold;
        let forced = waits && waited >= self.config.sync_wait_max;
        if (waits || looks) && !forced {
            return;
        }
        self.phase = Phase::Ready;
        effects.notes.push(Note::Ready { forced });
        // Others show it, and routers do not care: the next hello is soon enough.
    }
}
