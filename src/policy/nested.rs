//! The blocks of policies that are made of others: `and`, `not`, `drop` and `composite`.

use crate::policy::block::Block;
use crate::policy::composite::SUBS_MAX;
use crate::policy::file::{Entries, Reader, is_text, text_of};
use crate::policy::tree::{Item, Node, shortened};
use crate::policy::{Compatibility, Composite, CompositeSub, Policy, PolicyKind};

impl Reader {
    pub(super) fn and(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(kind, entries, "and", &["and_sub_policy"], SUB_EXAMPLE)?;
        self.subs(&block, "and_sub_policy").map(PolicyKind::And)
    }

    pub(super) fn drop_policy(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(kind, entries, "drop", &["drop_sub_policy"], DROP_EXAMPLE)?;
        self.subs(&block, "drop_sub_policy").map(PolicyKind::Drop)
    }

    pub(super) fn not(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(kind, entries, "not", &["not_sub_policy"], NOT_EXAMPLE)?;
        let Some(item) = block.get("not_sub_policy") else {
            self.wrong(
                block.item,
                "`not_sub_policy` is missing; write one policy with `name` and `type`",
            );
            return None;
        };
        let sub = self.sub_policy(item)?;
        Some(PolicyKind::Not(Box::new(sub)))
    }

