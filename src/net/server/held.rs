//! A buffer that pays for its bytes before it has them, and the message it becomes.

use std::sync::Arc;

use bytes::Bytes;

use crate::net::admission::{Budget, Permit};
use crate::net::status::{Refusal, RefusalReason};

/// Reserved on a declared length alone.
pub(super) const TRUST_BYTES: usize = 1 << 20;
/// A buffer that outgrows this is moved once more, to where it can grow to the bound. Pages that
/// were never written take no memory, while every buffer that was left behind does, for a second
/// or two: doubling all the way, a message of 64 MiB cost 128. Ordinary messages, and what routers
/// concatenate, stay below.
const LEAP_BYTES: usize = 4 << 20;
/// Room that a decoder is given at a time.
const STEP_BYTES: usize = 256 << 10;

/// A message and what it costs.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) permit: Permit,
}

/// A buffer that pays for its bytes before they are written to.
pub(super) struct Held {
    /// Its length is what was ever written or zeroed; `filled` is what counts. Never longer than
    /// `permit`; the capacity may be, in pages that were never touched.
    bytes: Vec<u8>,
    filled: usize,
    bytes_max: usize,
    probe: [u8; 1],
    permit: Permit,
}

impl Held {
    pub(super) fn new(
        expected: usize,
        bytes_max: usize,
        budget: &Arc<Budget>,
    ) -> Result<Self, Refusal> {
        let capacity = expected.min(TRUST_BYTES).min(bytes_max);
        let permit = take(budget, capacity)?;
        Ok(Self {
            bytes: Vec::with_capacity(capacity),
            filled: 0,
            bytes_max,
            probe: [0],
            permit,
        })
    }

    /// Makes room for `needed` bytes, paid by doubling. While a buffer moves, the old one and what
    /// was copied of it exist side by side, which is what is paid by then.
    fn reserve(&mut self, needed: usize) -> Result<(), Refusal> {
        let paid = self.paid();
        if needed <= paid {
            return Ok(());
        }
        if needed > self.bytes_max {
            return Err(too_large(needed as u64, self.bytes_max));
        }
        let target = paid.saturating_mul(2).clamp(needed, self.bytes_max);
        let more = (target - paid) as u64;
        if !self.permit.grow(more) {
            return Err(pressure(more));
        }
        if target > self.bytes.capacity() {
            let capacity = if target > LEAP_BYTES {
                self.bytes_max
            } else {
                target
            };
            self.bytes
                .try_reserve_exact(capacity - self.bytes.len())
                .map_err(|_| pressure(capacity as u64))?; // where address space is bounded
        }
        Ok(())
    }

    /// How long the buffer may become.
    fn paid(&self) -> usize {
        // Not above bytes_max, so it fits.
        self.permit.bytes() as usize
    }

    pub(super) fn extend(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        self.reserve(self.filled + chunk.len())?;
        self.bytes.truncate(self.filled);
        self.bytes.extend_from_slice(chunk);
        self.filled = self.bytes.len();
        Ok(())
    }

    /// Up to [`STEP_BYTES`] for a decoder to write to, at least one. At the bound that is the
    /// probe: a decoder that can fill it has proved the message too large.
    pub(super) fn room(&mut self) -> Result<&mut [u8], Refusal> {
        if self.filled == self.bytes_max {
            return Ok(&mut self.probe);
        }
        self.reserve(self.filled + 1)?;
        let end = (self.filled + STEP_BYTES).min(self.paid());
        if self.bytes.len() < end {
            // Every byte is zeroed once, not once a step.
            self.bytes.resize(end, 0);
        }
        Ok(&mut self.bytes[self.filled..end])
    }

    /// `more` bytes of the room are used.
    pub(super) fn fill(&mut self, more: usize) -> Result<(), Refusal> {
        self.filled += more;
        if self.filled > self.bytes_max {
            return Err(too_large(self.filled as u64, self.bytes_max));
        }
        Ok(())
    }

    pub(super) fn into_message(mut self) -> Message {
        self.bytes.truncate(self.filled);
        // Gives the tail of a large buffer back where it lies; a small one is copied.
        if self.bytes.capacity() > LEAP_BYTES || self.filled < self.bytes.capacity() / 2 {
            self.bytes.shrink_to_fit();
        }
        self.permit.shrink_to(self.bytes.capacity() as u64);
        Message {
            bytes: Bytes::from(self.bytes),
            permit: self.permit,
        }
    }
}

/// What a request costs beside its message, from its headers to its answer: the headers (1 KiB as a
/// rule, 16 KiB at most), the stream, the task, its entries in queues. Without it thousands of
/// connections with hundreds of streams each could hold gigabytes in requests of no bytes.
const REQUEST_BYTES: u64 = 8 << 10;

/// To be held until the answer. Not asked of health checks: back-pressure is no bad health.
pub(super) fn admit(budget: &Arc<Budget>) -> Result<Permit, Refusal> {
    budget
        .try_take(REQUEST_BYTES)
        .ok_or_else(|| pressure(REQUEST_BYTES))
}

pub(super) fn take(budget: &Arc<Budget>, bytes: usize) -> Result<Permit, Refusal> {
    budget
        .try_take(bytes as u64)
        .ok_or_else(|| pressure(bytes as u64))
}

pub(super) fn pressure(bytes: u64) -> Refusal {
    let detail =
        format!("no room for {bytes} more bytes: messages in flight are at their bound; try again");
    Refusal::new(RefusalReason::MemoryPressure, detail)
}

pub(super) fn too_large(bytes: u64, bytes_max: usize) -> Refusal {
    let detail = format!(
        "a message of {bytes} bytes or more, over the limit of {bytes_max} (--max-request-bytes, \
         before and after decompression); send smaller batches"
    );
    Refusal::new(RefusalReason::TooLarge, detail)
}
