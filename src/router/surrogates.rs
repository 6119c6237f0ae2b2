//! Who stands in for members that are away: the ring without them.
//!
//! There is no stored second choice. `table(view − away)` spreads the traces of one member evenly
//! over all others, and every router that misses the same members sends them the same way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::OnceCell;
use tokio::task::JoinError;

use crate::cluster::View;
use crate::model::{Fingerprint, Member};
use crate::ring::Table;

/// Tables are some 128 KiB each. Sets of absent members change with each circuit that opens or
/// closes; a rolling restart walks through a handful.
const CACHED_MAX: usize = 16;

/// Members whose lane has an open circuit, sorted.
#[derive(Debug, Default)]
pub(crate) struct Away {
    members: ArcSwap<Vec<Member>>,
}

#[derive(Debug, PartialEq, Eq, Clone)]
struct Key {
    view: Fingerprint,
    /// Sorted.
    away: Vec<Member>,
}

type Cell = Arc<OnceCell<Arc<Table>>>;

/// Tables by the set of absent members; the oldest goes when there are too many.
#[derive(Debug, Default)]
pub(crate) struct Surrogates {
    cached: Mutex<VecDeque<(Key, Cell)>>,
}

impl Away {
    pub(crate) fn load(&self) -> Arc<Vec<Member>> {
        self.members.load_full()
    }

    pub(crate) fn add(&self, member: &Member) {
        self.members
            .rcu(|members| match members.binary_search(member) {
                Ok(_) => Arc::clone(members),
                Err(place) => {
                    let mut members = members.to_vec();
                    members.insert(place, member.clone());
                    Arc::new(members)
                }
            });
    }

    pub(crate) fn remove(&self, member: &Member) {
        self.members
            .rcu(|members| match members.binary_search(member) {
                Err(_) => Arc::clone(members),
                Ok(place) => {
                    let mut members = members.to_vec();
                    members.remove(place);
                    Arc::new(members)
                }
            });
    }
}

impl Surrogates {
    /// The view's ring without `away` (sorted). Built once on a thread for such work, however many
    /// ask for it at the same time.
    pub(crate) async fn table(
        &self,
        view: &Arc<View>,
        away: Vec<Member>,
    ) -> Result<Arc<Table>, JoinError> {
        debug_assert!(away.is_sorted(), "equal sets must be equal keys");
        let key = Key {
            view: view.fingerprint(),
            away,
        };
        let cell = self.cell(&key);
        let table = cell
            .get_or_try_init(|| async {
                if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
                    // One thread is what its owner asked for: a simulation, whose order of events
                    // must not hang on when another thread is done.
                    return Ok(Arc::new(view.table.without(&key.away)));
                }
                let view = Arc::clone(view);
                tokio::task::spawn_blocking(move || Arc::new(view.table.without(&key.away))).await
            })
            .await?;
        Ok(Arc::clone(table))
    }

    fn cell(&self, key: &Key) -> Cell {
        // Nothing panics while it is held; a cache is sound at any point.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cell)) = cached.iter().find(|(known, _)| known == key) {
            return Arc::clone(cell);
        }
        if cached.len() >= CACHED_MAX {
            cached.pop_front();
        }
        let cell = Cell::default();
        cached.push_back((key.clone(), Arc::clone(&cell)));
        cell
    }
}
