//! A YAML text as a tree that knows where everything stands.
//!
//! serde stops at the first thing it does not expect; a report of all mistakes needs the whole
//! tree first. Knows YAML and nothing of policies.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::policy::Mistake;

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) node: Node,
    /// If it comes from the environment: its text there. It counts where a text is wanted.
    pub(super) written: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Unsigned(u64),
    /// Below zero.
    Negative(i64),
    Float(f64),
    Text(String),
    List(Vec<Item>),
    /// Keys in the order of the text, each once.
    Map(Vec<(Item, Item)>),
}

impl Item {
    /// Reads a whole text. What is wrong with it as YAML goes to `mistakes`; there is no tree when
    /// nothing sensible can be read. Of a key that stands twice the first one is taken.
    pub(super) fn read(text: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let first = match read_with(text, DuplicateKeyPolicy::Error) {
            Ok(item) => return Some(item),
            Err(mistake) => mistake,
        };
        mistakes.push(first);
        // If a doubled key was all, the rest can be looked through as well.
        read_with(text, DuplicateKeyPolicy::FirstWins).ok()
    }

    pub(super) fn mistake(&self, message: impl Into<String>) -> Mistake {
        Mistake {
            line: self.line,
            column: self.column,
            message: message.into(),
        }
    }

    /// Its place alone.
    pub(super) fn without_node(&self) -> Self {
        Self {
            line: self.line,
            column: self.column,
            node: Node::Null,
            written: None,
        }
    }

    /// What it is, for a message: "a list", "the number 5".
    pub(super) fn describe(&self) -> String {
        match &self.node {
            Node::Null if self.written.is_some() => {
                "empty, as is its environment variable".to_owned()
            }
            Node::Null => "empty".to_owned(),
            Node::Bool(value) => format!("`{value}`"),
            Node::Unsigned(value) => format!("the number {value}"),
            Node::Negative(value) => format!("the number {value}"),
            Node::Float(value) => format!("the number {value}"),
            Node::Text(text) => format!("the text `{}`", shortened(text)),
            Node::List(_) => "a list".to_owned(),
            Node::Map(_) => "a block of keys".to_owned(),
        }
    }
}

/// A long text in a message hides the message.
pub(super) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    if text.chars().count() <= CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(CHARS_MAX).chain(['…']).collect()
}

fn read_with(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Item, Mistake> {
    // The defaults also bound depth (64), nodes and aliases: a bomb is a mistake, not an outage.
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        // Only true and false: a policy may be called `on`.
        strict_booleans: true,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let at = error.location();
        let message = error.without_snippet().to_string();
        // The position is said in front, once.
        let message = message
            .split_once(" at line ")
            .map_or(message.as_str(), |(what, _)| what)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        Mistake {
            line: at.map_or(1, |at| clamp(at.line())),
            column: at.map_or(1, |at| clamp(at.column())),
            message: format!("not valid YAML: {message}"),
        }
    })
}

fn clamp(position: u64) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX).max(1)
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Node>::deserialize(deserializer)?;
        Ok(Self {
            line: clamp(spanned.referenced.line()),
            column: clamp(spanned.referenced.column()),
            node: spanned.value,
            written: None,
        })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(u64::try_from(value).map_or(Node::Negative(value), Node::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}
