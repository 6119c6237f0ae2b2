//! The settings beside `policies`: when traces are judged, and what the Collector has settings for
//! that mean something else here, or nothing.

use std::time::Duration;

use crate::model::parse_go_duration;
use crate::policy::file::{Entries, Reader, is_text, text_of};
use crate::policy::tree::{Item, Node, shortened};
use crate::policy::{Policy, PolicyKind, Rules, Settings, Strategy, Timing};
use crate::wire::Weights;

/// Same as the Collector's.
const DECISION_WAIT_DEFAULT: Duration = Duration::from_secs(30);

const SETTINGS: [&str; 17] = [
    "assume_unsampled_upstream",
    "block_on_overflow",
    "compatibility",
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
    "weights",
];

impl Reader {
    pub(super) fn settings(&mut self, block: &Item) -> Option<Rules> {
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
        // Other settings are read by it.
        if let Some((_, value)) = entries
            .iter()
            .find(|(key, _)| is_text(key, "compatibility"))
        {
            self.collector = self.choice(value, "compatibility", &["tailring", "collector"])
                == Some("collector");
        }
        let mut timing = Timing {
            decision_wait: DECISION_WAIT_DEFAULT,
            quiet_period: None,
            decision_wait_after_root_received: None,
        };
        let mut settings = Settings {
            compatibility: self.compatibility(),
            ..Settings::default()
        };
        let mut policies = None;
        for (key, value) in entries {
            match text_of(key).unwrap_or_default() {
                "compatibility" => {}
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
                    settings.assume_unsampled_upstream = self.switch(key, value).unwrap_or(true);
                }
                "weights" => {
                    let known = ["tracestate", "sample_rate", "none"];
                    settings.weights = match self.choice(value, "weights", &known) {
                        Some("sample_rate") => Weights::SampleRate,
                        Some("none") => Weights::None,
                        _ => Weights::TraceState,
                    };
                }
                "sample_on_first_match" => {
                    settings.sample_on_first_match = self.switch(key, value).unwrap_or(false);
                }
                "sampling_strategy" => {
                    let known = ["trace-complete", "span-ingest"];
                    if self.choice(value, "sampling_strategy", &known) == Some("span-ingest") {
                        settings.strategy = Strategy::SpanIngest;
                    }
                }
                "maximum_trace_size_bytes" => {
                    let bytes = self.count(key, value);
                    settings.trace_bytes_max = bytes.filter(|bytes| *bytes > 0);
                }
                "policies" => policies = Some((key, self.policies(key, value))),
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
        let (key, policies) = policies?;
        if settings.strategy == Strategy::SpanIngest {
            self.only_of_spans(key, &policies);
        }
        Some(Rules::with_settings(timing, policies, settings))
    }

    /// As in the Collector: what hangs on other traces, or on spans that have not come, cannot be
    /// said of a span as it comes.
    fn only_of_spans(&mut self, key: &Item, policies: &[Policy]) {
        fn is_stateful(kind: &PolicyKind) -> bool {
            match kind {
                PolicyKind::RateLimiting(_)
                | PolicyKind::BytesLimiting(_)
                | PolicyKind::Composite(_) => true,
                PolicyKind::SpanCount(count) => count.max.is_some(),
                PolicyKind::And(subs) | PolicyKind::Drop(subs) => {
                    subs.iter().any(|sub| is_stateful(&sub.kind))
                }
                PolicyKind::Not(sub) => is_stateful(&sub.kind),
                _ => false,
            }
        }
        for policy in policies.iter().filter(|policy| is_stateful(&policy.kind)) {
            self.wrong(
                key,
                format!(
                    "with `sampling_strategy: span-ingest` the policy `{}` cannot be asked: limits, \
                     composites and an upper bound of spans need the whole trace",
                    shortened(&policy.name)
                ),
            );
        }
    }

    fn choice<'a>(&mut self, value: &Item, name: &str, known: &[&'a str]) -> Option<&'a str> {
        let chosen = known.iter().copied().find(|known| is_text(value, known));
        if chosen.is_none()
            && let [first @ .., last] = known
        {
            let what = value.describe();
            let first = first.join(", ");
            self.wrong(
                value,
                format!("`{name}` is {what}; write {first} or {last}"),
            );
        }
        chosen
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

    /// Settings of the Collector whose work is done by something else here, or that nobody knows.
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
            "decision_cache" => {
                self.cache_sizes(value);
                self.notice(
                    key,
                    "`decision_cache` is not read: every decision is remembered, bounded in bytes \
                     (--decision-memory-max-bytes)",
                );
            }
            "tail_storage" => self.notice(
                key,
                "`tail_storage` is not read: traces are always kept in the log (--data-dir)",
            ),
            _ => self.unknown_key(key, "setting", &SETTINGS),
        }
    }

    fn cache_sizes(&mut self, value: &Item) {
        const SIZES: [&str; 2] = ["sampled_cache_size", "non_sampled_cache_size"];
        match &value.node {
            Node::Null => {}
            Node::Map(entries) => {
                for (key, value) in entries {
                    match text_of(key) {
                        Some(name) if SIZES.contains(&name) => {
                            self.count(key, value);
                        }
                        _ => self.unknown_key(key, "key of `decision_cache`", &SIZES),
                    }
                }
            }
            _ => {
                let what = value.describe();
                let sizes = SIZES.join(" and ");
                self.wrong(
                    value,
                    format!("`decision_cache` is {what}; write a block with {sizes}"),
                );
            }
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
}
