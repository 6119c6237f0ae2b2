//! The policy file as JSON Schema (2020-12), for editors: names, types, choices, bounds, and what
//! each setting is for.
//!
//! The loader is the judge of a file and this follows it: what it accepts is valid here, and wrong
//! names and types are refused by both (`tests/policy_file/schema.rs` holds them together). What
//! hangs on two values at once (doubled names, bounds the wrong way round), patterns and conditions
//! are the loader's alone.

use serde_json::{Value, json};

use crate::policy::attribute::VALUES_MAX;
use crate::policy::composite::SUBS_MAX;
use crate::policy::conditions::CONDITIONS_MAX;
use crate::policy::entry::{POLICIES_MAX, TYPES};

/// A Collector component is `type` or `type/name`.
const BLOCK_NAME: &str = "^tail_sampling(/.*)?$";
/// Go's, without a sign.
const DURATION: &str = r"^\+?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$";

/// What a text, a number, a list or a block may be instead, or a text hold; what it stands for only the
/// loader knows.
const REFERENCE: &str = r"\$\{.+\}";

/// The whole schema: a block bare, under its own name, or inside a Collector configuration.
pub fn schema() -> Value {
    let mut definitions = json!({
        "block": block(),
        "policy": policy(true),
        "sub_policy": policy(false),
        "collector": {
            "type": "object",
            "required": ["processors"],
            "properties": {"processors": {
                "description": "Of several tail_sampling processors the first one in a pipeline is read; all else in the file is ignored.",
                "$ref": "#/$defs/named"
            }}
        },
        "named": {
            "type": "object",
            "patternProperties": {BLOCK_NAME: {"$ref": "#/$defs/block"}},
            "$ref": "#/$defs/has_block"
        },
        "has_block": {"not": {"propertyNames": {"not": {"pattern": BLOCK_NAME}}}},
        "duration": {
            "anyOf": [{"type": "string", "pattern": DURATION}, {"const": 0}],
            "examples": ["30s", "500ms", "1h30m"]
        },
        "scope": {
            "enum": ["cluster", "worker"],
            "description": "Whose rate it is: that of all workers together, each having its share (the default), or of each worker alone."
        }
    });
    if let Value::Object(definitions) = &mut definitions {
        definitions.extend(
            TYPES
                .into_iter()
                .map(|name| (name.to_owned(), block_of(name))),
        );
        definitions.values_mut().for_each(allow_references);
        definitions.insert(
            "reference".to_owned(),
            json!({
                "type": "string",
                "pattern": REFERENCE,
                "description": "What an environment variable says: ${env:NAME} or ${env:NAME:-default}."
            }),
        );
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tailring policies",
        "description": "An OpenTelemetry Collector's tail_sampling block: bare, under its own name, or inside a whole Collector configuration.",
        "if": {"required": ["processors"]},
        "then": {"$ref": "#/$defs/collector"},
        "else": {
            "if": {"type": "object", "$ref": "#/$defs/has_block"},
            "then": {"$ref": "#/$defs/named"},
            "else": {"$ref": "#/$defs/block"}
        },
        "$defs": definitions
    })
}

