//! Sealed segments on their way to a footer and a trailer, in the order they were sealed.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::log::SegmentFooter;
use crate::model::SegmentId;

/// Footers that wait take so much memory at most: a disk may take minutes for a sync. Those beyond are
/// left out, and only the sync is noted in their segments.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Unfinished {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Sealed>,
    bytes: usize,
    is_closed: bool,
}

/// A segment that is to get its footer.
#[derive(Debug)]
pub struct Sealed {
    pub(super) segment: SegmentId,
    pub(super) len: u32,
    pub(super) entries: Option<Vec<u8>>,
}

/// A segment that has its footer and is to be synced, which the footer needs to be believed.
#[derive(Debug)]
pub struct Footed {
    pub(super) segment: SegmentId,
    /// 0: it has none.
    pub(super) footer: u32,
    pub(super) end: u32,
}

/// What [`Unfinished::take`] waited for.
#[derive(Debug)]
pub enum Taken {
    Sealed(Sealed),
    TimedOut,
    Closed,
}

impl Unfinished {
    pub(super) fn push(&self, segment: SegmentId, len: u32, footer: SegmentFooter) {
        let mut entries = match footer {
            SegmentFooter::None => return,
            SegmentFooter::TooLong => None,
            SegmentFooter::Entries(entries) => Some(entries),
        };
        let mut queue = self.lock();
        entries = entries.filter(|it| queue.bytes + it.len() <= WAITING_BYTES_MAX);
        queue.bytes += entries.as_ref().map_or(0, Vec::len);
        queue.waiting.push_back(Sealed {
            segment,
            len,
            entries,
        });
        drop(queue);
        self.changed.notify_one();
    }

    /// The next one, if there is one.
    pub fn try_take(&self) -> Option<Sealed> {
        self.lock().take()
    }

    /// Waits for the next one. After [`Unfinished::close`] nothing is waited for.
    pub fn take(&self, at_most: Duration) -> Taken {
        let queue = self.lock();
        let is_idle = |queue: &mut Queue| queue.waiting.is_empty() && !queue.is_closed;
        let (mut queue, _) = self
            .changed
            .wait_timeout_while(queue, at_most, is_idle)
            .unwrap_or_else(PoisonError::into_inner);
        match queue.take() {
            Some(sealed) => Taken::Sealed(sealed),
            None if queue.is_closed => Taken::Closed,
            None => Taken::TimedOut,
        }
    }

    /// No more will come.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take(&mut self) -> Option<Sealed> {
        let sealed = self.waiting.pop_front()?;
        self.bytes -= sealed.entries.as_ref().map_or(0, Vec::len);
        Some(sealed)
    }
}
