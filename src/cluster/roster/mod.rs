//! Who is there, as a worker believes: a pure state machine over what DNS answers and what peers say.
//!
//! [`Roster::handle`] takes one event and the time, and returns what is to be done; the process (`worker/peering.rs`)
//! and the simulator drive it alike. No clock, no socket, no randomness.
//!
//! ```text
//! in the ring = listed by DNS, or heard within leave_grace   − said DRAINING   − SUSPECT (was heard, and then
//!                                                                               not for leave_grace)
//! ```
//!
//! - **Join fast, leave slowly.** A name is in as soon as DNS lists it or its hello comes. A name that only vanished
//!   from DNS stays until it was unreachable for `leave_grace`. DRAINING leaves at once. A failed lookup is no event.
//! - **A name that was never heard** is DNS's alone: it is never SUSPECT while DNS lists it. It may be of a version
//!   without a peer port, or the port may be closed by a firewall, and then DNS decides as it did before there were
//!   peers. Should it be dead, its traces are held in custody.
//! - **What peers tell of others** ([`Event::Told`]) is where to look, no more: who does not answer here is not in.
//! - **One life a name.** A lower incarnation than one that was heard is refused, also after the name left. A process that
//!   learns of a younger one of its own name is *fenced*: it gives no verdict any more, and hands over what it holds.
//! - **Joining** (`joining`): no verdict before every reachable peer has told what it holds for this worker.

mod entry;
mod joining;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::model::{Identity, Incarnation, Member, MemberState, Moment};
use crate::ring::Table;

use entry::Entry;
use joining::Phase;

/// Times of the protocol. [`Default`] is what processes use; the reasons are in the issue of each.
#[derive(Debug, Clone, Copy)]
pub struct RosterConfig {
    /// Between two hellos to one member.
    pub hello_every: Duration,
    /// A hello that is older says nothing about addresses.
    pub fresh: Duration,
    /// Unreachable for so long: out.
    pub leave_grace: Duration,
    /// No hello answered for so long: what this worker believes is old.
    pub isolated_after: Duration,
    /// A gap in ticks that is longer: this process was stopped, and the world went on.
    pub stall: Duration,
    /// How long to look for peers when none is reachable.
    pub hold: Duration,
    /// How long to wait for what peers have, at most.
    pub sync_wait_max: Duration,
    /// Before a peer whose sync failed is asked again.
    pub sync_again: Duration,
}

impl Default for RosterConfig {
    fn default() -> Self {
        Self {
            hello_every: Duration::from_secs(2),
            fresh: Duration::from_secs(10),
            // Longer than a pod takes to come back somewhere else under its name.
            leave_grace: Duration::from_secs(60),
            isolated_after: Duration::from_secs(5),
            stall: Duration::from_secs(2),
            hold: Duration::from_secs(5),
            sync_wait_max: Duration::from_secs(30),
            sync_again: Duration::from_secs(1),
        }
    }
}

/// What DNS said of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Best first. Empty: the name is there, its address was not found this time.
    pub otlp: Vec<SocketAddr>,
    /// Where peers call it, at the first address.
    pub peer_port: u16,
}

/// What a member said of itself, with the addresses as they are seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub identity: Identity,
    pub state: MemberState,
    pub otlp: SocketAddr,
    pub peer: SocketAddr,
}

/// What the roster is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// A good answer of DNS. Failed ones are no event: they say nothing about who is there.
    Dns(&'a BTreeMap<Member, Listed>),
    /// A hello came.
    Hello(Said),
    /// Our hello was answered.
    Answered(Said),
    /// Our hello to `Member` was not answered, or not by it.
    NotAnswered(Member, NoAnswer),
    /// A peer whose ring is another one has heard these lately. They are asked; what they answer is what counts.
    Told(&'a [Hint]),
    /// Time passes. Several times a second.
    Tick,
    /// The log is indexed: from here on this worker can be asked for what it holds.
    Indexed,
    /// A peer has told all that it holds for this worker.
    Synced(SyncWith),
    /// It could not be asked, or did not say all.
    NotSynced(SyncWith),
    /// The process was asked to stop.
    Drain,
}

/// Where a peer has heard a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    pub member: Member,
    pub peer: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    Unreachable,
    /// The peer knows a younger process of our name.
    WeAreStale,
    /// Somebody else is at the address, or an older life of the member.
    Impostor,
}

