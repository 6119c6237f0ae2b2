//! Which names are in: they join at once and leave slowly. Decides from good answers and the time
//! they came; knows nothing about how one asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::roster::Listed;
use crate::model::Member;
use crate::ring::Table;

/// What one good answer said.
pub type Answer = BTreeMap<Member, Listed>;

#[derive(Debug)]
pub(super) struct Membership {
    leave_after: Duration,
    known: BTreeMap<Member, Known>,
}

#[derive(Debug)]
struct Known {
    address: SocketAddr,
    peer_port: u16,
    /// The first good answer without the name since the last one with it.
    absent_since: Option<Instant>,
}

impl Membership {
    pub(super) fn new(leave_after: Duration) -> Self {
        Self {
            leave_after,
            known: BTreeMap::new(),
        }
    }

    /// Takes in a good answer that came at `now`. Failed ones are not shown to this type at all:
    /// they say nothing about who is there.
    pub(super) fn apply(&mut self, answer: &Answer, now: Instant) {
        for (member, listed) in answer {
            let addresses = &listed.otlp;
            match self.known.get_mut(member) {
                Some(known) => {
                    known.absent_since = None;
                    known.peer_port = listed.peer_port;
                    // An address that is still among several stays, whatever their order.
                    if let Some(first) = addresses.first()
                        && !addresses.contains(&known.address)
                    {
                        known.address = *first;
                    }
                }
                // A name joins with its first address: every member of the ring has one.
                None => {
                    if let Some(address) = addresses.first() {
                        let known = Known {
                            address: *address,
                            peer_port: listed.peer_port,
                            absent_since: None,
                        };
                        self.known.insert(member.clone(), known);
                    }
                }
            }
        }
        self.dismiss(answer, now);
    }

    fn dismiss(&mut self, answer: &Answer, now: Instant) {
        let leave_after = self.leave_after;
        self.known.retain(|member, known| {
            if answer.contains_key(member) {
                return true;
            }
            let since = *known.absent_since.get_or_insert(now);
            now.duration_since(since) < leave_after
        });
        // Absent names could pile up behind answers that are new each time. An answer is within
        // the bound itself, so dropping absent names, longest absent first, is enough.
        let excess = self.known.len().saturating_sub(Table::MEMBERS_MAX);
        if excess > 0 {
            let mut absent: Vec<_> = self
                .known
                .iter()
                .filter_map(|(member, known)| Some((known.absent_since?, member.clone())))
                .collect();
            absent.sort_unstable();
            for (_, member) in absent.into_iter().take(excess) {
                self.known.remove(&member);
            }
        }
    }

    pub(super) fn addresses(&self) -> BTreeMap<Member, SocketAddr> {
        let members = self.known.iter();
        members
            .map(|(m, known)| (m.clone(), known.address))
            .collect()
    }

    /// Where the members call each other.
    pub(super) fn peers(&self) -> BTreeMap<Member, SocketAddr> {
        let address = |known: &Known| SocketAddr::new(known.address.ip(), known.peer_port);
        let members = self.known.iter();
        members
            .map(|(m, known)| (m.clone(), address(known)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAVE_AFTER: Duration = Duration::from_secs(60);

    fn answer(rows: &[(&str, &[&str])]) -> Answer {
        rows.iter()
            .map(|(name, addresses)| {
                let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
                let listed = Listed {
                    otlp: addresses,
                    peer_port: 1,
                };
                (Member::parse(name).unwrap(), listed)
            })
            .collect()
    }

    fn names(membership: &Membership) -> Vec<String> {
        membership.known.keys().map(Member::to_string).collect()
    }

    #[test]
    fn a_name_leaves_when_it_was_absent_for_the_whole_time() {
        let both = answer(&[("a", &["10.0.0.1:1"]), ("b", &["10.0.0.2:1"])]);
        let one = answer(&[("a", &["10.0.0.1:1"])]);
        let mut membership = Membership::new(LEAVE_AFTER);
        let start = Instant::now();
        let mut at = |seconds, answer: &Answer| {
            membership.apply(answer, start + Duration::from_secs(seconds));
            names(&membership).join(",")
        };
        assert_eq!(at(0, &both), "a,b");
        assert_eq!(at(10, &one), "a,b");
        assert_eq!(at(69, &one), "a,b");
        // Seen once: the time starts anew.
        assert_eq!(at(70, &both), "a,b");
        assert_eq!(at(72, &one), "a,b");
        assert_eq!(at(131, &one), "a,b");
        assert_eq!(at(132, &one), "a");
        assert_eq!(at(133, &both), "a,b");
    }

    #[test]
    fn an_address_stays_while_it_is_still_among_the_answers() {
        let mut membership = Membership::new(LEAVE_AFTER);
        let now = Instant::now();
        let mut apply = |addresses: &[&str]| {
            membership.apply(&answer(&[("a", addresses)]), now);
            membership.addresses().into_values().next()
        };
        let first: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let second: SocketAddr = "10.0.0.2:1".parse().unwrap();
        assert_eq!(apply(&[]), None);
        assert_eq!(apply(&["10.0.0.1:1"]), Some(first));
        assert_eq!(apply(&["10.0.0.2:1", "10.0.0.1:1"]), Some(first));
        assert_eq!(apply(&[]), Some(first));
        assert_eq!(apply(&["10.0.0.2:1"]), Some(second));
    }

    #[test]
    fn one_name_for_another_is_a_change_of_names() {
        let mut membership = Membership::new(Duration::ZERO);
        let now = Instant::now();
        membership.apply(&answer(&[("a", &["10.0.0.1:1"])]), now);
        membership.apply(&answer(&[("b", &["10.0.0.1:1"])]), now);
        assert_eq!(names(&membership), ["b"]);
    }

    #[test]
    fn absent_names_never_pile_up_beyond_the_bound() {
        let mut membership = Membership::new(LEAVE_AFTER);
        let start = Instant::now();
        for round in 0..4u64 {
            let fresh: Answer = (0..1_500)
                .map(|i| format!("w{round}-{i}"))
                .map(|name| {
                    let listed = Listed {
                        otlp: vec!["10.0.0.1:1".parse().unwrap()],
                        peer_port: 1,
                    };
                    (Member::parse(&name).unwrap(), listed)
                })
                .collect();
            membership.apply(&fresh, start + Duration::from_secs(round));
            assert!(membership.known.len() <= Table::MEMBERS_MAX);
            assert!(fresh.keys().all(|name| membership.known.contains_key(name)));
        }
        assert_eq!(membership.known.len(), Table::MEMBERS_MAX);
    }
}
