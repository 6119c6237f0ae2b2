//! Traces and verdicts on their way between workers: what travels as bytes ([`message`]), and what each
//! shard gets of it (`intake`). What moves and when is `shard/handoff`'s to say, where the protocol stands.

pub(crate) mod intake;
pub mod message;
mod metrics;

pub use metrics::{ConflictWon, GenerationEnd, HandoffMetrics, ReceivedFate};
