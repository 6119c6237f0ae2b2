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
//! [`surrogates`] says who stands in. [`follower`] asks workers who is there. A router holds nothing that a client was told is safe: what is
//! in a lane belongs to a request that still waits.
//!
//! Sockets, statuses and byte admission are `net`'s; what is in a message is `wire`'s; who is there
//! is `cluster`'s.

mod answer;
mod batch;
mod circuit;
mod cutter;
mod follower;
mod ingest;
mod journey;
mod lane;
mod lanes;
mod metrics;
mod queue;
mod surrogates;

use std::time::Duration;

pub use follower::Follower;
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
    /// How long a worker may take for one small RPC; a second more for each 16 MiB.
    pub attempt_timeout: Duration,
    /// How long a client waits at most, whatever deadline it gave.
    pub request_timeout_max: Duration,
    /// How often a lane with an open circuit asks for its worker.
    pub probe_interval: Duration,
}

/// Slower than the disks and networks that this runs on, when others use them too.
const SLOWEST_BYTES_A_SECOND: f64 = (16 << 20) as f64;

impl RouterConfig {
    /// Without the length, one legal message of 64 MiB at a disk of 30 MB/s would time out twice at
    /// its owner, twice at each stand-in, and open every circuit of the router on its way.
    fn attempt_timeout_for(&self, bytes: usize) -> Duration {
        self.attempt_timeout + Duration::from_secs_f64(bytes as f64 / SLOWEST_BYTES_A_SECOND)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_gets_more_time_than_a_short_one() {
        let config = RouterConfig::default();
        let seconds = |bytes| config.attempt_timeout_for(bytes).as_secs_f64();
        assert_eq!(seconds(0), 2.0);
        assert_eq!(seconds(config.rpc_bytes_max), 2.25);
        assert_eq!(seconds(64 << 20), 6.0);
    }
}
