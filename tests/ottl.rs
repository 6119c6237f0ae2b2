//! OTTL conditions against an oracle, and against texts and bytes that nobody would write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[path = "wire/agents.rs"]
#[expect(dead_code, reason = "the wire tests use all of it")]
mod agents;
#[path = "ottl/claims.rs"]
mod claims;
#[path = "ottl/conformance.rs"]
mod conformance;
#[path = "ottl/files.rs"]
mod files;
#[path = "ottl/oracle.rs"]
mod oracle;

use claims::a_condition_is_refused_or_answers;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use proptest::prelude::*;
use prost::Message as _;
use tailring::model::Moment;
use tailring::policy::ottl::{Condition, Context, SpanView};

/// What people write, and what the fuzzer begins with.
const CONDITIONS: &[&str] = &[
    r#"attributes["http.route"] == "/api/v1/users" and attributes["http.status_code"] >= 500"#,
    r#"not (attributes["gen_ai.request.model"] != nil) or IsMatch(name, "^(?i)chat\\s+\\w*")"#,
    r#"end_time - start_time > Duration("1h2m3.5s") and kind == SPAN_KIND_SERVER"#,
    r#"resource.attributes["service.name"] == "checkout" and scope.name != """#,
    r#"attributes["a"]["b"][0]["c"] == {"x": [1, 2.5, nil, true], "y" : {}} or [1, "a"] == []"#,
    r#"Concat([name, String(attributes["n"]), trace_id.string], "-") != Substring(name, 0, 1)"#,
    r#"Split(name, ".")[0] == "a" or ContainsValue(attributes["l"], 1) or Len(events) > 2"#,
    r#"ParseJSON(attributes["j"])["a"]["b"] == 1.e3 or Int("0x") / 2 * -(3 + 1) == 0"#,
    r#"trace_state["k"] == "v" or TraceID("0102030405060708090a0b0c0d0e0f10") == trace_id"#,
    r#"IsInCIDR(attributes["ip"], ["10.0.0.0/8", "::/0"]) or attributes[attributes["k"]] == 0xff"#,
    r#"Coalesce([attributes["x"], nil, "y"]) == Trim(name, replacement="xy") or IsRootSpan()"#,
    r#"Hour(Unix(1, 2)) == 0 or TruncateTime(end_time, Duration("1m")) < Now() or Keys(attributes)[0] == """#,
    r#"name = "x" AND 'y' && not not "\d" (("#,
];

fn eval(text: &str, case: &oracle::Case) -> Result<bool, oracle::Failed> {
    let condition = Condition::compile(text, Context::Span)
        .unwrap_or_else(|error| panic!("{}", error.render(text)));
    let resource = ResourceSpans {
        resource: Some(case.resource.clone()),
        ..Default::default()
    };
    let view = SpanView {
        resource_header: &resource.encode_to_vec(),
        scope_header: &[],
        span: &case.span.encode_to_vec(),
        event: None,
        now: Moment::ZERO,
    };
    condition.eval(&view).map_err(|_| oracle::Failed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn conditions_answer_as_a_walk_over_the_tree_does(test in oracle::tests(), case in oracle::cases()) {
        let text = test.text();
        prop_assert_eq!(eval(&text, &case), test.holds(&case), "{}", text);
    }
}

/// Words in any order: most of it is refused, and it reaches all of the parser.
fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(
        &[
            "name",
            "attributes",
            "[",
            "]",
            "(",
            ")",
            "{",
            "}",
            "\"a\"",
            "1",
            "1.5",
            "0x01",
            "nil",
            "true",
            "and",
            "or",
            "not",
            "==",
            "<",
            "+",
            "-",
            "*",
            "/",
            ",",
            ".",
            ":",
            "=",
            "=>",
            "IsMatch",
            "Len",
            "Split",
            "resource",
            "span",
            "SPAN_KIND_SERVER",
            "A",
            "_",
            "b",
        ][..],
    );
    prop::collection::vec(word, 0..40).prop_map(|words| words.join(" "))
}