fn block() -> Value {
    let count = |text: &str| json!({"type": "integer", "minimum": 0, "maximum": u64::MAX, "description": text});
    let switch = |text: &str| json!({"type": "boolean", "description": text});
    let duration = |text: &str| json!({"$ref": "#/$defs/duration", "description": text});
    json!({
        "type": "object",
        "required": ["policies"],
        "additionalProperties": false,
        "properties": {
            "policies": {
                "type": "array",
                "minItems": 1,
                "maxItems": POLICIES_MAX,
                "items": {"$ref": "#/$defs/policy"},
                "description": "A trace is kept if any of them keeps it, unless one of type drop drops it."
            },
            "decision_wait": duration("A trace is judged at the latest so long after its first span. Default 30s."),
            "quiet_period": duration("A trace is judged so long after its last span. Not in the Collector; off by default."),
            "decision_wait_after_root_received": duration("A trace is judged so long after its root span. Off by default."),
            "compatibility": {
                "enum": ["tailring", "collector"],
                "description": "Whose behaviour is meant where Tailring's differs from the Collector's. Default tailring."
            },
            "assume_unsampled_upstream": switch("Whether spans without a threshold of their own were certain to be sent. Default true; not in the Collector."),
            "sample_on_first_match": switch("Policies behind the first one that keeps a trace are not asked: limits are not charged. Default false."),
            "sampling_strategy": {
                "enum": ["trace-complete", "span-ingest"],
                "description": "When policies vote: once, over the whole trace (the default), or over each fragment as it comes."
            },
            "maximum_trace_size_bytes": count("A trace that grows beyond it is dropped at once. 0, the default: no bound."),
            "num_traces": count("No effect: bytes are bounded here (--log-max-bytes, --memory-limit)."),
            "expected_new_traces_per_sec": count("No effect: nothing is allocated ahead."),
            "num_shards": count("No effect: a worker has one shard for each core."),
            "block_on_overflow": switch("No effect: a full worker refuses with a retryable error."),
            "drop_pending_traces_on_shutdown": switch("No effect: undecided traces are judged after the restart."),
            "weights": {
                "enum": ["tracestate", "sample_rate", "none"],
                "description": "How exported spans say what they stand for: `ot=th` in the trace state (the default), that and an integer attribute SampleRate, or not at all. Not in the Collector."
            },
            "decision_cache": {
                "type": ["object", "null"],
                "additionalProperties": false,
                "properties": {
                    "sampled_cache_size": count("No effect."),
                    "non_sampled_cache_size": count("No effect.")
                },
                "description": "No effect: every decision is remembered (--decision-memory-max-bytes)."
            },
            "tail_storage": {"description": "No effect: traces are always kept in the log (--data-dir)."}
        }
    })
}

/// Name, type, and the block of the type; other blocks are not read.
fn policy(at_top: bool) -> Value {
    let types: Vec<&str> = TYPES
        .into_iter()
        .filter(|name| at_top || *name != "drop")
        .collect();
    let mut properties = json!({
        "name": {
            "type": "string",
            "description": "What metrics and decisions call it."
        },
        "type": {"enum": types, "description": "What it looks at; its settings are in the block of the same name."}
    });
    let mut blocks = Vec::new();
    for name in TYPES {
        properties[name] = json!({"description": summary(name)});
        let settings = or_reference(json!({"$ref": format!("#/$defs/{name}")}));
        let mut then = json!({"properties": {name: settings}});
        if !["always_sample", "trace_flags"].contains(&name) {
            then["required"] = json!([name]);
        }
        blocks.push(json!({
            "if": {"required": ["type"], "properties": {"type": {"const": name}}},
            "then": then
        }));
    }
    if at_top {
        properties["name"]["minLength"] = json!(1);
    }
    json!({
        "type": "object",
        "required": if at_top { vec!["name", "type"] } else { vec!["type"] },
        "additionalProperties": false,
        "properties": properties,
        "allOf": blocks
    })
}

fn summary(name: &str) -> &'static str {
    match name {
        "always_sample" => "Keeps everything.",
        "and" => "Keeps what every one of its policies keeps, asked in their order.",
        "boolean_attribute" => {
            "Keeps traces of which a resource or span has the attribute with this value."
        }
        "bytes_limiting" => "Keeps as many bytes a second, by the size of traces as OTLP protobuf.",
        "composite" => "Shares a rate among its policies.",
        "drop" => "Drops what every one of its policies would keep, whatever other policies say.",
        "latency" => "Keeps traces that took longer, from the first start to the last end.",
        "not" => "Keeps what its policy does not keep.",
        "numeric_attribute" => {
            "Keeps traces of which a resource or span has the attribute with an integer in the range."
        }
        "ottl_condition" => "Keeps traces with a span or an event of which a condition holds.",
        "probabilistic" => "Keeps a share of traces.",
        "rate_limiting" => "Keeps as many spans a second.",
        "span_count" => "Keeps traces with so many spans.",
        "status_code" => "Keeps traces with a span of one of these statuses.",
        "string_attribute" => {
            "Keeps traces of which a resource or span has the attribute with one of these strings."
        }
        "trace_flags" => "Keeps traces with a span whose sampled flag is set.",
        "trace_state" => {
            "Keeps traces with a span whose trace state has the key with one of these values."
        }
        _ => "",
    }
}

