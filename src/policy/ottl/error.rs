//! What is wrong with a condition: which of three kinds it is, where, and what to write instead.

use std::fmt;

/// Who refuses a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The Collector refuses it as well.
    NotOttl,
    /// The Collector takes it; we do not.
    NotSupported,
}

/// Why a condition is refused, and where in its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: ErrorKind,
    /// In bytes, on a character's first; at most the length of the text.
    pub offset: usize,
    pub message: String,
    /// What to write instead, if that can be guessed.
    pub hint: Option<String>,
}

/// A condition that is accepted and cannot do what it seems to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// As in [`Error`].
    pub offset: usize,
    pub message: String,
    pub hint: Option<String>,
}

impl Error {
    pub(super) fn not_ottl(offset: usize, message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::NotOttl,
            offset,
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn not_supported(offset: usize, message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::NotSupported,
            ..Self::not_ottl(offset, message)
        }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The whole message: `text` is the condition that was refused.
    pub fn render(&self, text: &str) -> String {
        let kind = match self.kind {
            ErrorKind::NotOttl => "not OTTL",
            ErrorKind::NotSupported => "OTTL, but not supported here",
        };
        render(kind, &self.message, self.hint.as_deref(), text, self.offset)
    }
}

impl Warning {
    /// The whole message: `text` is the condition.
    pub fn render(&self, text: &str) -> String {
        let kind = "valid OTTL, but";
        render(kind, &self.message, self.hint.as_deref(), text, self.offset)
    }
}

/// Characters of a line that are shown around the place.
const SHOWN_BEFORE: usize = 60;
const SHOWN_AFTER: usize = 60;

/// ```text
/// not OTTL: `'` begins no token at column 9
///   name == 'a'
///           ^
///   strings are written with double quotes
/// ```
fn render(kind: &str, message: &str, hint: Option<&str>, text: &str, offset: usize) -> String {
    let offset = (0..=offset.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    let (before, after) = text.split_at(offset);
    let line_number = before.matches('\n').count() + 1;
    let before = before.rsplit('\n').next().unwrap_or_default();
    let after = after.split('\n').next().unwrap_or_default();
    let column = before.chars().count() + 1;
    let separator = if kind.ends_with("but") { "" } else { ":" };
    let line = match text.contains('\n') {
        true => format!(" of line {line_number}"),
        false => String::new(),
    };
    // A tab is one column, so that the caret stands under its place.
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let skipped = before.chars().count().saturating_sub(SHOWN_BEFORE);
    let dots = if skipped > 0 { "…" } else { "" };
    let before: String = before.chars().skip(skipped).map(plain).collect();
    let mut shown: String = after.chars().take(SHOWN_AFTER).map(plain).collect();
    if after.chars().nth(SHOWN_AFTER).is_some() {
        shown.push('…');
    }
    let indent = " ".repeat(dots.chars().count() + before.chars().count());
    let shown = format!("{dots}{before}{shown}");
    let mut out = format!(
        "{kind}{separator} {message} at column {column}{line}\n  {}\n  {indent}^",
        shown.trim_end()
    );
    if let Some(hint) = hint {
        out.push_str("\n  ");
        out.push_str(hint);
    }
    out
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOttl => "not_ottl",
            Self::NotSupported => "not_supported",
        })
    }
}

/// Why a condition has no answer for a span. The Collector has none either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum EvalError {
    #[error("a function used as a condition gave no true or false")]
    NotBool,
    #[error("a function was given nothing where it needs a value")]
    Missing,
    #[error("a function was given a value of another type than it takes")]
    WrongType,
    #[error("a text is not what the function reads from it")]
    Unreadable,
    #[error("an index is out of range, of the wrong type, or into something without elements")]
    Index,
    #[error("the result of a function has no such key")]
    NoSuchKey,
    #[error("arithmetic with something that has none")]
    Math,
    #[error("a division by zero")]
    DivisionByZero,
    #[error("a pattern is no regular expression")]
    Pattern,
    #[error("an event has no index here")]
    EventIndex,
    #[error("two values cannot be compared")]
    NotComparable,
    #[error("a value is nested too deep, or gives too long a text")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_place() {
        let error = Error::not_ottl(11, "a wrong thing").hint("write a right thing");
        assert_eq!(
            error.render("name == \"é\""),
            "not OTTL: a wrong thing at column 11\n  name == \"é\"\n            ^\n  write a right thing"
        );
        let error = Error::not_supported(14, "a thing");
        assert_eq!(
            error.render("name\t==\n \"a\" and foo\nor true"),
            "OTTL, but not supported here: a thing at column 7 of line 2\n   \"a\" and foo\n        ^"
        );
        let long = format!("{}!{}", "a".repeat(100), "b".repeat(100));
        let shown = Error::not_ottl(100, "x").render(&long);
        assert_eq!(
            shown,
            format!(
                "not OTTL: x at column 101\n  …{}!{}…\n  {}^",
                "a".repeat(60),
                "b".repeat(59),
                " ".repeat(61)
            )
        );
        assert!(Error::not_ottl(9, "end").render("").ends_with("\n  \n  ^"));
    }
}
