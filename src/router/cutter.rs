//! Scans a message and cuts it by owner: the CPU work of a router, off its threads when it is long.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::net::admission::Permit;
use crate::net::status::{Refusal, RefusalReason};
use crate::ring::Table;
use crate::wire::{self, Part, Rejections, Scan, ScanError, ScanLimits};

/// Scanning and copying run at about 1 GB/s, so a longer message would hold a runtime thread for
/// more than 4 ms, and everyone else who is served by it.
const INLINE_BYTES_MAX: usize = 4 << 20;

/// A scan keeps the room for the most spans it ever held, about 50 bytes each. Larger ones are
/// freed, so that idle scans hold at most 32 × 16,384 × 50 bytes = 26 MB.
const KEPT_SPANS_MAX: usize = 16_384;
const KEPT_SCANS_MAX: usize = 32;

/// Long messages cut at the same time. Each holds a copy of itself until it is cut, which nobody
/// has paid for.
const LONG_CUTS_MAX: usize = 2;

/// Makes parts out of messages.
#[derive(Debug)]
pub(crate) struct Cutter {
    limits: ScanLimits,
    idle: Mutex<Vec<Scan>>,
    long_cuts: Arc<Semaphore>,
}

/// What was in a message.
#[derive(Debug)]
pub(crate) struct Cut {
    /// One for each owner that any valid span has, by index into the table's members. Empty also
    /// when the table is empty.
    pub(crate) parts: Vec<Part>,
    pub(crate) valid_spans: usize,
    pub(crate) rejections: Rejections,
}

impl Cutter {
    pub(crate) fn new(limits: ScanLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            idle: Mutex::default(),
            long_cuts: Arc::new(Semaphore::new(LONG_CUTS_MAX)),
        })
    }

    /// `paid` is held until the work is over, even if nobody waits for it any more. It grows by what
    /// the parts together are longer than the message.
    pub(crate) async fn cut(
        self: &Arc<Self>,
        message: &Bytes,
        table: &Table,
        paid: &Arc<Permit>,
    ) -> Result<Cut, Refusal> {
        if message.len() <= INLINE_BYTES_MAX {
            return self.cut_here(message, table, paid);
        }
        let turn = Arc::clone(&self.long_cuts).acquire_owned().await;
        let cutter = Arc::clone(self);
        let message = message.clone();
        let table = table.clone();
        let paid = Arc::clone(paid);
        let work = move || {
            let _held = turn;
            cutter.cut_here(&message, &table, &paid)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(cut) => cut,
            Err(_) => Err(Refusal::new(
                RefusalReason::Unready,
                "the router is stopping; send this again to another one",
            )),
        }
    }

    fn cut_here(&self, message: &Bytes, table: &Table, paid: &Permit) -> Result<Cut, Refusal> {
        let mut scan = self.lock().pop().unwrap_or_default();
        let result = scan.read(message, &self.limits).map_err(refusal_of);
        let cut = result.and_then(|()| {
            Ok(Cut {
                parts: split(message, &scan, table, paid)?,
                valid_spans: scan.spans().len(),
                rejections: scan.rejections().clone(),
            })
        });
        if scan.spans().len() <= KEPT_SPANS_MAX {
            let mut idle = self.lock();
            if idle.len() < KEPT_SCANS_MAX {
                idle.push(scan);
            }
        }
        cut
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Scan>> {
        // Nothing panics while it is held; and a list of idle scans is never half changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Headers go into every part: a megabyte of them above spans of many traces makes many megabytes.
/// The most that can come of it is paid before the first byte is copied, and what did not come is
/// given back; the rest stays paid as long as any part lives.
fn split(message: &Bytes, scan: &Scan, table: &Table, paid: &Permit) -> Result<Vec<Part>, Refusal> {
    let Ok(destinations) = u16::try_from(table.members().len()) else {
        return Ok(Vec::new()); // a table has at most 65,536 slots, and u16 indexes into its members
    };
    if destinations == 0 || scan.spans().is_empty() {
        return Ok(Vec::new());
    }
    let growth_max = scan.split_growth_max(destinations);
    if !paid.grow(growth_max) {
        return Err(Refusal::new(
            RefusalReason::MemoryPressure,
            format!(
                "no room for {growth_max} more bytes: headers are copied for each worker that gets \
                 spans below them, and messages in flight are at their bound; try again"
            ),
        ));
    }
    let parts = wire::split(message, scan, destinations, |trace| {
        table.owner_index(trace).unwrap_or(0) // `None` only for an empty table
    });
    let bytes: u64 = parts.iter().map(|part| part.message.len() as u64).sum();
    let growth = bytes.saturating_sub(message.len() as u64);
    paid.shrink_by(growth_max.saturating_sub(growth));
    Ok(parts)
}

fn refusal_of(error: ScanError) -> Refusal {
    let reason = match error {
        ScanError::Malformed { .. } => RefusalReason::InvalidRequest,
        ScanError::TooManySpans { .. } => RefusalReason::TooManySpans,
    };
    Refusal::new(reason, error.to_string())
}
