//! Decides which worker owns a trace. Knows nothing about sockets, health or addresses.
//!
//! A pure function of (sorted names, seed, ring version): two processes that believe in the same
//! names place every trace alike. 65,536 slots, 512 points a
//! name on the `hashring` crate, load cap ⌈1.05 × 65,536 / n⌉.

mod table;

pub use table::{Seed, Slot, Table};
