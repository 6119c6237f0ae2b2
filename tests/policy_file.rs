//! The policy file from the outside: what is read, what is refused, and how the report reads.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "tests; clippy sees only functions marked so"
)]

use std::time::Duration;

use tailring::model::Threshold;
use tailring::policy::{Mistake, Notice, Parsed, PolicyKind, Rules, parse};

fn report(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|m| format!("{m}\n")).collect()
}

fn accepted(text: &str) -> Parsed {
    parse(text).unwrap_or_else(|mistakes| panic!("{}", report(&mistakes)))
}

#[track_caller]
fn check_mistakes(text: &str, expected: &[&str]) {
    let mistakes = parse(text).expect_err("refused");
    let lines: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
    assert_eq!(lines, expected, "in\n{text}");
}

#[track_caller]
fn check_notices(text: &str, expected: &[&str]) {
    let notices: Vec<String> = accepted(text)
        .notices
        .iter()
        .map(Notice::to_string)
        .collect();
    assert_eq!(notices, expected, "in\n{text}");
}

const BLOCK: &str = "\
decision_wait: 30m
decision_wait_after_root_received: 10s
quiet_period: 30s
policies:
  - name: everything
    type: always_sample
  - { name: a tenth, type: probabilistic, probabilistic: { sampling_percentage: 12.5 } }
";

#[test]
fn a_block_means_the_same_bare_named_and_inside_a_collector_configuration() {
    let rules = accepted(BLOCK).rules;
    assert_eq!(rules.timing.decision_wait, Duration::from_secs(1800));
    assert_eq!(rules.timing.quiet_period, Some(Duration::from_secs(30)));
    assert_eq!(
        rules.timing.decision_wait_after_root_received,
        Some(Duration::from_secs(10))
    );
    let kinds: Vec<_> = rules
        .policies
        .iter()
        .map(|policy| (policy.name.as_str(), policy.kind.clone()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("everything", PolicyKind::AlwaysSample),
            (
                "a tenth",
                PolicyKind::Probabilistic(Threshold::keeping(0.125))
            ),
        ]
    );

    let indented = |by: &str| -> String { BLOCK.lines().map(|l| format!("{by}{l}\n")).collect() };
    let named = format!("tail_sampling:\n{}", indented("  "));
    let whole = format!(
        "receivers: {{ otlp: {{ protocols: {{ grpc: }} }} }}\nprocessors:\n  batch: {{ timeout: 5 }}\n  \
         tail_sampling/agents:\n{}service:\n  pipelines: {{ traces: [1, 2] }}\n",
        indented("    ")
    );
    assert_eq!(accepted(&named).rules, rules);
    assert_eq!(accepted(&whole).rules, rules);
}

#[test]
fn the_collectors_defaults_hold_and_zero_switches_off() {
    let text = "policies: [{name: default, type: always_sample}]\nquiet_period: 0s\n\
                decision_wait_after_root_received: 0\n";
    // `0` is a duration in Go, with or without quotes in YAML.
    assert_eq!(accepted(text).rules, Rules::keep_everything());
}

#[test]
fn equal_meaning_has_an_equal_version_and_any_change_another() {
    let version = |text: &str| accepted(text).rules.version;
    let base = version(BLOCK);
    // A comment, other spellings of the same, and a setting that means nothing here.
    let same = format!(
        "# {}\n{}num_traces: 100_000\n",
        "x",
        BLOCK.replace("30m", "0.5h")
    );
    assert_eq!(version(&same), base);
    for (from, to) in [
        ("30m", "31m"),
        ("30s", "31s"),
        ("10s", "11s"),
        ("quiet_period: 30s\n", ""),
        ("12.5", "12.6"),
        ("a tenth", "an eighth"),
        (
            "type: always_sample",
            "type: probabilistic\n    probabilistic: {sampling_percentage: 100}",
        ),
    ] {
        assert!(BLOCK.contains(from));
        assert_ne!(
            version(&BLOCK.replacen(from, to, 1)),
            base,
            "{from} to {to}"
        );
    }
    // Frozen: verdicts in the log carry it from one release to the next.
    assert_eq!(Rules::keep_everything().version, 2_878_841_731_203_610_276);
}

