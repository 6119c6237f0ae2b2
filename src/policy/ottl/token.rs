//! The words of a condition. At each place the first rule of the Collector's lexer that matches
//! wins; white space between words means nothing.

use crate::policy::ottl::error::Error;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// `0x…`
    Bytes,
    Float,
    Int,
    Text,
    Nil,
    Not,
    Or,
    And,
    Compare(Comparison),
    Arrow,
    Plus,
    Minus,
    Times,
    Divide,
    True,
    False,
    Equals,
    OpenParen,
    CloseParen,
    OpenBrace,
    CloseBrace,
    Colon,
    Comma,
    Dot,
    OpenBracket,
    CloseBracket,
    /// `[A-Z][A-Z0-9_]*`. A name is a row of these two.
    Upper,
    /// `[a-z][a-z0-9_]*`
    Lower,
    Underscore,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    GreaterOrEqual,
    Greater,
}

/// A word and where it stands, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The words of `text`, with an [`Kind::End`] behind them.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Error> {
    let mut tokens = Vec::with_capacity(text.len() / 4 + 1);
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if matches!(rest[0], b' ' | b'\t' | b'\n' | b'\x0C' | b'\r') {
            at += 1;
            continue;
        }
        let Some((kind, len)) = token(rest) else {
            return Err(no_token(text, at));
        };
        let (start, end) = (at, at + len);
        tokens.push(Token { kind, start, end });
        at = end;
    }
    tokens.push(Token {
        kind: Kind::End,
        start: at,
        end: at,
    });
    Ok(tokens)
}

/// The first word of `rest`, which is not empty and does not begin with white space.
fn token(rest: &[u8]) -> Option<(Kind, usize)> {
    if let Some(len) = bytes_len(rest) {
        return Some((Kind::Bytes, len));
    }
    if let Some(len) = float_len(rest) {
        return Some((Kind::Float, len));
    }
    let digits = run(rest, u8::is_ascii_digit);
    if digits > 0 {
        return Some((Kind::Int, digits));
    }
    if rest[0] == b'"' {
        return Some((Kind::Text, text_len(rest)?));
    }
    const WORDS: [(&[u8], Kind); 6] = [
        (b"nil", Kind::Nil),
        (b"not", Kind::Not),
        (b"or", Kind::Or),
        (b"and", Kind::And),
        (b"true", Kind::True),
        (b"false", Kind::False),
    ];
    const SIGNS: [(&[u8], Kind); 22] = [
        (b"==", Kind::Compare(Comparison::Equal)),
        (b"!=", Kind::Compare(Comparison::NotEqual)),
        (b">=", Kind::Compare(Comparison::GreaterOrEqual)),
        (b"<=", Kind::Compare(Comparison::LessOrEqual)),
        (b"=>", Kind::Arrow),
        (b">", Kind::Compare(Comparison::Greater)),
        (b"<", Kind::Compare(Comparison::Less)),
        (b"+", Kind::Plus),
        (b"-", Kind::Minus),
        (b"*", Kind::Times),
        (b"/", Kind::Divide),
        (b"=", Kind::Equals),
        (b"(", Kind::OpenParen),
        (b")", Kind::CloseParen),
        (b"{", Kind::OpenBrace),
        (b"}", Kind::CloseBrace),
        (b":", Kind::Colon),
        (b",", Kind::Comma),
        (b".", Kind::Dot),
        (b"[", Kind::OpenBracket),
        (b"]", Kind::CloseBracket),
        (b"_", Kind::Underscore),
    ];
    let word = WORDS.iter().find(|(word, _)| {
        rest.starts_with(word)
            && !rest
                .get(word.len())
                .is_some_and(|c| c.is_ascii_alphanumeric() || *c == b'_')
    });
    if let Some((word, kind)) = word {
        return Some((*kind, word.len()));
    }
    let name = |first: fn(&u8) -> bool| {
        first(&rest[0])
            .then(|| run(rest, |c| first(c) || c.is_ascii_digit() || *c == b'_'))
            .filter(|len| *len > 0)
    };
    if let Some(len) = name(u8::is_ascii_uppercase) {
        return Some((Kind::Upper, len));
    }
    if let Some(len) = name(u8::is_ascii_lowercase) {
        return Some((Kind::Lower, len));
    }
    SIGNS
        .iter()
        .find(|(sign, _)| rest.starts_with(sign))
        .map(|(sign, kind)| (*kind, sign.len()))
}

