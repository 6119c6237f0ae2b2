//! Files as people have them for their Collectors.

use tailring::policy::{Mistake, Notice, PolicyKind, parse};

/// All types in one block, in the spellings of the Collector's own examples: flow maps with
/// trailing commas, numbers with `_`, patterns with `\/`.
const EVERY_POLICY: &str = include_str!("every-policy.yaml");
const WHOLE: &str = include_str!("collector.yaml");

fn notices(text: &str) -> Vec<String> {
    let parsed = parse(text).unwrap_or_else(|mistakes| {
        let report: String = mistakes.iter().map(|it| format!("{it}\n")).collect();
        panic!("{report}in\n{text}")
    });
    parsed.notices.iter().map(Notice::to_string).collect()
}

#[test]
fn a_file_with_every_policy_is_taken_as_it_is() {
    let said = notices(EVERY_POLICY);
    let about = |what: &str| said.iter().filter(|it| it.contains(what)).count();
    assert_eq!(
        about("`num_traces`") + about("`expected_new_traces_per_sec`"),
        2,
        "{said:?}"
    );
    assert_eq!(
        about("`decision_cache`") + about("`cache_max_size`"),
        2,
        "{said:?}"
    );
    assert_eq!(said.len(), 4, "{said:?}");
    let rules = parse(EVERY_POLICY).unwrap().rules;
    assert_eq!(rules.policies.len(), 17);
    let PolicyKind::Composite(composite) = &rules.policies[16].kind else {
        panic!("the last one is the composite");
    };
    let parts = composite.subs.iter().map(|it| it.spans_per_second);
    assert_eq!(parts.collect::<Vec<_>>(), [500, 250, 333]);
    let names = composite.subs.iter().map(|it| it.policy.name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["large", "tenants", "rest"]);
}

#[test]
fn of_a_whole_configuration_the_block_is_read_and_the_rest_is_said() {
    let said = notices(WHOLE);
    let expected = [
        "2:1: only the tail_sampling block is read; ignored: receivers, exporters, extensions, service, the other processors (memory_limiter, batch)",
        "28:3: of 2 tail_sampling processors this one is read, the first one in a pipeline: a worker has one set of rules",
        "30:5: `num_traces` bounds nothing here; bytes do (--log-max-bytes, --memory-limit)",
    ];
    assert_eq!(said, expected);
    let rules = parse(WHOLE).unwrap().rules;
    let names: Vec<_> = rules.policies.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["errors", "team-a-probes", "never"]);
    // Without a pipeline it is the first one.
    let unused = WHOLE.replace("tail_sampling/traces, batch", "batch");
    let said = notices(&unused);
    assert!(
        said[1]
            .ends_with("the first one, for none is in a pipeline: a worker has one set of rules"),
        "{said:?}"
    );
    assert_eq!(parse(&unused).unwrap().rules.policies.len(), 1);
}

#[test]
fn what_cannot_be_meant_is_said_with_what_to_write() {
    let check = |policy: &str, expected: &[&str]| {
        let text = format!("policies: [{{name: a, {policy}}}]");
        let mistakes = parse(&text).expect_err(policy);
        let found: Vec<_> = mistakes.iter().map(Mistake::to_string).collect();
        assert_eq!(found, expected, "{text}");
    };
    check(
        "type: numeric_attribute, numeric_attribute: {key: k, min_value: 0}",
        &[
            "1:66: `min_value` and `max_value` are missing or 0, which is no bound; write at least one (for \"above 0\": min_value: 1)",
        ],
    );
    check(
        "type: numeric_attribute, numeric_attribute: {key: k, min_value: 5, max_value: 4}",
        &["1:100: no number is at least 5 and at most 4"],
    );
    check(
        "type: boolean_attribute, string_attribute: {key: k, value: true}",
        &[
            "1:28: the policy has no block `boolean_attribute`; write one, for example\nboolean_attribute:\n  key: app.force_sample\n  value: true",
        ],
    );
    check(
        "type: probabilistic, probabilistic: {sampling_percentage: 1, mode: consistent, hash_salt: x}",
        &[
            "1:89: `mode: consistent` goes by the trace's own randomness, and `hash_salt` by a hash; leave one of them out",
        ],
    );
    check(
        "type: and, and: {and_sub_policy: [{name: b, type: drop, drop: {drop_sub_policy: [{name: c, type: always_sample}]}}]}",
        &["1:72: a `drop` inside another policy drops nothing; put it beside the others"],
    );
    check(
        "type: and, and: {and_sub_policy: []}",
        &[
            "1:55: `and_sub_policy` is an empty list; write for example [{name: errors, type: always_sample}]",
        ],
    );
    check(
        "type: not, not: {}",
        &["1:38: `not_sub_policy` is missing; write one policy with `name` and `type`"],
    );
    check(
        "type: composite, composite: {composite_sub_policy: [{name: b, type: always_sample}]}",
        &[
            "1:50: `max_total_spans_per_second` is missing or 0, and nothing would be kept; write a number of spans",
        ],
    );
    let theirs = "compatibility: collector\npolicies: [{name: a, type: rate_limiting, rate_limiting: {spans_per_second: 5, scope: cluster}}]";
    let found: Vec<_> = parse(theirs)
        .unwrap_err()
        .iter()
        .map(Mistake::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "2:87: with `compatibility: collector` each worker has all of the rate, as a Collector has; leave `scope` out"
        ]
    );
}

#[test]
fn policies_inside_others_are_bounded() {
    let deep = |depth: usize| {
        let mut policy = "{name: a, type: always_sample}".to_owned();
        for _ in 0..depth {
            policy = format!("{{name: n, type: not, not: {{not_sub_policy: {policy}}}}}");
        }
        parse(&format!("policies: [{policy}]"))
    };
    assert!(deep(20).is_ok());
    let mistakes = deep(1_000).unwrap_err();
    assert!(
        mistakes[0].message.starts_with("not valid YAML: "),
        "{mistakes:?}"
    );
    let many = "{name: a, type: trace_flags},".repeat(10_001);
    let wide = format!("policies: [{{name: x, type: and, and: {{and_sub_policy: [{many}]}}}}]");
    let mistakes = parse(&wide).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert_eq!(
        mistakes[0].message,
        "more than 10000 policies inside others"
    );
}
