//! What is known of one other member, and what follows from it alone.

use std::net::SocketAddr;

use super::{Listed, Note, RosterConfig, Said};
use crate::model::{Member, MemberState, Moment};

#[derive(Debug)]
pub(super) struct Entry {
    known_since: Moment,
    dns: Option<InDns>,
    pub(super) said: Option<Said>,
    /// The last hello of it, either way.
    pub(super) heard_at: Option<Moment>,
    /// The last hello of ours that it answered.
    answered_at: Option<Moment>,
    /// A hello that came says where it is; DNS may be late.
    address_from_hello: bool,
    /// Where a peer has heard it, to be tried once.
    hint: Option<SocketAddr>,
    pub(super) hello_due: Moment,
    hello_under_way: bool,
    /// Hellos of ours that ended, whichever way, since the last joining began.
    pub(super) tried: u32,
    pub(super) sync: SyncState,
    in_ring: bool,
}

#[derive(Debug)]
struct InDns {
    otlp: Option<SocketAddr>,
    peer_port: u16,
    /// The first good answer without it since the last one with it.
    absent_since: Option<Moment>,
}

/// What a member told for the joining that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SyncState {
    /// To be asked from then on.
    Due(Moment),
    Asked,
    Done,
}

#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) new_life: bool,
    pub(super) store_replaced: bool,
}