fn run(bytes: &[u8], is_in: impl Fn(&u8) -> bool) -> usize {
    bytes.iter().take_while(|c| is_in(c)).count()
}

fn bytes_len(rest: &[u8]) -> Option<usize> {
    let digits = run(rest.strip_prefix(b"0x")?, u8::is_ascii_hexdigit);
    (digits > 0).then_some(2 + digits)
}

/// `(\d+\.\d*|\d*\.\d+)([eE][-+]?\d+)?`
fn float_len(rest: &[u8]) -> Option<usize> {
    let whole = run(rest, u8::is_ascii_digit);
    let after = rest[whole..].strip_prefix(b".")?;
    let fraction = run(after, u8::is_ascii_digit);
    if whole + fraction == 0 {
        return None;
    }
    let len = whole + 1 + fraction;
    let exponent = match &rest[len..] {
        [b'e' | b'E', b'+' | b'-', digits @ ..] => (2, run(digits, u8::is_ascii_digit)),
        [b'e' | b'E', digits @ ..] => (1, run(digits, u8::is_ascii_digit)),
        _ => (0, 0),
    };
    Some(match exponent {
        (_, 0) => len,
        (sign, digits) => len + sign + digits,
    })
}

/// From one quote to the next that has no backslash before it.
fn text_len(rest: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match rest.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn no_token(text: &str, at: usize) -> Error {
    let rest = &text[at..];
    let c = rest.chars().next().unwrap_or_default();
    let error = |message: String| Error::not_ottl(at, message);
    match c {
        '"' => error("a string has no closing quote".to_owned())
            .hint("inside a string, `\\\"` is a quote and `\\\\` is a backslash"),
        '\'' | '`' | '‘' | '’' | '“' | '”' => {
            error(format!("`{c}` quotes nothing")).hint("strings are written with double quotes")
        }
        '&' => error("`&` means nothing".to_owned()).hint("write `and`"),
        '|' => error("`|` means nothing".to_owned()).hint("write `or`"),
        '!' => error("`!` means nothing".to_owned()).hint("write `not`, or `!=`"),
        '~' => error("`~` means nothing".to_owned())
            .hint("to match a regular expression write IsMatch(x, \"…\")"),
        '#' => error("`#` means nothing".to_owned()).hint("a condition has no comments"),
        c if c.is_control() || c.is_whitespace() => error(format!(
            "the character U+{:04X} means nothing",
            u32::from(c)
        ))
        .hint("only plain spaces, tabs and line breaks stand between words"),
        c => error(format!("`{c}` means nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let tokens = tokens(text).unwrap();
        let (_, words) = tokens.split_last().unwrap();
        words
            .iter()
            .map(|token| format!("{:?}:{}", token.kind, &text[token.start..token.end]))
            .collect()
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        for (text, expected) in [
            ("0x1f", "Bytes:0x1f"),
            ("0xg", "Int:0 Lower:xg"),
            ("0X1", "Int:0 Upper:X1"),
            (
                "1. .5 1.e3 00.5 1.5E-3",
                "Float:1. Float:.5 Float:1.e3 Float:00.5 Float:1.5E-3",
            ),
            ("1e3 1.e", "Int:1 Lower:e3 Float:1. Lower:e"),
            (
                "nil nilly not_x or",
                "Nil:nil Lower:nilly Lower:not_x Or:or",
            ),
            ("IsMatch", "Upper:I Lower:s Upper:M Lower:atch"),
            ("true truex TRUE", "True:true Lower:truex Upper:TRUE"),
            ("a=>b", "Lower:a Arrow:=> Lower:b"),
            (
                "a>=b=c",
                "Lower:a Compare(GreaterOrEqual):>= Lower:b Equals:= Lower:c",
            ),
            (r#""a\"b" "\\""#, r#"Text:"a\"b" Text:"\\""#),
            ("_a", "Underscore:_ Lower:a"),
        ] {
            assert_eq!(words(text).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_word_is_refused_where_it_stands() {
        for (text, offset) in [
            ("name == 'a'", 8),
            ("name == \"a", 8),
            ("name == \"a\\\"", 8),
            ("a && b", 2),
            ("a\u{a0}b", 1),
            ("é", 0),
            ("\0", 0),
            ("a ; b", 2),
        ] {
            assert_eq!(tokens(text).unwrap_err().offset, offset, "{text}");
        }
    }
}
