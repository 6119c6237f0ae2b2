//! The blocks of policies that look at attributes, and at members of the trace state.

use std::collections::BTreeSet;

use crate::policy::block::Block;
use crate::policy::file::{Entries, Reader};
use crate::policy::tree::{Item, shortened};
use crate::policy::{
    BooleanAttribute, NumericAttribute, Pattern, PolicyKind, StringAttribute, TraceState, Values,
};
use crate::wire::{is_member_key, is_member_value};

/// Strings of one policy. Each is held in memory, patterns compiled.
pub(super) const VALUES_MAX: usize = 10_000;
/// Key and value of a `trace_state` together; the Collector leaves longer ones out.
const MEMBER_MAX: usize = 256;

impl Reader {
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
        let key = self.key_of(&block);
        let regex = self.switch_of(&block, "enabled_regex_matching");
        let invert = self.switch_of(&block, "invert_match");
        let cache = self.whole(&block, "cache_max_size", i64::MAX as u64);
        if let (Ok(Some(_)), Some((at, _))) = (cache, block.entry("cache_max_size")) {
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

    pub(super) fn numeric_attribute(
        &mut self,
        kind: &Item,
        entries: &Entries,
    ) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "numeric_attribute",
            &["key", "min_value", "max_value", "invert_match"],
            "key: http.response.status_code\n  min_value: 500",
        )?;
        let key = self.key_of(&block);
        let invert_match = self.switch_of(&block, "invert_match");
        let min = self.signed(&block, "min_value");
        let max = self.signed(&block, "max_value");
        let (min, max) = min.ok().zip(max.ok())?;
        // 0 is "no bound" in the Collector; a bound of 0 cannot be said.
        let (min, max) = (min.filter(|it| *it != 0), max.filter(|it| *it != 0));
        if min.is_none() && max.is_none() {
            self.wrong(
                block.item,
                "`min_value` and `max_value` are missing or 0, which is no bound; write at least \
                 one (for \"above 0\": min_value: 1)",
            );
            return None;
        }
        let (min, max) = (min.unwrap_or(i64::MIN), max.unwrap_or(i64::MAX));
        if min > max {
            self.wrong(
                block.get("max_value").unwrap_or(block.item),
                format!("no number is at least {min} and at most {max}"),
            );
            return None;
        }
        Some(PolicyKind::NumericAttribute(NumericAttribute {
            key: key?,
            min,
            max,
            invert_match: invert_match?,
        }))
    }

    pub(super) fn boolean_attribute(
        &mut self,
        kind: &Item,
        entries: &Entries,
    ) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "boolean_attribute",
            &["key", "value", "invert_match"],
            "key: app.force_sample\n  value: true",
        )?;
        let key = self.key_of(&block);
        let value = self.switch_of(&block, "value");
        let invert_match = self.switch_of(&block, "invert_match");
        Some(PolicyKind::BooleanAttribute(BooleanAttribute {
            key: key?,
            value: value?,
            invert_match: invert_match?,
        }))
    }

    pub(super) fn trace_state(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "trace_state",
            &["key", "values"],
            "key: vendor\n  values: [debug]",
        )?;
        let key = self.key_of(&block);
        if let (Some(key), Some(item)) = (&key, block.get("key"))
            && !is_member_key(key)
        {
            let key = shortened(key);
            self.notice(
                item,
                format!("`{key}` can be no key of a trace state, so nothing is kept"),
            );
        }
        let items = self.list(&block, "values", "[debug]")?;
        if items.len() > VALUES_MAX {
            self.wrong(
                block.item,
                format!("{} values; at most {VALUES_MAX}", items.len()),
            );
            return None;
        }
        let mut values = Some(BTreeSet::new());
        for item in items {
            let Some(value) = self.text(item, "values") else {
                values = None;
                continue;
            };
            let len = value.len() + key.as_deref().unwrap_or_default().len();
            if value.is_empty() || len >= MEMBER_MAX || !is_member_value(&value) {
                let value = shortened(&value);
                self.notice(
                    item,
                    format!("`{value}` can be no value of a trace state, and is left out"),
                );
            } else if let Some(values) = &mut values {
                values.insert(value);
            }
        }
        Some(PolicyKind::TraceState(TraceState {
            key: key?,
            values: values?,
        }))
    }

    fn key_of(&mut self, block: &Block<'_>) -> Option<String> {
        match block.get("key") {
            Some(item) => self.text(item, "key"),
            None => {
                self.wrong(
                    block.item,
                    "`key` is missing; write the name of an attribute",
                );
                None
            }
        }
    }
}
