//! The block of a policy's type: `latency: {threshold_ms: 5000}`. How its keys are read, and the
//! types that look at a span's own fields. Attributes are `attribute`'s, limits `limit`'s, policies
//! inside policies `nested`'s.
//!
//! A value that the Collector takes means the same here or is refused with the reason. What would
//! keep nothing, or everything, because a key is missing is a mistake: nobody means it.

use crate::policy::file::{Entries, Reader, is_text, text_of};
use crate::policy::tree::{Item, Node};
use crate::policy::{Latency, PolicyKind, SpanCount, StatusCodes};

/// One block: its own place, and its keys.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) name: &'static str,
    pub(super) item: &'a Item,
    pub(super) entries: &'a Entries,
}

impl<'a> Block<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Item> {
        self.entry(key).map(|(_, value)| value)
    }

    /// The key where it stands, and its value.
    pub(super) fn entry(&self, key: &str) -> Option<(&'a Item, &'a Item)> {
        let found = self.entries.iter().find(|(name, _)| is_text(name, key));
        found.map(|(key, value)| (key, value))
    }
}

impl Reader {
    /// `kind` is where the policy's type stands, `entries` the keys of the policy.
    pub(super) fn block_of<'a>(
        &mut self,
        kind: &Item,
        entries: &'a Entries,
        name: &'static str,
        keys: &[&str],
        example: &str,
    ) -> Option<Block<'a>> {
        let Some((_, item)) = entries.iter().find(|(key, _)| is_text(key, name)) else {
            self.wrong(
                kind,
                format!(
                    "the policy has no block `{name}`; write one, for example\n{name}:\n  {example}"
                ),
            );
            return None;
        };
        let Node::Map(entries) = &item.node else {
            self.wrong(
                item,
                format!(
                    "`{name}` is {}; write a block, for example\n{name}:\n  {example}",
                    item.describe()
                ),
            );
            return None;
        };
        for (key, _) in entries {
            if text_of(key).is_none_or(|key| !keys.contains(&key)) {
                self.unknown_key(key, &format!("key of `{name}`"), keys);
            }
        }
        Some(Block {
            name,
            item,
            entries,
        })
    }

    pub(super) fn status_code(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let example = "status_codes: [ERROR]";
        let block = self.block_of(kind, entries, "status_code", &["status_codes"], example)?;
        let items = self.list(&block, "status_codes", "[ERROR]")?;
        let mut codes = Some(StatusCodes::default());
        for item in items {
            let code = match text_of(item) {
                Some("UNSET") => Some(StatusCodes::UNSET),
                Some("OK") => Some(StatusCodes::OK),
                Some("ERROR") => Some(StatusCodes::ERROR),
                _ => None,
            };
            if code.is_none() {
                self.wrong(
                    item,
                    format!(
                        "a status code is {}; write UNSET, OK or ERROR, in capitals",
                        item.describe()
                    ),
                );
            }
            codes = codes.zip(code).map(|(codes, code)| codes.and(code));
        }
        codes.map(PolicyKind::StatusCode)
    }

    pub(super) fn latency(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "latency",
            &["threshold_ms", "upper_threshold_ms"],
            "threshold_ms: 5000",
        )?;
        let threshold = self.whole(&block, "threshold_ms", i64::MAX as u64);
        let upper = self.whole(&block, "upper_threshold_ms", i64::MAX as u64);
        let (threshold, upper) = threshold.ok().zip(upper.ok())?;
        let upper = upper.filter(|upper| *upper > 0);
        if threshold.is_none() && upper.is_none() {
            self.wrong(
                block.item,
                "`threshold_ms` is missing, and the Collector would keep all traces of 1 ms and \
                 more; write a number of milliseconds",
            );
            return None;
        }
        let threshold = threshold.unwrap_or(0);
        if let (Some(bound), Some(item)) = (upper, block.get("upper_threshold_ms"))
            && bound <= threshold
        {
            self.wrong(
                item,
                format!(
                    "`upper_threshold_ms` is {bound}, and nothing is longer than {threshold} ms \
                     and not longer than that; write more than {threshold}"
                ),
            );
            return None;
        }
        Some(PolicyKind::Latency(Latency {
            threshold_millis: threshold as i64,
            upper_threshold_millis: upper.map(|upper| upper as i64),
        }))
    }

    pub(super) fn span_count(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "span_count",
            &["min_spans", "max_spans"],
            "min_spans: 20",
        )?;
        // What the Collector's int32 holds.
        let min = self.whole(&block, "min_spans", i32::MAX as u64);
        let max = self.whole(&block, "max_spans", i32::MAX as u64);
        let (min, max) = min.ok().zip(max.ok())?;
        let max = max.filter(|max| *max > 0);
        if min.is_none() && max.is_none() {
            self.wrong(
                block.item,
                "`min_spans` is missing, and the Collector would keep everything; write a number \
                 of spans",
            );
            return None;
        }
        let min = min.unwrap_or(0);
        if let (Some(bound), Some(item)) = (max, block.get("max_spans"))
            && bound < min
        {
            self.wrong(
                item,
                format!(
                    "`max_spans` is {bound}, and no trace has at least {min} spans and at most \
                     that; write {min} or more"
                ),
            );
            return None;
        }
        Some(PolicyKind::SpanCount(SpanCount {
            min: min as u32,
            max: max.map(|max| max as u32),
        }))
    }

    pub(super) fn trace_flags(&mut self, entries: &Entries) -> PolicyKind {
        // Has no keys, in the Collector neither, and so needs no block.
        for (_, value) in entries
            .iter()
            .filter(|(key, _)| is_text(key, "trace_flags"))
        {
            if let Node::Map(keys) = &value.node {
                for (key, _) in keys {
                    let name = text_of(key).unwrap_or_default();
                    self.wrong(key, format!("`trace_flags` has no keys, so no `{name}`"));
                }
            }
        }
        PolicyKind::TraceFlags
    }

    /// A number from 0 to `max`; `Ok(None)` if the key is not there.
    pub(super) fn whole(
        &mut self,
        block: &Block<'_>,
        key: &str,
        max: u64,
    ) -> Result<Option<u64>, ()> {
        let Some(item) = block.get(key) else {
            return Ok(None);
        };
        let number = match item.node {
            Node::Unsigned(number) => Some(number),
            // YAML's 1e4, which the Collector takes as well.
            Node::Float(number) if number >= 0.0 && number.fract() == 0.0 => Some(number as u64),
            _ => None,
        };
        match number.filter(|number| *number <= max) {
            Some(number) => Ok(Some(number)),
            None => {
                self.wrong(
                    item,
                    format!(
                        "`{key}` of `{}` is {}; write a whole number from 0 to {max}",
                        block.name,
                        item.describe()
                    ),
                );
                Err(())
            }
        }
    }

    /// False if the key is not there, [`None`] after a mistake.
    pub(super) fn switch_of(&mut self, block: &Block<'_>, key: &str) -> Option<bool> {
        let entry = block.entries.iter().find(|(name, _)| is_text(name, key));
        match entry {
            None => Some(false),
            Some((key, value)) => self.switch(key, value),
        }
    }

    pub(super) fn text(&mut self, item: &Item, key: &str) -> Option<String> {
        if let Some(text) = text_of(item)
            && !(key == "key" && text.is_empty())
        {
            return Some(text.to_owned());
        }
        let instead = match item.node {
            Node::Unsigned(number) => format!("write it in quotes: \"{number}\""),
            Node::Negative(number) => format!("write it in quotes: \"{number}\""),
            Node::Bool(value) => format!("write it in quotes: \"{value}\""),
            _ if key == "key" => "write the name of an attribute".to_owned(),
            _ => "write a text".to_owned(),
        };
        let what = if key == "key" { "`key`" } else { "a value" };
        self.wrong(item, format!("{what} is {}; {instead}", item.describe()));
        None
    }

    pub(super) fn list<'a>(
        &mut self,
        block: &Block<'a>,
        key: &str,
        example: &str,
    ) -> Option<&'a [Item]> {
        let Some(item) = block.get(key) else {
            self.wrong(
                block.item,
                format!("`{key}` is missing; write a list, for example {example}"),
            );
            return None;
        };
        match &item.node {
            Node::List(items) if !items.is_empty() => Some(items),
            Node::List(_) => {
                self.wrong(
                    item,
                    format!("`{key}` is an empty list; write for example {example}"),
                );
                None
            }
            _ => {
                self.wrong(
                    item,
                    format!(
                        "`{key}` is {}; write a list, for example {example}",
                        item.describe()
                    ),
                );
                None
            }
        }
    }

    /// A number that may be below zero; `Ok(None)` if the key is not there.
    pub(super) fn signed(&mut self, block: &Block<'_>, key: &str) -> Result<Option<i64>, ()> {
        let Some(item) = block.get(key) else {
            return Ok(None);
        };
        let number = match item.node {
            Node::Unsigned(number) => i64::try_from(number).ok(),
            Node::Negative(number) => Some(number),
            // Beyond 2^53 a float is no certain number.
            Node::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
                Some(number as i64)
            }
            _ => None,
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => {
                self.wrong(
                    item,
                    format!(
                        "`{key}` of `{}` is {}; write a whole number of 64 bits",
                        block.name,
                        item.describe()
                    ),
                );
                Err(())
            }
        }
    }
}
