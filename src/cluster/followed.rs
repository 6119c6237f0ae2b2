//! Who is in, as a router believes: the names of DNS, and what workers say.
//!
//! A router says no hello. It adds who is in some worker's ring (a worker that DNS does not list yet), and takes out who said
//! DRAINING; both as long as a worker said so within [`TOLD_FRESH`]. Who workers only suspect stays in: they may be
//! cut off themselves, and for one that is really gone there are surrogates.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::membership::{Answer, Membership};
use crate::model::{Incarnation, Member, MemberState};
use crate::ring::Table;

/// A worker's view that is older says nothing.
const TOLD_FRESH: Duration = Duration::from_secs(10);

/// What one worker says of its cluster.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub members: Vec<ToldMember>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldMember {
    pub member: Member,
    /// What it said of itself. `None`: nothing, DNS alone speaks of it.
    pub said: Option<(Incarnation, MemberState)>,
    /// Left out of the ring of the worker that says this.
    pub suspect: bool,
    /// Since the worker heard it.
    pub silent: Duration,
    pub otlp: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
}

#[derive(Debug)]
pub struct Followed {
    dns: Membership,
    told: BTreeMap<Member, Known>,
}

#[derive(Debug)]
struct Known {
    incarnation: Incarnation,
    is_draining: bool,
    /// When a worker last had it in its ring, or out of it for DRAINING.
    told_at: Instant,
    /// When some worker last heard it.
    heard_at: Option<Instant>,
    otlp: Option<SocketAddr>,
    peer: Option<SocketAddr>,
}

impl Known {
    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.told_at) < TOLD_FRESH
    }

    /// Some worker heard it lately: it knows better than DNS where it is.
    fn was_heard(&self, now: Instant) -> bool {
        self.heard_at
            .is_some_and(|at| now.duration_since(at) < TOLD_FRESH)
    }
}

impl Followed {
    pub fn new(leave_after: Duration) -> Self {
        Self {
            dns: Membership::new(leave_after),
            told: BTreeMap::new(),
        }
    }

    /// Takes in a good answer of DNS.
    pub fn listed(&mut self, answer: &Answer, now: Instant) {
        self.dns.apply(answer, now);
    }

    /// Takes in what a worker says.
    pub fn told(&mut self, told: Told, now: Instant) {
        self.told.retain(|_, known| known.is_fresh(now));
        for it in told.members {
            // What only DNS says the router hears of DNS itself; and whom one worker suspects another may hear.
            let Some((incarnation, state)) = it.said.filter(|_| !it.suspect) else {
                continue;
            };
            let heard_at = now.checked_sub(it.silent);
            let is_full = self.told.len() >= Table::MEMBERS_MAX;
            match self.told.get_mut(&it.member) {
                Some(known) if known.incarnation > incarnation => {}
                Some(known) => {
                    let is_new = known.incarnation < incarnation;
                    known.incarnation = incarnation;
                    known.told_at = now;
                    // DRAINING cannot be taken back by the same life: another worker has not heard yet.
                    known.is_draining =
                        state == MemberState::Draining || (known.is_draining && !is_new);
                    if is_new || heard_at >= known.heard_at {
                        known.heard_at = heard_at;
                        known.otlp = it.otlp.or(known.otlp);
                        known.peer = it.peer.or(known.peer);
                    }
                }
                None if is_full => {}
                None => {
                    let known = Known {
                        incarnation,
                        is_draining: state == MemberState::Draining,
                        told_at: now,
                        heard_at,
                        otlp: it.otlp,
                        peer: it.peer,
                    };
                    self.told.insert(it.member, known);
                }
            }
        }
    }

    /// The ring. Never empty because of what workers say: the last ones that DNS lists stay.
    pub fn addresses(&self, now: Instant) -> BTreeMap<Member, SocketAddr> {
        let listed = self.dns.addresses();
        let mut ring = listed.clone();
        for (member, known) in self.told.iter().filter(|(_, known)| known.is_fresh(now)) {
            if known.is_draining {
                ring.remove(member);
                continue;
            }
            let listed = ring.get(member).copied();
            let address = match known.was_heard(now) {
                true => known.otlp.or(listed),
                false => listed.or(known.otlp),
            };
            if let Some(address) = address {
                ring.insert(member.clone(), address);
            }
        }
        if ring.is_empty() { listed } else { ring }
    }