#[test]
fn every_mistake_is_in_one_report_in_the_order_of_the_file() {
    let text = "\
decison_wait: 10s
decision_wait: 30
quiet_period: 1d
num_traces: many
policies:
  - name: first
    type: probabilistc
  - name: first
    type: probabilistic
    probabilistic:
      sampling_percentage: 150
      hash_salt: pepper
      sampling_precision: 4
  - type: always_sample
    nmae: third
  - name: slow
    type: latency
    latency: { threshold_ms: 5000 }
  - name: bare
    type: probabilistic
  - name: typeless
  - just a text
  - name: 5
    type: [always_sample]
";
    let expected = "\
1:1: no setting is called `decison_wait`; did you mean `decision_wait`?
2:16: the duration `30` of `decision_wait` has no unit; write 30s for seconds or 30ms for milliseconds
3:15: the duration `1d` of `quiet_period` has the unit \"d\"; the units are h, m, s, ms, us and ns, for example 1h30m
4:13: `num_traces` is the text `many`; write a whole number
7:11: there is no policy type `probabilistc`; did you mean `probabilistic`?
8:11: the name `first` is taken by the policy in line 6; names are told apart in metrics and decisions
11:28: `sampling_percentage` is 150; write a number from 0 to 100
12:7: `hash_salt` is not supported yet by this version, which decides by the trace ID's own randomness; leave it out (the share kept is the same, the traces are others)
13:7: no key of `probabilistic` is called `sampling_precision`; known are sampling_percentage, hash_salt
14:5: the policy has no `name`; metrics and decisions are told apart by it
15:5: no key of a policy is called `nmae`; did you mean `name`?
17:11: policy type `latency` is not supported yet by this version; supported are always_sample and probabilistic
20:11: the policy has no block `probabilistic`; write one, for example
probabilistic:
  sampling_percentage: 10
21:5: the policy has no `type`; write one of always_sample, probabilistic
22:5: a policy is the text `just a text`; write `name:` and `type:` under one dash
23:11: the policy's `name` is the number 5; write a text
24:11: the policy's `type` is a list; write one of always_sample, probabilistic
";
    assert_eq!(report(&parse(text).expect_err("refused")), expected);
}

#[test]
fn single_mistakes_say_what_to_write_instead() {
    let rest = "policies: [{name: a, type: always_sample}]\n";
    check_mistakes(
        "decision_wait: 30s",
        &["1:1: `policies` is missing; to keep everything write\n\
           policies:\n  - name: everything\n    type: always_sample"],
    );
    check_mistakes(
        "policies: []",
        &[
            "1:1: `policies` is an empty list; to keep everything add `- name: everything` with \
           `type: always_sample`",
        ],
    );
    check_mistakes(
        &format!("decision_wait: 0s\n{rest}"),
        &["1:16: `decision_wait` is zero; write 1s, which is what the Collector makes of it"],
    );
    check_mistakes(
        &format!("sampling_strategy: span-ingest\n{rest}"),
        &[
            "1:20: sampling_strategy `span-ingest` is not supported yet by this version; leave it \
           out for `trace-complete`",
        ],
    );
    check_mistakes(
        &format!("sample_on_first_match: yes\n{rest}"),
        &["1:24: `sample_on_first_match` is the text `yes`; write true or false"],
    );
    check_mistakes(
        &format!("maximum_trace_size_bytes: 1000\n{rest}"),
        &[
            "1:27: `maximum_trace_size_bytes` is not supported yet by this version; leave it out \
           (--max-trace-bytes bounds a trace)",
        ],
    );
    check_mistakes(
        "policies: [{name: a, type: probabilistic, probabilistic: {sampling_percentage: .nan}}]",
        &["1:80: `sampling_percentage` is NaN; write a number from 0 to 100"],
    );
    check_mistakes(
        "processors: { batch: {} }",
        &["1:1: no `tail_sampling` among the processors of this Collector configuration"],
    );
    check_mistakes(
        &format!("processors:\n  tail_sampling: {{{rest}}}\n  tail_sampling/b: {{{rest}}}"),
        &[
            "2:3: `tail_sampling` is one of 2 tail_sampling processors, and a worker has one set \
             of rules; leave the others out of its file",
            "4:3: `tail_sampling/b` is one of 2 tail_sampling processors, and a worker has one \
             set of rules; leave the others out of its file",
        ],
    );
}

