//! Gives slots to names. The contract of bytes stands at the top of the folder.

use std::hash::{BuildHasher, Hash, Hasher};

use hashring::HashRing;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::model::Member;
use crate::ring::slot::SLOTS;

/// Raised with every change to where a slot goes. Part of the fingerprint.
pub const VERSION: u32 = 1;

/// Virtual points of a name. Measured with 10 names: 512 move 1.04 times the minimum on a join,
/// 128 move 1.25 times.
pub const POINTS_PER_MEMBER: u32 = 512;

/// Nothing to hide here (names are public), so it is fixed. Arbitrary ("tailring").
const PLACEMENT_SEED: u64 = 0x7461_696c_7269_6e67;

/// With 5 % of room left somewhere, a slot has found a name after a handful of attempts. The bound
/// is there so that no list of names, however odd its points, can hold the loop.
const ATTEMPTS_MAX: u32 = 256;

/// Fixed bytes before, between and after a name in a point's key: tag, zero, replica.
const POINT_KEY_EXTRA: usize = 1 + 1 + 4;

/// One virtual point. Hashes as exactly one `write` of its key: std's `Hash` for strings and
/// tuples adds bytes that are no contract between processes.
struct Point<'a> {
    name: &'a str,
    replica: u32,
    member: u16,
}

/// The `attempt`-th try of a slot to find a name. Hashes as one `write`, like [`Point`].
struct Try {
    slot: u16,
    attempt: u32,
}

/// XXH3 over exactly the bytes of a key.
struct PlacementHasher(u64);

#[derive(Clone)]
struct PlacementHash;

impl Hash for Point<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let name = self.name.as_bytes();
        let mut key = [0; Member::BYTES_MAX + POINT_KEY_EXTRA];
        key[0] = b'p';
        // `Member` bounds a name to BYTES_MAX bytes.
        key[1..=name.len()].copy_from_slice(name);
        let end = name.len() + POINT_KEY_EXTRA;
        key[end - 4..end].copy_from_slice(&self.replica.to_le_bytes());
        state.write(&key[..end]);
    }
}

impl Hash for Try {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut key = [0; 7];
        key[0] = b's';
        key[1..3].copy_from_slice(&self.slot.to_le_bytes());
        key[3..].copy_from_slice(&self.attempt.to_le_bytes());
        state.write(&key);
    }
}

impl Hasher for PlacementHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl BuildHasher for PlacementHash {
    type Hasher = PlacementHasher;

    fn build_hasher(&self) -> PlacementHasher {
        PlacementHasher(PLACEMENT_SEED)
    }
}

/// The owner of each slot as an index into `members`, which are sorted and unique. Empty when
/// there are none.
pub(super) fn place(members: &[Member]) -> Vec<u16> {
    if members.is_empty() {
        return Vec::new();
    }
    let points = (0..POINTS_PER_MEMBER).flat_map(|replica| {
        (0u16..).zip(members).map(move |(member, name)| Point {
            name: name.as_str(),
            replica,
            member,
        })
    });
    let points = first_of_equal(points.map(|p| (PlacementHash.hash_one(&p), p)).collect());
    let mut ring = HashRing::with_hasher(PlacementHash);
    ring.batch_add(points);
    fill(members.len(), |slot, attempt| {
        ring.get(&Try { slot, attempt }).map_or(0, |p| p.member)
    })
}

/// Leaves one point of each value, that of the first name: `HashRing` searches by value and would
/// answer with whichever of several it hits.
fn first_of_equal(mut points: Vec<(u64, Point<'_>)>) -> Vec<Point<'_>> {
    points.sort_unstable_by_key(|(value, point)| (*value, point.member, point.replica));
    points.dedup_by_key(|(value, _)| *value);
    points.into_iter().map(|(_, point)| point).collect()
}

/// Slots in index order, none beyond the cap. `candidate` answers with an index below `members`.
fn fill(members: usize, candidate: impl Fn(u16, u32) -> u16) -> Vec<u16> {
    let cap = load_cap(members);
    let mut loads = vec![0usize; members];
    (0..=u16::MAX)
        .map(|slot| {
            let member = (0..ATTEMPTS_MAX)
                .map(|attempt| candidate(slot, attempt))
                .find(|member| loads[usize::from(*member)] < cap)
                .unwrap_or_else(|| least_loaded(&loads));
            loads[usize::from(member)] += 1;
            member
        })
        .collect()
}

/// ⌈1.05 × slots / members⌉
fn load_cap(members: usize) -> usize {
    (SLOTS * 105).div_ceil(100 * members)
}

fn least_loaded(loads: &[usize]) -> u16 {
    let loads = (0u16..).zip(loads);
    loads.min_by_key(|(_, load)| **load).map_or(0, |(m, _)| m)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_points_with_one_value_the_first_name_stays_in_any_order() {
        let point = |member, replica| Point {
            name: "x",
            replica,
            member,
        };
        let make = || vec![(7, point(2, 0)), (9, point(0, 1)), (7, point(1, 3))];
        let mut reversed = make();
        reversed.reverse();
        for points in [make(), reversed] {
            let left: Vec<_> = first_of_equal(points).iter().map(|p| p.member).collect();
            assert_eq!(left, [1, 0]);
        }
    }

    #[test]
    fn a_slot_that_meets_only_full_names_goes_to_the_least_loaded() {
        // A ring that always answers with the same name must still fill everyone alike.
        let owners = fill(10, |_, _| 3);
        let mut loads = [0usize; 10];
        for owner in owners {
            loads[usize::from(owner)] += 1;
        }
        assert_eq!(loads[3], load_cap(10));
        assert_eq!(loads.iter().sum::<usize>(), SLOTS);
        let others: Vec<_> = (0..10).filter(|m| *m != 3).map(|m| loads[m]).collect();
        assert!(others.iter().max().unwrap() - others.iter().min().unwrap() <= 1);
    }

    #[test]
    fn the_longest_name_fits_its_key() {
        let longest = Member::parse(&"a".repeat(Member::BYTES_MAX)).unwrap();
        assert_eq!(place(&[longest]), vec![0; SLOTS]);
    }
}
