//! Chaos on real processes: a whole installation under load is killed, stopped, filled up and
//! starved, and the books of the load are compared with those of the backend. No acknowledged span
//! may be lost in any row, and none doubled unless a crash or a lost answer explains it. Where the ring changes, no trace may
//! be split either.
//!
//! `cargo test --test chaos` runs each row in its short form. The rows as they are meant, with a
//! report table and the figures that only a quiet machine can hold:
//!
//! ```sh
//! cargo test --release --test chaos -- --ignored --nocapture full
//! ```
//!
//! Here are the faults and what must hold; the installation is `tests/cluster`'s.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]

mod backends;
#[path = "../cluster/cluster.rs"]
mod cluster;
mod disks;
#[path = "../support/dns.rs"]
mod dns;
mod evidence;
mod figures;
mod full;
mod kills;
mod namespaces;
mod overload;
mod partitions;
#[path = "../cluster/process.rs"]
mod process;
mod quick;
#[path = "../receiver/mod.rs"]
mod receiver;
mod ring;
mod row;
mod run;
mod throttle;
mod tmpfs;
mod upgrades;