/// A member that is to be asked for what it holds, for one joining. An answer for an earlier one does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncWith {
    pub member: Member,
    pub round: u64,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The ring has other names than before.
    pub names_changed: bool,
    /// Somebody has another address, or another life.
    pub addresses_changed: bool,
    /// To whom a hello is to be said now. Each is answered by `Answered` or `NotAnswered`.
    pub hello: Vec<Member>,
    /// Whom to ask for what it holds. Each is answered by `Synced` or `NotSynced`.
    pub sync: Vec<SyncWith>,
    /// What happened, for logs and counters.
    pub notes: Vec<Note>,
    /// The event was a hello that is not believed.
    pub refused: Option<Distrust>,
}

/// Why a peer is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Distrust {
    /// A younger life of the name is known.
    Stale { known: Incarnation },
    /// The same incarnation on another store: a copy of a data dir.
    Copy,
    /// No more names are kept.
    TooMany,
}

/// News.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    Joined(Member),
    /// Said DRAINING.
    Drained(Member),
    Suspected(Member),
    /// Vanished from DNS, and was unreachable since.
    Left(Member),
    /// A known name has a new data dir: its log is empty.
    StoreReplaced(Member),
    /// A peer was not believed.
    Distrusted(Member, Distrust),
    /// This process was stopped for so long.
    Stalled(Duration),
    /// No peer answered for `isolated_after`.
    Isolated,
    /// JOINING again.
    Rejoining,
    /// READY. `forced`: a reachable peer did not tell all that it holds in time.
    Ready {
        forced: bool,
    },
    /// A younger process has this worker's name.
    Fenced(Incarnation),
}

/// One line of `/ring` and of a view for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosterMember {
    pub member: Member,
    pub said: Option<(Identity, MemberState)>,
    pub suspect: bool,
    pub in_dns: bool,
    pub in_ring: bool,
    /// Since it was last heard of by hello; `None`: never.
    pub silent: Option<Duration>,
    pub otlp: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
}

/// See the module.
#[derive(Debug)]
pub struct Roster {
    config: RosterConfig,
    me: Identity,
    /// Where this worker listens. On all interfaces it does not know itself where others find it.
    listens_at: SocketAddr,
    /// The same or, without an IP, what DNS says: for the ring, in which nobody calls himself.
    my_address: SocketAddr,
    /// DNS has listed this worker, or a peer has heard it.
    known_to_others: bool,
    /// DNS has listed this worker at least once.
    listed: bool,
    dns_seen: bool,
    others: BTreeMap<Member, Entry>,
    /// The highest incarnation of each name, also of those that left.
    lives: BTreeMap<Member, (Identity, Moment)>,
    /// The ring.
    names: BTreeMap<Member, SocketAddr>,
    /// The last name was kept in the ring though it is gone.
    kept: bool,
    phase: Phase,
    /// Counts the times that everyone is asked.
    round: u64,
    fenced: Option<Incarnation>,
    last_tick: Option<Moment>,
    /// When a hello of ours was last answered.
    last_answer: Option<Moment>,
    isolated: bool,
}

impl Roster {
    /// `listens_at`: where this worker serves OTLP.
    pub fn new(config: RosterConfig, me: Identity, listens_at: SocketAddr) -> Self {
        Self {
            config,
            me,
            listens_at,
            my_address: listens_at,
            known_to_others: false,
            listed: false,
            dns_seen: false,
            others: BTreeMap::new(),
            lives: BTreeMap::new(),
            names: BTreeMap::new(),
            kept: false,
            phase: Phase::Indexing,
            round: 0,
            fenced: None,
            last_tick: None,
            last_answer: None,
            isolated: false,
        }
    }

    /// The ring: never empty again once it was not.
    pub fn names(&self) -> &BTreeMap<Member, SocketAddr> {
        &self.names
    }

    pub fn me(&self) -> &Identity {
        &self.me
    }

    /// What this worker says of itself. Who is fenced hands over what it has, as who leaves does.
    pub fn state(&self) -> MemberState {
        if self.fenced.is_some() {
            return MemberState::Draining;
        }
        match self.phase {
            Phase::Indexing | Phase::Joining(_) => MemberState::Joining,
            Phase::Ready => MemberState::Ready,
            Phase::Draining => MemberState::Draining,
        }
    }

