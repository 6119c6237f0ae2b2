//! Black box: the real binaries as processes, found through a real DNS server, fed with real load,
//! and broken on purpose. Each row of the failure table in the README is a test in here.
//!
//! Tests take turns ([`cluster::Cluster::start`]); a release build makes their numbers better and
//! changes no claim.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]

mod bad_input;
mod cluster;
#[path = "../support/dns.rs"]
mod dns;
mod failures;
mod fsync;
mod peers;
mod process;
mod start;
mod whole;