    /// Where workers can be asked, those in the ring and others.
    pub fn peers(&self, now: Instant) -> BTreeMap<Member, SocketAddr> {
        let mut peers = self.dns.peers();
        for (member, known) in self.told.iter().filter(|(_, known)| known.is_fresh(now)) {
            if let Some(peer) = known.peer
                && (known.was_heard(now) || !peers.contains_key(member))
            {
                peers.insert(member.clone(), peer);
            }
        }
        peers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::roster::Listed;

    fn member(name: &str) -> Member {
        Member::parse(name).unwrap()
    }

    fn listed(names: &[(&str, &str)]) -> Answer {
        let row = |(name, address): &(&str, &str)| {
            let listed = Listed {
                otlp: vec![address.parse().unwrap()],
                peer_port: 9,
            };
            (member(name), listed)
        };
        names.iter().map(row).collect()
    }

    fn says(name: &str, incarnation: u64, state: MemberState, silent: u64) -> ToldMember {
        ToldMember {
            member: member(name),
            said: Some((Incarnation(incarnation), state)),
            suspect: false,
            silent: Duration::from_secs(silent),
            otlp: Some("10.9.9.9:1".parse().unwrap()),
            peer: Some("10.9.9.9:2".parse().unwrap()),
        }
    }

    fn told(members: impl Into<Vec<ToldMember>>) -> Told {
        Told {
            members: members.into(),
        }
    }

    fn ring(followed: &Followed, now: Instant) -> String {
        let ring = followed.addresses(now);
        let names: Vec<_> = ring.iter().map(|(m, at)| format!("{m}={at}")).collect();
        names.join(" ")
    }

    const LEAVE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn who_is_in_a_workers_ring_is_in_as_long_as_workers_say_so() {
        let mut followed = Followed::new(LEAVE);
        let start = Instant::now();
        followed.listed(&listed(&[("a", "10.0.0.1:1")]), start);
        followed.told(told([says("b", 5, MemberState::Joining, 0)]), start);
        assert_eq!(ring(&followed, start), "a=10.0.0.1:1 b=10.9.9.9:1");
        assert_eq!(followed.peers(start).len(), 2);
        let later = start + Duration::from_secs(9);
        assert_eq!(ring(&followed, later), "a=10.0.0.1:1 b=10.9.9.9:1");
        let later = start + Duration::from_secs(10);
        assert_eq!(ring(&followed, later), "a=10.0.0.1:1");
    }

    #[tokio::test(start_paused = true)]
    async fn who_said_draining_is_out_until_another_life_of_it_says_otherwise() {
        let mut followed = Followed::new(LEAVE);
        let now = Instant::now();
        followed.listed(&listed(&[("a", "10.0.0.1:1"), ("b", "10.0.0.2:1")]), now);
        followed.told(told([says("b", 5, MemberState::Draining, 0)]), now);
        assert_eq!(ring(&followed, now), "a=10.0.0.1:1");
        // Another worker has not heard yet, and one speaks of an older life.
        followed.told(told([says("b", 5, MemberState::Ready, 1)]), now);
        followed.told(told([says("b", 4, MemberState::Ready, 0)]), now);
        assert_eq!(ring(&followed, now), "a=10.0.0.1:1");
        followed.told(told([says("b", 6, MemberState::Joining, 0)]), now);
        assert_eq!(ring(&followed, now), "a=10.0.0.1:1 b=10.9.9.9:1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspicion_is_never_adopted_and_the_ring_never_empties() {
        let mut followed = Followed::new(LEAVE);
        let now = Instant::now();
        followed.listed(&listed(&[("a", "10.0.0.1:1")]), now);
        let mut suspect = says("a", 5, MemberState::Ready, 70);
        suspect.suspect = true;
        followed.told(told([suspect.clone()]), now);
        assert_eq!(ring(&followed, now), "a=10.0.0.1:1");
        suspect.member = member("b");
        followed.told(told([suspect]), now);
        assert_eq!(ring(&followed, now), "a=10.0.0.1:1");
        followed.told(told([says("a", 5, MemberState::Draining, 0)]), now);
        assert_eq!(ring(&followed, now), "a=10.0.0.1:1");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_was_heard_lately_beats_that_of_dns() {
        let mut followed = Followed::new(LEAVE);
        let now = Instant::now();
        followed.listed(&listed(&[("a", "10.0.0.1:1")]), now);
        followed.told(told([says("a", 5, MemberState::Ready, 20)]), now);
        assert_eq!(ring(&followed, now), "a=10.0.0.1:1");
        followed.told(told([says("a", 5, MemberState::Ready, 2)]), now);
        assert_eq!(ring(&followed, now), "a=10.9.9.9:1");
        assert_eq!(
            followed.peers(now)[&member("a")],
            "10.9.9.9:2".parse().unwrap()
        );
    }
}
