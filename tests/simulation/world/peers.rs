//! Peers at work: the roster of each worker, driven as `worker/peering.rs` drives it, and what routers hear of
//! workers.

use std::collections::BTreeMap;
use std::time::Duration;

use tailring::cluster::roster::{
    Distrust, Event as RosterEvent, Listed, NoAnswer, Note, Said as RosterSaid,
};
use tailring::cluster::{Told as ToldOfMembers, ToldMember};
use tailring::model::Member;
use tailring::net::client::ExportError;

use super::World;
use crate::network::{Answer, Body, Caller, Event, Life, Parcel, Reply};
use crate::peering::{Asked, PeerCall, PeerReply, Said, Told};
use crate::plan::Millis;
use crate::pods::{PEER_PORT, publish};

/// As in the process.
const TICK: Millis = 200;
/// Hello and view.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(1);
/// A router asks some worker who is there.
const FOLLOW_EVERY: Millis = 2_000;

impl World<'_> {
    pub(super) fn tick(&mut self, life: Life) {
        let now = self.now();
        if let Some(number) = self.worker_of(life) {
            let stalled = self.network.stalled_until(life).unwrap_or(0);
            if stalled > now {
                return self.network.push_at(stalled, Event::Tick { life });
            }
            self.tell_roster(number, RosterEvent::Tick);
            self.network.push(TICK, Event::Tick { life });
        } else if let Some(number) = self.router_of(life) {
            self.follow(number);
            self.network.push(FOLLOW_EVERY, Event::Tick { life });
        }
    }

    /// Gives an event to a worker's roster, and does what comes of it.
    pub(super) fn tell_roster(
        &mut self,
        number: usize,
        event: RosterEvent<'_>,
    ) -> Option<Distrust> {
        let now = self.now();
        let pod = &mut self.workers[number];
        let process = pod.process.as_mut()?;
        let moment = process.clock.at(now);
        let effects = process.roster.handle(event, moment);
        if effects.names_changed || effects.addresses_changed {
            publish(&process.view, process.roster.names());
        }
        let name = &pod.name;
        let until = process.roster.may_decide_until();
        let index = process.view.load().index_of(name);
        process
            .worker
            .set_deciding(until.filter(|_| index.is_some()));
        let view = process.view.load();
        if let Some(index) = index
            && process.divided_by != Some(view.fingerprint())
        {
            process.divided_by = Some(view.fingerprint());
            let slots = view.table.slots_by_member()[usize::from(index)];
            let share = f64::from(slots) / tailring::ring::SLOTS as f64;
            process.worker.set_share(share, moment);
        }
        for note in &effects.notes {
            self.books.note(label(note));
        }
        let life = process.life;
        let whom: Vec<_> = effects
            .hello
            .into_iter()
            .map(Asked::Hello)
            .chain(effects.sync.into_iter().map(Asked::Sync))
            .collect();
        if effects.names_changed || effects.addresses_changed {
            self.story(|| {
                let process = self.workers[number].process.as_ref();
                let names = process.map(|it| it.roster.names().clone());
                format!("worker {number} believes in {names:?}")
            });
            self.view_changed(number);
        }
        for what in whom {
            self.ask_peer(number, life, what);
        }
        effects.refused
    }

    fn ask_peer(&mut self, number: usize, life: Life, what: Asked) {
        let member = match &what {
            Asked::Hello(member) => member,
            Asked::Sync(sync) => return self.ask_for_sync(number, sync.clone(), true),
            Asked::View | Asked::Handoff(_) => return,
        };
        let Some(process) = &self.workers[number].process else {
            return;
        };
        let mut peers = process.roster.peers();
        let Some((_, to, _)) = peers.find(|(peer, ..)| *peer == member) else {
            let member = member.clone();
            drop(peers);
            let why = NoAnswer::Unreachable;
            self.tell_roster(number, RosterEvent::NotAnswered(member, why));
            return;
        };
        let me = (process.roster.me().clone(), process.roster.state());
        let call = PeerCall {
            from: Some(me),
            to: (member.clone(), None),
            what: Said::Hello {
                otlp: process.address,
                peer: process.peer_address(),
            },
        };
        let host = self.workers[number].host;
        let caller = Caller::Peering { life, what };
        drop(peers);
        self.network
            .call(host, to, caller, Body::Peer(call), CONTROL_TIMEOUT);
    }

    /// What a peering asked for is answered, or not.
    pub(super) fn peering_hears(&mut self, life: Life, what: Asked, answer: Answer) {
        let reply = match answer {
            Ok(Reply::Peer(reply)) => Ok(reply),
            Ok(Reply::Otlp(_)) => return,
            Err(error) => Err(error),
        };
        if let Some(number) = self.router_of(life) {
            if let Ok(PeerReply {
                what: Told::View(members),
                ..
            }) = reply
            {
                self.routers_hears(number, members);
            }
            return;
        }
        let Some(number) = self.worker_of(life) else {
            return;
        };
        let member = match what {
            Asked::Hello(member) => member,
            Asked::Sync(sync) => return self.sync_answered(number, sync, reply),
            Asked::Handoff(handoff) => return self.handed_over(number, handoff, reply),
            Asked::View => return,
        };
        let event = match reply {
            Ok(PeerReply {
                by,
                state,
                what: Told::Hello { otlp, peer },
            }) if by.member == member => RosterEvent::Answered(RosterSaid {
                identity: by,
                state,
                otlp,
                peer,
            }),
            Ok(_) => RosterEvent::NotAnswered(member, NoAnswer::Impostor),
            Err(error) => RosterEvent::NotAnswered(member, no_answer(&error)),
        };
        self.tell_roster(number, event);
    }

    /// A peer calls. `Err` names why it is refused.
    pub(super) fn peer_calls(&mut self, number: usize, parcel: &Parcel, call: PeerCall) {
        let refuse = |why: &'static str| ExportError::Refused {
            code: why.into(),
            message: String::new(),
            retryable: true,
            retry_after: None,
        };
        let host = self.workers[number].host;
        let Some(process) = &self.workers[number].process else {
            return;
        };
        let me = process.roster.me().clone();
        let (to, life) = &call.to;
        let wrong = if *to != me.member {
            Some("wrong_member")
        } else if life.is_some_and(|life| life != me.incarnation) {
            Some("wrong_incarnation")
        } else {
            let distrust = call
                .from
                .as_ref()
                .and_then(|(from, _)| Some((from, process.roster.distrust(from)?)));
            match distrust {
                // A hello of a younger process of this name is what fences this one.
                Some((from, Distrust::Copy)) if from.member == me.member => None,
                Some((_, Distrust::TooMany)) => Some("too_many"),
                Some(_) => Some(STALE),
                None => None,
            }
        };
        if let Some(wrong) = wrong {
            self.books.note(wrong);
            return self.network.answer(parcel.call, host, Err(refuse(wrong)));
        }
        let what = match (call.what, call.from) {
            (Said::Hello { otlp, peer }, Some((identity, state))) => {
                let said = RosterSaid {
                    identity,
                    state,
                    otlp,
                    peer,
                };
                if self.tell_roster(number, RosterEvent::Hello(said)).is_some() {
                    return self.network.answer(parcel.call, host, Err(refuse(STALE)));
                }
                let Some(process) = &self.workers[number].process else {
                    return;
                };
                Told::Hello {
                    otlp: process.address,
                    peer: process.peer_address(),
                }
            }
            (Said::View, _) => Told::View(self.known_to(number)),
            (Said::Handoff(items), Some(_)) => {
                return self.receive(number, parcel.call, &items);
            }
            (Said::Sync { is_first }, Some((from, _))) => {
                Told::Left(self.sync(number, &from.member, is_first))
            }
            _ => return,
        };
        let Some(process) = &self.workers[number].process else {
            return;
        };
        let reply = PeerReply {
            by: me,
            state: process.roster.state(),
            what,
        };
        self.network
            .answer(parcel.call, host, Ok(Reply::Peer(reply)));
    }

    fn known_to(&self, number: usize) -> Vec<ToldMember> {
        let Some(process) = &self.workers[number].process else {
            return Vec::new();
        };
        let known = process.roster.describe(process.clock.at(self.now()));
        known
            .into_iter()
            .map(|it| ToldMember {
                member: it.member,
                said: it
                    .said
                    .map(|(identity, state)| (identity.incarnation, state)),
                suspect: it.suspect,
                silent: it.silent.unwrap_or_default(),
                otlp: it.otlp,
                peer: it.peer,
            })
            .collect()
    }

    fn follow(&mut self, number: usize) {
        let Some(process) = &self.routers[number].process else {
            return;
        };
        let now = tokio::time::Instant::now();
        let peers: Vec<_> = process.followed.peers(now).into_iter().collect();
        let life = process.life;
        if peers.is_empty() {
            return;
        }
        let (member, to) = peers[self.draw(peers.len())].clone();
        let call = PeerCall {
            from: None,
            to: (member, None),
            what: Said::View,
        };
        let host = self.routers[number].host;
        let what = Asked::View;
        let caller = Caller::Peering { life, what };
        self.network
            .call(host, to, caller, Body::Peer(call), CONTROL_TIMEOUT);
    }

    fn routers_hears(&mut self, number: usize, members: Vec<ToldMember>) {
        let now = tokio::time::Instant::now();
        if let Some(process) = &mut self.routers[number].process {
            process.followed.told(ToldOfMembers { members }, now);
            publish(&process.view, &process.followed.addresses(now));
        }
    }

    /// What DNS says, to whoever asked.
    pub(super) fn listed(&mut self, life: Life, records: &crate::dns::Records) {
        let answer: BTreeMap<Member, Listed> = records
            .iter()
            .map(|(member, address)| {
                let listed = Listed {
                    otlp: vec![*address],
                    peer_port: PEER_PORT,
                };
                (member.clone(), listed)
            })
            .collect();
        if let Some(number) = self.worker_of(life) {
            self.tell_roster(number, RosterEvent::Dns(&answer));
        } else if let Some(number) = self.router_of(life)
            && let Some(process) = &mut self.routers[number].process
        {
            let now = tokio::time::Instant::now();
            process.followed.listed(&answer, now);
            publish(&process.view, &process.followed.addresses(now));
        }
    }
}

const STALE: &str = "stale_incarnation";

fn no_answer(error: &ExportError) -> NoAnswer {
    match error {
        ExportError::Refused { code, .. } if code == STALE => NoAnswer::WeAreStale,
        ExportError::Refused { .. } => NoAnswer::Impostor,
        ExportError::Unreachable(_) | ExportError::TimedOut(_) => NoAnswer::Unreachable,
    }
}

fn label(note: &Note) -> &'static str {
    match note {
        Note::Joined(_) => "peer joined",
        Note::Drained(_) => "peer drained",
        Note::Suspected(_) => "peer suspected",
        Note::Left(_) => "peer left",
        Note::StoreReplaced(_) => "store replaced",
        Note::Distrusted(..) => "peer distrusted",
        Note::Stalled(_) => "stalled",
        Note::Isolated => "isolated",
        Note::Rejoining => "rejoining",
        Note::Ready { forced: false } => "ready",
        Note::Ready { forced: true } => "ready, forced",
        Note::Fenced(_) => "fenced",
    }
}
