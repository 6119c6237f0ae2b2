//! OTTL conditions: the Collector's language for questions about a span or one of its events.
//!
//! ```text
//! text ─token─► words ─parser─► syntax ─compile─► test ─program─► all conditions of all policies
//! ```
//!
//! A condition is compiled once: paths become fields or slots, constant parts are folded, patterns
//! are compiled. [`Program`] has the slots of all conditions filled in one walk over the bytes of a
//! span. Values are borrowed from these bytes.
//!
//! What a condition means is what the Collector v0.156 makes of it, errors included. Differences:
//! `Now()` is when the fragment arrived, so that a trace that is folded again is folded alike; where
//! the Collector would die (`Split(…) == Split(…)`) it is an error; text, nesting and patterns are
//! bounded. What the policy does with the answers is `fold`'s.

mod call;
mod cidr;
mod compile;
mod condition;
mod error;
mod eval;
mod expr;
mod function;
mod literal;
mod parser;
mod path;
mod program;
mod sights;
mod syntax;
mod text;
mod time;
mod token;
mod tracestate;
mod value;

pub use condition::{Condition, Context, ErrorMode, OttlCondition, SpanView};
pub use error::{Error, ErrorKind, EvalError, Warning};
pub use expr::Level;
pub use parser::TEXT_MAX;
pub use program::{Latches, Outcome, Program};
