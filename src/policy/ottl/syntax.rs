//! A condition as it is written: what the parser makes and the compiler reads.

use crate::policy::ottl::token::Comparison;

/// True or false.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Test {
    Const(bool),
    Compare {
        left: Value,
        /// Where the operator stands.
        at: usize,
        how: Comparison,
        right: Value,
    },
    /// A function on its own.
    Call(Call),
    Not(Box<Self>),
    /// Two or more.
    And(Vec<Self>),
    Or(Vec<Self>),
}

/// A value, and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    pub(super) at: usize,
    pub(super) node: Node,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Vec<u8>),
    Bytes(Vec<u8>),
    /// One upper-case word.
    Enum(String),
    Path(Path),
    Call(Call),
    /// With a sign in front.
    Negative(Box<Value>),
    Positive(Box<Value>),
    /// Left to right; both levels of arithmetic are such rows, so that a long one is not deep.
    Math(Box<Value>, Vec<(Operator, Value)>),
    List(Vec<Value>),
    Map(Vec<(Vec<u8>, Value)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// `a.b["k"].c`
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Path {
    pub(super) fields: Vec<PathField>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct PathField {
    pub(super) at: usize,
    pub(super) name: String,
    pub(super) keys: Vec<Key>,
}

/// What stands in brackets behind a path or a function.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) at: usize,
    pub(super) node: KeyNode,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum KeyNode {
    Text(Vec<u8>),
    Int(i64),
    Value(Box<Value>),
}

/// `Name(args)["key"]`
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) at: usize,
    pub(super) name: String,
    pub(super) args: Vec<Arg>,
    pub(super) keys: Vec<Key>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arg {
    pub(super) at: usize,
    pub(super) name: Option<String>,
    pub(super) value: Value,
}
