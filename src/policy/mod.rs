//! Which traces are worth keeping: a policy file, compiled to rules that fold each span once and
//! vote when the trace is complete.
//!
//! The file is a Collector `tail_sampling` block. Knows nothing of files, clocks or logs: text in,
//! rules out; bytes and `now` in, votes out.

mod block;
mod entry;
mod file;
mod fold;
mod limits;
mod mistake;
mod pattern;
mod rules;
mod tree;
mod window;

pub use entry::POLICIES_MAX;
pub use file::{Parsed, parse};
pub use fold::FoldState;
pub use limits::{Answer, Cost, Limits};
pub use mistake::{Mistake, Notice};
pub use pattern::Pattern;
pub use rules::{
    Latency, Limited, Policy, PolicyKind, RateLimiting, Rules, Scope, SpanCount, StatusCodes,
    StringAttribute, Timing, Values, Vote,
};
pub use window::WINDOW;
