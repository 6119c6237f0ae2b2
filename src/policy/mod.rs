//! Which traces are worth keeping: a policy file, compiled to rules that fold each span once and
//! vote when the trace is complete.
//!
//! The file is a Collector `tail_sampling` block. Knows nothing of files, clocks or logs: text in,
//! rules out; bytes and `now` in, votes out.

mod entry;
mod file;
mod mistake;
mod rules;
mod tree;

pub use entry::POLICIES_MAX;
pub use file::{Parsed, parse};
pub use mistake::{Mistake, Notice};
pub use rules::{Policy, PolicyKind, Rules, Timing, Vote};
