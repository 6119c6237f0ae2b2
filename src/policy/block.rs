//! The block of a policy's type: `latency: {threshold_ms: 5000}`.
//!
//! A value that the Collector takes means the same here or is refused with the reason. What would
//! keep nothing, or everything, because a key is missing is a mistake: nobody means it.

use std::collections::BTreeSet;

use crate::model::Threshold;
use crate::policy::file::{Entries, Reader, is_text, text_of};
use crate::policy::tree::{Item, Node, shortened};
use crate::policy::{
    Latency, Pattern, PolicyKind, RateLimiting, Scope, SpanCount, StatusCodes, StringAttribute,
    Values,
};

/// Strings of one policy. Each is held in memory, patterns compiled.
const VALUES_MAX: usize = 10_000;

/// One block: its own place, and its keys.
#[derive(Clone, Copy)]
struct Block<'a> {
    name: &'static str,
    item: &'a Item,
    entries: &'a Entries,
}

impl<'a> Block<'a> {
    fn get(&self, key: &str) -> Option<&'a Item> {
        let (_, value) = self.entries.iter().find(|(name, _)| is_text(name, key))?;
        Some(value)
    }
}

impl Reader {
    /// `kind` is where the policy's type stands, `entries` the keys of the policy.
    fn block_of<'a>(
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

    pub(super) fn probabilistic(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "probabilistic",
            &["sampling_percentage", "hash_salt"],
            "sampling_percentage: 10",
        )?;
        if let Some((key, salt)) = block
            .entries
            .iter()
            .find(|(key, _)| is_text(key, "hash_salt"))
            && text_of(salt).is_none_or(|salt| !salt.is_empty())
        {
            self.wrong(
                key,
                "`hash_salt` is not supported yet by this version, which decides by the trace ID's \
                 own randomness; leave it out (the share kept is the same, the traces are others)",
            );
        }
        let Some(value) = block.get("sampling_percentage") else {
            self.wrong(
                block.item,
                "`sampling_percentage` is missing, and the Collector would keep nothing; write a \
                 number from 0 to 100",
            );
            return None;
        };
        let percentage = match value.node {
            Node::Unsigned(number) => Some(number as f64),
            Node::Float(number) => Some(number),
            _ => None,
        };
        let Some(percentage) = percentage.filter(|number| (0.0..=100.0).contains(number)) else {
            let found = match value.node {
                Node::Unsigned(number) => number.to_string(),
                Node::Negative(number) => number.to_string(),
                Node::Float(number) => number.to_string(),
                _ => value.describe(),
            };
            self.wrong(
                value,
                format!("`sampling_percentage` is {found}; write a number from 0 to 100"),
            );
            return None;
        };
        Some(PolicyKind::Probabilistic(Threshold::keeping(
            percentage / 100.0,
        )))
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

    pub(super) fn rate_limiting(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "rate_limiting",
            &["spans_per_second", "burst_capacity", "scope"],
            "spans_per_second: 50",
        )?;
        let rate = self.whole(&block, "spans_per_second", i64::MAX as u64);
        let burst = self.whole(&block, "burst_capacity", i64::MAX as u64);
        let scope = match block.get("scope") {
            None => Some(Scope::Cluster),
            Some(item) => match text_of(item) {
                Some("cluster") => Some(Scope::Cluster),
                Some("worker") => Some(Scope::Worker),
                _ => {
                    self.wrong(
                        item,
                        format!(
                            "`scope` is {}; write cluster (the rate is divided among the workers) \
                             or worker (each has all of it)",
                            item.describe()
                        ),
                    );
                    None
                }
            },
        };
        let (rate, burst) = rate.ok().zip(burst.ok())?;
        let Some(spans_per_second) = rate.filter(|rate| *rate > 0) else {
            let at = block.get("spans_per_second").unwrap_or(block.item);
            self.wrong(
                at,
                "`spans_per_second` is missing or 0, and nothing would be kept; write a number of \
                 spans",
            );
            return None;
        };
        let burst_spans = burst
            .filter(|burst| *burst > 0)
            .unwrap_or(spans_per_second.saturating_mul(2));
        Some(PolicyKind::RateLimiting(RateLimiting {
            spans_per_second,
            burst_spans,
            scope: scope?,
        }))
    }

    pub(super) fn string_attribute(
        &mut self,
        kind: &Item,
        entries: &Entries,
    ) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "string_attribute",
            &[
                "key",
                "values",
                "enabled_regex_matching",
                "cache_max_size",
                "invert_match",
            ],
            "key: tenant.id\n  values: [acme-corp]",
        )?;
        let key = match block.get("key") {
            Some(item) => self.text(item, "key"),
            None => {
                self.wrong(
                    block.item,
                    "`key` is missing; write the name of an attribute",
                );
                None
            }
        };
        let regex = self.switch_of(&block, "enabled_regex_matching");
        let invert = self.switch_of(&block, "invert_match");
        let cache = self.whole(&block, "cache_max_size", i64::MAX as u64);
        if let (Ok(Some(_)), Some((at, _))) = (
            cache,
            block
                .entries
                .iter()
                .find(|(key, _)| is_text(key, "cache_max_size")),
        ) {
            self.notice(
                at,
                "`cache_max_size` is not read: a pattern takes no longer than a look into a cache",
            );
        }
        let items = self.list(&block, "values", "[acme-corp]")?;
        if items.len() > VALUES_MAX {
            self.wrong(
                block.item,
                format!("{} values; at most {VALUES_MAX}", items.len()),
            );
            return None;
        }
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            texts.push(self.text(item, "values").map(|text| (item, text)));
        }
        let values = if regex? {
            let mut patterns = Vec::with_capacity(texts.len());
            for (item, text) in texts.iter().flatten() {
                match Pattern::new(text) {
                    Ok(pattern) => patterns.push(pattern),
                    Err(why) => {
                        let text = shortened(text);
                        self.wrong(item, format!("the regular expression `{text}`: {why}"));
                    }
                }
            }
            (patterns.len() == texts.len()).then_some(Values::Matching(patterns))
        } else {
            let is_whole = texts.iter().all(Option::is_some);
            let lawful = texts.into_iter().flatten().map(|(_, text)| text);
            // An empty value is left out, as in the Collector: it would match what is no string.
            let exact: BTreeSet<String> = lawful.filter(|text| !text.is_empty()).collect();
            is_whole.then_some(Values::Exact(exact))
        };
        Some(PolicyKind::StringAttribute(StringAttribute {
            key: key?,
            values: values?,
            invert_match: invert?,
        }))
    }

    /// A number from 0 to `max`; `Ok(None)` if the key is not there.
    fn whole(&mut self, block: &Block<'_>, key: &str, max: u64) -> Result<Option<u64>, ()> {
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
    fn switch_of(&mut self, block: &Block<'_>, key: &str) -> Option<bool> {
        let entry = block.entries.iter().find(|(name, _)| is_text(name, key));
        match entry {
            None => Some(false),
            Some((key, value)) => self.switch(key, value),
        }
    }

    fn text(&mut self, item: &Item, key: &str) -> Option<String> {
        if let Node::Text(text) = &item.node
            && !(key == "key" && text.is_empty())
        {
            return Some(text.clone());
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

    fn list<'a>(&mut self, block: &Block<'a>, key: &str, example: &str) -> Option<&'a [Item]> {
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
}
