//! One condition, compiled; and the policy that a file makes of several.

use crate::model::Moment;
use crate::policy::ottl::compile::Compiler;
use crate::policy::ottl::error::{Error, EvalError, Warning};
use crate::policy::ottl::expr::{Expr, Field, Level, Test, Visitor};
use crate::policy::ottl::function::Function;
use crate::policy::ottl::parser::parse;
use crate::policy::ottl::program::evaluate_alone;

/// What a condition is asked about: the list that it stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    Span,
    SpanEvent,
}

/// What happens to a policy when a condition has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorMode {
    /// The condition does not hold, and the log says so.
    Ignore,
    /// The condition does not hold. It is counted, as it is in the other modes.
    Silent,
    /// The policy casts no vote, unless a condition held before.
    Propagate,
}

/// A policy of type `ottl_condition`: traces of which any condition holds for any span or event.
#[derive(Debug, Clone, PartialEq)]
pub struct OttlCondition {
    pub error_mode: ErrorMode,
    pub span: Vec<Condition>,
    pub span_event: Vec<Condition>,
}

/// Two are equal if they are written alike.
#[derive(Debug, Clone)]
pub struct Condition {
    text: String,
    context: Context,
    pub(super) test: Test,
    /// Attributes by level; their places are the slots in `test`.
    pub(super) keys: [Vec<Box<[u8]>>; 4],
    warnings: Vec<Warning>,
}

/// One span with what it belongs to, as bytes of OTLP.
#[derive(Debug, Clone, Copy)]
pub struct SpanView<'a> {
    /// Of its ResourceSpans, without the ScopeSpans.
    pub resource_header: &'a [u8],
    /// Of its ScopeSpans, without the spans.
    pub scope_header: &'a [u8],
    pub span: &'a [u8],
    /// For a condition on events: an Event message of the span.
    pub event: Option<&'a [u8]>,
    pub now: Moment,
}

/// What must be known before a condition has an answer: the highest level that it looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    Resource,
    Scope,
    Span,
}

impl Condition {
    pub fn compile(text: &str, context: Context) -> Result<Self, Error> {
        let syntax = parse(text)?;
        let mut compiler = Compiler::new(context);
        let test = compiler.test(&syntax)?;
        Ok(Self {
            text: text.to_owned(),
            context,
            test,
            keys: compiler.keys,
            warnings: compiler.warnings,
        })
    }

    pub fn as_written(&self) -> &str {
        &self.text
    }

    /// What it cannot do although it seems to.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The answer for one span or event. For many of them there is [`crate::policy::ottl::Program`].
    pub fn eval(&self, view: &SpanView<'_>) -> Result<bool, EvalError> {
        evaluate_alone(self, view)
    }

    pub(super) fn reach(&self) -> Reach {
        struct Reaches(Reach);
        impl Visitor for Reaches {
            fn expr(&mut self, expr: &mut Expr) {
                let level = match expr {
                    Expr::Field(field) => reach_of(*field),
                    Expr::Attribute { level, .. } | Expr::Attributes { level, .. } => {
                        reach_of_level(*level)
                    }
                    Expr::TraceState(_) => Reach::Span,
                    Expr::Call(call) if call.signature.function == Function::IsRootSpan => {
                        Reach::Span
                    }
                    _ => Reach::Resource,
                };
                self.0 = self.0.max(level);
            }
        }
        let mut reaches = Reaches(Reach::Resource);
        self.test.clone().visit(&mut reaches);
        reaches.0
    }
}

fn reach_of(field: Field) -> Reach {
    reach_of_level(field.level())
}

fn reach_of_level(level: Level) -> Reach {
    match level {
        Level::Resource => Reach::Resource,
        Level::Scope => Reach::Scope,
        Level::Span | Level::Event => Reach::Span,
    }
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.context == other.context
    }
}
