//! The blocks of policies that keep a share of traces, or as many as a rate has room for.

use crate::model::Threshold;
use crate::policy::block::Block;
use crate::policy::file::{Entries, Reader, text_of};
use crate::policy::tree::{Item, Node};
use crate::policy::{BytesLimiting, Compatibility, HashSeed, PolicyKind, RateLimiting, Scope};

impl Reader {
    pub(super) fn probabilistic(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "probabilistic",
            &["sampling_percentage", "hash_salt", "mode"],
            "sampling_percentage: 10",
        )?;
        let salt = match block.get("hash_salt") {
            None => Some(""),
            Some(item) => match text_of(item) {
                Some(salt) => Some(salt),
                None => {
                    let what = item.describe();
                    self.wrong(
                        item,
                        format!("`hash_salt` is {what}; write a text in quotes"),
                    );
                    None
                }
            },
        };
        let is_salted = salt.is_some_and(|salt| !salt.is_empty());
        let hashed = match block.get("mode") {
            None => Some(is_salted || self.compatibility() == Compatibility::Collector),
            Some(item) => match text_of(item) {
                Some("hash_seed") => Some(true),
                Some("consistent") if !is_salted => Some(false),
                Some("consistent") => {
                    self.wrong(
                        item,
                        "`mode: consistent` goes by the trace's own randomness, and `hash_salt` by \
                         a hash; leave one of them out",
                    );
                    None
                }
                _ => {
                    self.wrong(
                        item,
                        format!(
                            "`mode` is {}; write consistent (the trace's own randomness, known \
                             counts) or hash_seed (the Collector's hash)",
                            item.describe()
                        ),
                    );
                    None
                }
            },
        };
        let percentage = self.percentage(&block)?;
        let salt = salt?;
        Some(if hashed? {
            PolicyKind::HashSeed(HashSeed::new(salt, percentage))
        } else {
            PolicyKind::Probabilistic(Threshold::keeping(percentage / 100.0))
        })
    }

    fn percentage(&mut self, block: &Block<'_>) -> Option<f64> {
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
        let percentage = percentage.filter(|number| (0.0..=100.0).contains(number));
        if percentage.is_none() {
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
        }
        percentage
    }

    pub(super) fn rate_limiting(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "rate_limiting",
            &["spans_per_second", "burst_capacity", "scope"],
            "spans_per_second: 50",
        )?;
        let (spans_per_second, burst_spans, scope) =
            self.rate(&block, "spans_per_second", "spans")?;
        Some(PolicyKind::RateLimiting(RateLimiting {
            spans_per_second,
            burst_spans,
            scope,
        }))
    }

    pub(super) fn bytes_limiting(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "bytes_limiting",
            &["bytes_per_second", "burst_capacity", "scope"],
            "bytes_per_second: 1048576",
        )?;
        let (bytes_per_second, burst_bytes, scope) =
            self.rate(&block, "bytes_per_second", "bytes")?;
        Some(PolicyKind::BytesLimiting(BytesLimiting {
            bytes_per_second,
            burst_bytes,
            scope,
        }))
    }

    /// Rate, burst and whose rate it is.
    fn rate(&mut self, block: &Block<'_>, key: &str, unit: &str) -> Option<(u64, u64, Scope)> {
        let rate = self.whole(block, key, i64::MAX as u64);
        let burst = self.whole(block, "burst_capacity", i64::MAX as u64);
        let scope = self.scope(block);
        let (rate, burst) = rate.ok().zip(burst.ok())?;
        let Some(rate) = rate.filter(|rate| *rate > 0) else {
            self.wrong(
                block.get(key).unwrap_or(block.item),
                format!(
                    "`{key}` is missing or 0, and nothing would be kept; write a number of {unit}"
                ),
            );
            return None;
        };
        let burst = burst.filter(|burst| *burst > 0);
        Some((rate, burst.unwrap_or(rate.saturating_mul(2)), scope?))
    }

    pub(super) fn scope(&mut self, block: &Block<'_>) -> Option<Scope> {
        let collectors = self.compatibility() == Compatibility::Collector;
        let Some(item) = block.get("scope") else {
            return Some(if collectors {
                Scope::Worker
            } else {
                Scope::Cluster
            });
        };
        match text_of(item) {
            Some("cluster") if collectors => {
                self.wrong(
                    item,
                    "with `compatibility: collector` each worker has all of the rate, as a \
                     Collector has; leave `scope` out",
                );
                None
            }
            Some("cluster") => Some(Scope::Cluster),
            Some("worker") => Some(Scope::Worker),
            _ => {
                self.wrong(
                    item,
                    format!(
                        "`scope` is {}; write cluster (the rate is divided among the workers) or \
                         worker (each has all of it)",
                        item.describe()
                    ),
                );
                None
            }
        }
    }
}
