//! Tailring keeps the traces worth keeping, whole.
//!
//! This file is the map. It has no types; each folder below opens by saying what it is for. Files that
//! are private to their layer are given by path.
//!
//! # The way of a span through a router
//!
//! [`net::server`] receives the raw message and admits its bytes → `router/ingest.rs` asks
//! `wire/scan.rs` what is in it and rejects spans that can never be accepted →
//! [`ring::Table`] names the owner of each trace → [`wire::split`] writes one message for
//! each owner → `router/lane.rs` sends it, together with what queued up meanwhile → all owners
//! acknowledged → OK.
//!
//! # The way of a span through a worker
//!
//! [`net::server`] → [`worker::ingest`] → `wire/fragment.rs` groups the message by trace →
//! [`worker::shard`] (one thread a core, the only owner of its traces) recognises retries,
//! applies remembered verdicts, appends to the [`log`] and keeps the index of [`trace`] →
//! `worker/disk.rs` writes, then acknowledges → the deadline → [`policy`] votes →
//! [`worker::export`] reads the kept fragments back, groups them by resource and sends them; only
//! the backend's OK frees their place in the log.
//!
//! # Layers
//!
//! Imports point one way: `bin → app → router | worker → cluster net log → trace policy ring →
//! wire → model`. The layers from `trace` down are pure: bytes, values and `now` in; values and
//! effects out. `tests/architecture.rs` holds this, with a reason for each rule.

pub mod model;

pub mod wire;

pub mod policy;
pub mod ring;
pub mod trace;

pub mod cluster;
pub mod log;
pub mod net;

pub mod router;
pub mod worker;

pub mod app;
