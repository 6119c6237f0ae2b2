//! One trace's life: from its first fragment over its deadline and verdict to being forgotten.
//!
//! [`Index`] holds what is undecided or kept and not yet exported, [`Deadlines`] says when a trace
//! is complete, [`Decisions`] remembers verdicts so that late spans and retries meet them, [`Transfer`]
//! what is between two members. All of
//! it is plain state of one shard: bytes stay in the log, clocks and disks stay outside.

mod deadlines;
mod decisions;
mod index;
mod transfer;

pub use deadlines::{Deadlines, DecideReason};
pub use decisions::{DecisionMemory, Decisions, Remembered};
pub use index::{FragmentRef, Index, Stage, TraceEntry};
pub use transfer::{Folded, Held, Outgoing, Transfer};
