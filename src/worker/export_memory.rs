//! What exporters hold in memory, paid before it is read.
//!
//! Exporters have a part of the worker's budget for themselves: requests never take it, so that kept
//! traces leave however many clients there are. They share it by turns, first come first served. What
//! needs more than all of it (a span of tens of megabytes) has it alone, and charges the rest to the
//! budget: requests are refused until that is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::log::GAP_BYTES_MAX;
use crate::net::admission::{Budget, Permit};
use crate::worker::exporter::READ_BYTES;
use crate::worker::message::MESSAGE_BYTES;
use crate::worker::shard::ExportWork;

/// What turns are counted in.
const UNIT_BYTES: u64 = 64 << 10;
/// A giant waits so long for requests to make room for it. What is acknowledged must leave, so then it
/// goes all the same.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct ExportMemory {
    budget: Arc<Budget>,
    own: Permit,
    units: Arc<Semaphore>,
    units_max: u32,
}

/// Memory for one piece of work; given back on drop.
#[derive(Debug)]
pub(crate) struct ExportHold {
    _units: Option<OwnedSemaphorePermit>,
    _beyond: Option<Permit>,
}

impl ExportMemory {
    /// `own_bytes` of the budget are the exporters' from now on.
    pub(crate) fn new(budget: &Arc<Budget>, own_bytes: u64) -> Arc<Self> {
        let units_max = u32::try_from(own_bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        let units_max = units_max.max(1);
        Arc::new(Self {
            budget: Arc::clone(budget),
            own: budget.charge(own_bytes),
            units: Arc::new(Semaphore::new(units_max as usize)),
            units_max,
        })
    }

    /// Waits until the bytes are there, behind those who asked before.
    pub(crate) async fn take(&self, bytes: u64) -> ExportHold {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = Arc::clone(&self.units).acquire_many_owned(units.min(self.units_max));
        // An error would be a closed semaphore, and nobody closes it.
        let units = units.await.ok();
        let beyond = bytes.saturating_sub(self.own.bytes());
        if beyond == 0 {
            return ExportHold {
                _units: units,
                _beyond: None,
            };
        }
        let beyond = self.budget.charge(beyond);
        let until = Instant::now() + PATIENCE;
        while self.budget.is_overdrawn() && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
        ExportHold {
            _units: units,
            _beyond: Some(beyond),
        }
    }

    /// For what is made beside a piece of work: a dead letter.
    pub(crate) fn charge(&self, bytes: u64) -> Permit {
        self.budget.charge(bytes)
    }
}

/// Bytes that a piece of work takes at most while it is read, put together and sent. `is_compressed`:
/// a message lies there twice.
pub(crate) fn bytes_of(work: &ExportWork, is_compressed: bool) -> u64 {
    let (mut bytes, mut count, mut largest, mut second) = (0, 0, 0, 0);
    for fragment in work.traces.iter().flat_map(|it| &it.fragments) {
        let len = u64::from(fragment.extent().len);
        bytes += len;
        count += 1;
        second = second.max(len.min(largest));
        largest = largest.max(len);
    }
    // Fragments that lie near each other are read with what is between them.
    let a_read = bytes.min(READ_BYTES);
    let fragments = (count * a_read / bytes.max(1) + 1).min(count);
    let a_read = a_read + fragments * GAP_BYTES_MAX;
    let reads = if bytes <= READ_BYTES {
        a_read
    } else {
        // What a message still refers to, and what was read ahead.
        largest.max(a_read) + second.max(a_read)
    };
    let message = largest.max(MESSAGE_BYTES as u64);
    reads + message * if is_compressed { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Decision, Extent, FragmentHash, Moment, SegmentId, Threshold, TraceId};
    use crate::model::{Verdict, VerdictId};
    use crate::trace::FragmentRef;
    use crate::worker::shard::ExportTrace;

    const MIB: u64 = 1 << 20;

    fn work(fragments: &[u64]) -> ExportWork {
        let extents = fragments.iter().map(|len| Extent {
            segment: SegmentId(1),
            offset: 0,
            len: *len as u32,
        });
        ExportWork {
            traces: vec![ExportTrace {
                decision: Decision {
                    trace: TraceId::new([1; 16]).unwrap(),
                    verdict: Verdict::Keep,
                    id: VerdictId(1),
                    threshold: Some(Threshold::ALWAYS),
                    policy: None,
                    rules_version: 1,
                    decided_at: Moment::ZERO,
                },
                fragments: extents
                    .map(|extent| FragmentRef::new(FragmentHash(1), extent))
                    .collect(),
            }],
        }
    }

    #[test]
    fn work_costs_what_is_read_and_what_is_sent() {
        // Two reads of two MiB at most, and a message.
        let ordinary = bytes_of(&work(&[33_000; 60]), false);
        assert!((3 * MIB..4 * MIB).contains(&ordinary), "{ordinary}");
        let long = bytes_of(&work(&[33_000; 6_000]), false);
        assert!((5 * MIB..6 * MIB).contains(&long), "{long}");
        let giant = bytes_of(&work(&[60 * MIB]), false);
        assert!((120 * MIB..124 * MIB).contains(&giant), "{giant}");
        let packed = bytes_of(&work(&[60 * MIB]), true);
        assert!((180 * MIB..184 * MIB).contains(&packed), "{packed}");
        // One is still being sent while the next is read.
        let giants = bytes_of(&work(&[60 * MIB, 50 * MIB, 1]), false);
        assert!((170 * MIB..174 * MIB).contains(&giants), "{giants}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_fits_goes_at_once_and_a_giant_goes_alone_when_requests_have_made_room() {
        let budget = Budget::new(100 * MIB);
        let memory = ExportMemory::new(&budget, 10 * MIB);
        assert!(
            budget.try_take(91 * MIB).is_none(),
            "ten are the exporters'"
        );
        let request = budget.try_take(80 * MIB).unwrap();
        let small = [memory.take(6 * MIB).await, memory.take(4 * MIB).await];
        assert_eq!(budget.taken_bytes(), 90 * MIB);
        let asked = Instant::now();
        let giant = memory.take(60 * MIB);
        let after = memory.take(MIB);
        let requests_end = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(small);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(
                budget.try_take(1).is_none(),
                "no new request beside a giant"
            );
            drop(request);
        };
        let giant = async {
            let held = giant.await;
            let waited = asked.elapsed();
            assert_eq!(budget.taken_bytes(), 60 * MIB);
            drop(held);
            waited
        };
        let (waited, _after, ()) = tokio::join!(biased; giant, after, requests_end);
        assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(3));
        assert_eq!(budget.taken_bytes(), 10 * MIB);
    }

    #[tokio::test(start_paused = true)]
    async fn a_giant_leaves_though_nobody_makes_room() {
        let budget = Budget::new(100 * MIB);
        let memory = ExportMemory::new(&budget, 10 * MIB);
        let _request = budget.try_take(90 * MIB).unwrap();
        let asked = Instant::now();
        let _giant = memory.take(60 * MIB).await;
        assert!(asked.elapsed() >= PATIENCE);
        assert_eq!(budget.taken_bytes(), 150 * MIB);
    }
}