    pub(super) fn composite(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "composite",
            &[
                "max_total_spans_per_second",
                "policy_order",
                "composite_sub_policy",
                "rate_allocation",
                "scope",
            ],
            "max_total_spans_per_second: 1000\n  composite_sub_policy: [...]",
        )?;
        let scope = self.scope(&block);
        let max = self.whole(&block, "max_total_spans_per_second", i64::MAX as u64);
        let subs = self.subs(&block, "composite_sub_policy");
        let allocations = self.allocations(&block);
        let order = self.names(&block, "policy_order");
        let max = max.ok()?.filter(|max| *max > 0);
        let Some(max_spans_per_second) = max else {
            let key = "max_total_spans_per_second";
            self.wrong(
                block.get(key).unwrap_or(block.item),
                format!(
                    "`{key}` is missing or 0, and nothing would be kept; write a number of spans"
                ),
            );
            return None;
        };
        let (subs, allocations, order) = (subs?, allocations?, order?);
        if subs.len() > SUBS_MAX {
            self.wrong(
                block.item,
                format!("{} policies in a composite; at most {SUBS_MAX}", subs.len()),
            );
            return None;
        }
        let named = allocations
            .iter()
            .map(|(name, _)| *name)
            .chain(order.iter().copied());
        for item in named {
            let name = text_of(item).unwrap_or_default();
            if !subs.iter().any(|sub| sub.name == name) {
                let name = shortened(name);
                self.notice(
                    item,
                    format!("no policy of this composite is called `{name}`; it is not read"),
                );
            }
        }
        // As many parts as there are policies, the last one for those that nobody gave one.
        let equal = max_spans_per_second / subs.len() as u64;
        let mut subs: Vec<CompositeSub> = subs
            .into_iter()
            .map(|policy| {
                let given = allocations
                    .iter()
                    .rfind(|(name, _)| is_text(name, &policy.name));
                let percent = given.map_or(0, |(_, percent)| *percent);
                let part = percent as f64 / 100.0 * max_spans_per_second as f64;
                CompositeSub {
                    spans_per_second: if percent > 0 { part as u64 } else { equal },
                    policy,
                }
            })
            .collect();
        for sub in subs.iter().filter(|sub| sub.spans_per_second == 0) {
            let name = shortened(&sub.policy.name);
            self.notice(
                block.item,
                format!("`{name}` gets less than one span a second of this composite: nothing"),
            );
        }
        if self.compatibility() == Compatibility::Tailring {
            // Those that the order does not name come last, as they stand.
            let place = |sub: &CompositeSub| {
                let place = order.iter().position(|it| is_text(it, &sub.policy.name));
                place.unwrap_or(order.len())
            };
            subs.sort_by_key(place);
        }
        Some(PolicyKind::Composite(Composite {
            max_spans_per_second,
            scope: scope?,
            subs,
        }))
    }

    fn subs(&mut self, block: &Block<'_>, key: &str) -> Option<Vec<Policy>> {
        let items = self.list(block, key, "[{name: errors, type: always_sample}]")?;
        let mut subs = Some(Vec::new());
        for item in items {
            let sub = self.sub_policy(item);
            subs = subs.zip(sub).map(|(mut subs, sub)| {
                subs.push(sub);
                subs
            });
        }
        subs
    }

    /// Its name is for composites, and may be missing elsewhere.
    fn sub_policy(&mut self, item: &Item) -> Option<Policy> {
        let Node::Map(entries) = &item.node else {
            self.wrong(
                item,
                format!("a policy is {}; write `name:` and `type:`", item.describe()),
            );
            return None;
        };
        let name = match entries.iter().find(|(key, _)| is_text(key, "name")) {
            None => Some(""),
            Some((_, value)) => {
                if text_of(value).is_none() {
                    let what = value.describe();
                    self.wrong(
                        value,
                        format!("the policy's `name` is {what}; write a text"),
                    );
                }
                text_of(value)
            }
        };
        let kind = self.policy_kind(item, entries, false);
        Some(Policy {
            name: name?.to_owned(),
            kind: kind?,
        })
    }

    fn names<'a>(&mut self, block: &Block<'a>, key: &str) -> Option<Vec<&'a Item>> {
        if block.get(key).is_none_or(|item| item.node == Node::Null) {
            return Some(Vec::new());
        }
        let items = self.list(block, key, "[errors, rest]")?;
        let names: Vec<&Item> = items
            .iter()
            .filter(|item| text_of(item).is_some())
            .collect();
        for item in items.iter().filter(|item| text_of(item).is_none()) {
            let what = item.describe();
            self.wrong(item, format!("a name in `{key}` is {what}; write a text"));
        }
        (names.len() == items.len()).then_some(names)
    }

    /// Names with their percentages.
    fn allocations<'a>(&mut self, block: &Block<'a>) -> Option<Vec<(&'a Item, u64)>> {
        let key = "rate_allocation";
        if block.get(key).is_none_or(|item| item.node == Node::Null) {
            return Some(Vec::new());
        }
        let items = self.list(block, key, "[{policy: errors, percent: 50}]")?;
        let mut allocations = Vec::new();
        let mut is_whole = true;
        for item in items {
            let Node::Map(entries) = &item.node else {
                let what = item.describe();
                self.wrong(
                    item,
                    format!("a part is {what}; write {{policy: errors, percent: 50}}"),
                );
                is_whole = false;
                continue;
            };
            let part = Block {
                name: "rate_allocation",
                item,
                entries,
            };
            for (key, _) in entries {
                if text_of(key).is_none_or(|key| !["policy", "percent"].contains(&key)) {
                    self.unknown_key(key, "key of `rate_allocation`", &["policy", "percent"]);
                }
            }
            let percent = self.whole(&part, "percent", i64::MAX as u64);
            match (
                part.get("policy").filter(|it| text_of(it).is_some()),
                percent,
            ) {
                (Some(policy), Ok(percent)) => allocations.push((policy, percent.unwrap_or(0))),
                (None, _) => {
                    self.wrong(
                        item,
                        "`policy` is missing; write the name of one of the policies",
                    );
                    is_whole = false;
                }
                (_, Err(())) => is_whole = false,
            }
        }
        is_whole.then_some(allocations)
    }
}

const SUB_EXAMPLE: &str = "and_sub_policy:\n    - name: errors\n      type: status_code\n      \
                           status_code: {status_codes: [ERROR]}";
const DROP_EXAMPLE: &str = "drop_sub_policy:\n    - name: errors\n      type: status_code\n      \
                            status_code: {status_codes: [ERROR]}";
const NOT_EXAMPLE: &str = "not_sub_policy:\n    name: errors\n    type: status_code\n    \
                           status_code: {status_codes: [ERROR]}";