    /// Whether this worker gives verdicts: until when, if nothing else is heard of the roster. A process that was
    /// stopped wakes up with its deadlines overdue, and must not judge by what it knew.
    pub fn may_decide_until(&self) -> Option<Moment> {
        let may = match self.phase {
            Phase::Ready => true,
            // To nobody can anything be handed over, and nobody else judges.
            Phase::Draining => self.names.keys().eq([&self.me.member]),
            Phase::Indexing | Phase::Joining(_) => false,
        };
        let last_tick = self.last_tick.filter(|_| may && self.fenced.is_none())?;
        Some(last_tick + self.config.stall)
    }

    /// Whether DNS has ever listed this worker: if not, its name may be wrong.
    pub fn was_listed(&self) -> bool {
        self.listed
    }

    /// A younger process of this worker's name.
    pub fn fenced_by(&self) -> Option<Incarnation> {
        self.fenced
    }

    /// Whom to call, and in which life if that is known.
    pub fn peers(&self) -> impl Iterator<Item = (&Member, SocketAddr, Option<Incarnation>)> {
        self.others.iter().filter_map(|(member, entry)| {
            let incarnation = entry.said.as_ref().map(|said| said.identity.incarnation);
            Some((member, entry.peer_address()?, incarnation))
        })
    }

    /// Whether a caller is who it says. Changes nothing.
    pub fn distrust(&self, caller: &Identity) -> Option<Distrust> {
        if caller.member == self.me.member {
            return match caller.incarnation.cmp(&self.me.incarnation) {
                std::cmp::Ordering::Less => Some(Distrust::Stale {
                    known: self.me.incarnation,
                }),
                // Nobody calls himself; and who is younger fences us, whatever it is answered.
                _ => Some(Distrust::Copy),
            };
        }
        let (known, _) = self.lives.get(&caller.member)?;
        match caller.incarnation.cmp(&known.incarnation) {
            std::cmp::Ordering::Less => Some(Distrust::Stale {
                known: known.incarnation,
            }),
            std::cmp::Ordering::Equal if caller.store != known.store => Some(Distrust::Copy),
            _ => None,
        }
    }

    /// The same of a caller that hands over. An older process whose name a younger one took may give away what it
    /// holds: nobody else has it. If both have one store, the younger one has it, and how far it was brought meanwhile.
    pub fn distrust_of_giver(&self, caller: &Identity) -> Option<Distrust> {
        let distrust = self.distrust(caller)?;
        let known = self.lives.get(&caller.member).map(|(known, _)| known);
        let is_fenced = matches!(distrust, Distrust::Stale { .. })
            && known.is_some_and(|known| known.store != caller.store);
        (!is_fenced).then_some(distrust)
    }

    /// The one way in.
    pub fn handle(&mut self, event: Event<'_>, now: Moment) -> Effects {
        let mut effects = Effects::default();
        self.notice_stall(&event, now, &mut effects);
        match event {
            Event::Dns(answer) => self.dns(answer, now, &mut effects),
            Event::Hello(said) => self.heard(said, false, now, &mut effects),
            Event::Answered(said) => self.heard(said, true, now, &mut effects),
            Event::NotAnswered(member, why) => self.not_answered(&member, why, now, &mut effects),
            Event::Told(hints) => self.told(hints, now, &mut effects),
            Event::Tick => self.tick(now, &mut effects),
            Event::Indexed => {
                if matches!(self.phase, Phase::Indexing) {
                    self.last_answer = Some(now);
                    self.join(now, &mut effects);
                }
            }
            Event::Synced(sync) => self.synced(&sync, true, now),
            Event::NotSynced(sync) => self.synced(&sync, false, now),
            Event::Drain => {
                self.phase = Phase::Draining;
                self.refresh_me(&mut effects);
                self.say_hello_to_all(now, &mut effects);
            }
        }
        self.go_on_joining(now, &mut effects);
        if self.kept {
            self.sweep(&mut effects);
        }
        effects
    }

    /// Sorted by name, this worker among them.
    pub fn describe(&self, now: Moment) -> Vec<RosterMember> {
        let mine = RosterMember {
            member: self.me.member.clone(),
            said: Some((self.me.clone(), self.state())),
            suspect: false,
            in_dns: self.listed,
            in_ring: self.names.contains_key(&self.me.member),
            silent: Some(Duration::ZERO),
            // DNS may be late, and others take this worker's word.
            otlp: Some(self.listens_at).filter(|it| !it.ip().is_unspecified()),
            peer: None,
        };
        let others = self.others.iter().map(|(member, entry)| RosterMember {
            member: member.clone(),
            said: entry
                .said
                .as_ref()
                .map(|said| (said.identity.clone(), said.state)),
            suspect: entry.is_suspect(now, &self.config),
            in_dns: entry.is_in_dns(),
            in_ring: self.names.contains_key(member),
            silent: entry.heard_at.map(|at| now.since(at)),
            otlp: entry.otlp_address(),
            peer: entry.peer_address(),
        });
        let mut all: Vec<_> = others.chain([mine]).collect();
        all.sort_by(|a, b| a.member.cmp(&b.member));
        all
    }

