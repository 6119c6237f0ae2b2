//! The policy file from the outside: what is read, what is refused, and how the report reads.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "tests; clippy sees only functions marked so"
)]

#[path = "policy_file/claims.rs"]
mod claims;
#[path = "policy_file/commands.rs"]
mod commands;
#[path = "policy_file/corpus.rs"]
mod corpus;
#[path = "policy_file/schema.rs"]
mod schema;

use std::time::Duration;

use tailring::model::Threshold;
use tailring::policy::{
    Latency, Mistake, Notice, Parsed, Pattern, PolicyKind, RateLimiting, Rules, Scope, SpanCount,
    StatusCodes, StringAttribute, Values, parse, parse_in,
};
use tailring::wire::Weights;

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
    type: ottl_condition
    ottl_condition: { span: [] }
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
13:7: no key of `probabilistic` is called `sampling_precision`; known are sampling_percentage, hash_salt, mode
14:5: the policy has no `name`; metrics and decisions are told apart by it
15:5: no key of a policy is called `nmae`; did you mean `name`?
18:21: `ottl_condition` has no condition; write one under `span` or `spanevent`
20:11: the policy has no block `probabilistic`; write one, for example
probabilistic:
  sampling_percentage: 10
21:5: the policy has no `type`; write one of always_sample, and, boolean_attribute, bytes_limiting, composite, drop, latency, not, numeric_attribute, ottl_condition, probabilistic, rate_limiting, span_count, status_code, string_attribute, trace_flags, trace_state
22:5: a policy is the text `just a text`; write `name:` and `type:` under one dash
23:11: the policy's `name` is the number 5; write a text
24:11: the policy's `type` is a list; write one of always_sample, and, boolean_attribute, bytes_limiting, composite, drop, latency, not, numeric_attribute, ottl_condition, probabilistic, rate_limiting, span_count, status_code, string_attribute, trace_flags, trace_state
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
        &format!("sampling_strategy: complete\n{rest}"),
        &["1:20: `sampling_strategy` is the text `complete`; write trace-complete or span-ingest"],
    );
    check_mistakes(
        "sampling_strategy: span-ingest\npolicies: [{name: a, type: span_count, span_count: {max_spans: 2}}]",
        &[
            "2:1: with `sampling_strategy: span-ingest` the policy `a` cannot be asked: limits, \
           composites and an upper bound of spans need the whole trace",
        ],
    );
    check_mistakes(
        &format!("sample_on_first_match: yes\n{rest}"),
        &["1:24: `sample_on_first_match` is the text `yes`; write true or false"],
    );
    check_mistakes(
        "policies: [{name: a, type: probabilistic, probabilistic: {sampling_percentage: .nan}}]",
        &["1:80: `sampling_percentage` is NaN; write a number from 0 to 100"],
    );
    check_mistakes(
        "processors: { batch: {} }",
        &["1:1: no `tail_sampling` among the processors of this Collector configuration"],
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

/// The only policy of a file with this one line of `policies`.
fn kind_of(policy: &str) -> PolicyKind {
    let parsed = accepted(&format!("policies: [{{name: a, {policy}}}]"));
    parsed.rules.policies[0].kind.clone()
}

fn string_attribute(key: &str, values: Values, invert_match: bool) -> PolicyKind {
    PolicyKind::StringAttribute(StringAttribute {
        key: key.into(),
        values,
        invert_match,
    })
}

#[test]
fn every_policy_reads_as_in_the_collector() {
    let exact = |values: &[&str]| Values::Exact(values.iter().map(|it| (*it).to_owned()).collect());
    let rows = [
        (
            "type: status_code, status_code: {status_codes: [ERROR, UNSET]}",
            PolicyKind::StatusCode(StatusCodes::ERROR.and(StatusCodes::UNSET)),
        ),
        (
            "type: latency, latency: {threshold_ms: 5000}",
            PolicyKind::Latency(Latency {
                threshold_millis: 5000,
                upper_threshold_millis: None,
            }),
        ),
        (
            "type: latency, latency: {threshold_ms: 1e3, upper_threshold_ms: 2000}",
            PolicyKind::Latency(Latency {
                threshold_millis: 1000,
                upper_threshold_millis: Some(2000),
            }),
        ),
        (
            "type: latency, latency: {upper_threshold_ms: 2000}",
            PolicyKind::Latency(Latency {
                threshold_millis: 0,
                upper_threshold_millis: Some(2000),
            }),
        ),
        (
            "type: span_count, span_count: {min_spans: 20, max_spans: 0}",
            PolicyKind::SpanCount(SpanCount { min: 20, max: None }),
        ),
        (
            "type: span_count, span_count: {max_spans: 7}",
            PolicyKind::SpanCount(SpanCount {
                min: 0,
                max: Some(7),
            }),
        ),
        (
            "type: rate_limiting, rate_limiting: {spans_per_second: 50}",
            PolicyKind::RateLimiting(RateLimiting {
                spans_per_second: 50,
                burst_spans: 100,
                scope: Scope::Cluster,
            }),
        ),
        (
            "type: rate_limiting, rate_limiting: {spans_per_second: 50, burst_capacity: 500, scope: worker}",
            PolicyKind::RateLimiting(RateLimiting {
                spans_per_second: 50,
                burst_spans: 500,
                scope: Scope::Worker,
            }),
        ),
        (
            "type: string_attribute, string_attribute: {key: tenant.id, values: [a, \"\", b, a]}",
            string_attribute("tenant.id", exact(&["a", "b"]), false),
        ),
        (
            "type: string_attribute, string_attribute: {key: url.path, values: ['/v\\d+', x], \
             enabled_regex_matching: true, invert_match: true}",
            string_attribute(
                "url.path",
                Values::Matching(
                    [r"/v\d+", "x"]
                        .map(|it| Pattern::new(it).expect("a pattern"))
                        .into(),
                ),
                true,
            ),
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(kind_of(text), expected, "{text}");
    }
}

#[test]
fn each_block_says_what_to_write_instead() {
    let rows = [
        (
            "type: status_code, status_code: {status_codes: []}",
            "1:69: `status_codes` is an empty list; write for example [ERROR]",
        ),
        (
            "type: status_code, status_code: {status_codes: ERROR}",
            "1:69: `status_codes` is the text `ERROR`; write a list, for example [ERROR]",
        ),
        (
            "type: status_code, status_code: {status_codes: [error]}",
            "1:70: a status code is the text `error`; write UNSET, OK or ERROR, in capitals",
        ),
        (
            "type: status_code, status_code: {status_code: [ERROR]}",
            "1:54: `status_codes` is missing; write a list, for example [ERROR]\n\
             1:55: no key of `status_code` is called `status_code`; did you mean `status_codes`?",
        ),
        (
            "type: latency, latency: {threshold_ms: 5s}",
            "1:61: `threshold_ms` of `latency` is the text `5s`; write a whole number from 0 to 9223372036854775807",
        ),
        (
            "type: latency, latency: {threshold_ms: 1.5}",
            "1:61: `threshold_ms` of `latency` is the number 1.5; write a whole number from 0 to 9223372036854775807",
        ),
        (
            "type: latency, latency: {}",
            "1:46: `threshold_ms` is missing, and the Collector would keep all traces of 1 ms and more; write a number of milliseconds",
        ),
        (
            "type: latency, latency: {threshold_ms: 5, upper_threshold_ms: 5}",
            "1:84: `upper_threshold_ms` is 5, and nothing is longer than 5 ms and not longer than that; write more than 5",
        ),
        (
            "type: span_count, span_count: {min_spans: -1}",
            "1:64: `min_spans` of `span_count` is the number -1; write a whole number from 0 to 2147483647",
        ),
        (
            "type: span_count, span_count: {min_spans: 9, max_spans: 8}",
            "1:78: `max_spans` is 8, and no trace has at least 9 spans and at most that; write 9 or more",
        ),
        (
            "type: span_count, span_count: [20]",
            "1:52: `span_count` is a list; write a block, for example\nspan_count:\n  min_spans: 20",
        ),
        (
            "type: rate_limiting, rate_limiting: {spans_per_second: 0}",
            "1:77: `spans_per_second` is missing or 0, and nothing would be kept; write a number of spans",
        ),
        (
            "type: rate_limiting, rate_limiting: {spans_per_second: 5, scope: global}",
            "1:87: `scope` is the text `global`; write cluster (the rate is divided among the workers) or worker (each has all of it)",
        ),
        (
            "type: string_attribute, string_attribute: {values: [a]}",
            "1:64: `key` is missing; write the name of an attribute",
        ),
        (
            "type: string_attribute, string_attribute: {key: 5, values: [500, true, {}]}",
            "1:70: `key` is the number 5; write it in quotes: \"5\"\n\
             1:82: a value is the number 500; write it in quotes: \"500\"\n\
             1:87: a value is `true`; write it in quotes: \"true\"\n\
             1:93: a value is a block of keys; write a text",
        ),
        (
            "type: string_attribute, string_attribute: {key: a, values: ['[a', 'b(', 'c'], enabled_regex_matching: true}",
            "1:82: the regular expression `[a`: a `[` has no closing `]`\n\
             1:88: the regular expression `b(`: unclosed group",
        ),
        (
            "type: string_attribute, string_attribute: {key: a, values: [a], enabled_regex_matching: 1}",
            "1:110: `enabled_regex_matching` is the number 1; write true or false",
        ),
    ];
    for (policy, expected) in rows {
        let text = format!("policies: [{{name: a, {policy}}}]");
        let mistakes = parse(&text).expect_err(policy);
        let found: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
        assert_eq!(found.join("\n"), expected, "{text}");
    }
}

#[test]
fn a_cache_is_not_needed_and_says_so() {
    check_notices(
        "policies: [{name: a, type: string_attribute, string_attribute: {key: a, values: [b], cache_max_size: 10}}]",
        &["1:86: `cache_max_size` is not read: a pattern takes no longer than a look into a cache"],
    );
}

#[test]
fn the_version_covers_every_field_of_every_policy() {
    let base = "\
assume_unsampled_upstream: true
weights: tracestate
sample_on_first_match: false
sampling_strategy: trace-complete
maximum_trace_size_bytes: 0
compatibility: tailring
policies:
  - {name: e, type: status_code, status_code: {status_codes: [ERROR]}}
  - {name: l, type: latency, latency: {threshold_ms: 10, upper_threshold_ms: 20}}
  - {name: c, type: span_count, span_count: {min_spans: 2, max_spans: 3}}
  - {name: r, type: rate_limiting, rate_limiting: {spans_per_second: 5, burst_capacity: 11, scope: cluster}}
  - {name: s, type: string_attribute, string_attribute: {key: k1, values: [v1, v2], invert_match: false, enabled_regex_matching: false}}
  - {name: n, type: numeric_attribute, numeric_attribute: {key: k3, min_value: 31, max_value: 32, invert_match: no1}}
  - {name: b, type: boolean_attribute, boolean_attribute: {key: k4, value: no2, invert_match: no3}}
  - {name: t, type: trace_state, trace_state: {key: k5, values: [v5]}}
  - {name: y, type: bytes_limiting, bytes_limiting: {bytes_per_second: 41, burst_capacity: 42, scope: cluster}}
  - {name: h, type: probabilistic, probabilistic: {sampling_percentage: 43, hash_salt: v6}}
  - {name: a, type: and, and: {and_sub_policy: [{name: f, type: trace_flags}, {name: g, type: always_sample}]}}
  - {name: o, type: not, not: {not_sub_policy: {name: f, type: trace_flags}}}
  - {name: d, type: drop, drop: {drop_sub_policy: [{name: i, type: trace_flags}]}}
  - {name: m, type: composite, composite: {max_total_spans_per_second: 51, scope: worker, policy_order: [j, k], composite_sub_policy: [{name: j, type: always_sample}, {name: k, type: trace_flags}], rate_allocation: [{policy: j, percent: 52}]}}
";
    // Truths that can be told apart.
    let spelled = |text: &str| {
        text.replace("no1", "false")
            .replace("no2", "false")
            .replace("no3", "false")
    };
    let version = |text: &str| accepted(&spelled(text)).rules.version;
    for (from, to) in [
        ("first_match: false", "first_match: true"),
        ("size_bytes: 0", "size_bytes: 7"),
        ("tailring\n", "collector\n"),
        ("key: k3", "key: k6"),
        ("min_value: 31", "min_value: 30"),
        ("max_value: 32", "max_value: 33"),
        ("no1", "true"),
        ("key: k4", "key: k6"),
        ("no2", "true"),
        ("no3", "true"),
        ("key: k5", "key: k6"),
        ("[v5]", "[v5, v6]"),
        ("bytes_per_second: 41", "bytes_per_second: 40"),
        ("burst_capacity: 42", "burst_capacity: 43"),
        ("percentage: 43", "percentage: 44"),
        ("hash_salt: v6", "hash_salt: v7"),
        ("hash_salt: v6", "mode: consistent"),
        ("{name: f, type: trace_flags}, ", ""),
        (
            "{name: g, type: always_sample}",
            "{name: g, type: trace_flags}",
        ),
        (
            "type: not, not: {not_sub_policy: {",
            "type: and, and: {and_sub_policy: [{",
        ),
        ("type: drop, drop: {drop_sub", "type: and, and: {and_sub"),
        ("per_second: 51", "per_second: 61"),
        ("scope: worker, ", ""),
        ("[j, k]", "[k, j]"),
        ("percent: 52", "percent: 53"),
        ("upstream: true", "upstream: false"),
        ("weights: tracestate", "weights: sample_rate"),
        ("weights: tracestate", "weights: none"),
        ("[ERROR]", "[OK]"),
        ("threshold_ms: 10", "threshold_ms: 11"),
        ("upper_threshold_ms: 20", "upper_threshold_ms: 21"),
        (", upper_threshold_ms: 20", ""),
        ("min_spans: 2", "min_spans: 1"),
        (", max_spans: 3", ""),
        ("spans_per_second: 5", "spans_per_second: 6"),
        ("burst_capacity: 11", "burst_capacity: 12"),
        ("scope: cluster", "scope: worker"),
        ("key: k1", "key: k2"),
        ("[v1, v2]", "[v1v2]"),
        ("[v1, v2]", "[v1]"),
        ("invert_match: false", "invert_match: true"),
        ("matching: false", "matching: true"),
    ] {
        assert!(base.contains(from), "{from}");
        let changed = base.replacen(from, to, 1);
        let changed = changed.replace(
            "[{name: f, type: trace_flags}}}",
            "[{name: f, type: trace_flags}]}}",
        );
        // The Collector's limits are each worker's.
        let changed = match to {
            "collector\n" => changed.replace("scope: cluster", "scope: worker"),
            _ => changed,
        };
        assert_ne!(version(&changed), version(base), "{from} to {to}");
    }
    let alone = "policies: [{name: e, type: trace_flags}]\n";
    assert_ne!(
        version(alone),
        version(&format!("sampling_strategy: span-ingest\n{alone}"))
    );
    // What is only written otherwise.
    let same = base
        .replace(
            ", burst_capacity: 11, scope: cluster",
            ", burst_capacity: 11",
        )
        .replace("[v1, v2]", "[v2, v1, v2]")
        .replace("hash_salt: v6", "hash_salt: v6, mode: hash_seed")
        .replace("[j, k]", "[j]")
        .replace("assume_unsampled_upstream: true\n", "")
        .replace("weights: tracestate\n", "");
    assert_eq!(version(&same), version(base));
}

#[test]
fn the_shipped_files_parse_as_they_stand() {
    let read = |name: &str| {
        let path = format!("{}/deploy/policies/{name}", env!("CARGO_MANIFEST_DIR"));
        accepted(&std::fs::read_to_string(path).expect("a shipped file"))
    };
    let fleet = read("fleet.yaml");
    let agents = read("agents.yaml");
    assert_eq!(fleet.rules.policies, agents.rules.policies);
    assert_eq!(fleet.rules.policies.len(), 6);
    let said: Vec<String> = fleet.notices.iter().map(|it| it.message.clone()).collect();
    assert_eq!(
        said,
        [
            "`num_traces` bounds nothing here; bytes do (--log-max-bytes, --memory-limit)",
            "`expected_new_traces_per_sec` bounds nothing here; bytes do, and nothing is allocated ahead",
        ]
    );
    assert_eq!(agents.notices, []);
    assert_eq!(
        (
            fleet.rules.timing.quiet_period,
            fleet.rules.timing.decision_wait
        ),
        (None, Duration::from_secs(30))
    );
    assert_eq!(
        (
            agents.rules.timing.quiet_period,
            agents.rules.timing.decision_wait
        ),
        (Some(Duration::from_secs(30)), Duration::from_secs(1800))
    );
    assert!(fleet.rules.settings.assume_unsampled_upstream);
}

#[test]
fn weights_are_written_in_one_of_three_ways() {
    let policies = "policies: [{name: e, type: always_sample}]\n";
    for (text, weights) in [
        ("", Weights::TraceState),
        ("weights: tracestate\n", Weights::TraceState),
        ("weights: sample_rate\n", Weights::SampleRate),
        ("weights: none\n", Weights::None),
    ] {
        let rules = accepted(&format!("{text}{policies}")).rules;
        assert_eq!(rules.settings.weights, weights, "{text}");
    }
    check_mistakes(
        &format!("weights: ot\n{policies}"),
        &["1:10: `weights` is the text `ot`; write tracestate, sample_rate or none"],
    );
}

#[test]
fn a_name_fits_into_a_label() {
    let file = |len: usize| {
        format!(
            "policies: [{{name: {}, type: trace_flags}}]",
            "n".repeat(len)
        )
    };
    accepted(&file(1_000));
    check_mistakes(
        &file(1_001),
        &[
            "1:19: the policy's `name` has 1001 bytes; write at most 1000, for it is in metrics and can be in spans",
        ],
    );
}

/// Variables of the tests below.
fn variable(name: &str) -> Option<String> {
    let value = match name {
        "SHARE" => "12.5",
        "HALF" => "0.5",
        "WAIT" => "7s",
        "ON" => "true",
        "CODES" => "[ERROR, OK]",
        "POLICY" => "{name: \"of ${env:TEXT}\", type: always_sample}",
        "DIGITS" => "0123",
        "QUOTED" => "\"12\"",
        "NUMBER" => "42",
        "TEXT" => "a b",
        "COLON" => "a: b: c",
        "EMPTY" => "",
        "INDIRECT" => "${env:SHARE}",
        "INNER" => "SHA",
        "DOLLARS" => "x$$y",
        "CIRCLE" => "${env:CIRCLE}",
        "GROWS" => "x${env:GROWS}${env:GROWS}",
        "DEEPER" => "[\"${env:DEEPER}\"]",
        "COMMENT" => "true # not a ${env:1 reference}",
        _ => return None,
    };
    Some(value.to_owned())
}

fn of_variables(text: &str) -> Result<Parsed, String> {
    parse_in(&variable, text).map_err(|mistakes| report(&mistakes))
}

/// The values of a policy whose block is `string_attribute: {key: k, values: [VALUE]}`.
fn value_of(value: &str) -> Result<String, String> {
    let text = format!(
        "policies: [{{name: s, type: string_attribute, string_attribute: {{key: k, values: [{value}]}}}}]"
    );
    let parsed = of_variables(&text)?;
    match &parsed.rules.policies[0].kind {
        PolicyKind::StringAttribute(StringAttribute {
            values: Values::Exact(values),
            ..
        }) => Ok(values.first().expect("a value").clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_value_that_is_one_reference_has_the_type_that_yaml_gives_it() {
    let parsed = of_variables(
        "\
decision_wait: ${env:WAIT}
sample_on_first_match: ${env:ON}
policies:
  - {name: '${env:TEXT}', type: probabilistic, probabilistic: {sampling_percentage: '${env:SHARE}'}}
  - {name: 007, type: probabilistic, probabilistic: {sampling_percentage: '${env:INDIRECT}'}}
  - {name: n, type: status_code, status_code: {status_codes: '${env:CODES}'}}
  - ${env:POLICY}
  - {name: '${env:NUMBER}', type: span_count, span_count: {min_spans: '${env:NUMBER}'}}
  - {name: d, type: span_count, span_count: {min_spans: '${env:NONE:-3}', max_spans: '${NUMBER}'}}
"
        .replace("name: 007", "name: i")
        .as_str(),
    );
    let parsed = parsed.unwrap_or_else(|report| panic!("{report}"));
    let rules = parsed.rules;
    assert_eq!(rules.timing.decision_wait, Duration::from_secs(7));
    assert!(rules.settings.sample_on_first_match);
    let eighth = PolicyKind::Probabilistic(Threshold::keeping(0.125));
    let counted = |min, max| PolicyKind::SpanCount(SpanCount { min, max });
    let kinds: Vec<_> = rules
        .policies
        .iter()
        .map(|it| (&it.name[..], it.kind.clone()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("a b", eighth.clone()),
            ("i", eighth),
            (
                "n",
                PolicyKind::StatusCode(StatusCodes::ERROR.and(StatusCodes::OK))
            ),
            ("of a b", PolicyKind::AlwaysSample),
            ("42", counted(42, None)),
            ("d", counted(3, Some(42))),
        ]
    );
    assert_eq!(parsed.notices, []);
}

#[test]
fn where_a_text_is_wanted_a_variable_is_its_text() {
    for (value, expected) in [
        ("'${env:NUMBER}'", "42"),
        ("'${env:DIGITS}'", "0123"),
        ("'${env:QUOTED}'", "\"12\""),
        ("'${env:COLON}'", "a: b: c"),
        ("'${env:ON}'", "true"),
        ("'${env:CODES}'", "[ERROR, OK]"),
        ("'<${env:NUMBER}>'", "<42>"),
        ("'${env:TEXT}${env:HALF}'", "a b0.5"),
        ("'${TEXT}-${env:NONE:-else}'", "a b-else"),
        ("'${env:${env:INNER}RE}'", "12.5"),
        ("'x${env:NONE:-}y'", "xy"),
        ("'${env:NONE:-:-}'", ":-"),
        ("'<${env:INDIRECT}>'", "<12.5>"),
        // What is no reference.
        ("'$HOME'", "$HOME"),
        ("'${env:TEXT'", "${env:TEXT"),
        ("'env:TEXT}'", "env:TEXT}"),
        ("'$${env:TEXT}'", "${env:TEXT}"),
        ("'$$${env:TEXT}'", "$a b"),
        ("'$$$${env:TEXT}'", "$${env:TEXT}"),
        ("'$${env:TEXT} ${env:TEXT}'", "${env:TEXT} a b"),
        ("'^a$'", "^a$"),
        ("'a$$'", "a$"),
        ("'${env:DOLLARS}'", "x$y"),
        ("'{}${env:TEXT}{'", "{}a b{"),
    ] {
        assert_eq!(value_of(value).as_deref(), Ok(expected), "{value}");
    }
}

#[test]
fn a_variable_that_is_not_set_is_empty_and_says_so() {
    let parsed = of_variables("policies: [{name: s, type: string_attribute, string_attribute: {key: k, values: ['<${env:NONE}>', '${env:EMPTY}']}}]").expect("accepted");
    let notices: Vec<String> = parsed.notices.iter().map(Notice::to_string).collect();
    assert_eq!(
        notices,
        ["1:82: the environment variable `NONE` is not set and counts as empty"]
    );
    let report = of_variables(
        "decision_wait: ${env:NONE}\npolicies: [{name: '${NONE}', type: trace_flags}]",
    );
    assert_eq!(
        report.expect_err("refused"),
        "1:16: `decision_wait` is empty, as is its environment variable; write a duration, for example 30s\n\
         2:19: the policy's `name` is empty, as is its environment variable; write a text\n"
    );
}

#[test]
fn references_that_nobody_can_follow_are_refused_with_their_place() {
    for (value, expected) in [
        (
            "'${file:policies.yaml}'",
            "`${file:policies.yaml}` cannot be read: of the Collector's providers only `env` is read here; write the value itself, and `$$` for a `$` that is meant",
        ),
        (
            "'a${yaml:b: c}'",
            "`${yaml:b: c}` cannot be read: of the Collector's providers only `env` is read here; write the value itself, and `$$` for a `$` that is meant",
        ),
        (
            "'${TEXT:-b}'",
            "`${TEXT:-b}` cannot be read: write `${env:TEXT:-b}`",
        ),
        (
            "'${2}'",
            "`${2}` names no environment variable: a name has letters, digits and `_`; write `$$` for a `$` that is meant",
        ),
        (
            "'${env:a-b}'",
            "`${env:a-b}` names no environment variable: a name has letters, digits and `_`; write `$$` for a `$` that is meant",
        ),
        (
            "'${env:$TEXT}'",
            "`${env:$TEXT}` names no environment variable: a name has letters, digits and `_`; write `$$` for a `$` that is meant",
        ),
        (
            "'${env:COMMENT}'",
            "`${env:1 reference}` names no environment variable: a name has letters, digits and `_`; write `$$` for a `$` that is meant",
        ),
    ] {
        assert_eq!(
            value_of(value),
            Err(format!("1:82: {expected}\n")),
            "{value}"
        );
    }
    for value in ["'${env:CIRCLE}'", "'${env:GROWS}'", "'${env:DEEPER}'"] {
        let report = value_of(value).expect_err("refused");
        assert!(report.starts_with("1:82: "), "{report}");
        assert!(
            report.contains("leads in a circle") || report.contains("one in the other"),
            "{report}"
        );
        assert!(report.len() < 1_000, "{report}");
    }
}

/// Of a Collector configuration only the block is looked at: what exporters refer to is nobody's business.
#[test]
fn references_around_the_block_do_no_harm() {
    let parsed = of_variables(
        "\
receivers: {otlp: {protocols: {grpc: {endpoint: '${env:NOT A NAME}:4317'}}}}
exporters: {otlp: {endpoint: '${file:secret}', headers: {key: '${env:CIRCLE}'}}}
processors:
  batch: ${yaml:x}
  tail_sampling:
    decision_wait: ${env:WAIT}
    policies: [{name: e, type: trace_flags}]
",
    );
    let rules = parsed.unwrap_or_else(|report| panic!("{report}")).rules;
    assert_eq!(rules.timing.decision_wait, Duration::from_secs(7));
    let report = of_variables("tail_sampling: '${file:policies.yaml}'").expect_err("refused");
    assert!(
        report.starts_with("1:16: `${file:policies.yaml}` cannot be read"),
        "{report}"
    );
}

#[test]
fn the_sizes_of_caches_are_read_although_nothing_comes_of_them() {
    let file = |cache: &str| {
        format!("policies: [{{name: e, type: trace_flags}}]\ndecision_cache: {cache}\n")
    };
    accepted(&file("{sampled_cache_size: 1, non_sampled_cache_size: 2}"));
    accepted(&file(""));
    check_mistakes(
        &file("{smapled_cache_size: 1, non_sampled_cache_size: many}"),
        &[
            "2:18: no key of `decision_cache` is called `smapled_cache_size`; did you mean `sampled_cache_size`?",
            "2:65: `non_sampled_cache_size` is the text `many`; write a whole number",
        ],
    );
    check_mistakes(
        &file("5"),
        &[
            "2:17: `decision_cache` is the number 5; write a block with sampled_cache_size and non_sampled_cache_size",
        ],
    );
}
