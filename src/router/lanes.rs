//! One lane for each member of the view, and the view they were made for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::task::JoinHandle;

use crate::cluster::View;
use crate::model::Member;
use crate::router::lane::{Lane, Surroundings};

/// A view with its lanes. A request loads it once, so that it never mixes two.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) view: Arc<View>,
    /// In the order of the table's members. `None` for a member without a usable address.
    lanes: Vec<Option<Arc<Lane>>>,
    laneless: Vec<Member>,
}

#[derive(Debug)]
pub(crate) struct Lanes {
    known: Arc<Known>,
    follower: JoinHandle<()>,
}

#[derive(Debug)]
struct Known {
    surroundings: Arc<Surroundings>,
    routes: ArcSwap<Routes>,
    by_member: Mutex<BTreeMap<Member, (SocketAddr, Arc<Lane>)>>,
}

impl Routes {
    pub(crate) fn members(&self) -> &[Member] {
        self.view.table.members()
    }

    /// Members that cannot be addressed.
    pub(crate) fn laneless(&self) -> &[Member] {
        &self.laneless
    }

    pub(crate) fn lane(&self, index: u16) -> Option<&Arc<Lane>> {
        self.lanes.get(usize::from(index))?.as_ref()
    }

    pub(crate) fn lane_of(&self, member: &Member) -> Option<&Arc<Lane>> {
        let index = self.members().binary_search(member).ok()?;
        self.lanes.get(index)?.as_ref()
    }
}

impl Lanes {
    /// Follows the view from now on; needs a runtime.
    pub(crate) fn new(surroundings: Arc<Surroundings>) -> Self {
        let view = surroundings.view.load();
        let known = Arc::new(Known {
            surroundings,
            // Of no lanes and a view that `follow` has not seen: replaced on the next line.
            routes: ArcSwap::from_pointee(Routes {
                view,
                lanes: Vec::new(),
                laneless: Vec::new(),
            }),
            by_member: Mutex::default(),
        });
        known.follow(true);
        let follower = spawn_follower(Arc::clone(&known));
        Self { known, follower }
    }

    /// The newest view's routes. The follower keeps them fresh; a request that is faster than it
    /// does its work.
    pub(crate) fn routes(&self) -> Arc<Routes> {
        let routes = self.known.routes.load_full();
        if Arc::ptr_eq(&routes.view, &self.known.surroundings.view.load()) {
            return routes;
        }
        self.known.follow(false);
        self.known.routes.load_full()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.follower.abort();
        for (_, (_, lane)) in std::mem::take(&mut *self.known.lock()) {
            lane.retire();
        }
    }
}

impl Known {
    /// Makes lanes for new members, retires those of members that left, redirects those that moved.
    fn follow(&self, first: bool) {
        let mut by_member = self.lock();
        // Loaded under the lock: of two callers the later one sees the newer view.
        let view = self.surroundings.view.load();
        if !first && Arc::ptr_eq(&view, &self.routes.load().view) {
            return;
        }
        let members = view.table.members();
        let lanes: Vec<_> = members
            .iter()
            .map(|member| self.lane_for(member, &view, &mut by_member))
            .collect();
        let laneless = members
            .iter()
            .zip(&lanes)
            .filter(|(_, lane)| lane.is_none())
            .map(|(member, _)| member.clone())
            .collect();
        let gone: Vec<_> = by_member
            .extract_if(.., |member, _| members.binary_search(member).is_err())
            .collect();
        // Published before lanes are emptied: whoever gets a part back must find the new view.
        self.routes.store(Arc::new(Routes {
            view,
            lanes,
            laneless,
        }));
        for (_, (_, lane)) in gone {
            lane.retire();
        }
    }

    fn lane_for(
        &self,
        member: &Member,
        view: &View,
        by_member: &mut BTreeMap<Member, (SocketAddr, Arc<Lane>)>,
    ) -> Option<Arc<Lane>> {
        let address = *view.addresses.get(member)?;
        if let Some((known, lane)) = by_member.get_mut(member) {
            if *known != address {
                lane.redirect(address);
                *known = address;
            }
            return Some(Arc::clone(lane));
        }
        let lane = Lane::spawn(member, address, Arc::clone(&self.surroundings))?;
        by_member.insert(member.clone(), (address, Arc::clone(&lane)));
        Some(lane)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Member, (SocketAddr, Arc<Lane>)>> {
        // Nothing panics while it is held, and the next view repairs what is missing.
        self.by_member
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows views that come while no request does, so that a member that left is not kept waiting
/// for. Ends with the lanes that it serves, by abort.
fn spawn_follower(known: Arc<Known>) -> JoinHandle<()> {
    let mut changes = known.surroundings.view.changes();
    tokio::spawn(async move {
        known.follow(false); // what came between the first look and the subscription
        while changes.changed().await.is_ok() {
            known.follow(false);
        }
    })
}
