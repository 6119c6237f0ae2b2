//! Syntax to a compiled condition: names are resolved, functions get the arguments they want, and
//! what is the same for every span is folded, by the Collector's rules and no further. For they
//! show: a folded part is not evaluated, so it has no errors.

use std::borrow::Cow;
use std::sync::Arc;

use crate::policy::Pattern;
use crate::policy::mistake::nearest;
use crate::policy::ottl::Context;
use crate::policy::ottl::call::{check, check_id};
use crate::policy::ottl::cidr::Network;
use crate::policy::ottl::error::{Error, ErrorKind, EvalError, Warning};
use crate::policy::ottl::expr::{Call, Expr, Key, Level, Prepared, Test};
use crate::policy::ottl::function::{
    self, Function, Kind, LiteralKind, NOT_SUPPORTED, Param, Type,
};
use crate::policy::ottl::syntax;
use crate::policy::ottl::time::duration;
use crate::policy::ottl::token::Comparison;
use crate::policy::ottl::value::{List, Map, Value, compare, negated};
use crate::wire::{LIST_TAG, write_entry};

pub(super) struct Compiler {
    pub(super) context: Context,
    pub(super) warnings: Vec<Warning>,
    /// Attributes that are asked for, by [`Level`]; their places are the slots.
    pub(super) keys: [Vec<Box<[u8]>>; 4],
}

const ENUMS: &[(&str, i64)] = &[
    ("SPAN_KIND_UNSPECIFIED", 0),
    ("SPAN_KIND_INTERNAL", 1),
    ("SPAN_KIND_SERVER", 2),
    ("SPAN_KIND_CLIENT", 3),
    ("SPAN_KIND_PRODUCER", 4),
    ("SPAN_KIND_CONSUMER", 5),
    ("STATUS_CODE_UNSET", 0),
    ("STATUS_CODE_OK", 1),
    ("STATUS_CODE_ERROR", 2),
];

impl Compiler {
    pub(super) fn new(context: Context) -> Self {
        Self {
            context,
            warnings: Vec::new(),
            keys: Default::default(),
        }
    }

