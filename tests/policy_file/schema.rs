//! The printed schema against the loader: what one knows the other knows, and what one takes or
//! refuses the other does.

use std::collections::BTreeSet;

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};
use tailring::policy::{Mistake, parse, parse_in, schema};

/// Every setting and every key of every block, as far as they go together.
const EVERYTHING: &str = r#"
decision_wait: 30m
quiet_period: 30s
decision_wait_after_root_received: 1m30.5s
compatibility: tailring
assume_unsampled_upstream: true
sample_on_first_match: true
sampling_strategy: trace-complete
weights: sample_rate
maximum_trace_size_bytes: 1000000
num_traces: 100
expected_new_traces_per_sec: 10
num_shards: 2
block_on_overflow: false
drop_pending_traces_on_shutdown: true
decision_cache: {sampled_cache_size: 5, non_sampled_cache_size: 7}
tail_storage: redis
policies:
  - {name: all, type: always_sample}
  - {name: latency, type: latency, latency: {threshold_ms: 5, upper_threshold_ms: 9}}
  - {name: upper, type: latency, latency: {upper_threshold_ms: 9}}
  - {name: numbers, type: numeric_attribute, numeric_attribute: {key: k, min_value: -5, max_value: 9, invert_match: true}}
  - {name: truths, type: boolean_attribute, boolean_attribute: {key: k, value: true, invert_match: false}}
  - {name: texts, type: string_attribute, string_attribute: {key: k, values: [a, ""], enabled_regex_matching: true, cache_max_size: 10, invert_match: true}}
  - {name: statuses, type: status_code, status_code: {status_codes: [OK, ERROR, UNSET]}}
  - {name: count, type: span_count, span_count: {min_spans: 2, max_spans: 0}}
  - {name: few, type: span_count, span_count: {max_spans: 3}}
  - {name: state, type: trace_state, trace_state: {key: k, values: [v]}}
  - {name: flags, type: trace_flags, trace_flags: {}}
  - {name: share, type: probabilistic, probabilistic: {sampling_percentage: 0.5, mode: consistent}}
  - {name: hash, type: probabilistic, probabilistic: {sampling_percentage: 50, mode: hash_seed, hash_salt: s}}
  - {name: rate, type: rate_limiting, rate_limiting: {spans_per_second: 5, burst_capacity: 0, scope: worker}}
  - {name: bytes, type: bytes_limiting, bytes_limiting: {bytes_per_second: 5, burst_capacity: 9, scope: cluster}}
  - {name: ottl, type: ottl_condition, ottl_condition: {error_mode: Silent, span: ['name == "a"'], spanevent: 'name == "b"'}}
  - {name: unread, type: trace_flags, latency: {whatever: [1]}}
  - name: both
    type: and
    and:
      and_sub_policy:
        - {type: trace_flags, name: ""}
        - {type: not, not: {not_sub_policy: {name: n, type: trace_flags}}}
  - {name: never, type: drop, drop: {drop_sub_policy: [{type: trace_flags}]}}
  - name: shared
    type: composite
    composite:
      max_total_spans_per_second: 100
      policy_order: [b, a]
      composite_sub_policy: [{name: a, type: trace_flags}, {name: b, type: always_sample}]
      rate_allocation: [{policy: a, percent: 60}, {policy: b}]
      scope: worker
"#;

struct Checker {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Checker {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler
            .add_resource("policies.json", schema())
            .expect("a schema");
        let index = compiler
            .compile("policies.json", &mut schemas)
            .expect("one that is sound");
        Self { schemas, index }
    }

    fn refusal(&self, file: &Value) -> Option<String> {
        let answer = self.schemas.validate(file, self.index);
        answer.err().map(|error| format!("{error:#}"))
    }
}

fn as_json(text: &str) -> Value {
    // As the loader reads it: a policy may be called `n`.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).expect("YAML that JSON can say")
}