    fn dns(&mut self, answer: &BTreeMap<Member, Listed>, now: Moment, effects: &mut Effects) {
        if !std::mem::replace(&mut self.dns_seen, true) {
            self.joining_begins_now(now);
        }
        for (member, listed) in answer {
            if *member == self.me.member {
                self.listed = true;
                self.known_to_others = true;
                if self.listens_at.ip().is_unspecified()
                    && let Some(address) = listed.otlp.first()
                {
                    self.my_address = *address;
                }
                continue;
            }
            if !self.others.contains_key(member) && !self.make_room() {
                continue;
            }
            let entry = self
                .others
                .entry(member.clone())
                .or_insert_with(|| Entry::new(now));
            if entry.list(listed, now, &self.config) {
                entry.hello_due = now; // another address: somebody new may be there
            }
        }
        for (member, entry) in &mut self.others {
            if !answer.contains_key(member) {
                entry.unlist(now);
            }
        }
        self.refresh_all(now, effects);
        self.refresh_me(effects);
        self.say_hellos(now, effects);
    }

    fn heard(&mut self, said: Said, answered: bool, now: Moment, effects: &mut Effects) {
        let member = said.identity.member.clone();
        if member == self.me.member {
            if said.identity.incarnation > self.me.incarnation {
                self.fence(said.identity.incarnation, effects);
            }
            effects.refused = self.distrust(&said.identity);
            self.note_distrust(member, effects);
            return;
        }
        let room = self.others.len() < Table::MEMBERS_MAX || self.others.contains_key(&member);
        let distrust = self
            .distrust(&said.identity)
            .or((!room).then_some(Distrust::TooMany));
        if distrust.is_some() {
            if answered && let Some(entry) = self.others.get_mut(&member) {
                entry.hello_ended();
            }
            effects.refused = distrust;
            return self.note_distrust(member, effects);
        }
        self.remember_life(&said.identity, now);
        if answered {
            // Whoever answers has put this worker into its own ring.
            self.known_to_others = true;
            self.last_answer = Some(now);
            if std::mem::take(&mut self.isolated) {
                self.rejoin(now, effects);
            }
        }
        let entry = self
            .others
            .entry(member.clone())
            .or_insert_with(|| Entry::new(now));
        let before = entry.peer_address();
        let news = entry.hear(said, answered, now);
        if news.store_replaced {
            effects.notes.push(Note::StoreReplaced(member.clone()));
        }
        if news.new_life || entry.peer_address() != before {
            effects.addresses_changed = true;
            if !answered {
                entry.hello_due = now; // it has to hear of us, too
            }
        }
        self.refresh(&member, now, effects);
        self.refresh_me(effects);
        self.say_hellos_to(&member, now, effects);
    }

    fn not_answered(&mut self, member: &Member, why: NoAnswer, now: Moment, effects: &mut Effects) {
        if why == NoAnswer::WeAreStale && self.fenced.is_none() {
            self.fence(
                Incarnation(self.me.incarnation.0.saturating_add(1)),
                effects,
            );
        }
        if let Some(entry) = self.others.get_mut(member) {
            entry.hello_ended();
            effects.addresses_changed |= entry.drop_hint();
        }
        self.refresh(member, now, effects);
        self.say_hellos_to(member, now, effects);
    }

    fn told(&mut self, hints: &[Hint], now: Moment, effects: &mut Effects) {
        for Hint { member, peer } in hints {
            let has_room = self.others.len() < Table::MEMBERS_MAX;
            if *member == self.me.member || (!has_room && !self.others.contains_key(member)) {
                continue;
            }
            let entry = self
                .others
                .entry(member.clone())
                .or_insert_with(|| Entry::new(now));
            if entry.hint(*peer, now, &self.config) {
                entry.hello_due = now;
                effects.addresses_changed = true;
            }
        }
        self.say_hellos(now, effects);
    }

    fn tick(&mut self, now: Moment, effects: &mut Effects) {
        self.notice_isolation(now, effects);
        self.refresh_all(now, effects);
        self.refresh_me(effects);
        self.say_hellos(now, effects);
    }