    pub(super) fn test(&mut self, test: &syntax::Test) -> Result<Test, Error> {
        match test {
            syntax::Test::Const(value) => Ok(Test::Const(*value)),
            syntax::Test::Compare {
                left,
                at,
                how,
                right,
            } => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                self.warn_of_types(*at, &left, *how, &right);
                if let (Expr::Literal(left), Expr::Literal(right)) = (&left, &right)
                    && let Ok(holds) = compare(left, *how, right)
                {
                    return Ok(Test::Const(holds));
                }
                Ok(match right {
                    Expr::Literal(right) => Test::CompareLiteral(Box::new((left, right)), *how),
                    right => Test::Compare(Box::new((left, right)), *how),
                })
            }
            syntax::Test::Call(call) => {
                let expr = self.call(call)?;
                let result = expr.result();
                if !matches!(result, Type::Bool | Type::Unknown) {
                    self.warn(
                        call.at,
                        &format!(
                            "{} gives {}, which is neither true nor false: an error for every span",
                            call.name,
                            result.describe()
                        ),
                        Some("compare it with something".to_owned()),
                    );
                }
                Ok(Test::Call(expr))
            }
            syntax::Test::Not(inner) => Ok(match self.test(inner)? {
                Test::Const(value) => Test::Const(!value),
                test => Test::Not(Box::new(test)),
            }),
            syntax::Test::And(tests) => self.all(tests, false),
            syntax::Test::Or(tests) => self.all(tests, true),
        }
    }

    /// One constant `decisive` decides; the others say nothing.
    fn all(&mut self, tests: &[syntax::Test], decisive: bool) -> Result<Test, Error> {
        let mut left = Vec::with_capacity(tests.len());
        let mut decided = false;
        for test in tests {
            match self.test(test)? {
                Test::Const(value) => decided |= value == decisive,
                test => left.push(test),
            }
        }
        if decided {
            return Ok(Test::Const(decisive));
        }
        Ok(match (left.len(), decisive) {
            (0, _) => Test::Const(!decisive),
            (1, _) => left.remove(0),
            (_, true) => Test::Or(left),
            (_, false) => Test::And(left),
        })
    }

    fn warn_of_types(&mut self, at: usize, left: &Expr, how: Comparison, right: &Expr) {
        let (left_type, right_type) = (left.result(), right.result());
        let one_is_nil = left_type == Type::Nil || right_type == Type::Nil;
        if how == Comparison::NotEqual {
            return;
        }
        let sides = format!("{} and {}", left_type.describe(), right_type.describe());
        if !left_type.may_equal(right_type) {
            let hint = match (left, right) {
                (_, Expr::Literal(Value::Text(text))) | (Expr::Literal(Value::Text(text)), _) => {
                    hint_for_text(text, left, right)
                }
                _ => None,
            };
            let message = match one_is_nil {
                true => format!("never true here: {sides}, and the one is never nil"),
                false => format!("never true here: {sides} are never equal, less or greater"),
            };
            self.warn(at, &message, hint);
        } else if how != Comparison::Equal
            && left_type == right_type
            && !left_type.is_ordered()
            && left_type != Type::Unknown
            && !(left_type == Type::Nil
                && matches!(how, Comparison::LessOrEqual | Comparison::GreaterOrEqual))
        {
            let message = format!(
                "never true here: {} has no less or greater",
                left_type.describe()
            );
            self.warn(at, &message, None);
        }
    }

    pub(super) fn value(&mut self, value: &syntax::Value) -> Result<Expr, Error> {
        let at = value.at;
        Ok(match &value.node {
            syntax::Node::Nil => Expr::Literal(Value::Nil),
            syntax::Node::Bool(value) => Expr::Literal(Value::Bool(*value)),
            syntax::Node::Int(value) => Expr::Literal(Value::Int(*value)),
            syntax::Node::Float(value) => Expr::Literal(Value::Float(*value)),
            syntax::Node::Text(text) => Expr::Literal(Value::owned_text(text.clone())),
            syntax::Node::Bytes(bytes) => Expr::Literal(Value::Bytes(Cow::Owned(bytes.clone()))),
            syntax::Node::Enum(name) => Expr::Literal(Value::Int(constant(name, at)?)),
            syntax::Node::Path(path) => self.path(path)?,
            syntax::Node::Call(call) => self.call(call)?,
            syntax::Node::Positive(inner) => self.value(inner)?,
            syntax::Node::Negative(inner) => match self.value(inner)? {
                Expr::Literal(value) => Expr::Literal(negated(&value).map_err(|_| {
                    Error::not_ottl(at, "a sign in front of something that is no number")
                })?),
                expr => Expr::Negative(Box::new(expr)),
            },
            syntax::Node::Math(first, rest) => {
                let first = self.value(first)?;
                let rest: Result<Vec<_>, _> = rest
                    .iter()
                    .map(|(operator, value)| Ok((*operator, self.value(value)?)))
                    .collect();
                Expr::Math(Box::new(first), rest?)
            }
            syntax::Node::List(values) => self.list(values)?,
            syntax::Node::Map(entries) => self.map(at, entries)?,
        })
    }

    fn list(&mut self, values: &[syntax::Value]) -> Result<Expr, Error> {
        let values: Result<Vec<Expr>, Error> = values.iter().map(|it| self.value(it)).collect();
        let values = values?;
        let literals: Option<Vec<Value<'static>>> = values.iter().map(literal).collect();
        Ok(match literals {
            // An empty one is not folded in the Collector.
            Some(literals) if !literals.is_empty() => {
                Expr::Literal(Value::List(List::Owned(literals)))
            }
            _ => Expr::List(values),
        })
    }

    fn map(&mut self, at: usize, entries: &[(Vec<u8>, syntax::Value)]) -> Result<Expr, Error> {
        let mut compiled: Vec<(Box<[u8]>, Expr)> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            compiled.push((key.clone().into(), self.value(value)?));
        }
        // The last of equal keys counts. Sorting keeps the time of a long literal in bounds.
        compiled.sort_by(|(left, _), (right, _)| left.cmp(right));
        let mut distinct: Vec<(Box<[u8]>, Expr)> = Vec::with_capacity(compiled.len());
        for (key, value) in compiled {
            match distinct.last_mut() {
                Some((last, earlier)) if *last == key => *earlier = value,
                _ => distinct.push((key, value)),
            }
        }
        if distinct.is_empty() || distinct.iter().any(|(_, it)| literal(it).is_none()) {
            return Ok(Expr::Map(distinct));
        }
        let mut bytes = Vec::new();
        for (key, value) in distinct {
            let value = literal(&value).unwrap_or(Value::Nil);
            let value = value.into_any_value().map_err(|_| {
                Error::not_ottl(at, "a map with a value that an attribute cannot hold")
            })?;
            write_entry(&key, &value, &mut bytes);
        }
        Ok(Expr::Literal(Value::Map(Map {
            bytes: Cow::Owned(bytes),
            tag: LIST_TAG,
        })))
    }

    pub(super) fn keys(&mut self, keys: &[syntax::Key]) -> Result<Vec<Key>, Error> {
        keys.iter()
            .map(|key| {
                Ok(match &key.node {
                    syntax::KeyNode::Text(text) => Key::Text(text.clone().into()),
                    syntax::KeyNode::Int(int) => Key::Int(*int),
                    syntax::KeyNode::Value(value) => Key::Expr(self.value(value)?),
                })
            })
            .collect()
    }

    /// The slot of an attribute.
    pub(super) fn slot(&mut self, level: Level, key: &[u8], at: usize) -> Result<u32, Error> {
        /// Of one condition and one level. Nobody writes so many.
        const SLOTS_MAX: usize = 1_000;
        let keys = &mut self.keys[level as usize];
        if let Some(slot) = keys.iter().position(|known| **known == *key) {
            return Ok(slot as u32);
        }
        if keys.len() == SLOTS_MAX {
            let message = format!("more than {SLOTS_MAX} attributes in one condition");
            return Err(Error::not_supported(at, message));
        }
        keys.push(key.into());
        Ok((keys.len() - 1) as u32)
    }

    fn call(&mut self, call: &syntax::Call) -> Result<Expr, Error> {
        let signature = match function::signature(&call.name) {
            Some(it) if it.function == Function::IsRootSpan && self.context != Context::Span => {
                return Err(Error::not_ottl(
                    call.at,
                    "IsRootSpan is no function of the `spanevent` list",
                )
                .hint("put the condition into the `span` list"));
            }
            Some(signature) => signature,
            None => return Err(unknown(call)),
        };
        // Go never looks at the arguments of a function that takes none.
        let args = match signature.params {
            [] => Vec::new(),
            params => self.args(call, params)?,
        };
        let prepared = prepare(signature.function, &args, call)?;
        Ok(Expr::Call(Box::new(Call {
            signature,
            args,
            prepared,
            keys: self.keys(&call.keys)?,
        })))
    }

    fn args(
        &mut self,
        call: &syntax::Call,
        params: &'static [Param],
    ) -> Result<Vec<Option<Expr>>, Error> {
        let mut args: Vec<Option<Expr>> = vec![None; params.len()];
        for (index, arg) in call.args.iter().enumerate() {
            let at = match &arg.name {
                None => index,
                Some(name) => params
                    .iter()
                    .position(|it| it.name == name || camel(it.name) == *name)
                    .unwrap_or(usize::MAX),
            };
            let Some(param) = params.get(at) else {
                let error = match &arg.name {
                    None => Error::not_ottl(
                        arg.at,
                        format!("{} takes no argument {}", call.name, index + 1),
                    ),
                    Some(name) => {
                        Error::not_ottl(arg.at, format!("{} has no argument `{name}`", call.name))
                    }
                };
                return Err(error.hint(usage(&call.name, params)));
            };
            if args[at].is_some() {
                let message = format!("the argument `{}` is given twice", param.name);
                return Err(Error::not_ottl(arg.at, message));
            }
            args[at] = Some(self.arg(call, param, &arg.value)?);
        }
        let missing = params
            .iter()
            .zip(&args)
            .find(|(param, arg)| !param.optional && arg.is_none());
        if let Some((param, _)) = missing {
            let message = format!("{} lacks the argument `{}`", call.name, param.name);
            return Err(Error::not_ottl(call.at, message).hint(usage(&call.name, params)));
        }
        Ok(args)
    }

    fn arg(
        &mut self,
        call: &syntax::Call,
        param: &Param,
        value: &syntax::Value,
    ) -> Result<Expr, Error> {
        let wrong = || {
            Error::not_ottl(
                value.at,
                format!(
                    "the argument `{}` of {} must be {}",
                    param.name,
                    call.name,
                    param.kind.describe()
                ),
            )
        };
        let is_list = matches!(value.node, syntax::Node::List(_));
        let of_elements = match param.kind {
            Kind::AnyList => Some(Kind::Any),
            Kind::TextLikeList => Some(Kind::TextLike),
            Kind::TextList => Some(Kind::Text),
            _ => None,
        };
        let expr = self.value(value)?;
        if let Some(kind) = of_elements {
            let right = match &expr {
                Expr::Literal(Value::List(list)) => {
                    list.values().iter().all(|it| check(kind, it).is_ok())
                }
                Expr::List(values) => values.iter().all(|it| match it {
                    Expr::Literal(value) => check(kind, value).is_ok(),
                    _ => true,
                }),
                _ => false,
            };
            return if is_list && right {
                Ok(expr)
            } else {
                Err(wrong())
            };
        }
        match (&expr, param.kind) {
            (Expr::Literal(Value::Text(_)), Kind::Literal(LiteralKind::Text))
            | (Expr::Literal(Value::Bool(_)), Kind::Literal(LiteralKind::Bool)) => Ok(expr),
            (_, Kind::Literal(_)) => Err(wrong()),
            (Expr::Literal(value), kind) => match check(kind, value) {
                Ok(()) => Ok(expr),
                Err(EvalError::Unreadable) => {
                    Err(wrong().hint("the text that is given cannot be read as that"))
                }
                Err(_) => Err(wrong()),
            },
            _ => Ok(expr),
        }
    }
}