/// A condition with a piece of it doubled, cut out or changed.
fn mutated() -> impl Strategy<Value = String> {
    let whole = prop::sample::select(CONDITIONS);
    let change = (
        any::<prop::sample::Index>(),
        0usize..12,
        any::<char>(),
        0..3u8,
    );
    (whole, prop::collection::vec(change, 1..6)).prop_map(|(whole, changes)| {
        let mut text: Vec<char> = whole.chars().collect();
        for (at, len, c, what) in changes {
            if text.is_empty() {
                break;
            }
            let at = at.index(text.len());
            let end = (at + len).min(text.len());
            let piece = text[at..end].to_vec();
            match what {
                0 => drop(text.drain(at..end)),
                1 => drop(text.splice(at..at, piece)),
                _ => text[at] = c,
            }
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_and_no_bytes_make_a_condition_panic(
        text in prop_oneof![words(), mutated(), any::<String>()],
        list in any::<u8>(),
        span in prop_oneof![prop::collection::vec(any::<u8>(), 0..60), spans()],
    ) {
        let data = [&[list], text.as_bytes(), &[0], &span].concat();
        a_condition_is_refused_or_answers(&data);
    }
}

/// Spans of agents, sometimes with a byte changed.
fn spans() -> impl Strategy<Value = Vec<u8>> {
    let change = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (0u64..8, change).prop_map(|(seed, change)| {
        let mut span = agent_span(seed);
        if let Some((at, byte)) = change {
            let at = at.index(span.len());
            span[at] = byte;
        }
        span
    })
}

fn agent_span(seed: u64) -> Vec<u8> {
    let request = agents::batch(agents::Shape::Agent, 4, seed);
    let scopes = request.resource_spans.iter().flat_map(|it| &it.scope_spans);
    let span: &Span = scopes.flat_map(|it| &it.spans).next().unwrap();
    span.encode_to_vec()
}

/// Long texts of every shape that could nest or repeat. Quadratic time would be minutes.
#[test]
fn long_conditions_take_linear_time() {
    let half = 30_000;
    let shapes: &[(&str, &str, &str)] = &[
        ("(", "", ""),
        ("not (", "true", ")"),
        ("[", "", "]"),
        ("{\"a\":", "1", "}"),
        ("Len(", "name", ")"),
        ("attributes[", "\"a\"", "]"),
        ("1 + ", "1", " == 1"),
        ("- ", "1", ""),
        ("true and ", "true", ""),
        ("name == \"a\" or ", "true", ""),
        ("a.", "a", " == 1"),
        ("A ", "", ""),
        ("[A ", "A", "] == 1"),
        ("a A ", "", ""),
        ("(a,", "a", ") => 1"),
        ("F(a=", "1", ")"),
        ("\"\\\"", "", ""),
        ("[1,", "1", "] == [1]"),
        ("attributes[\"a\"][0]", " == 1", ""),
    ];
    for (front, middle, back) in shapes {
        let repeated = |part: &str| part.repeat(half / front.len().max(1));
        for text in [
            format!("{}{middle}{}", repeated(front), repeated(back)),
            format!("{}{middle}{back}", repeated(front)),
        ] {
            let mut data = vec![0];
            data.extend(text.bytes());
            data.push(0);
            data.extend(agent_span(1));
            a_condition_is_refused_or_answers(&data);
        }
    }
}

/// The seeds of `fuzz/corpus/ottl` go through the claim that the fuzz target makes.
#[test]
fn the_fuzz_corpus_holds() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/ottl");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        a_condition_is_refused_or_answers(&std::fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files >= CONDITIONS.len(), "the corpus is gone");
}

#[test]
#[ignore = "writes the seeds of the fuzz corpus"]
fn write_seeds() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/ottl");
    std::fs::create_dir_all(&corpus).unwrap();
    for (number, text) in CONDITIONS.iter().enumerate() {
        let seed = [&[0], text.as_bytes(), &[0], &agent_span(number as u64)].concat();
        std::fs::write(corpus.join(format!("condition-{number}")), seed).unwrap();
    }
    let event = [
        &[1],
        &br#"attributes["exception.type"] == "x" and span.name != name"#[..],
        &[0],
        &agent_span(1),
    ];
    std::fs::write(corpus.join("event"), event.concat()).unwrap();
}