#[test]
fn what_is_no_yaml_is_one_mistake_at_its_place() {
    for (text, line) in [
        ("policies: [", 1),
        ("a: b\n c: d: e\n", 2),
        ("policies:\n\t- name: a\n", 2),
        (&"[".repeat(100_000), 1),
    ] {
        let mistakes = parse(text).expect_err("refused");
        assert!(mistakes[0].line >= line, "{mistakes:?}");
        assert!(
            mistakes[0].message.starts_with("not valid YAML: "),
            "{mistakes:?}"
        );
        assert!(mistakes[0].message.len() < 300, "{mistakes:?}");
    }
    for empty in ["", "# only a comment\n", "null"] {
        let mistakes = parse(empty).expect_err("refused");
        assert!(
            mistakes[0].message.contains("the file is empty"),
            "{mistakes:?}"
        );
    }
}

#[test]
fn a_doubled_key_hides_no_other_mistake() {
    let text = "decision_wait: 10s\ndecision_wait: 20s\npolicies: 7\n";
    let mistakes = parse(text).expect_err("refused");
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert_eq!((mistakes[0].line, mistakes[0].column), (2, 1));
    assert!(
        mistakes[0].message.contains("decision_wait"),
        "{mistakes:?}"
    );
    assert_eq!(mistakes[1].line, 3);
}

#[test]
fn anchors_and_merges_of_a_collector_file_are_followed() {
    let text = "\
x-share: &share { sampling_percentage: 25 }
processors:
  tail_sampling:
    policies:
      - name: quarter
        type: probabilistic
        probabilistic: *share
      - name: half
        type: probabilistic
        probabilistic:
          <<: *share
          sampling_percentage: 50
";
    let kinds: Vec<_> = accepted(text)
        .rules
        .policies
        .into_iter()
        .map(|policy| policy.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            PolicyKind::Probabilistic(Threshold::keeping(0.25)),
            PolicyKind::Probabilistic(Threshold::keeping(0.5)),
        ]
    );
}

#[test]
fn what_means_less_here_is_accepted_with_a_notice() {
    check_notices(
        "\
num_traces: 100_000
expected_new_traces_per_sec: 10
num_shards: 4
block_on_overflow: true
drop_pending_traces_on_shutdown: false
decision_cache: { sampled_cache_size: 5 }
sampling_strategy: trace-complete
sample_on_first_match: false
maximum_trace_size_bytes: 0
quiet_period: 30s
policies:
  - name: a
    type: always_sample
    latency: { threshold_ms: 5 }
",
        &[
            "1:1: `num_traces` bounds nothing here; bytes do (--log-max-bytes, --memory-limit)",
            "2:1: `expected_new_traces_per_sec` bounds nothing here; bytes do, and nothing is allocated ahead",
            "3:1: `num_shards` is not read: a worker has one shard for each core",
            "4:1: `block_on_overflow` is not read: a full worker refuses with a retryable error and evicts nothing",
            "5:1: `drop_pending_traces_on_shutdown` is not read: undecided traces stay in the log and are decided after the restart",
            "6:1: `decision_cache` is not read: every decision is remembered, bounded in bytes (--decision-memory-max-bytes)",
            "10:1: `quiet_period` never decides: `decision_wait` is not longer and decides first",
            "14:5: the block `latency` is not read, because the type is `always_sample`",
        ],
    );
    check_notices(BLOCK, &[]);
}