/// Bare, under its own name, and inside a whole configuration.
fn placed(block: Value) -> [Value; 3] {
    [
        block.clone(),
        json!({"tail_sampling": block, "other": 5}),
        json!({"receivers": {}, "processors": {"batch": null, "tail_sampling/x": block}, "service": []}),
    ]
}

#[test]
fn every_file_of_ours_is_valid() {
    let checker = Checker::new();
    let file = |path: &str| {
        let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).expect("a file of ours")
    };
    for text in [
        file("deploy/policies/fleet.yaml"),
        file("deploy/policies/agents.yaml"),
        file("tests/policies/every-policy.yaml"),
        file("tests/policies/collector.yaml"),
        EVERYTHING.to_owned(),
        crate::BLOCK.to_owned(),
    ] {
        parse(&text).expect("the loader takes it");
        assert_eq!(checker.refusal(&as_json(&text)), None, "{text}");
    }
    for file in placed(as_json(EVERYTHING)) {
        parse(&file.to_string()).expect("the loader takes it");
        assert_eq!(checker.refusal(&file), None);
    }
    let without = json!({"processors": {"batch": {}}});
    assert!(checker.refusal(&without).is_some());
    assert!(parse(&without.to_string()).is_err());
}

/// What stands behind "known are".
fn known_to_the_loader(file: &str) -> BTreeSet<String> {
    let mistakes = parse(file).expect_err(file);
    let known = mistakes.iter().find_map(|it| {
        let (_, known) = it.message.split_once("`zzzzzzzz`; known are ")?;
        Some(known.split(", ").map(str::to_owned).collect())
    });
    known.unwrap_or_else(|| panic!("{mistakes:?}"))
}

#[test]
fn every_setting_of_the_loader_is_in_the_schema_and_no_other() {
    let schema = schema();
    let keys = |pointer: &str| -> BTreeSet<String> {
        let properties = schema.pointer(pointer).and_then(Value::as_object);
        let properties = properties.unwrap_or_else(|| panic!("no {pointer}"));
        properties.keys().cloned().collect()
    };
    assert_eq!(
        known_to_the_loader("zzzzzzzz: 1"),
        keys("/$defs/block/properties")
    );
    let of_policies = known_to_the_loader("policies: [{name: a, type: trace_flags, zzzzzzzz: 1}]");
    for policy in ["policy", "sub_policy"] {
        assert_eq!(of_policies, keys(&format!("/$defs/{policy}/properties")));
    }
    let types: Vec<_> = of_policies
        .iter()
        .filter(|key| !["name", "type"].contains(&key.as_str()))
        .collect();
    let listed = schema.pointer("/$defs/policy/properties/type/anyOf/0/enum");
    assert_eq!(listed, Some(&json!(types)));
    for kind in types {
        if ["always_sample", "trace_flags"].contains(&kind.as_str()) {
            continue;
        }
        let file = format!("policies: [{{name: a, type: {kind}, {kind}: {{zzzzzzzz: 1}}}}]");
        let known = known_to_the_loader(&file);
        assert_eq!(known, keys(&format!("/$defs/{kind}/properties")), "{kind}");
        // And each of them is in the file that the next test takes apart.
        for key in known {
            assert!(EVERYTHING.contains(&format!("{key}:")), "{key}");
        }
    }
    let part = "policies: [{name: a, type: composite, composite: {max_total_spans_per_second: 1, \
                composite_sub_policy: [{name: b, type: trace_flags}], rate_allocation: [{zzzzzzzz: 1}]}}]";
    let items = "/$defs/composite/properties/rate_allocation/anyOf/0/items/anyOf/0/properties";
    assert_eq!(known_to_the_loader(part), keys(items));
}

/// What hangs on two values at once, or is a language of its own: for the loader alone.
const FOR_THE_LOADER: &[&str] = &[
    "is taken by the policy in line",
    "no number is at least",
    "and nothing is longer than",
    "and no trace has at least",
    "the regular expression",
    "ottl_condition.span",
    "is zero; write 1s",
    "with `sampling_strategy: span-ingest`",
    "with `compatibility: collector` each worker",
];

