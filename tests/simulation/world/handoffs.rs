//! What moves between workers when the ring changes, and workers that leave it. What moves and when is the
//! shards' to say; here are the calls that carry it, as the tasks of a process make them.

use std::time::Duration;

use bytes::Bytes;
use tailring::cluster::roster::{Event as RosterEvent, SyncWith};
use tailring::model::{Incarnation, Member, MemberState};
use tailring::net::client::ExportError;

use super::World;
use crate::network::{Body, Caller, Event, Life, Reply};
use crate::peering::{Asked, PeerCall, PeerReply, Said, Told};
use crate::plan::Millis;

/// As a peer's client has it.
const DATA_TIMEOUT: Duration = Duration::from_secs(5);
/// Who was told that there is more asks again.
const SYNC_AGAIN: Millis = 200;
/// A worker that leaves looks so often whether it is done.
const LEAVE_LOOK: Millis = 250;
/// It stays so long after the last request of anyone, and so long at all.
const LEAVE_QUIET: Millis = 5_000;
const LEAVE_MOST: Millis = 60_000;

impl World<'_> {
    /// The shards of a worker are told whose the traces are now.
    pub(super) fn view_changed(&mut self, number: usize) {
        let Some(process) = &self.workers[number].process else {
            return;
        };
        let view = process.view.load();
        let leaves = process.roster.state() == MemberState::Draining;
        process.worker.set_ring(&view.table, leaves);
    }

    /// After a turn: what a shard has for others goes out.
    pub(super) fn hand_over(&mut self, number: usize, shard: usize) {
        let now = self.now();
        let bytes_max = self.plan.handoff_bytes;
        loop {
            let Some(process) = &mut self.workers[number].process else {
                return;
            };
            let moment = process.clock.at(now);
            while process.worker.read_again(shard) {}
            let Some(handoff) = process.worker.take_handoff(shard, bytes_max, moment) else {
                return;
            };
            let Some((to, incarnation)) = peer(process, &handoff.to) else {
                process.worker.handed_over(handoff, None, moment);
                continue;
            };
            let call = PeerCall {
                from: Some((process.roster.me().clone(), process.roster.state())),
                to: (handoff.to.clone(), Some(incarnation)),
                what: Said::Handoff(handoff.message.clone()),
            };
            let id = self.handoffs;
            self.handoffs += 1;
            let life = process.life;
            process.handoffs.insert(id, handoff);
            let what = Asked::Handoff(id);
            let caller = Caller::Peering { life, what };
            let host = self.workers[number].host;
            self.network
                .call(host, to, caller, Body::Peer(call), DATA_TIMEOUT);
        }
    }

    pub(super) fn handed_over(
        &mut self,
        number: usize,
        handoff: u64,
        reply: Result<PeerReply, ExportError>,
    ) {
        let now = self.now();
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        let Some(handoff) = process.handoffs.remove(&handoff) else {
            return;
        };
        let answer = match reply {
            Ok(PeerReply {
                by,
                what: Told::Receipt(answer),
                ..
            }) if by.member == handoff.to => Some(answer),
            _ => None,
        };
        let moment = process.clock.at(now);
        process
            .worker
            .handed_over(handoff, answer.as_deref(), moment);
    }

    pub(super) fn receive(&mut self, number: usize, call: u64, items: &Bytes) {
        let now = self.now();
        let host = self.workers[number].host;
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        match process.worker.receive(items, process.clock.at(now)) {
            Some(receipt) => process.receipts.push((call, receipt)),
            None => {
                self.books
                    .violation(format!("worker {number} cannot read a handoff"));
                let answer = Err(ExportError::Unreachable("unreadable".into()));
                self.network.answer(call, host, answer);
            }
        }
    }

    /// After a turn: what is written is acknowledged to those who handed it over.
    pub(super) fn give_receipts(&mut self, number: usize) {
        let now = self.now();
        let host = self.workers[number].host;
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        let moment = process.clock.at(now);
        let (me, state) = (process.roster.me().clone(), process.roster.state());
        let network = &self.network;
        process.receipts.retain_mut(|(call, receipt)| {
            let Some(answer) = receipt.poll(moment) else {
                return true;
            };
            let answer = answer
                .map(|answer| {
                    Reply::Peer(PeerReply {
                        by: me.clone(),
                        state,
                        what: Told::Receipt(answer),
                    })
                })
                .ok_or_else(|| ExportError::Unreachable("refused".into()));
            network.answer(*call, host, answer);
            false
        });
    }

    pub(super) fn sync(&mut self, number: usize, of: &Member, is_first: bool) -> Option<u64> {
        let process = self.workers[number].process.as_mut()?;
        process.worker.sync(of, is_first)
    }

    pub(super) fn ask_for_sync(&mut self, number: usize, sync: SyncWith, is_first: bool) {
        let Some(process) = &self.workers[number].process else {
            return;
        };
        let Some((to, incarnation)) = peer(process, &sync.member) else {
            self.tell_roster(number, RosterEvent::NotSynced(sync));
            return;
        };
        let call = PeerCall {
            from: Some((process.roster.me().clone(), process.roster.state())),
            to: (sync.member.clone(), Some(incarnation)),
            what: Said::Sync { is_first },
        };
        let life = process.life;
        let what = Asked::Sync(sync);
        let caller = Caller::Peering { life, what };
        let host = self.workers[number].host;
        self.network
            .call(host, to, caller, Body::Peer(call), DATA_TIMEOUT);
    }

    pub(super) fn sync_answered(
        &mut self,
        number: usize,
        sync: SyncWith,
        reply: Result<PeerReply, ExportError>,
    ) {
        let left = match reply {
            Ok(PeerReply {
                what: Told::Left(left),
                ..
            }) => left,
            _ => None,
        };
        match left {
            Some(0) => {
                self.tell_roster(number, RosterEvent::Synced(sync));
            }
            Some(_) => {
                if let Some(process) = &self.workers[number].process {
                    let life = process.life;
                    self.network
                        .push(SYNC_AGAIN, Event::SyncAgain { life, sync });
                }
            }
            None => {
                self.tell_roster(number, RosterEvent::NotSynced(sync));
            }
        }
    }

    /// SIGTERM: the worker leaves the ring, gives away what it has, and ends.
    pub(super) fn leave(&mut self, number: usize) {
        let now = self.now();
        let Some(process) = &mut self.workers[number].process else {
            return;
        };
        process.is_stopping = true;
        process.last_request = now;
        let life = process.life;
        self.tell_roster(number, RosterEvent::Drain);
        self.view_changed(number);
        let give_up_at = now + LEAVE_MOST;
        self.network
            .push(LEAVE_LOOK, Event::Leave { life, give_up_at });
    }

    /// Whether it is done.
    pub(super) fn look_to_leave(&mut self, life: Life, give_up_at: Millis) {
        let now = self.now();
        let Some(number) = self.worker_of(life) else {
            return;
        };
        let Some(process) = &self.workers[number].process else {
            return;
        };
        let is_quiet = process.last_request + LEAVE_QUIET <= now;
        let is_done = is_quiet && process.worker.is_drained() && process.handoffs.is_empty();
        if !is_done && now < give_up_at {
            return self
                .network
                .push(LEAVE_LOOK, Event::Leave { life, give_up_at });
        }
        self.books
            .note(if is_done { "drained" } else { "drain given up" });
        let after = self.workers[number].comes_back;
        self.end_worker(number, true);
        if let Some((down, is_replaced)) = after {
            self.come_back(number, down, is_replaced);
        } else {
            let name = self.workers[number].name.clone();
            self.zone.set(now, &name, None);
        }
    }
}

/// Where a peer is called, and in which life.
fn peer(
    process: &crate::pods::WorkerProcess,
    member: &Member,
) -> Option<(std::net::SocketAddr, Incarnation)> {
    let mut peers = process.roster.peers();
    let (_, to, incarnation) = peers.find(|(peer, ..)| *peer == member)?;
    Some((to, incarnation?))
}
