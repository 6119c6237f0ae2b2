//! Reads a policy file and reports every mistake at once.
//!
//! The file is a Collector `tail_sampling` block: bare, under its own name, or inside a whole
//! Collector configuration, whose other keys are nobody's business here. A file that a Collector
//! accepts is accepted or refused with the reason; it is never read in another meaning without a
//! notice. What stands in the block is `settings`' and `entry`'s; references to environment variables
//! in it are `environment`'s.

use std::collections::HashSet;

use crate::policy::environment::Expansion;
use crate::policy::mistake::nearest;
use crate::policy::tree::{Item, Node, shortened};
use crate::policy::{Compatibility, Mistake, Notice, Rules};

/// Mistakes that are told of one file, and notices; the others are counted. Whoever has more has given us
/// something else than a policy file.
pub const TOLD_MAX: usize = 1_000;

/// A file without mistakes.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub rules: Rules,
    /// In the order of the file.
    pub notices: Vec<Notice>,
}

/// The value of an environment variable by its name, if it is set.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// [`parse_in`] an environment without variables.
pub fn parse(text: &str) -> Result<Parsed, Vec<Mistake>> {
    parse_in(&|_| None, text)
}

/// `text` is a `tail_sampling` block, bare or inside a whole Collector configuration. Mistakes
/// come in the order of the file.
pub fn parse_in(environment: Environment<'_>, text: &str) -> Result<Parsed, Vec<Mistake>> {
    let mut reader = Reader::default();
    let rules = Item::read(text, &mut reader.mistakes).and_then(|root| {
        let block = reader.find_block(&root)?;
        let mut expansion = Expansion::new(environment);
        let block = expansion.of(block);
        reader.notices.append(&mut expansion.notices);
        if expansion.mistakes.is_empty() {
            return reader.settings(&block);
        }
        // What they stand for is not known, so the rest cannot be judged.
        reader.mistakes.append(&mut expansion.mistakes);
        None
    });
    match rules {
        Some(rules) if reader.mistakes.is_empty() => Ok(Parsed {
            rules,
            notices: reader.told_notices(),
        }),
        _ => Err(reader.told_mistakes()),
    }
}

#[derive(Default)]
pub(super) struct Reader {
    mistakes: Vec<Mistake>,
    /// Beyond those that are told.
    mistakes_more: usize,
    notices: Vec<Notice>,
    notices_more: usize,
    pub(super) collector: bool,
    /// Those inside others included.
    pub(super) policies_read: usize,
}

pub(super) type Entries = [(Item, Item)];

impl Reader {
    pub(super) fn compatibility(&self) -> Compatibility {
        if self.collector {
            Compatibility::Collector
        } else {
            Compatibility::Tailring
        }
    }

    pub(super) fn wrong(&mut self, at: &Item, message: impl Into<String>) {
        if self.mistakes.len() < TOLD_MAX {
            self.mistakes.push(at.mistake(message));
        } else {
            self.mistakes_more += 1;
        }
    }

    /// In the order of the file.
    fn told_mistakes(mut self) -> Vec<Mistake> {
        self.mistakes.sort();
        let last = self.mistakes.last().filter(|_| self.mistakes_more > 0);
        if let Some(&Mistake { line, column, .. }) = last {
            self.mistakes.push(Mistake {
                line,
                // Behind the last one that is told.
                column: column + 1,
                message: format!("and {} more mistakes in this file", self.mistakes_more),
            });
        }
        self.mistakes
    }

    /// In the order of the file.
    fn told_notices(mut self) -> Vec<Notice> {
        self.notices.sort();
        let last = self.notices.last().filter(|_| self.notices_more > 0);
        if let Some(&Notice { line, column, .. }) = last {
            self.notices.push(Notice {
                line,
                column: column + 1,
                message: format!("and {} more notices on this file", self.notices_more),
            });
        }
        self.notices
    }

    pub(super) fn notice(&mut self, at: &Item, message: impl Into<String>) {
        if self.notices.len() == TOLD_MAX {
            self.notices_more += 1;
            return;
        }
        self.notices.push(Notice {
            line: at.line,
            column: at.column,
            message: message.into(),
        });
    }

