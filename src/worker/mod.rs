//! A worker: owns complete traces, judges them, exports what is kept.
//!
//! Reading order: `ingest` (from a message to acknowledged fragments) → `shard` (the state
//! machine that owns traces) → `shard_thread` and `disk` (the threads that run it and write for it)
//! → `limiter` (the limits that all shards ask) → `exporter` and `message` (from a verdict to the
//! backend's OK; `export_memory` says when they may, `labels` what spans leave with) → `isolation` and `dead_letters` (what the backend refuses) → `export` (destinations).
//! `reload` changes the rules of a worker that runs, `refolder` reads back what undecided traces need for it. `footers` spares the next start
//! time. `forward` passes on what belongs to others. `peering` knows who is there and when verdicts may be given, `exchange` is what peers ask
//! for, `handoff` what moves between them. `simulated` runs
//! the same shards in one thread, for `tests/crash` and `tests/simulation`.

mod compactor;
pub mod export;

mod dead_letters;
mod disk;
mod exchange;
mod export_memory;
mod exporter;
mod footers;
mod forward;
pub mod handoff;
pub mod ingest;
mod isolation;
mod labels;
mod limiter;
mod message;
mod metrics;
mod peering;
mod peering_metrics;
mod refolder;
mod reload;
pub mod shard;
mod shard_thread;
mod simulated;
mod start;

pub use disk::AckLevel;
pub use labels::RecordPolicy;
pub use metrics::WorkerMetrics;
pub use peering::{Peering, PeeringConfig, PeeringService};
pub use peering_metrics::PeeringMetrics;
pub use reload::{ReloadMetrics, ReloadOutcome};
pub use shard::OnPressure;
pub use simulated::{
    SimulatedAnswer, SimulatedDoor, SimulatedHandoff, SimulatedReceipt, SimulatedWorker,
};
pub use start::{StartError, Worker, WorkerConfig};
