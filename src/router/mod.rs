//! The router: takes OTLP from anyone and brings each span to the worker that owns its trace.
//!
//! ```text
//! ingest ─ cutter ─┬─ lane worker-0 ── one RPC in flight; what queues up meanwhile goes with the next
//!  (one request)   ├─ lane worker-1
//!                  └─ lane worker-2 ✕ circuit open ─► cut again under table(view − away) ─► other lanes
//! ```
//!
//! [`ingest`] owns one request and its answer; [`journey`] its parts, and what happens to one that a
//! lane gave back. [`cutter`] scans and splits. [`lane`] is the queue, the
//! connection and the circuit of one member; [`lanes`] keeps one for each member of the view.
//! [`surrogates`] says who stands in. A router holds nothing that a client was told is safe: what is
//! in a lane belongs to a request that still waits.
//!
//! Sockets, statuses and byte admission are `net`'s; what is in a message is `wire`'s; who is there
//! is `cluster`'s.

mod answer;
mod batch;
mod circuit;
mod cutter;
mod ingest;
mod journey;
mod lane;
mod lanes;
mod metrics;
mod queue;
mod surrogates;

use std::time::Duration;

pub use ingest::Router;
pub use metrics::RouterMetrics;

use crate::wire::ScanLimits;

/// The bounds and the patience of a router.
#[derive(Debug, Clone, Copy)]
pub struct RouterConfig {
    /// What one request may hold.
    pub limits: ScanLimits,
    /// Bytes that one lane may hold, queued and in flight. A single larger part passes when the
    /// lane is empty, else a legal request could never be sent.
    pub lane_bytes_max: u64,
    /// Parts are concatenated up to this many bytes; one part alone may be larger.
    pub rpc_bytes_max: usize,
    /// Parts are concatenated up to this many spans: the worker's own bound for one request.
    pub rpc_spans_max: u32,
    /// How long a worker may take for one RPC.
    pub attempt_timeout: Duration,
    /// How long a client waits at most, whatever deadline it gave.
    pub request_timeout_max: Duration,
    /// How often a lane with an open circuit asks for its worker.
    pub probe_interval: Duration,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            limits: ScanLimits::default(),
            lane_bytes_max: 64 << 20,
            rpc_bytes_max: 4 << 20,
            rpc_spans_max: 100_000,
            attempt_timeout: Duration::from_secs(2),
            request_timeout_max: Duration::from_secs(10),
            probe_interval: Duration::from_secs(1),
        }
    }
}
