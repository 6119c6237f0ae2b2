//! Reads a policy file and reports every mistake at once.
//!
//! The file is a Collector `tail_sampling` block: bare, under its own name, or inside a whole
//! Collector configuration, whose other keys are nobody's business here. A file that a Collector
//! accepts is accepted or refused with the reason; it is never read in another meaning without a
//! notice.

use std::time::Duration;

use crate::model::parse_go_duration;
use crate::policy::mistake::nearest;
use crate::policy::tree::{Item, Node, shortened};
use crate::policy::{Mistake, Notice, Rules, Timing};

/// A file without mistakes.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub rules: Rules,
    /// In the order of the file.
    pub notices: Vec<Notice>,
}

/// Same as the Collector's.
const DECISION_WAIT_DEFAULT: Duration = Duration::from_secs(30);

const SETTINGS: [&str; 15] = [
    "assume_unsampled_upstream",
    "block_on_overflow",
    "decision_cache",
    "decision_wait",
    "decision_wait_after_root_received",
    "drop_pending_traces_on_shutdown",
    "expected_new_traces_per_sec",
    "maximum_trace_size_bytes",
    "num_shards",
    "num_traces",
    "policies",
    "quiet_period",
    "sample_on_first_match",
    "sampling_strategy",
    "tail_storage",
];

/// `text` is a `tail_sampling` block, bare or inside a whole Collector configuration. Mistakes
/// come in the order of the file.
pub fn parse(text: &str) -> Result<Parsed, Vec<Mistake>> {
    let mut reader = Reader::default();
    let rules = Item::read(text, &mut reader.mistakes).and_then(|root| {
        let block = reader.find_block(&root)?;
        reader.block(block)
    });
    match rules {
        Some(rules) if reader.mistakes.is_empty() => {
            reader.notices.sort();
            Ok(Parsed {
                rules,
                notices: reader.notices,
            })
        }
        _ => {
            reader.mistakes.sort();
            Err(reader.mistakes)
        }
    }
}

#[derive(Default)]
pub(super) struct Reader {
    mistakes: Vec<Mistake>,
    notices: Vec<Notice>,
}

pub(super) type Entries = [(Item, Item)];

impl Reader {
    pub(super) fn wrong(&mut self, at: &Item, message: impl Into<String>) {
        self.mistakes.push(at.mistake(message));
    }

    pub(super) fn notice(&mut self, at: &Item, message: impl Into<String>) {
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
        match (blocks.as_slice(), place) {
            ([(_, block)], _) => Some(block),
            ([], Some(place)) => {
                self.wrong(
                    place,
                    "no `tail_sampling` among the processors of this Collector configuration",
                );
                None
            }
            ([], None) => Some(root),
            (several, _) => {
                for (key, _) in several {
                    self.wrong(
                        key,
                        format!(
                            "`{}` is one of {} tail_sampling processors, and a worker has one set of \
                             rules; leave the others out of its file",
                            shortened(text_of(key).unwrap_or_default()),
                            several.len()
                        ),
                    );
                }
                None
            }
        }
    }

    fn block(&mut self, block: &Item) -> Option<Rules> {
        let Node::Map(entries) = &block.node else {
            self.wrong(
                block,
                format!(
                    "the tail_sampling block is {}; it needs at least `policies`",
                    block.describe()
                ),
            );
            return None;
        };
        let mut timing = Timing {
            decision_wait: DECISION_WAIT_DEFAULT,
            quiet_period: None,
            decision_wait_after_root_received: None,
        };
        let mut policies = None;
        let mut assume_unsampled_upstream = true;
        for (key, value) in entries {
            match text_of(key).unwrap_or_default() {
                "decision_wait" => {
                    let wait = self.duration(key, value);
                    if wait == Some(Duration::ZERO) {
                        self.wrong(
                            value,
                            "`decision_wait` is zero; write 1s, which is what the Collector makes of it",
                        );
                    }
                    timing.decision_wait = wait.unwrap_or(DECISION_WAIT_DEFAULT);
                }
                "decision_wait_after_root_received" => {
                    timing.decision_wait_after_root_received =
                        self.duration(key, value).filter(|wait| !wait.is_zero());
                }
                "quiet_period" => {
                    timing.quiet_period = self.duration(key, value).filter(|wait| !wait.is_zero());
                }
                "assume_unsampled_upstream" => {
                    assume_unsampled_upstream = self.switch(key, value).unwrap_or(true);
                }
                "policies" => policies = Some(self.policies(key, value)),
                _ => self.setting_without_effect(key, value),
            }
        }
        if policies.is_none() {
            self.wrong(
                block,
                "`policies` is missing; to keep everything write\n\
                 policies:\n  - name: everything\n    type: always_sample",
            );
        }
        self.waits_beyond_the_cap(entries, &timing);
        Some(Rules::new(timing, policies?).assuming_unsampled_upstream(assume_unsampled_upstream))
    }