fn literal(expr: &Expr) -> Option<Value<'static>> {
    match expr {
        Expr::Literal(value) => Some(value.clone()),
        _ => None,
    }
}

fn constant(name: &str, at: usize) -> Result<i64, Error> {
    if let Some((_, value)) = ENUMS.iter().find(|(known, _)| *known == name) {
        return Ok(*value);
    }
    let error = Error::not_ottl(at, format!("there is no constant {name}"));
    let lower = name.to_ascii_lowercase();
    Err(match lower.as_str() {
        "true" | "false" | "nil" | "not" => error.hint(format!("write `{lower}` in lower case")),
        "null" => error.hint("write `nil`"),
        _ => match nearest(name, ENUMS.iter().map(|(name, _)| *name)) {
            Some(meant) => error.hint(format!("did you mean {meant}?")),
            None => error.hint("texts stand in double quotes, and paths are lower-case"),
        },
    })
}

fn unknown(call: &syntax::Call) -> Error {
    if let Some((name, instead)) = NOT_SUPPORTED.iter().find(|(name, _)| *name == call.name) {
        let error = Error::not_supported(call.at, format!("the function {name}"));
        return match instead {
            Some(instead) => error.hint(format!("the nearest that is supported: {instead}")),
            None => {
                let names: Vec<&str> = function::names().collect();
                error.hint(format!("supported are {}", names.join(", ")))
            }
        };
    }
    let error = Error::not_ottl(call.at, format!("there is no function {}", call.name));
    let known = function::names().chain(NOT_SUPPORTED.iter().map(|(name, _)| *name));
    match nearest(&call.name, known) {
        Some(meant) => error.hint(format!("did you mean {meant}?")),
        None => error,
    }
}

