//! The compiled ring: one array read for each lookup.

use std::sync::Arc;

use crate::model::{Fingerprint, Member, TraceId};

/// Keeps outsiders from aiming traces at one worker. Equal in all processes of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed(pub u64);

/// One of 65,536 shares of all traces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u16);

/// Who owns which slot.
#[derive(Debug, Clone)]
pub struct Table {
    members: Arc<[Member]>,
}

impl Slot {
    pub fn of(trace: TraceId, seed: Seed) -> Self {
        let _ = (trace, seed);
        unimplemented!()
    }
}

impl Table {
    /// Members may come in any order and more than once.
    pub fn build(members: impl IntoIterator<Item = Member>, seed: Seed, cluster: &str) -> Self {
        let _ = (members.into_iter().count(), seed, cluster);
        unimplemented!()
    }

    /// Sorted by name.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Index into [`Table::members`]; `None` when the ring is empty.
    pub fn owner_index(&self, trace: TraceId) -> Option<u16> {
        let _ = trace;
        unimplemented!()
    }

    pub fn owner(&self, trace: TraceId) -> Option<&Member> {
        self.owner_index(trace)
            .map(|index| &self.members[usize::from(index)])
    }

    /// The same ring without some members: who owns a trace while its owner is away.
    pub fn without(&self, gone: &[Member]) -> Self {
        let _ = gone;
        unimplemented!()
    }

    pub fn fingerprint(&self) -> Fingerprint {
        unimplemented!()
    }

    /// How many slots each member has, in the order of [`Table::members`].
    pub fn slots_by_member(&self) -> Vec<u32> {
        unimplemented!()
    }

    /// Slots whose owner differs between two rings.
    pub fn moved(&self, other: &Self) -> Vec<Slot> {
        let _ = other;
        unimplemented!()
    }
}
