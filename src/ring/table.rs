//! The compiled ring: one array read for each lookup.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::model::{Fingerprint, Member, TraceId};
use crate::ring::placement::{self, VERSION};
use crate::ring::slot::{SLOTS, Seed, Slot};

/// Keeps fingerprints from being mistaken for other hashed bytes. Arbitrary ("fingring").
const FINGERPRINT_SEED: u64 = 0x6669_6e67_7269_6e67;

/// Who owns which slot. 128 KiB, shared by clones.
#[derive(Clone)]
pub struct Table {
    members: Arc<[Member]>,
    /// By slot, indices into `members`. Empty when there are no members.
    owners: Arc<[u16]>,
    seed: Seed,
    cluster: Arc<str>,
    fingerprint: Fingerprint,
}

impl Table {
    /// More names than anyone runs, few enough to place within a second. Whoever collects names
    /// refuses more; [`Table::build`] ignores what sorts after them.
    pub const MEMBERS_MAX: usize = 4_096;

    /// Members may come in any order and more than once.
    pub fn build(members: impl IntoIterator<Item = Member>, seed: Seed, cluster: &str) -> Self {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        members.truncate(Self::MEMBERS_MAX);
        Self::place(members, seed, cluster.into())
    }

    fn place(members: Vec<Member>, seed: Seed, cluster: Arc<str>) -> Self {
        Self {
            owners: placement::place(&members).into(),
            fingerprint: fingerprint(&members, seed, &cluster),
            members: members.into(),
            seed,
            cluster,
        }
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
        self.owner_index_of(Slot::of(trace, self.seed))
    }

    pub fn owner(&self, trace: TraceId) -> Option<&Member> {
        self.owner_index(trace)
            .map(|index| &self.members[usize::from(index)])
    }

    /// Which slot a trace falls on under this ring's seed.
    pub fn slot(&self, trace: TraceId) -> Slot {
        Slot::of(trace, self.seed)
    }

    /// Index into [`Table::members`]; `None` when the ring is empty.
    pub fn owner_index_of(&self, slot: Slot) -> Option<u16> {
        self.owners.get(usize::from(slot.0)).copied()
    }

    pub fn owner_of(&self, slot: Slot) -> Option<&Member> {
        self.owner_index_of(slot)
            .map(|index| &self.members[usize::from(index)])
    }

    /// The same ring without some members: who owns a trace while its owner is away. Takes
    /// milliseconds, so it is built off the hot path and kept.
    pub fn without(&self, gone: &[Member]) -> Self {
        let left = self.members.iter().filter(|m| !gone.contains(m));
        Self::place(left.cloned().collect(), self.seed, self.cluster.clone())
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// How many slots each member has, in the order of [`Table::members`].
    pub fn slots_by_member(&self) -> Vec<u32> {
        let mut slots = vec![0; self.members.len()];
        for owner in &*self.owners {
            slots[usize::from(*owner)] += 1;
        }
        slots
    }

    /// Slots whose owner differs between two rings, in ascending order. Between different seeds
    /// a slot does not mean the same traces, so all of them moved.
    pub fn moved(&self, other: &Self) -> Vec<Slot> {
        if self.seed != other.seed {
            return all_slots().collect();
        }
        // Names are compared once a pair of members, not once a slot.
        let there: Vec<Option<u16>> = self
            .members
            .iter()
            .map(|m| other.members.binary_search(m).ok())
            .map(|index| index.and_then(|i| u16::try_from(i).ok()))
            .collect();
        all_slots()
            .filter(|slot| {
                let here = self.owner_index_of(*slot);
                let expected = here.map(|index| there[usize::from(index)]);
                expected != other.owner_index_of(*slot).map(Some)
            })
            .collect()
    }
}

/// The owners are 65,536 numbers; nobody wants them in a log.
impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("fingerprint", &self.fingerprint)
            .field("cluster", &self.cluster)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

fn all_slots() -> impl Iterator<Item = Slot> {
    debug_assert_eq!(SLOTS, usize::from(u16::MAX) + 1);
    (0..=u16::MAX).map(Slot)
}

/// XXH3 over version, seed ID, cluster and names, each text behind its length.
fn fingerprint(members: &[Member], seed: Seed, cluster: &str) -> Fingerprint {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&seed.id().to_le_bytes());
    for text in std::iter::once(cluster).chain(members.iter().map(Member::as_str)) {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    Fingerprint(xxh3_64_with_seed(&bytes, FINGERPRINT_SEED))
}