impl Entry {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            known_since: now,
            dns: None,
            said: None,
            heard_at: None,
            answered_at: None,
            address_from_hello: false,
            hint: None,
            hello_due: now,
            hello_under_way: false,
            tried: 0,
            sync: SyncState::Due(Moment::ZERO),
            in_ring: false,
        }
    }

    /// DNS lists it. Whether its address changed.
    pub(super) fn list(&mut self, listed: &Listed, now: Moment, config: &RosterConfig) -> bool {
        let dns = self.dns.get_or_insert(InDns {
            otlp: None,
            peer_port: listed.peer_port,
            absent_since: None,
        });
        dns.absent_since = None;
        dns.peer_port = listed.peer_port;
        // An address that is still among several stays, whatever their order.
        let stays = dns.otlp.is_some_and(|known| listed.otlp.contains(&known));
        let moved = !stays && !listed.otlp.is_empty();
        if moved {
            dns.otlp = listed.otlp.first().copied();
        }
        if !self.is_fresh(now, config) {
            self.address_from_hello = false;
        }
        moved
    }

    pub(super) fn unlist(&mut self, now: Moment) {
        if let Some(dns) = &mut self.dns {
            dns.absent_since.get_or_insert(now);
        }
    }

    /// A peer has heard it there. Whether that is news.
    pub(super) fn hint(&mut self, peer: SocketAddr, now: Moment, config: &RosterConfig) -> bool {
        let is_news = !self.is_fresh(now, config) && self.peer_address() != Some(peer);
        if is_news {
            self.hint = Some(peer);
        }
        is_news
    }

    /// Whether there was one.
    pub(super) fn drop_hint(&mut self) -> bool {
        self.hint.take().is_some()
    }

    /// Takes in a hello that is believed.
    pub(super) fn hear(&mut self, said: Said, answered: bool, now: Moment) -> News {
        let mut news = News {
            new_life: true,
            store_replaced: false,
        };
        if let Some(before) = &self.said {
            news.new_life = before.identity.incarnation != said.identity.incarnation;
            news.store_replaced = before.identity.store != said.identity.store;
        }
        if news.new_life {
            // What another life told, or did not, does not count for this one.
            self.sync = SyncState::Due(Moment::ZERO);
            self.answered_at = None;
        }
        // The same life cannot take DRAINING back: an older hello was overtaken.
        let mut said = said;
        if !news.new_life
            && let Some(before) = &self.said
            && before.state == MemberState::Draining
        {
            said.state = MemberState::Draining;
        }
        if answered {
            self.answered_at = Some(now);
            self.hello_ended();
        }
        self.said = Some(said);
        self.heard_at = Some(now);
        self.address_from_hello = true;
        self.hint = None;
        news
    }

    pub(super) fn hello_ended(&mut self) {
        self.tried = self.tried.saturating_add(1);
        self.hello_under_way = false;
    }

    /// Whether a hello is to be said now. One at a time.
    pub(super) fn begin_hello(&mut self, now: Moment, config: &RosterConfig) -> bool {
        if self.hello_under_way || now < self.hello_due || self.peer_address().is_none() {
            return false;
        }
        self.hello_under_way = true;
        self.hello_due = now + config.hello_every;
        true
    }

    pub(super) fn is_in_dns(&self) -> bool {
        self.dns
            .as_ref()
            .is_some_and(|dns| dns.absent_since.is_none())
    }

    pub(super) fn is_draining(&self) -> bool {
        self.said
            .as_ref()
            .is_some_and(|said| said.state == MemberState::Draining)
    }

    fn is_fresh(&self, now: Moment, config: &RosterConfig) -> bool {
        self.heard_at.is_some_and(|at| now.since(at) < config.fresh)
    }

    /// It answers us.
    pub(super) fn is_reachable(&self, now: Moment, config: &RosterConfig) -> bool {
        self.answered_at
            .is_some_and(|at| now.since(at) < config.isolated_after)
    }

    /// It was heard, and then not for the whole grace.
    pub(super) fn is_suspect(&self, now: Moment, config: &RosterConfig) -> bool {
        self.heard_at
            .is_some_and(|at| now.since(at) >= config.leave_grace)
    }

    pub(super) fn is_in(&self, now: Moment, config: &RosterConfig) -> bool {
        if self.is_draining() || self.is_suspect(now, config) || self.otlp_address().is_none() {
            return false;
        }
        self.heard_at.is_some() || !self.is_gone_from_dns(now, config)
    }

    /// Neither DNS nor a hello speaks of it any more.
    pub(super) fn is_forgotten(&self, now: Moment, config: &RosterConfig) -> bool {
        self.is_gone_from_dns(now, config)
            && (self.heard_at.is_none() || self.is_suspect(now, config))
    }

    fn is_gone_from_dns(&self, now: Moment, config: &RosterConfig) -> bool {
        match &self.dns {
            None => now.since(self.known_since) >= config.leave_grace,
            Some(dns) => dns
                .absent_since
                .is_some_and(|since| now.since(since) >= config.leave_grace),
        }
    }

    /// As of the last [`Entry::turned`].
    pub(super) fn in_ring(&self) -> bool {
        self.in_ring
    }

    /// What a change of [`Entry::is_in`] is called.
    pub(super) fn turned(
        &mut self,
        is_in: bool,
        now: Moment,
        config: &RosterConfig,
        member: &Member,
    ) -> Option<Note> {
        if self.in_ring == is_in {
            return None;
        }
        self.in_ring = is_in;
        let member = member.clone();
        Some(if is_in {
            Note::Joined(member)
        } else if self.is_draining() {
            Note::Drained(member)
        } else if self.is_suspect(now, config) {
            Note::Suspected(member)
        } else {
            Note::Left(member)
        })
    }

    pub(super) fn otlp_address(&self) -> Option<SocketAddr> {
        let said = self.said.as_ref().map(|said| said.otlp);
        let listed = self.dns.as_ref().and_then(|dns| dns.otlp);
        if self.address_from_hello {
            said.or(listed)
        } else {
            listed.or(said)
        }
    }

    pub(super) fn peer_address(&self) -> Option<SocketAddr> {
        if self.hint.is_some() {
            return self.hint;
        }
        let said = self.said.as_ref().map(|said| said.peer);
        let listed = self.dns.as_ref().and_then(|dns| {
            let ip = dns.otlp?.ip();
            Some(SocketAddr::new(ip, dns.peer_port))
        });
        if self.address_from_hello {
            said.or(listed)
        } else {
            listed.or(said)
        }
    }
}
