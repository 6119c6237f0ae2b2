//! The words that every layer shares: identities, verdicts, thresholds, moments.
//!
//! A value of one of these types is legal by construction, so nobody below checks it again.
//! Nothing here does I/O, and nothing here knows OTLP's encoding (`wire` does).

mod extent;
mod go_duration;
mod id;
mod member;
mod moment;
mod verdict;

pub use extent::{Extent, SegmentId};
pub use go_duration::{GoDurationError, format_go_duration, parse_go_duration};
pub use id::{FragmentHash, SpanId, TraceId};
pub use member::{Fingerprint, Identity, Incarnation, Member, MemberError, MemberState, StoreId};
pub use moment::{Moment, SteadyClock};
pub use verdict::{Decision, Randomness, Threshold, Verdict, VerdictId};
