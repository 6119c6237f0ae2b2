//! Decides which worker owns a trace. Knows nothing about sockets, health or addresses.
//!
//! A trace's ID is hashed with the cluster's seed onto one of 65,536 slots ([`Slot`]); slots are
//! given to names ([`Table`]) by consistent hashing with a bound on everyone's load. Placement is
//! a pure function of (sorted names, [`VERSION`]), and where a trace falls one of (trace ID, seed):
//! two processes that believe in the same names place every trace alike.
//!
//! # What all processes must agree on, byte for byte
//!
//! All numbers are little endian; `xxh3` is XXH3's 64-bit variant with a seed.
//!
//! | what | value |
//! |---|---|
//! | slot of a trace | top 16 bits of `xxh3(trace ID, 16 bytes; cluster seed)` |
//! | point of a name | `xxh3("p" ‖ name ‖ 0x00 ‖ replica u32; PLACEMENT_SEED)`, replicas 0 to 511 |
//! | try of a slot | `xxh3("s" ‖ slot u16 ‖ attempt u32; PLACEMENT_SEED)`, attempts from 0 |
//! | load cap of n names | ⌈1.05 × 65,536 / n⌉ slots |
//!
//! A try belongs to the first point at or after it, past the last one to the first. Of two points
//! with one value only that of the first name stays. Slots are filled in index order; a slot that
//! meets a full name tries again with the next attempt, and after 256 goes to the least loaded
//! name (the first of several). Whoever changes any of this raises [`VERSION`], which is part of
//! the fingerprint, and the golden vectors in `tests/ring.rs` say so when it was forgotten.

mod placement;
mod slot;
mod table;

pub use placement::{POINTS_PER_MEMBER, VERSION};
pub use slot::{SLOTS, Seed, Slot};
pub use table::Table;
