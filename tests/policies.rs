//! The policies from the outside: what each says of a trace, alone and made into others; against a
//! reference that shares no code with them; and whether counts made from thresholds are right.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[path = "policies/compatibility.rs"]
mod compatibility;
#[path = "policies/examples.rs"]
mod examples;
#[path = "policies/given.rs"]
mod given;
#[path = "policies/property.rs"]
mod property;
#[path = "policies/reference.rs"]
mod reference;
#[path = "policies/tables.rs"]
mod tables;
#[path = "policies/unbiased.rs"]
mod unbiased;
