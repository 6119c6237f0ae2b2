//! `${env:NAME}` in a policy file, as the Collector's confmap has it.
//!
//! What is expanded are values, never keys, after YAML was read: a value that is nothing but one
//! reference is what YAML makes of the variable, so that `${env:SHARE}` can be a number or a whole
//! list; where a text is wanted, and within a longer one, it is the variable as it is. Values may
//! hold references themselves, and references may stand in each other. `${NAME}` is `${env:NAME}`,
//! `${env:NAME:-else}` has a default, and a variable that is not set is empty. `$$` is a `$` that
//! begins no reference. Other providers (`file`, `http`, …) are refused: what they give could change
//! without anybody knowing.

use crate::policy::mistake::Mistake;
use crate::policy::tree::{Item, Node, shortened};
use crate::policy::{Environment, Notice};

/// References in one file, those in the variables themselves included: they may lead in a circle.
const REFERENCES_MAX: usize = 1_000;
/// What variables may hold in all.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Lists and blocks in variables, one in the other.
const DEPTH_MAX: usize = 64;

/// See the module. Has mistakes if the result is not what was meant.
pub(super) struct Expansion<'a> {
    environment: Environment<'a>,
    references: usize,
    value_bytes: usize,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) notices: Vec<Notice>,
}

impl<'a> Expansion<'a> {
    pub(super) fn new(environment: Environment<'a>) -> Self {
        Self {
            environment,
            references: 0,
            value_bytes: 0,
            mistakes: Vec::new(),
            notices: Vec::new(),
        }
    }

    pub(super) fn of(&mut self, item: &Item) -> Item {
        self.item(item, item, 0)
    }

    /// `at` is where the author of the file sees it.
    fn item(&mut self, item: &Item, at: &Item, depth: usize) -> Item {
        let here = |node| Item {
            node,
            ..at.without_node()
        };
        match &item.node {
            Node::Text(text) => self.scalar(text, at, depth),
            Node::List(items) => {
                let items = items
                    .iter()
                    .map(|it| self.item(it, place(it, at, depth), depth));
                here(Node::List(items.collect()))
            }
            Node::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| {
                    let key = Item {
                        node: key.node.clone(),
                        ..place(key, at, depth).without_node()
                    };
                    (key, self.item(value, place(value, at, depth), depth))
                });
                here(Node::Map(entries.collect()))
            }
            other => here(other.clone()),
        }
    }

    fn scalar(&mut self, text: &str, at: &Item, depth: usize) -> Item {
        let here = |node, written| Item {
            written,
            node,
            ..at.without_node()
        };
        let reference = find(text).filter(|found| *found == (0..text.len()));
        if reference.is_none() {
            return here(Node::Text(self.text(text, at)), None);
        }
        let value = match self.value(&text[2..text.len() - 1], at) {
            Value::Text(value) => value,
            Value::Empty => return here(Node::Null, Some(String::new())),
            Value::Default(text) if text.is_empty() => return here(Node::Text(text), None),
            Value::Default(text) => text,
            Value::Refused => return here(Node::Text(String::new()), None),
        };
        if depth >= DEPTH_MAX {
            self.wrong(
                at,
                format!("values of variables, more than {DEPTH_MAX} one in the other"),
            );
            return here(Node::Text(String::new()), None);
        }
        // What is no YAML is a text.
        let read = Item::read(&value, &mut Vec::new());
        match read {
            Some(read) if !matches!(read.node, Node::Text(_)) => Item {
                written: Some(self.text(&value, at)),
                ..self.item(&read, at, depth + 1)
            },
            _ => self.scalar(&value, at, depth + 1),
        }
    }

    /// References in it become texts, and `$$` becomes `$`.
    fn text(&mut self, text: &str, at: &Item) -> String {
        let mut text = text.to_owned();
        while let Some(found) = find(&text) {
            let value = match self.value(&text[found.start + 2..found.end - 1], at) {
                Value::Text(value) | Value::Default(value) => value,
                Value::Empty => String::new(),
                Value::Refused => return String::new(),
            };
            text.replace_range(found, &value);
        }
        text.replace("$$", "$")
    }

    /// What a reference stands for, without the braces.
    fn value(&mut self, reference: &str, at: &Item) -> Value {
        let shown = shortened(reference);
        let (scheme, rest) = reference.split_once(':').unwrap_or(("env", reference));
        if scheme != "env" {
            let instead = match rest.strip_prefix('-') {
                Some(_) => format!("write `${{env:{shown}}}`"),
                None => {
                    "of the Collector's providers only `env` is read here; write the value itself, \
                         and `$$` for a `$` that is meant"
                        .to_owned()
                }
            };
            self.wrong(at, format!("`${{{shown}}}` cannot be read: {instead}"));
            return Value::Refused;
        }
        let (name, default) = match rest.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (rest, None),
        };
        let is_name = name.starts_with(|it: char| it.is_ascii_alphabetic() || it == '_')
            && name
                .chars()
                .all(|it| it.is_ascii_alphanumeric() || it == '_');
        if !is_name || rest.contains('$') {
            self.wrong(
                at,
                format!(
                    "`${{{shown}}}` names no environment variable: a name has letters, digits and \
                     `_`; write `$$` for a `$` that is meant"
                ),
            );
            return Value::Refused;
        }
        let found = (self.environment)(name);
        self.references += 1;
        self.value_bytes += found.as_deref().or(default).map_or(0, str::len);
        if self.references > REFERENCES_MAX || self.value_bytes > VALUE_BYTES_MAX {
            self.wrong(
                at,
                format!(
                    "`${{{shown}}}` leads in a circle, or to too much: at most {REFERENCES_MAX} \
                     references in a file and {} MiB of values",
                    VALUE_BYTES_MAX >> 20
                ),
            );
            return Value::Refused;
        }
        match (found, default) {
            (Some(value), _) if value.is_empty() => Value::Empty,
            (Some(value), _) => Value::Text(value),
            (None, Some(default)) => Value::Default(default.to_owned()),
            (None, None) => {
                self.notices.push(Notice {
                    line: at.line,
                    column: at.column,
                    message: format!(
                        "the environment variable `{}` is not set and counts as empty",
                        shortened(name)
                    ),
                });
                Value::Empty
            }
        }
    }

    fn wrong(&mut self, at: &Item, message: String) {
        let mistake = at.mistake(message);
        // A circle is met once on each way to it.
        if self.mistakes.last() != Some(&mistake) {
            self.mistakes.push(mistake);
        }
    }
}

enum Value {
    Text(String),
    Default(String),
    /// Not set, or set to nothing.
    Empty,
    Refused,
}

/// What stands in a variable has its place where the variable is named.
fn place<'i>(item: &'i Item, at: &'i Item, depth: usize) -> &'i Item {
    if depth == 0 { item } else { at }
}

/// The first reference, of those in each other the innermost.
fn find(text: &str) -> Option<std::ops::Range<usize>> {
    let mut from = 0;
    while let Some(close) = text[from..].find('}').map(|at| from + at) {
        if let Some(open) = text[from..close].rfind("${").map(|at| from + at) {
            let dollars = text[..open].bytes().rev().take_while(|it| *it == b'$');
            if dollars.count() % 2 == 0 {
                return Some(open..close + 1);
            }
        }
        from = close + 1;
    }
    None
}