    /// The block itself, wherever it stands.
    fn find_block<'a>(&mut self, root: &'a Item) -> Option<&'a Item> {
        let Node::Map(entries) = &root.node else {
            self.wrong(
                root,
                format!(
                    "the file is {}; write a tail_sampling block, for example\n\
                     policies:\n  - name: everything\n    type: always_sample",
                    root.describe()
                ),
            );
            return None;
        };
        let (place, within) = match entries.iter().find(|(key, _)| is_text(key, "processors")) {
            Some((key, processors)) => {
                let Node::Map(entries) = &processors.node else {
                    self.wrong(
                        processors,
                        format!(
                            "`processors` is {}; a block of processors is expected",
                            processors.describe()
                        ),
                    );
                    return None;
                };
                (Some(key), entries)
            }
            None => (None, entries),
        };
        let blocks: Vec<_> = within
            .iter()
            .filter(|(key, _)| text_of(key).is_some_and(is_tail_sampling))
            .collect();
        let used = entries
            .iter()
            .find(|(key, _)| is_text(key, "service"))
            .map(|(_, service)| in_pipelines(service))
            .unwrap_or_default();
        let is_used = |(key, _): &&&(Item, Item)| text_of(key).is_some_and(|it| used.contains(it));
        let Some((key, block)) = blocks.iter().find(is_used).or(blocks.first()).copied() else {
            return match place {
                Some(place) => {
                    self.wrong(
                        place,
                        "no `tail_sampling` among the processors of this Collector configuration",
                    );
                    None
                }
                None => Some(root),
            };
        };
        if blocks.len() > 1 {
            let name = text_of(key).unwrap_or_default();
            let why = if used.contains(name) {
                "the first one in a pipeline"
            } else {
                "the first one, for none is in a pipeline"
            };
            self.notice(
                key,
                format!(
                    "of {} tail_sampling processors this one is read, {why}: a worker has one set \
                     of rules",
                    blocks.len()
                ),
            );
        }
        self.say_ignored(root, entries, within);
        Some(block)
    }

    /// One line for all that stands around the block.
    fn say_ignored(&mut self, root: &Item, entries: &Entries, within: &Entries) {
        let names = |entries: &Entries, but: fn(&str) -> bool| -> Vec<String> {
            let names = entries.iter().filter_map(|(key, _)| text_of(key));
            names.filter(|it| !but(it)).map(shortened).collect()
        };
        let mut ignored = names(entries, |it| it == "processors" || is_tail_sampling(it));
        let processors = names(within, is_tail_sampling);
        if !std::ptr::eq(entries, within) && !processors.is_empty() {
            ignored.push(format!("the other processors ({})", processors.join(", ")));
        }
        if !ignored.is_empty() {
            let ignored = ignored.join(", ");
            self.notice(
                root,
                format!("only the tail_sampling block is read; ignored: {ignored}"),
            );
        }
    }

    pub(super) fn switch(&mut self, key: &Item, value: &Item) -> Option<bool> {
        if let Node::Bool(on) = value.node {
            return Some(on);
        }
        self.wrong(
            value,
            format!(
                "`{}` is {}; write true or false",
                text_of(key).unwrap_or_default(),
                value.describe()
            ),
        );
        None
    }

    pub(super) fn unknown_key(&mut self, key: &Item, what: &str, known: &[&str]) {
        let Some(name) = text_of(key) else {
            self.wrong(key, format!("a key is {}; write a name", key.describe()));
            return;
        };
        if self.mistakes.len() >= TOLD_MAX {
            // What was meant takes some work to find.
            self.mistakes_more += 1;
            return;
        }
        let hint = nearest(name, known.iter().copied()).map_or_else(
            || format!("known are {}", known.join(", ")),
            |meant| format!("did you mean `{meant}`?"),
        );
        self.wrong(
            key,
            format!("no {what} is called `{}`; {hint}", shortened(name)),
        );
    }
}

pub(super) fn text_of(item: &Item) -> Option<&str> {
    match &item.node {
        Node::Text(text) => Some(text),
        _ => item.written.as_deref(),
    }
}

pub(super) fn is_text(item: &Item, text: &str) -> bool {
    text_of(item) == Some(text)
}

/// A Collector component is `type` or `type/name`.
fn is_tail_sampling(key: &str) -> bool {
    key == "tail_sampling" || key.starts_with("tail_sampling/")
}

/// The processors in all pipelines of a Collector's `service`.
fn in_pipelines(service: &Item) -> HashSet<&str> {
    fn of<'a>(item: &'a Item, name: &str) -> Option<&'a Item> {
        let Node::Map(entries) = &item.node else {
            return None;
        };
        let found = entries.iter().find(|(key, _)| is_text(key, name));
        found.map(|(_, value)| value)
    }
    let Some(Node::Map(pipelines)) = of(service, "pipelines").map(|it| &it.node) else {
        return HashSet::new();
    };
    let processors = pipelines.iter().filter_map(|(_, it)| of(it, "processors"));
    processors
        .filter_map(|it| match &it.node {
            Node::List(names) => Some(names.iter().filter_map(text_of)),
            _ => None,
        })
        .flatten()
        .collect()
}
