//! The members one process believes in, with their addresses and the ring they make.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use crate::cluster::roster::RosterMember;
use crate::model::{Fingerprint, Member, MemberState};
use crate::ring::{Seed, Table};

/// One belief, never changed after it is made. Every member of the table has an address.
#[derive(Debug)]
pub struct View {
    pub addresses: BTreeMap<Member, SocketAddr>,
    pub table: Table,
}

/// What `/ring` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ViewDescription {
    /// 16 hex digits.
    pub fingerprint: String,
    /// Sorted by name.
    pub members: Vec<MemberDescription>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberDescription {
    pub name: String,
    /// `ip:port`.
    pub address: Option<SocketAddr>,
    /// Of 65,536.
    pub slots: u32,
    /// On a worker: what it knows of the member, whether that is in its ring or not.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub known: Option<KnownDescription>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KnownDescription {
    /// `joining`, `ready` or `draining`, as it said; `suspect` when it was not heard for a minute; `unheard` when
    /// nothing but DNS speaks of it.
    pub state: &'static str,
    pub incarnation: Option<u64>,
    /// 32 hex digits; another one under a known name has an empty log.
    pub store: Option<String>,
    /// Since the last hello, of either side.
    pub hello_age_millis: Option<u64>,
    pub in_dns: bool,
    /// `ip:port` for peers.
    pub peer_address: Option<SocketAddr>,
}

/// Reads the current view; cheap to clone. A request loads it once, so that it never mixes two.
#[derive(Debug, Clone)]
pub struct ViewHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwap<View>,
    changed: watch::Sender<Fingerprint>,
    refresh: Notify,
    difference: Notify,
}

impl View {
    /// Places the members; takes milliseconds.
    pub fn new(addresses: BTreeMap<Member, SocketAddr>, seed: Seed, cluster: &str) -> Self {
        let table = Table::build(addresses.keys().cloned(), seed, cluster);
        Self { addresses, table }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.table.fingerprint()
    }

    /// Where a member stands in the table.
    pub fn index_of(&self, member: &Member) -> Option<u16> {
        let index = self.table.members().binary_search(member).ok()?;
        u16::try_from(index).ok()
    }

    pub fn describe(&self) -> ViewDescription {
        let slots = self.table.slots_by_member();
        let members = self.table.members().iter().zip(slots);
        ViewDescription {
            fingerprint: self.fingerprint().to_string(),
            members: members
                .map(|(member, slots)| MemberDescription {
                    name: member.to_string(),
                    address: self.addresses.get(member).copied(),
                    slots,
                    known: None,
                })
                .collect(),
        }
    }

    /// With what a worker knows of these members, who need not be in the ring. Sorted by name.
    pub fn describe_with(&self, roster: &[RosterMember]) -> ViewDescription {
        let mut described = self.describe();
        for it in roster {
            let known = Some(KnownDescription::of(it));
            let members = &mut described.members;
            match members.binary_search_by(|each| each.name.as_str().cmp(it.member.as_str())) {
                Ok(index) => members[index].known = known,
                Err(index) => members.insert(
                    index,
                    MemberDescription {
                        name: it.member.to_string(),
                        address: it.otlp,
                        slots: 0,
                        known,
                    },
                ),
            }
        }
        described
    }
}

impl KnownDescription {
    fn of(it: &RosterMember) -> Self {
        let said = it.said.as_ref();
        Self {
            state: match said {
                None => "unheard",
                Some((_, state)) if *state == MemberState::Draining || !it.suspect => state.label(),
                Some(_) => "suspect",
            },
            incarnation: said.map(|(identity, _)| identity.incarnation.0),
            store: said.map(|(identity, _)| identity.store.to_string()),
            hello_age_millis: it
                .silent
                .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            in_dns: it.in_dns,
            peer_address: it.peer,
        }
    }
}

impl ViewHandle {
    /// A view that nobody changes: for tests, and for processes that are told their members.
    pub fn fixed(view: View) -> Self {
        let (changed, _) = watch::channel(view.fingerprint());
        Self {
            shared: Arc::new(Shared {
                current: ArcSwap::from_pointee(view),
                changed,
                refresh: Notify::new(),
                difference: Notify::new(),
            }),
        }
    }

    pub fn load(&self) -> Arc<View> {
        self.shared.current.load_full()
    }

    /// Wakes at every new view (also when only an address changed). The sender lives as long as
    /// any handle, so waiting on a view that no longer changes waits, and does not fail.
    pub fn changes(&self) -> watch::Receiver<Fingerprint> {
        self.shared.changed.subscribe()
    }

    /// A hint that an address no longer answers: members are looked up again now instead of at the
    /// next poll, at most once a second however often this is called.
    pub fn refresh(&self) {
        self.shared.refresh.notify_one();
    }

    /// A response came from one whose ring has that fingerprint. If it is another than ours, somebody knows more.
    pub fn compare(&self, theirs: Fingerprint) {
        if theirs != self.shared.current.load().fingerprint() {
            self.shared.difference.notify_one();
        }
    }

    /// Completes after a [`ViewHandle::compare`] of different rings. One caller at a time.
    pub async fn difference_seen(&self) {
        self.shared.difference.notified().await;
    }

    /// Completes after a [`ViewHandle::refresh`]. One caller at a time.
    pub(super) async fn refresh_wanted(&self) {
        self.shared.refresh.notified().await;
    }

    /// For whoever looks members up; everyone else only reads.
    pub fn publish(&self, view: View) {
        let fingerprint = view.fingerprint();
        self.shared.current.store(Arc::new(view));
        // After the store: whoever wakes must find the new view.
        self.shared.changed.send_replace(fingerprint);
    }
}
