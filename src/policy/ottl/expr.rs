//! A condition as it is evaluated: names resolved, constants folded, attributes in slots.

use std::sync::Arc;

use crate::policy::Pattern;
use crate::policy::ottl::cidr::Network;
use crate::policy::ottl::error::EvalError;
use crate::policy::ottl::function::{Signature, Type};
use crate::policy::ottl::syntax::Operator;
use crate::policy::ottl::token::Comparison;
use crate::policy::ottl::value::Value;

#[derive(Debug, Clone)]
pub(super) enum Test {
    Const(bool),
    Compare(Box<(Expr, Expr)>, Comparison),
    /// With a literal on the right side, as most are.
    CompareLiteral(Box<(Expr, Value<'static>)>, Comparison),
    /// Must give true or false.
    Call(Expr),
    Not(Box<Self>),
    And(Vec<Self>),
    Or(Vec<Self>),
}

#[derive(Debug, Clone)]
pub(super) enum Expr {
    Literal(Value<'static>),
    /// A path that has the same value for every span. Unlike a literal it is not folded.
    Constant(Value<'static>),
    Field(Field),
    /// `attributes["k"]` and what lies below it.
    Attribute {
        level: Level,
        slot: u32,
        keys: Vec<Key>,
    },
    /// `attributes`, and what lies below it under a first key that only the span knows.
    Attributes {
        level: Level,
        keys: Vec<Key>,
    },
    /// `trace_state["k"]`
    TraceState(Box<[u8]>),
    Call(Box<Call>),
    Negative(Box<Self>),
    Math(Box<Self>, Vec<(Operator, Self)>),
    List(Vec<Self>),
    Map(Vec<(Box<[u8]>, Self)>),
    /// Nothing else ever comes of it.
    Fails(EvalError),
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) signature: &'static Signature,
    /// One for each parameter; [`None`] for an optional one that is not given.
    pub(super) args: Vec<Option<Expr>>,
    pub(super) prepared: Prepared,
    pub(super) keys: Vec<Key>,
}

/// What is made of literal arguments once.
#[derive(Debug, Clone)]
pub(super) enum Prepared {
    Nothing,
    Pattern(Arc<Pattern>),
    Networks(Vec<Network>),
    /// Nanoseconds.
    Duration(i64),
}

#[derive(Debug, Clone)]
pub(super) enum Key {
    Text(Box<[u8]>),
    Int(i64),
    Expr(Expr),
}

/// What a path is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Resource,
    Scope,
    Span,
    Event,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    ResourceDropped,
    ScopeName,
    ScopeVersion,
    ScopeDropped,
    Name,
    Kind,
    KindText,
    KindDeprecatedText,
    Status,
    StatusCode,
    StatusMessage,
    TraceId,
    TraceIdText,
    SpanId,
    SpanIdText,
    ParentId,
    ParentIdText,
    TraceState,
    StartUnixNano,
    EndUnixNano,
    Start,
    End,
    DroppedAttributes,
    DroppedEvents,
    DroppedLinks,
    Events,
    Links,
    Flags,
    EventName,
    EventUnixNano,
    EventTime,
    EventDropped,
}

impl Level {
    pub(super) const ALL: [Self; 4] = [Self::Resource, Self::Scope, Self::Span, Self::Event];
}

impl Field {
    pub(super) fn level(self) -> Level {
        match self {
            Self::ResourceDropped => Level::Resource,
            Self::ScopeName | Self::ScopeVersion | Self::ScopeDropped => Level::Scope,
            Self::EventName | Self::EventUnixNano | Self::EventTime | Self::EventDropped => {
                Level::Event
            }
            _ => Level::Span,
        }
    }

    fn result(self) -> Type {
        match self {
            Self::ScopeName
            | Self::ScopeVersion
            | Self::Name
            | Self::KindText
            | Self::KindDeprecatedText
            | Self::StatusMessage
            | Self::TraceIdText
            | Self::SpanIdText
            | Self::ParentIdText
            | Self::TraceState
            | Self::EventName => Type::Text,
            Self::Status | Self::Events | Self::Links => Type::Opaque,
            Self::TraceId => Type::TraceId,
            Self::SpanId | Self::ParentId => Type::SpanId,
            Self::Start | Self::End | Self::EventTime => Type::Time,
            _ => Type::Number,
        }
    }
}

impl Expr {
    /// What is known of its value.
    pub(super) fn result(&self) -> Type {
        match self {
            Self::Literal(value) | Self::Constant(value) => Type::of(value),
            Self::Field(field) => field.result(),
            Self::Attributes { keys, .. } if keys.is_empty() => Type::Map,
            Self::Call(call) if call.keys.is_empty() => call.result(),
            Self::List(_) => Type::List,
            Self::Map(_) => Type::Map,
            _ => Type::Unknown,
        }
    }
}

impl Call {
    fn result(&self) -> Type {
        self.signature.result
    }
}

/// Everything that a condition holds, in no order.
pub(super) trait Visitor {
    /// Each expression, the outer before the inner.
    fn expr(&mut self, expr: &mut Expr);
}

impl Test {
    pub(super) fn visit(&mut self, visitor: &mut impl Visitor) {
        match self {
            Self::Const(_) => {}
            Self::Compare(sides, _) => {
                sides.0.visit(visitor);
                sides.1.visit(visitor);
            }
            Self::CompareLiteral(sides, _) => sides.0.visit(visitor),
            Self::Call(expr) => expr.visit(visitor),
            Self::Not(test) => test.visit(visitor),
            Self::And(tests) | Self::Or(tests) => {
                tests.iter_mut().for_each(|test| test.visit(visitor));
            }
        }
    }
}

impl Expr {
    pub(super) fn visit(&mut self, visitor: &mut impl Visitor) {
        visitor.expr(self);
        let keys = match self {
            Self::Literal(_)
            | Self::Constant(_)
            | Self::Field(_)
            | Self::TraceState(_)
            | Self::Fails(_) => return,
            Self::Attribute { keys, .. } | Self::Attributes { keys, .. } => keys,
            Self::Call(call) => {
                for arg in call.args.iter_mut().flatten() {
                    arg.visit(visitor);
                }
                &mut call.keys
            }
            Self::Negative(inner) => return inner.visit(visitor),
            Self::Math(first, rest) => {
                first.visit(visitor);
                return rest.iter_mut().for_each(|(_, it)| it.visit(visitor));
            }
            Self::List(values) => return values.iter_mut().for_each(|it| it.visit(visitor)),
            Self::Map(entries) => return entries.iter_mut().for_each(|(_, it)| it.visit(visitor)),
        };
        for key in keys {
            if let Key::Expr(expr) = key {
                expr.visit(visitor);
            }
        }
    }
}
