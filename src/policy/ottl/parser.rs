//! Words to syntax, by the Collector's grammar. One look ahead decides everywhere, so the time is
//! linear in the text; what could nest without end is bounded.

use crate::policy::mistake::nearest;
use crate::policy::ottl::error::Error;
use crate::policy::ottl::function;
use crate::policy::ottl::literal;
use crate::policy::ottl::syntax::{
    Arg, Call, Key, KeyNode, Node, Operator, Path, PathField, Test, Value,
};
use crate::policy::ottl::token::{Kind, Token, tokens};

/// Bytes of a condition. The longest that we met in public files has 200.
pub const TEXT_MAX: usize = 65_536;
/// Brackets one inside the other.
const DEPTH_MAX: u32 = 100;

pub(super) fn parse(text: &str) -> Result<Test, Error> {
    if text.len() > TEXT_MAX {
        let message = format!("a condition of {} bytes; at most {TEXT_MAX}", text.len());
        return Err(Error::not_supported(0, message));
    }
    let mut parser = Parser {
        text,
        tokens: tokens(text)?,
        at: 0,
        depth: 0,
    };
    if parser.peek() == Kind::End {
        return Err(Error::not_ottl(0, "an empty condition"));
    }
    let parsed = parser.alternatives()?;
    let test = parser.test(parsed)?;
    match parser.peek() {
        Kind::End => Ok(test),
        _ => Err(parser.unexpected("the end, `and` or `or`")),
    }
}

struct Parser<'t> {
    text: &'t str,
    /// Ends with [`Kind::End`].
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
}

/// A parenthesis may hold a test or a value, which is known when it was read.
enum Parsed {
    Test(usize, Test),
    Value(Value),
}

