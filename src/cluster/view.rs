//! The members one process believes in, with their addresses and the ring they make.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::model::{Fingerprint, Member};
use crate::ring::Table;

/// One belief, never changed after it is made.
#[derive(Debug)]
pub struct View {
    pub addresses: BTreeMap<Member, SocketAddr>,
    pub table: Table,
}

/// Reads the current view; cheap to clone. A request loads it once, so that it never mixes two.
#[derive(Debug, Clone)]
pub struct ViewHandle {
    current: Arc<ArcSwap<View>>,
    changed: watch::Receiver<Fingerprint>,
}

impl View {
    pub fn fingerprint(&self) -> Fingerprint {
        self.table.fingerprint()
    }
}

impl ViewHandle {
    pub fn load(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// Wakes at every new view (also when only an address changed).
    pub fn changes(&self) -> watch::Receiver<Fingerprint> {
        self.changed.clone()
    }
}