/// What a function wants: `IsMatch(target, pattern)`.
fn usage(name: &str, params: &[Param]) -> String {
    let params: Vec<String> = params
        .iter()
        .map(|param| match param.optional {
            true => format!("[{}]", param.name),
            false => param.name.to_owned(),
        })
        .collect();
    format!("write {name}({})", params.join(", "))
}

/// `utf8_safe` as `utf8Safe`.
fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (first, rest) = part.split_at(part.len().min(1));
        out.push_str(&first.to_ascii_uppercase());
        out.push_str(rest);
    }
    out
}

/// Does once what literal arguments allow.
fn prepare(
    function: Function,
    args: &[Option<Expr>],
    call: &syntax::Call,
) -> Result<Prepared, Error> {
    let given = |at: usize| args.get(at).and_then(Option::as_ref);
    let place = |name: &str, at: usize| {
        let named = call
            .args
            .iter()
            .find(|arg| arg.name.as_deref() == Some(name));
        named
            .or(call.args.get(at))
            .map_or(call.at, |arg| arg.value.at)
    };
    match (function, given(1)) {
        (Function::IsMatch, Some(Expr::Literal(Value::Text(text)))) => {
            let written = String::from_utf8_lossy(text);
            match Pattern::new(&written) {
                Ok(pattern) => Ok(Prepared::Pattern(Arc::new(pattern))),
                Err(why) => Err(Error {
                    // Go has no such limit of its own.
                    kind: if why.contains("when compiled") {
                        ErrorKind::NotSupported
                    } else {
                        ErrorKind::NotOttl
                    },
                    ..Error::not_ottl(
                        place("pattern", 1),
                        format!("the regular expression is not one of RE2: {why}"),
                    )
                }),
            }
        }
        (Function::IsInCidr, Some(Expr::Literal(Value::List(list)))) => {
            let networks: Option<Vec<Network>> = list
                .values()
                .iter()
                .map(|it| match it {
                    Value::Text(text) => Network::parse(text),
                    _ => None,
                })
                .collect();
            networks.map(Prepared::Networks).ok_or_else(|| {
                Error::not_ottl(place("networks", 1), "one of these is no network")
                    .hint("write for example \"10.0.0.0/8\"")
            })
        }
        // A bad one is no mistake of the condition: it is an error for every span.
        (Function::Duration, _) => Ok(match given(0) {
            Some(Expr::Literal(Value::Text(text))) => std::str::from_utf8(text)
                .ok()
                .and_then(duration)
                .map_or(Prepared::Nothing, Prepared::Duration),
            _ => Prepared::Nothing,
        }),
        (Function::Coalesce, _)
            if call.args.iter().any(
                |arg| matches!(&arg.value.node, syntax::Node::List(values) if values.is_empty()),
            ) =>
        {
            Err(Error::not_ottl(call.at, "Coalesce of nothing"))
        }
        (Function::ConvertCase, Some(Expr::Literal(Value::Text(case)))) => match &case[..] {
            b"lower" | b"upper" => Ok(Prepared::Nothing),
            b"snake" | b"camel" => Err(Error::not_supported(
                place("to_case", 1),
                "ConvertCase to snake or camel case",
            )
            .hint("the nearest that is supported: \"lower\"")),
            _ => Err(Error::not_ottl(
                place("to_case", 1),
                "ConvertCase converts to \"lower\", \"upper\", \"snake\" or \"camel\"",
            )),
        },
        (Function::SpanId | Function::TraceId, _) => match given(0) {
            Some(Expr::Literal(value)) if check_id(function, value).is_err() => {
                Err(Error::not_ottl(
                    place("target", 0),
                    format!("this is no ID for {}", call.name),
                )
                .hint("write it in hexadecimal digits: 32 for a trace, 16 for a span"))
            }
            _ => Ok(Prepared::Nothing),
        },
        _ => Ok(Prepared::Nothing),
    }
}

/// For a comparison that was meant with a number.
fn hint_for_text(text: &[u8], left: &Expr, right: &Expr) -> Option<String> {
    use crate::policy::ottl::expr::Field;
    let is = |field: Field| {
        [left, right]
            .iter()
            .any(|it| matches!(it, Expr::Field(found) if *found == field))
    };
    let text = String::from_utf8_lossy(text);
    if is(Field::Kind) {
        return Some(format!(
            "write kind.string == \"{text}\", or a constant such as SPAN_KIND_SERVER"
        ));
    }
    if is(Field::StatusCode) {
        return Some("write STATUS_CODE_UNSET, STATUS_CODE_OK or STATUS_CODE_ERROR".to_owned());
    }
    if is(Field::TraceId) {
        return Some(format!("write trace_id.string, or TraceID(\"{text}\")"));
    }
    if is(Field::SpanId) {
        return Some(format!("write span_id.string, or SpanID(\"{text}\")"));
    }
    text.parse::<f64>()
        .is_ok()
        .then(|| format!("write the number without quotes: {text}"))
}
