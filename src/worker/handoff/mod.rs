//! Traces and verdicts on their way between workers. What moves and when is `shard/handoff`'s to say, where
//! the protocol stands.
//!
//! `message` is what travels, as bytes, and `parts` how it fits into calls; `sender` gives other members what
//! shards have for them, `service` takes in what they give (`intake`: what each shard gets of it).

pub(crate) mod intake;
pub mod message;
mod metrics;
pub(crate) mod parts;
pub(crate) mod sender;
mod service;

pub use metrics::{ConflictWon, GenerationEnd, HandoffMetrics, ReceivedFate};
