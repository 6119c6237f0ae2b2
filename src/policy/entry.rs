//! The entries of `policies` in a policy file: name, type, and the block of the type.

use crate::model::Threshold;
use crate::policy::file::{Entries, Reader, is_text, text_of};
use crate::policy::mistake::nearest;
use crate::policy::tree::{Item, Node, shortened};
use crate::policy::{Policy, PolicyKind};

/// Each policy has a name among the metric labels, and each span is shown to every policy.
pub const POLICIES_MAX: usize = 1_000;

/// Policy types of the Collector. Those below [`SUPPORTED_TYPES`] are not built yet.
const TYPES: [&str; 17] = [
    "always_sample",
    "probabilistic",
    "and",
    "boolean_attribute",
    "bytes_limiting",
    "composite",
    "drop",
    "latency",
    "not",
    "numeric_attribute",
    "ottl_condition",
    "rate_limiting",
    "span_count",
    "status_code",
    "string_attribute",
    "trace_flags",
    "trace_state",
];
const SUPPORTED_TYPES: &[&str] = TYPES.split_at(2).0;

impl Reader {
    pub(super) fn policies(&mut self, key: &Item, value: &Item) -> Vec<Policy> {
        let Node::List(items) = &value.node else {
            self.wrong(
                value,
                format!(
                    "`policies` is {}; write a list, each policy with `- name:` and `type:`",
                    value.describe()
                ),
            );
            return Vec::new();
        };
        if items.is_empty() {
            self.wrong(
                key,
                "`policies` is an empty list; to keep everything add `- name: everything` with \
                 `type: always_sample`",
            );
        }
        if items.len() > POLICIES_MAX {
            self.wrong(
                key,
                format!("{} policies; at most {POLICIES_MAX}", items.len()),
            );
            return Vec::new();
        }
        let mut policies: Vec<Policy> = Vec::new();
        let mut names: Vec<(&str, usize)> = Vec::new();
        for item in items {
            let Node::Map(entries) = &item.node else {
                self.wrong(
                    item,
                    format!(
                        "a policy is {}; write `name:` and `type:` under one dash",
                        item.describe()
                    ),
                );
                continue;
            };
            let name = self.policy_name(item, entries, &mut names);
            let kind = self.policy_kind(item, entries);
            if let (Some(name), Some(kind)) = (name, kind) {
                policies.push(Policy { name, kind });
            }
        }
        policies
    }

    fn policy_name<'a>(
        &mut self,
        item: &Item,
        entries: &'a Entries,
        names: &mut Vec<(&'a str, usize)>,
    ) -> Option<String> {
        let Some((_, value)) = entries.iter().find(|(key, _)| is_text(key, "name")) else {
            self.wrong(
                item,
                "the policy has no `name`; metrics and decisions are told apart by it",
            );
            return None;
        };
        let name = match text_of(value) {
            Some(name) if !name.is_empty() => name,
            _ => {
                self.wrong(
                    value,
                    format!("the policy's `name` is {}; write a text", value.describe()),
                );
                return None;
            }
        };
        if let Some((_, line)) = names.iter().find(|(taken, _)| *taken == name) {
            self.wrong(
                value,
                format!(
                    "the name `{}` is taken by the policy in line {line}; names are told apart \
                     in metrics and decisions",
                    shortened(name)
                ),
            );
        }
        names.push((name, value.line));
        Some(name.to_owned())
    }