    fn fence(&mut self, by: Incarnation, effects: &mut Effects) {
        if self.fenced.is_none_or(|known| known < by) {
            self.fenced = Some(by);
            effects.notes.push(Note::Fenced(by));
        }
    }

    fn note_distrust(&mut self, member: Member, effects: &mut Effects) {
        if let Some(distrust) = effects.refused.clone() {
            effects.notes.push(Note::Distrusted(member, distrust));
        }
    }

    /// Bounded: the name that was heard longest ago is forgotten first.
    fn remember_life(&mut self, identity: &Identity, now: Moment) {
        let known = self.lives.get_mut(&identity.member);
        if let Some((life, at)) = known {
            life.clone_from(identity);
            *at = now;
            return;
        }
        if self.lives.len() >= 2 * Table::MEMBERS_MAX {
            let oldest = self
                .lives
                .iter()
                .min_by_key(|(_, (_, at))| *at)
                .map(|(member, _)| member.clone());
            if let Some(oldest) = oldest {
                self.lives.remove(&oldest);
            }
        }
        self.lives
            .insert(identity.member.clone(), (identity.clone(), now));
    }

    fn refresh_all(&mut self, now: Moment, effects: &mut Effects) {
        let members: Vec<_> = self.others.keys().cloned().collect();
        for member in members {
            self.refresh(&member, now, effects);
        }
    }

    /// Brings the ring up to what is known of one member.
    fn refresh(&mut self, member: &Member, now: Moment, effects: &mut Effects) {
        let Some(entry) = self.others.get_mut(member) else {
            return;
        };
        let address = entry.otlp_address();
        let is_in = entry.is_in(now, &self.config);
        let note = entry.turned(is_in, now, &self.config, member);
        if entry.is_forgotten(now, &self.config) {
            self.others.remove(member);
            effects.addresses_changed = true;
        }
        effects.notes.extend(note);
        self.place(member.clone(), address.filter(|_| is_in), effects);
    }

    fn refresh_me(&mut self, effects: &mut Effects) {
        let address = self.am_in().then_some(self.my_address);
        self.place(self.me.member.clone(), address, effects);
    }

    fn place(&mut self, member: Member, address: Option<SocketAddr>, effects: &mut Effects) {
        match address {
            Some(address) => match self.names.insert(member, address) {
                None => effects.names_changed = true,
                Some(before) => effects.addresses_changed |= before != address,
            },
            // The last one stays, whatever became of it: an empty ring serves nobody.
            None if self.names.len() == 1 => self.kept = true,
            None => effects.names_changed |= self.names.remove(&member).is_some(),
        }
    }

    /// Removes what [`Roster::place`] kept, now that there may be others.
    fn sweep(&mut self, effects: &mut Effects) {
        let me_is_in = self.am_in();
        let gone: Vec<_> = self
            .names
            .keys()
            .filter(|member| match self.others.get(*member) {
                _ if **member == self.me.member => !me_is_in,
                Some(entry) => !entry.in_ring(),
                None => true,
            })
            .cloned()
            .collect();
        self.kept = false;
        for member in gone {
            self.place(member, None, effects);
        }
    }

    /// For a name of DNS: who is neither listed nor was heard for longest goes.
    fn make_room(&mut self) -> bool {
        if self.others.len() < Table::MEMBERS_MAX {
            return true;
        }
        let unlisted = self.others.iter().filter(|(_, entry)| !entry.is_in_dns());
        let oldest = unlisted
            .min_by_key(|(_, entry)| entry.heard_at)
            .map(|(member, _)| member.clone());
        self.kept = true; // it may be in the ring
        oldest.is_some_and(|member| self.others.remove(&member).is_some())
    }

    fn am_in(&self) -> bool {
        self.known_to_others && !matches!(self.phase, Phase::Draining)
    }

    fn say_hello_to_all(&mut self, now: Moment, effects: &mut Effects) {
        for entry in self.others.values_mut() {
            entry.hello_due = now;
        }
        self.say_hellos(now, effects);
    }

    fn say_hellos(&mut self, now: Moment, effects: &mut Effects) {
        for (member, entry) in &mut self.others {
            if entry.begin_hello(now, &self.config) {
                effects.hello.push(member.clone());
            }
        }
    }

    fn say_hellos_to(&mut self, member: &Member, now: Moment, effects: &mut Effects) {
        if let Some(entry) = self.others.get_mut(member)
            && entry.begin_hello(now, &self.config)
        {
            effects.hello.push(member.clone());
        }
    }
}
