//! Bytes in flight: every message is paid for before it is held, and given back when it is not.

use std::sync::Arc;

/// A bound on bytes, shared by everything that holds messages.
#[derive(Debug)]
pub struct Budget {}

/// Bytes taken from a [`Budget`]; given back on drop.
#[derive(Debug)]
pub struct Permit {}

impl Budget {
    pub fn new(bytes_max: u64) -> Arc<Self> {
        let _ = bytes_max;
        unimplemented!()
    }

    /// `None` when the bytes are not there; nothing waits here.
    pub fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        let _ = bytes;
        unimplemented!()
    }

    pub fn taken_bytes(&self) -> u64 {
        unimplemented!()
    }
}

impl Permit {
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Takes `more` in addition; false (and unchanged) when they are not there.
    pub fn grow(&mut self, more: u64) -> bool {
        let _ = more;
        unimplemented!()
    }
}