/// Each value of the file in turn is something else, is gone, or has a key beside it that nobody knows.
#[test]
fn whatever_is_changed_the_schema_says_what_the_loader_says() {
    let checker = Checker::new();
    let whole = as_json(EVERYTHING);
    let others =
        json!([null, true, 7, -7, 2.5, 0, "text", "", "30s", [], {}, ["text"], {"key": 1}, 1e300]);
    let mut changed = Vec::new();
    for pointer in pointers(&whole) {
        for other in others.as_array().expect("a list") {
            let mut file = whole.clone();
            *file.pointer_mut(&pointer).expect("there") = other.clone();
            changed.push((format!("{pointer} is {other}"), file));
        }
        if whole.pointer(&pointer).is_some_and(Value::is_object) {
            let mut file = whole.clone();
            file.pointer_mut(&pointer).expect("there")["zzzzzzzz"] = json!(1);
            changed.push((format!("{pointer} with another key"), file));
        }
        if let Some((parent, key)) = pointer.rsplit_once('/') {
            let mut file = whole.clone();
            match file.pointer_mut(parent) {
                Some(Value::Object(map)) => drop(map.remove(key)),
                Some(Value::Array(list)) => drop(list.remove(key.parse().expect("an index"))),
                _ => panic!("{pointer}"),
            }
            changed.push((format!("{pointer} is gone"), file));
        }
    }
    assert!(changed.len() > 2_000, "{}", changed.len());
    let (mut taken, mut refused) = (0, 0);
    let mut disagreements = Vec::new();
    for (what, file) in changed {
        let found = checker.refusal(&file);
        match parse(&file.to_string()) {
            Ok(_) => {
                taken += 1;
                disagreements.extend(found.map(|it| format!("{what}: taken, but {it}")));
            }
            Err(mistakes) => {
                refused += 1;
                let for_both = |it: &&Mistake| {
                    let alone = FOR_THE_LOADER.iter();
                    !alone.into_iter().any(|alone| it.message.contains(alone))
                };
                let mistake = mistakes.iter().find(for_both).filter(|_| found.is_none());
                disagreements.extend(mistake.map(|it| format!("{what}: valid, but {it}")));
            }
        }
    }
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n"));
    assert!(taken > 200 && refused > 1_000, "{taken} {refused}");
}

/// A number, a switch, a choice, a list, a block: the loader reads it from a variable, and an editor is to take that.
#[test]
fn a_variable_may_stand_for_every_value() {
    let checker = Checker::new();
    let whole = as_json(EVERYTHING);
    let mut tried = 0;
    for pointer in pointers(&whole) {
        // Whatever a variable holds, the block itself is written down.
        let Some(value) = whole.pointer(&pointer).filter(|_| !pointer.is_empty()) else {
            continue;
        };
        let held = value.as_str().map_or(value.to_string(), str::to_owned);
        let mut file = whole.clone();
        *file.pointer_mut(&pointer).expect("there") = json!("${env:HELD}");
        let variable = |name: &str| (name == "HELD").then(|| held.clone());
        let taken = parse_in(&variable, &file.to_string());
        assert!(taken.is_ok(), "{pointer}: {taken:?}");
        assert_eq!(checker.refusal(&file), None, "{pointer}");
        tried += 1;
    }
    assert!(tried > 150, "{tried}");
}

/// Of everything in it, itself included.
fn pointers(value: &Value) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut under = |key: &str, value: &Value| {
        let below = pointers(value).into_iter();
        all.extend(below.map(|it| format!("/{key}{it}")));
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| under(key, value)),
        Value::Array(list) => {
            let indexed = list.iter().zip(0..);
            indexed.for_each(|(value, index): (_, usize)| under(&index.to_string(), value));
        }
        _ => {}
    }
    all
}