impl Parser<'_> {
    fn token(&self) -> Token {
        self.nth(0)
    }

    /// The end goes on for ever.
    fn nth(&self, ahead: usize) -> Token {
        let end = Token {
            kind: Kind::End,
            start: self.text.len(),
            end: self.text.len(),
        };
        self.tokens.get(self.at + ahead).copied().unwrap_or(end)
    }

    fn peek(&self) -> Kind {
        self.token().kind
    }

    fn next(&mut self) -> Token {
        let token = self.token();
        self.at += 1;
        token
    }

    fn take(&mut self, kind: Kind) -> bool {
        let is_it = self.peek() == kind;
        self.at += usize::from(is_it);
        is_it
    }

    fn expect(&mut self, kind: Kind, expected: &str) -> Result<Token, Error> {
        if self.peek() == kind {
            return Ok(self.next());
        }
        Err(self.unexpected(expected))
    }

    fn word(&self, token: Token) -> &str {
        self.text.get(token.start..token.end).unwrap_or_default()
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth == DEPTH_MAX {
            let at = self.token().start;
            let message = format!("more than {DEPTH_MAX} brackets one inside the other");
            return Err(Error::not_supported(at, message));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// `a or b or c`
    fn alternatives(&mut self) -> Result<Parsed, Error> {
        let first = self.conjunction()?;
        if self.peek() != Kind::Or {
            return Ok(first);
        }
        let at = first.at();
        let mut tests = vec![self.test(first)?];
        while self.take(Kind::Or) {
            let next = self.conjunction()?;
            tests.push(self.test(next)?);
        }
        Ok(Parsed::Test(at, Test::Or(tests)))
    }

    /// `a and b and c`
    fn conjunction(&mut self) -> Result<Parsed, Error> {
        let first = self.negation()?;
        if self.peek() != Kind::And {
            return Ok(first);
        }
        let at = first.at();
        let mut tests = vec![self.test(first)?];
        while self.take(Kind::And) {
            let next = self.negation()?;
            tests.push(self.test(next)?);
        }
        Ok(Parsed::Test(at, Test::And(tests)))
    }

    fn negation(&mut self) -> Result<Parsed, Error> {
        if self.peek() != Kind::Not {
            return self.comparison();
        }
        let at = self.next().start;
        if self.peek() == Kind::Not {
            let error = self.unexpected("a comparison");
            return Err(error.hint("write not (not …)"));
        }
        let inner = self.comparison()?;
        let inner = self.test(inner)?;
        Ok(Parsed::Test(at, Test::Not(Box::new(inner))))
    }

    /// A comparison, or what can stand alone.
    fn comparison(&mut self) -> Result<Parsed, Error> {
        let left = self.value_or_test()?;
        let Kind::Compare(how) = self.peek() else {
            return Ok(left);
        };
        let at = self.next().start;
        let Parsed::Value(left) = left else {
            return Err(Error::not_ottl(at, "a test in parentheses is not a value")
                .hint("leave the comparison out, or put `not` in front"));
        };
        let begin = self.at;
        let right = match self.value_or_test()? {
            Parsed::Value(right) => right,
            Parsed::Test(at, _) => {
                return Err(Error::not_ottl(at, "a test in parentheses is not a value"));
            }
        };
        debug_assert!(self.at > begin);
        if let Kind::Compare(_) = self.peek() {
            return Err(self
                .unexpected("`and` or `or`")
                .hint("comparisons do not chain; join two of them with `and`"));
        }
        let test = Test::Compare {
            at,
            how,
            right,
            left,
        };
        Ok(Parsed::Test(at, test))
    }

    /// Makes a test of what was read.
    fn test(&self, parsed: Parsed) -> Result<Test, Error> {
        match parsed {
            Parsed::Test(_, test) => Ok(test),
            Parsed::Value(Value { at, node }) => match node {
                Node::Bool(value) => Ok(Test::Const(value)),
                Node::Call(call) => Ok(Test::Call(call)),
                Node::Path(_) => Err(self.bare(at, "a path alone is no condition")),
                _ => Err(self.bare(at, "a value alone is no condition")),
            },
        }
    }

    /// Where the value ends something else was expected: often that is the mistake.
    fn bare(&self, at: usize, message: &str) -> Error {
        match self.peek() {
            Kind::End | Kind::CloseParen | Kind::And | Kind::Or => Error::not_ottl(at, message)
                .hint("compare it: `… == true`, or `… != nil` if it need only be there"),
            _ => self.unexpected("a comparison"),
        }
    }

    fn value(&mut self) -> Result<Value, Error> {
        match self.value_or_test()? {
            Parsed::Value(value) => Ok(value),
            Parsed::Test(at, _) => Err(Error::not_ottl(at, "a test is not a value")),
        }
    }

    fn value_or_test(&mut self) -> Result<Parsed, Error> {
        let token = self.token();
        let at = token.start;
        let node = match token.kind {
            Kind::Nil => Node::Nil,
            Kind::True => Node::Bool(true),
            Kind::False => Node::Bool(false),
            Kind::Text => Node::Text(literal::text(self.word(token), at)?),
            Kind::Bytes => Node::Bytes(literal::bytes(self.word(token), at)?),
            Kind::OpenBracket => return self.deeper(Self::list).map(Parsed::Value),
            Kind::OpenBrace => return self.deeper(Self::map).map(Parsed::Value),
            Kind::Upper if !self.is_call() => {
                if self.nth(1).kind == Kind::Lower {
                    return Err(self.no_call());
                }
                Node::Enum(self.word(token).to_owned())
            }
            _ => return self.sum(),
        };
        self.next();
        if self.peek() == Kind::OpenBracket {
            return Err(self
                .unexpected("a comparison")
                .hint("only paths and functions have elements"));
        }
        Ok(Parsed::Value(Value { at, node }))
    }

    /// Whether the row of name words here ends with a parenthesis.
    fn is_call(&self) -> bool {
        self.name_end(0).is_some_and(|words| words > 0)
    }

    /// Words of the name that begins `ahead`, if a parenthesis follows.
    fn name_end(&self, ahead: usize) -> Option<usize> {
        // No function has a name of so many words. Without the bound a list of names would be read
        // once for each of them.
        const WORDS_MAX: usize = 64;
        let mut words = 0;
        loop {
            match self.nth(ahead + words).kind {
                Kind::Upper | Kind::Lower if words < WORDS_MAX => words += 1,
                Kind::OpenParen => return Some(words),
                _ => return None,
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while matches!(self.peek(), Kind::Upper | Kind::Lower) {
            let token = self.next();
            name.push_str(self.word(token));
        }
        name
    }

    /// A name with a capital that neither is a call nor a constant.
    fn no_call(&mut self) -> Error {
        let at = self.token().start;
        let name = self.name();
        let error = Error::not_ottl(
            at,
            format!("`{name}` is neither a path nor a function call"),
        );
        match name.to_ascii_lowercase().as_str() {
            "and" | "or" | "not" | "true" | "false" | "nil" => {
                let lower = name.to_ascii_lowercase();
                error.hint(format!("write `{lower}` in lower case"))
            }
            _ => error.hint(format!(
                "paths are lower-case; a function is called: {name}(…)"
            )),
        }
    }

    /// `a + b - c`
    fn sum(&mut self) -> Result<Parsed, Error> {
        self.row(Self::product, |kind| match kind {
            Kind::Plus => Some(Operator::Add),
            Kind::Minus => Some(Operator::Subtract),
            _ => None,
        })
    }

    /// `a * b / c`
    fn product(&mut self) -> Result<Parsed, Error> {
        self.row(Self::factor, |kind| match kind {
            Kind::Times => Some(Operator::Multiply),
            Kind::Divide => Some(Operator::Divide),
            _ => None,
        })
    }

    fn row(
        &mut self,
        part: impl Fn(&mut Self) -> Result<Parsed, Error>,
        operator: impl Fn(Kind) -> Option<Operator>,
    ) -> Result<Parsed, Error> {
        let first = part(self)?;
        let Some(mut next) = operator(self.peek()) else {
            return Ok(first);
        };
        let Parsed::Value(first) = first else {
            return Err(self.unexpected("`and` or `or`"));
        };
        let at = first.at;
        let mut rest = Vec::new();
        loop {
            self.next();
            match part(self)? {
                Parsed::Value(value) => rest.push((next, value)),
                Parsed::Test(at, _) => {
                    return Err(Error::not_ottl(at, "a test cannot be calculated with"));
                }
            }
            match operator(self.peek()) {
                Some(operator) => next = operator,
                None => break,
            }
        }
        let node = Node::Math(Box::new(first), rest);
        Ok(Parsed::Value(Value { at, node }))
    }

    fn factor(&mut self) -> Result<Parsed, Error> {
        let sign = self.token();
        if !matches!(sign.kind, Kind::Plus | Kind::Minus) {
            return self.operand();
        }
        self.next();
        let Parsed::Value(value) = self.operand()? else {
            return Err(Error::not_ottl(sign.start, "a test has no sign").hint("write `not`"));
        };
        let value = Box::new(value);
        let node = match sign.kind {
            Kind::Minus => Node::Negative(value),
            _ => Node::Positive(value),
        };
        Ok(Parsed::Value(Value {
            at: sign.start,
            node,
        }))
    }

    fn operand(&mut self) -> Result<Parsed, Error> {
        let token = self.token();
        let at = token.start;
        let node = match token.kind {
            Kind::OpenParen => return self.deeper(Self::parenthesis),
            Kind::Int => {
                self.next();
                Node::Int(literal::int(self.word(token), at)?)
            }
            Kind::Float => {
                self.next();
                Node::Float(literal::float(self.word(token), at)?)
            }
            Kind::Upper if self.is_call() => Node::Call(self.deeper(Self::call)?),
            Kind::Lower if self.is_call() => return Err(self.lower_call()),
            Kind::Lower => Node::Path(self.path()?),
            _ => return Err(self.unexpected("a value")),
        };
        if matches!(token.kind, Kind::Int | Kind::Float) && self.peek() == Kind::OpenBracket {
            return Err(self.unexpected("a comparison"));
        }
        Ok(Parsed::Value(Value { at, node }))
    }

    fn parenthesis(&mut self) -> Result<Parsed, Error> {
        if self.is_lambda() {
            let at = self.token().start;
            return Err(Error::not_supported(
                at,
                "functions written in place (`(x) => …`) are not enabled in the Collector either",
            ));
        }
        self.next();
        let inner = self.alternatives()?;
        self.expect(Kind::CloseParen, "`)`")?;
        match inner {
            Parsed::Value(Value { at, node }) => match node {
                Node::Bool(value) => Ok(Parsed::Test(at, Test::Const(value))),
                Node::Nil
                | Node::Text(_)
                | Node::Bytes(_)
                | Node::Enum(_)
                | Node::List(_)
                | Node::Map(_) => Err(Error::not_ottl(
                    at,
                    "parentheses hold conditions and arithmetic, not this value",
                )
                .hint("leave the parentheses out")),
                _ if self.peek() == Kind::OpenBracket => Err(self
                    .unexpected("a comparison")
                    .hint("only paths and functions have elements")),
                node => Ok(Parsed::Value(Value { at, node })),
            },
            test => Ok(test),
        }
    }

    /// `(a, _) =>`
    fn is_lambda(&self) -> bool {
        let mut ahead = 1;
        if self.nth(ahead).kind != Kind::CloseParen {
            loop {
                if !matches!(self.nth(ahead).kind, Kind::Lower | Kind::Underscore) {
                    return false;
                }
                ahead += 1;
                if self.nth(ahead).kind != Kind::Comma {
                    break;
                }
                ahead += 1;
            }
        }
        self.nth(ahead).kind == Kind::CloseParen && self.nth(ahead + 1).kind == Kind::Arrow
    }

    fn lower_call(&mut self) -> Error {
        let at = self.token().start;
        let name = self.name();
        let error = Error::not_ottl(
            at,
            format!("the function `{name}` does not begin with an upper-case letter"),
        );
        match name.as_str() {
            "exists" | "has" | "defined" | "isset" => error.hint("write `x != nil`"),
            "contains" | "matches" | "like" => error.hint("write IsMatch(x, \"…\")"),
            _ => match nearest(&name.replace('_', ""), function::names()) {
                Some(meant) => error.hint(format!("write {meant}(…)")),
                None => error,
            },
        }
    }

    fn call(&mut self) -> Result<Call, Error> {
        let at = self.token().start;
        let name = self.name();
        self.expect(Kind::OpenParen, "`(`")?;
        let mut args = Vec::new();
        if self.peek() != Kind::CloseParen {
            loop {
                let arg = self.arg()?;
                if arg.name.is_none() && args.last().is_some_and(|it: &Arg| it.name.is_some()) {
                    return Err(Error::not_ottl(
                        arg.at,
                        "an argument without a name stands behind one with a name",
                    ));
                }
                args.push(arg);
                if !self.take(Kind::Comma) {
                    break;
                }
            }
        }
        self.expect(Kind::CloseParen, "`,` or `)`")?;
        let keys = self.keys()?;
        Ok(Call {
            at,
            name,
            args,
            keys,
        })
    }

    fn arg(&mut self) -> Result<Arg, Error> {
        let at = self.token().start;
        let mut words = 0;
        while matches!(self.nth(words).kind, Kind::Lower | Kind::Upper) {
            words += 1;
        }
        let named = self.peek() == Kind::Lower && self.nth(words).kind == Kind::Equals;
        let name = named.then(|| {
            let name = self.name();
            self.next();
            name
        });
        // The name of a function, which nothing that is supported takes.
        if self.peek() == Kind::Upper
            && !self.is_call()
            && self.nth(1).kind == Kind::Lower
            && words > 1
            && matches!(self.nth(words).kind, Kind::Comma | Kind::CloseParen)
        {
            return Err(Error::not_supported(
                self.token().start,
                "a function given to a function",
            ));
        }
        Ok(Arg {
            at,
            name,
            value: self.value()?,
        })
    }

    fn keys(&mut self) -> Result<Vec<Key>, Error> {
        let mut keys = Vec::new();
        while self.peek() == Kind::OpenBracket {
            keys.push(self.deeper(Self::key)?);
        }
        Ok(keys)
    }

    fn key(&mut self) -> Result<Key, Error> {
        self.next();
        let token = self.token();
        let at = token.start;
        let node = match token.kind {
            Kind::Text => {
                self.next();
                KeyNode::Text(literal::text(self.word(token), at)?)
            }
            Kind::Int => {
                self.next();
                KeyNode::Int(literal::int(self.word(token), at)?)
            }
            Kind::Nil
            | Kind::True
            | Kind::False
            | Kind::Bytes
            | Kind::OpenBracket
            | Kind::OpenBrace => return Err(self.unexpected("a text, a number or a path")),
            _ => match self.sum()? {
                Parsed::Value(value) => KeyNode::Value(Box::new(value)),
                Parsed::Test(at, _) => return Err(Error::not_ottl(at, "a test is no key")),
            },
        };
        if self.peek() != Kind::CloseBracket && matches!(token.kind, Kind::Int) {
            return Err(self
                .unexpected("`]`")
                .hint("put what is to be calculated into parentheses: [(1 + 1)]"));
        }
        self.expect(Kind::CloseBracket, "`]`")?;
        Ok(Key { at, node })
    }

    fn path(&mut self) -> Result<Path, Error> {
        let mut fields = Vec::new();
        loop {
            let token = self.token();
            if token.kind != Kind::Lower {
                return Err(self.unexpected("the name of a field"));
            }
            self.next();
            if matches!(self.peek(), Kind::Upper | Kind::Lower) {
                return Err(self.camel_case(token));
            }
            fields.push(PathField {
                at: token.start,
                name: self.word(token).to_owned(),
                keys: self.keys()?,
            });
            if !self.take(Kind::Dot) {
                return Ok(Path { fields });
            }
        }
    }

    fn camel_case(&self, first: Token) -> Error {
        let next = self.token();
        let error = self.unexpected("a comparison, `.` or `[`");
        if next.kind == Kind::Upper && next.start == first.end {
            let lower = self.word(next).to_ascii_lowercase();
            let word = self.word(first);
            return error.hint(format!(
                "fields have lower-case names: {word}_{lower}…; attributes are written \
                 attributes[\"…\"]"
            ));
        }
        error
    }

    /// Values may stand side by side before the first comma.
    fn list(&mut self) -> Result<Value, Error> {
        let at = self.next().start;
        let mut values = Vec::new();
        while !matches!(
            self.peek(),
            Kind::Comma | Kind::CloseBracket | Kind::End | Kind::CloseParen
        ) {
            values.push(self.value()?);
        }
        while self.take(Kind::Comma) {
            values.push(self.value()?);
        }
        self.expect(Kind::CloseBracket, "`,` or `]`")?;
        if self.peek() == Kind::OpenBracket {
            return Err(self
                .unexpected("a comparison")
                .hint("only paths and functions have elements"));
        }
        let node = Node::List(values);
        Ok(Value { at, node })
    }

    /// Commas may be left out. Of a key that stands twice the last one counts.
    fn map(&mut self) -> Result<Value, Error> {
        let at = self.next().start;
        let mut entries: Vec<(Vec<u8>, Value)> = Vec::new();
        while self.peek() == Kind::Text {
            let token = self.next();
            let key = literal::text(self.word(token), token.start)?;
            self.expect(Kind::Colon, "`:`")?;
            let value = self.value()?;
            entries.push((key, value));
            self.take(Kind::Comma);
        }
        self.expect(Kind::CloseBrace, "a key in double quotes, or `}`")?;
        if self.peek() == Kind::OpenBracket {
            return Err(self
                .unexpected("a comparison")
                .hint("only paths and functions have elements"));
        }
        let node = Node::Map(entries);
        Ok(Value { at, node })
    }

    /// What stands here is wrong; `expected` is what may stand here.
    fn unexpected(&self, expected: &str) -> Error {
        let token = self.token();
        let word = self.word(token);
        if token.kind == Kind::End {
            let message = format!("it ends where {expected} is expected");
            return Error::not_ottl(token.start, message);
        }
        let shown: String = word.chars().take(40).collect();
        let message = format!("unexpected `{shown}`; {expected} is expected");
        let error = Error::not_ottl(token.start, message);
        match (token.kind, word) {
            (Kind::Upper, "AND" | "OR" | "NOT" | "TRUE" | "FALSE" | "NIL" | "NULL" | "IN") => {
                let lower = match word {
                    "NULL" => "nil".to_owned(),
                    "IN" => {
                        return error
                            .hint("write IsMatch(x, \"^(a|b)$\"), or comparisons joined by `or`");
                    }
                    _ => word.to_lowercase(),
                };
                error.hint(format!("write `{lower}` in lower case"))
            }
            (Kind::Lower, "contains" | "matches" | "like" | "in") => {
                error.hint("write IsMatch(x, \"…\")")
            }
            (Kind::Equals, _) => error.hint("to compare write `==`"),
            (Kind::Arrow, _) => error.hint("greater or equal is written `>=`"),
            _ => error,
        }
    }
}

impl Parsed {
    fn at(&self) -> usize {
        match self {
            Self::Test(at, _) => *at,
            Self::Value(value) => value.at,
        }
    }
}
