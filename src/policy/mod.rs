//! Which traces are worth keeping: a policy file, compiled to rules that fold each span once and
//! vote when the trace is complete.
//!
//! The file is a Collector `tail_sampling` block. Knows nothing of files, clocks or logs: text in,
//! rules out; bytes and `now` in, votes out.

mod attribute;
mod balance;
mod block;
mod bucket;
mod composite;
mod conditions;
mod entry;
mod environment;
mod evidence;
mod explain;
mod file;
mod fold;
mod folding;
mod hash_seed;
mod kind;
mod limit;
mod limits;
mod mistake;
mod nested;
pub mod ottl;
mod pattern;
mod plan;
mod program;
mod reason;
mod rules;
mod schema;
mod settings;
mod tree;
mod version;
mod vote;
mod window;

pub use entry::POLICIES_MAX;
pub use explain::{Explained, Explanation};
pub use file::{Environment, Parsed, TOLD_MAX, parse, parse_in};
pub use fold::FoldState;
pub use folding::{Failure, Folding};
pub use hash_seed::HashSeed;
pub use kind::{
    BooleanAttribute, BytesLimiting, Compatibility, Composite, CompositeSub, Latency,
    NumericAttribute, Policy, PolicyKind, RateLimiting, Scope, Settings, SpanCount, StatusCodes,
    Strategy, StringAttribute, Timing, TraceState, Values,
};
pub use limits::{Answer, Complete, Limits};
pub use mistake::{Mistake, Notice};
pub use pattern::Pattern;
pub use plan::{Plan, PlannedPolicy, Settling, Sights};
pub use program::LimitAnswers;
pub use reason::{At, Reason};
pub use rules::{FirstVote, Rules};
pub use schema::schema;
pub use vote::{Odds, Said, Vote};
pub use window::WINDOW;