/// The block of a type.
fn block_of(name: &str) -> Value {
    let whole = |max: i64, text: &str| json!({"type": "integer", "minimum": 0, "maximum": max, "description": text});
    let rate = |text: &str| json!({"type": "integer", "minimum": 1, "maximum": i64::MAX, "description": text});
    let signed = |text: &str| json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX, "description": text});
    let switch = |text: &str| json!({"type": "boolean", "description": text});
    let key =
        json!({"type": "string", "minLength": 1, "description": "The name of the attribute."});
    let invert = switch("Keeps all other traces instead.");
    let texts = json!({"type": "array", "minItems": 1, "maxItems": VALUES_MAX, "items": {"type": "string"}});
    let scope = json!({"$ref": "#/$defs/scope"});
    let burst = whole(
        i64::MAX,
        "What a quiet time saves up at most. Default: two seconds of the rate.",
    );
    let subs = json!({"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/sub_policy"}});
    let mut of = match name {
        "boolean_attribute" => closed(
            &["key"],
            json!({
                "key": key,
                "value": switch("Default false. What is neither true nor false counts as false."),
                "invert_match": invert
            }),
        ),
        "numeric_attribute" => {
            let mut of = closed(
                &["key"],
                json!({
                    "key": key,
                    "min_value": signed("At least this; 0 is no bound."),
                    "max_value": signed("At most this; 0 is no bound."),
                    "invert_match": invert
                }),
            );
            of["anyOf"] = json!([
                {"required": ["min_value"], "properties": {"min_value": {"not": {"const": 0}}}},
                {"required": ["max_value"], "properties": {"max_value": {"not": {"const": 0}}}}
            ]);
            of
        }
        "string_attribute" => closed(
            &["key", "values"],
            json!({
                "key": key,
                "values": texts,
                "enabled_regex_matching": switch("The values are regular expressions (RE2) that match somewhere in the string. Default false."),
                "cache_max_size": whole(i64::MAX, "No effect: a pattern takes no longer than a look into a cache."),
                "invert_match": invert
            }),
        ),
        "trace_state" => closed(&["key", "values"], json!({"key": key, "values": texts})),
        "status_code" => closed(
            &["status_codes"],
            json!({"status_codes": {
                "type": "array", "minItems": 1, "items": {"enum": ["ERROR", "OK", "UNSET"]}
            }}),
        ),
        "latency" => {
            let mut of = closed(
                &[],
                json!({
                    "threshold_ms": whole(i64::MAX, "More than so many milliseconds."),
                    "upper_threshold_ms": whole(i64::MAX, "At most so many milliseconds; 0, the default, is no bound.")
                }),
            );
            of["anyOf"] = one_of_them("threshold_ms", "upper_threshold_ms");
            of
        }
        "span_count" => {
            let max = i64::from(i32::MAX);
            let mut of = closed(
                &[],
                json!({
                    "min_spans": whole(max, "At least so many spans."),
                    "max_spans": whole(max, "At most so many spans; 0, the default, is no bound.")
                }),
            );
            of["anyOf"] = one_of_them("min_spans", "max_spans");
            of
        }
        "probabilistic" => {
            let mut of = closed(
                &["sampling_percentage"],
                json!({
                    "sampling_percentage": {"type": "number", "minimum": 0, "maximum": 100, "description": "Of all traces."},
                    "hash_salt": {"type": "string", "description": "Makes it the Collector's hash with this salt, bit for bit; there is no threshold then."},
                    "mode": {"enum": ["consistent", "hash_seed"], "description": "By the trace's own randomness (the default), with known counts; or by the Collector's hash."}
                }),
            );
            of["if"] =
                json!({"required": ["hash_salt"], "properties": {"hash_salt": {"minLength": 1}}});
            of["then"] =
                json!({"properties": {"mode": or_reference(json!({"const": "hash_seed"}))}});
            of
        }
        "rate_limiting" => closed(
            &["spans_per_second"],
            json!({
                "spans_per_second": rate("On average."), "burst_capacity": burst, "scope": scope
            }),
        ),
        "bytes_limiting" => closed(
            &["bytes_per_second"],
            json!({
                "bytes_per_second": rate("On average."), "burst_capacity": burst, "scope": scope
            }),
        ),
        "ottl_condition" => conditions(),
        "and" => closed(&["and_sub_policy"], json!({"and_sub_policy": subs})),
        "drop" => closed(&["drop_sub_policy"], json!({"drop_sub_policy": subs})),
        "not" => closed(
            &["not_sub_policy"],
            json!({"not_sub_policy": {"$ref": "#/$defs/sub_policy"}}),
        ),
        "composite" => closed(
            &["max_total_spans_per_second", "composite_sub_policy"],
            json!({
                "max_total_spans_per_second": rate("Of all its policies together."),
                "policy_order": {
                    "type": ["array", "null"], "minItems": 1, "items": {"type": "string"},
                    "description": "Names of its policies in the order in which they are asked."
                },
                "composite_sub_policy": {"type": "array", "minItems": 1, "maxItems": SUBS_MAX, "items": {"$ref": "#/$defs/sub_policy"}},
                "rate_allocation": {
                    "type": ["array", "null"],
                    "minItems": 1,
                    "description": "Parts of the rate; who has none gets an equal part.",
                    "items": closed(&["policy"], json!({
                        "policy": {"type": "string", "description": "The name of one of its policies."},
                        "percent": whole(i64::MAX, "Of the rate.")
                    }))
                },
                "scope": scope
            }),
        ),
        // Has no keys, and needs no block.
        "trace_flags" => json!({"maxProperties": 0}),
        _ => json!({}),
    };
    of["description"] = json!(summary(name));
    of
}