    /// `decision_wait` is the cap, so what waits longer never decides.
    fn waits_beyond_the_cap(&mut self, entries: &Entries, timing: &Timing) {
        let waits = [
            ("quiet_period", timing.quiet_period),
            (
                "decision_wait_after_root_received",
                timing.decision_wait_after_root_received,
            ),
        ];
        for (name, wait) in waits {
            if wait.is_none_or(|wait| wait < timing.decision_wait) {
                continue;
            }
            if let Some((key, _)) = entries.iter().find(|(key, _)| is_text(key, name)) {
                self.notice(
                    key,
                    format!(
                        "`{name}` never decides: `decision_wait` is not longer and decides first"
                    ),
                );
            }
        }
    }

    /// Settings of the Collector whose work is done by something else here, is not built yet, or
    /// that nobody knows.
    fn setting_without_effect(&mut self, key: &Item, value: &Item) {
        let name = text_of(key).unwrap_or_default();
        match name {
            "num_traces" => {
                self.count(key, value);
                self.notice(
                    key,
                    "`num_traces` bounds nothing here; bytes do (--log-max-bytes, --memory-limit)",
                );
            }
            "expected_new_traces_per_sec" => {
                self.count(key, value);
                self.notice(
                    key,
                    "`expected_new_traces_per_sec` bounds nothing here; bytes do, and nothing is \
                     allocated ahead",
                );
            }
            "num_shards" => {
                self.count(key, value);
                self.notice(
                    key,
                    "`num_shards` is not read: a worker has one shard for each core",
                );
            }
            "block_on_overflow" => {
                self.switch(key, value);
                self.notice(
                    key,
                    "`block_on_overflow` is not read: a full worker refuses with a retryable \
                     error and evicts nothing",
                );
            }
            "drop_pending_traces_on_shutdown" => {
                self.switch(key, value);
                self.notice(
                    key,
                    "`drop_pending_traces_on_shutdown` is not read: undecided traces stay in the \
                     log and are decided after the restart",
                );
            }
            "decision_cache" => self.notice(
                key,
                "`decision_cache` is not read: every decision is remembered, bounded in bytes \
                 (--decision-memory-max-bytes)",
            ),
            "tail_storage" => self.notice(
                key,
                "`tail_storage` is not read: traces are always kept in the log (--data-dir)",
            ),
            "sampling_strategy" => match &value.node {
                Node::Text(text) if text == "trace-complete" => {}
                Node::Text(text) if text == "span-ingest" => self.wrong(
                    value,
                    "sampling_strategy `span-ingest` is not supported yet by this version; leave \
                     it out for `trace-complete`",
                ),
                _ => self.wrong(
                    value,
                    format!(
                        "`sampling_strategy` is {}; write trace-complete",
                        value.describe()
                    ),
                ),
            },
            "sample_on_first_match" => {
                if self.switch(key, value) == Some(true) {
                    self.wrong(
                        value,
                        "`sample_on_first_match: true` is not supported yet by this version; \
                         leave it out, every policy is asked",
                    );
                }
            }
            "maximum_trace_size_bytes" => {
                if self.count(key, value).is_some_and(|bytes| bytes > 0) {
                    self.wrong(
                        value,
                        "`maximum_trace_size_bytes` is not supported yet by this version; leave it \
                         out (--max-trace-bytes bounds a trace)",
                    );
                }
            }
            _ => self.unknown_key(key, "setting", &SETTINGS),
        }
    }

    fn duration(&mut self, key: &Item, value: &Item) -> Option<Duration> {
        let name = text_of(key).unwrap_or_default();
        let text = match &value.node {
            Node::Text(text) => text.clone(),
            // `30` is a number to YAML, and 30 nanoseconds to the Collector.
            Node::Unsigned(number) => number.to_string(),
            Node::Negative(number) => number.to_string(),
            Node::Float(number) => number.to_string(),
            _ => {
                self.wrong(
                    value,
                    format!(
                        "`{name}` is {}; write a duration, for example 30s",
                        value.describe()
                    ),
                );
                return None;
            }
        };
        parse_go_duration(&text)
            .map_err(|error| {
                let text = shortened(&text);
                self.wrong(value, format!("the duration `{text}` of `{name}` {error}"));
            })
            .ok()
    }

    fn count(&mut self, key: &Item, value: &Item) -> Option<u64> {
        if let Node::Unsigned(count) = value.node {
            return Some(count);
        }
        self.wrong(
            value,
            format!(
                "`{}` is {}; write a whole number",
                text_of(key).unwrap_or_default(),
                value.describe()
            ),
        );
        None
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
        _ => None,
    }
}

pub(super) fn is_text(item: &Item, text: &str) -> bool {
    text_of(item) == Some(text)
}

/// A Collector component is `type` or `type/name`.
fn is_tail_sampling(key: &str) -> bool {
    key == "tail_sampling" || key.starts_with("tail_sampling/")
}