    fn policy_kind(&mut self, item: &Item, entries: &Entries) -> Option<PolicyKind> {
        let written = entries.iter().find(|(key, _)| is_text(key, "type"));
        let kind = written.and_then(|(_, value)| text_of(value));
        self.policy_keys(entries, kind);
        let Some((_, value)) = written else {
            self.wrong(
                item,
                format!(
                    "the policy has no `type`; write one of {}",
                    SUPPORTED_TYPES.join(", ")
                ),
            );
            return None;
        };
        match kind {
            Some("always_sample") => Some(PolicyKind::AlwaysSample),
            Some("probabilistic") => self.probabilistic(value, entries),
            Some(known) if TYPES.contains(&known) => {
                self.wrong(
                    value,
                    format!(
                        "policy type `{known}` is not supported yet by this version; supported \
                         are {}",
                        SUPPORTED_TYPES.join(" and ")
                    ),
                );
                None
            }
            Some(unknown) => {
                let hint = nearest(unknown, TYPES).map_or_else(
                    || format!("the types are {}", TYPES.join(", ")),
                    |meant| format!("did you mean `{meant}`?"),
                );
                self.wrong(
                    value,
                    format!("there is no policy type `{}`; {hint}", shortened(unknown)),
                );
                None
            }
            None => {
                self.wrong(
                    value,
                    format!(
                        "the policy's `type` is {}; write one of {}",
                        value.describe(),
                        SUPPORTED_TYPES.join(", ")
                    ),
                );
                None
            }
        }
    }

    /// A policy has a name, a type, and the block of its type. Blocks of other types are not
    /// read, as in the Collector.
    fn policy_keys(&mut self, entries: &Entries, kind: Option<&str>) {
        for (key, _) in entries {
            let name = text_of(key).unwrap_or_default();
            if name == "name" || name == "type" {
                continue;
            }
            // Each block is called like the type that reads it.
            if !TYPES.contains(&name) {
                let known: Vec<&str> = ["name", "type"].into_iter().chain(TYPES).collect();
                self.unknown_key(key, "key of a policy", &known);
                continue;
            }
            if let Some(kind) = kind.filter(|kind| *kind != name && TYPES.contains(kind)) {
                self.notice(
                    key,
                    format!("the block `{name}` is not read, because the type is `{kind}`"),
                );
            }
        }
    }

    fn probabilistic(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let example = "for example\nprobabilistic:\n  sampling_percentage: 10";
        let Some((_, block)) = entries
            .iter()
            .find(|(key, _)| is_text(key, "probabilistic"))
        else {
            self.wrong(
                kind,
                format!("the policy has no block `probabilistic`; write one, {example}"),
            );
            return None;
        };
        let Node::Map(entries) = &block.node else {
            self.wrong(
                block,
                format!(
                    "`probabilistic` is {}; write a block, {example}",
                    block.describe()
                ),
            );
            return None;
        };
        let mut percentage = None;
        let mut found = false;
        for (key, value) in entries {
            match text_of(key).unwrap_or_default() {
                "sampling_percentage" => {
                    found = true;
                    percentage = self.percentage(value);
                }
                "hash_salt" => {
                    if text_of(value).is_none_or(|salt| !salt.is_empty()) {
                        self.wrong(
                            key,
                            "`hash_salt` is not supported yet by this version, which decides by \
                             the trace ID's own randomness; leave it out (the share kept is the \
                             same, the traces are others)",
                        );
                    }
                }
                _ => self.unknown_key(
                    key,
                    "key of `probabilistic`",
                    &["sampling_percentage", "hash_salt"],
                ),
            }
        }
        if !found {
            self.wrong(
                block,
                "`sampling_percentage` is missing, and the Collector would keep nothing; write \
                 a number from 0 to 100",
            );
        }
        percentage
            .map(|percentage| PolicyKind::Probabilistic(Threshold::keeping(percentage / 100.0)))
    }

    fn percentage(&mut self, value: &Item) -> Option<f64> {
        let percentage = match value.node {
            Node::Unsigned(number) => number as f64,
            Node::Negative(number) => number as f64,
            Node::Float(number) => number,
            _ => {
                self.wrong(
                    value,
                    format!(
                        "`sampling_percentage` is {}; write a number from 0 to 100",
                        value.describe()
                    ),
                );
                return None;
            }
        };
        if !(0.0..=100.0).contains(&percentage) {
            self.wrong(
                value,
                format!("`sampling_percentage` is {percentage}; write a number from 0 to 100"),
            );
            return None;
        }
        Some(percentage)
    }
}