fn conditions() -> Value {
    let list = |text: &str| {
        json!({
            "anyOf": [
                {"type": "string"},
                {"type": "null"},
                {"type": "array", "maxItems": CONDITIONS_MAX, "items": {"type": "string"}}
            ],
            "description": text,
            "examples": [["attributes[\"http.route\"] == \"/pay\""]]
        })
    };
    let some = json!({"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1}]});
    let mut of = closed(
        &[],
        json!({
            "error_mode": {
                "anyOf": [
                    {"enum": ["ignore", "silent", "propagate"]},
                    {"type": "string", "pattern": "^([iI][gG][nN][oO][rR][eE]|[sS][iI][lL][eE][nN][tT]|[pP][rR][oO][pP][aA][gG][aA][tT][eE])$"}
                ],
                "description": "When a condition has no answer: it does not hold (ignore, the default, and silent), or the policy casts no vote (propagate)."
            },
            "span": list("OTTL conditions, each asked of every span."),
            "spanevent": list("OTTL conditions, each asked of every event of every span.")
        }),
    );
    of["anyOf"] = json!([
        {"required": ["span"], "properties": {"span": some}},
        {"required": ["spanevent"], "properties": {"spanevent": some}}
    ]);
    of
}

/// Values of this schema, and what is in them, may be references. Conditions on values are left alone: a
/// text is no number that is too small.
fn allow_references(schema: &mut Value) {
    let Value::Object(schema) = schema else {
        return;
    };
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    let properties = properties.into_iter().flat_map(|it| it.values_mut());
    for value in properties.collect::<Vec<_>>() {
        allow_references(value);
        *value = or_reference(value.take());
    }
    if let Some(items) = schema.get_mut("items") {
        allow_references(items);
        *items = or_reference(items.take());
    }
}

fn or_reference(mut schema: Value) -> Value {
    let is_any_text = schema["type"] == "string" && schema.get("pattern").is_none();
    let is_anything = schema
        .as_object()
        .is_some_and(|it| it.keys().all(|key| key == "description"));
    if is_any_text || is_anything {
        return schema;
    }
    let mut either = json!({"anyOf": [null, {"$ref": "#/$defs/reference"}]});
    // Where editors look for it.
    if let Some(description) = schema
        .as_object_mut()
        .and_then(|it| it.remove("description"))
    {
        either["description"] = description;
    }
    either["anyOf"][0] = schema;
    either
}

/// Keys that are not here are refused.
fn closed(required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object",
        "required": required,
        "additionalProperties": false,
        "properties": properties
    })
}

/// The lower bound, or an upper one that is one.
fn one_of_them(lower: &str, upper: &str) -> Value {
    json!([
        {"required": [lower]},
        {"required": [upper], "properties": {upper: {"minimum": 1}}}
    ])
}
