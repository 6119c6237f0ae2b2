//! The entries of `policies` in a policy file: name and type. The block of the type is `block`'s.

use crate::policy::file::{Entries, Reader, is_text, text_of};
use crate::policy::mistake::nearest;
use crate::policy::tree::{Item, Node, shortened};
use crate::policy::{Policy, PolicyKind};

/// Each policy has a name among the metric labels, and each span is shown to every policy.
pub const POLICIES_MAX: usize = 1_000;

/// A name is a metric label, and with `--record-policy` an attribute of every span.
const NAME_BYTES_MAX: usize = 1_000;

/// Those inside others included: each may look at an attribute of its own, and such facts are
/// numbered.
const POLICIES_IN_ALL_MAX: usize = 10_000;

/// Policy types of the Collector.
pub(super) const TYPES: [&str; 17] = [
    "always_sample",
    "and",
    "boolean_attribute",
    "bytes_limiting",
    "composite",
    "drop",
    "latency",
    "not",
    "numeric_attribute",
    "ottl_condition",
    "probabilistic",
    "rate_limiting",
    "span_count",
    "status_code",
    "string_attribute",
    "trace_flags",
    "trace_state",
];

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
            let kind = self.policy_kind(item, entries, true);
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
        if name.len() > NAME_BYTES_MAX {
            self.wrong(
                value,
                format!(
                    "the policy's `name` has {} bytes; write at most {NAME_BYTES_MAX}, for it is \
                     in metrics and can be in spans",
                    name.len()
                ),
            );
        }
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

    pub(super) fn policy_kind(
        &mut self,
        item: &Item,
        entries: &Entries,
        at_top: bool,
    ) -> Option<PolicyKind> {
        self.policies_read += 1;
        if self.policies_read > POLICIES_IN_ALL_MAX {
            if self.policies_read == POLICIES_IN_ALL_MAX + 1 {
                let many = format!("more than {POLICIES_IN_ALL_MAX} policies inside others");
                self.wrong(item, many);
            }
            return None;
        }
        let written = entries.iter().find(|(key, _)| is_text(key, "type"));
        let kind = written.and_then(|(_, value)| text_of(value));
        self.policy_keys(entries, kind);
        let Some((_, value)) = written else {
            self.wrong(
                item,
                format!(
                    "the policy has no `type`; write one of {}",
                    TYPES.join(", ")
                ),
            );
            return None;
        };
        match kind {
            Some("always_sample") => Some(PolicyKind::AlwaysSample),
            Some("and") => self.and(value, entries),
            Some("boolean_attribute") => self.boolean_attribute(value, entries),
            Some("bytes_limiting") => self.bytes_limiting(value, entries),
            Some("composite") => self.composite(value, entries),
            Some("drop") if at_top => self.drop_policy(value, entries),
            Some("drop") => {
                self.wrong(
                    value,
                    "a `drop` inside another policy drops nothing; put it beside the others",
                );
                None
            }
            Some("latency") => self.latency(value, entries),
            Some("not") => self.not(value, entries),
            Some("numeric_attribute") => self.numeric_attribute(value, entries),
            Some("ottl_condition") => self.ottl_condition(value, entries),
            Some("probabilistic") => self.probabilistic(value, entries),
            Some("rate_limiting") => self.rate_limiting(value, entries),
            Some("span_count") => self.span_count(value, entries),
            Some("status_code") => self.status_code(value, entries),
            Some("string_attribute") => self.string_attribute(value, entries),
            Some("trace_flags") => Some(self.trace_flags(entries)),
            Some("trace_state") => self.trace_state(value, entries),
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
                        TYPES.join(", ")
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
}
