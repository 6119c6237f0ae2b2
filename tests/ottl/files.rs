//! How files write conditions, and what whole rules make of them.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as V;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;

use tailring::model::{Moment, TraceId, Verdict};
use tailring::policy::{FoldState, LimitAnswers, Odds, Rules, Said, parse};
use tailring::wire::{Fragments, Scan, ScanLimits};

/// A file with one policy of this block.
fn file(block: &str) -> String {
    format!("policies:\n  - name: pay\n    type: ottl_condition\n    ottl_condition:\n{block}")
}

fn mistakes(block: &str) -> String {
    let mistakes = parse(&file(block)).expect_err("a mistake");
    let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    mistakes.join("\n")
}

fn rules(block: &str) -> Rules {
    parse(&file(block)).unwrap().rules
}

#[test]
fn each_mistake_names_its_place_and_says_what_to_write() {
    let report = mistakes(
        r##"      error_mode: sometimes
      span:
        - "name == 'a'"
        - 'name == "a" AND true'
        - 'IsMatch(name, "\d+")'
        - 'end_time - start_time > duration("1s")'
        - 'span.duration > Duration("1s")'
        - 'MD5(name) == "x"'
        - 'IsMatch(name, "a**")'
        - 5
      spanevent: 'kind == 2'
"##,
    );
    let expected = r##"5:19: `error_mode` is the text `sometimes`; write ignore, silent or propagate, or leave it out
7:11: policy `pay`, ottl_condition.span[0]: not OTTL: `'` quotes nothing at column 9
  name == 'a'
          ^
  strings are written with double quotes
8:11: policy `pay`, ottl_condition.span[1]: not OTTL: unexpected `AND`; the end, `and` or `or` is expected at column 13
  name == "a" AND true
              ^
  write `and` in lower case
9:11: policy `pay`, ottl_condition.span[2]: not OTTL: `\d` means nothing in a string at column 16
  IsMatch(name, "\d+")
                 ^
  in a regular expression write the backslash twice: "\\d"
10:11: policy `pay`, ottl_condition.span[3]: not OTTL: the function `duration` does not begin with an upper-case letter at column 25
  end_time - start_time > duration("1s")
                          ^
  write Duration(…)
11:11: policy `pay`, ottl_condition.span[4]: not OTTL: `span` has no field `duration` at column 6
  span.duration > Duration("1s")
       ^
  write end_time - start_time > Duration("1s")
12:11: policy `pay`, ottl_condition.span[5]: OTTL, but not supported here: the function MD5 at column 1
  MD5(name) == "x"
  ^
"##;
    assert!(report.starts_with(expected), "{report}");
    let rest = &report[expected.len()..];
    for part in [
        "supported are Bool, Coalesce, ",
        "13:11: policy `pay`, ottl_condition.span[6]: not OTTL: the regular expression is not one of RE2: a repetition of a repetition",
        "14:11: policy `pay`, ottl_condition.span[7] is the number 5; write a condition in quotes",
        "15:18: policy `pay`, ottl_condition.spanevent[0]: not OTTL: `spanevent` has no field `kind` at column 1",
        "of the span it is span.kind",
    ] {
        assert!(rest.contains(part), "{part}\n{rest}");
    }
}

/// Rows P1, P19 and P25 of the reference.
#[test]
fn what_the_collector_refuses_at_start_is_refused() {
    for (block, expected) in [
        ("      span: []\n", "`ottl_condition` has no condition"),
        ("      {}\n", "`ottl_condition` has no condition"),
        (
            "      span: ['zzz == 1']\n      spanevent: ['true']\n",
            "`span` has no field `zzz`",
        ),
        (
            "      span_event: ['true']\n      span: ['true']\n",
            "did you mean `spanevent`?",
        ),
        (
            "      error_mode: \"\"\n      span: ['true']\n",
            "`error_mode` is the text ``",
        ),
        (
            "      error_mode:\n      span: ['true']\n",
            "`error_mode` is empty",
        ),
        (
            "      error_mode: bogus\n      span: ['true']\n",
            "`error_mode` is the text `bogus`",
        ),
    ] {
        let report = mistakes(block);
        assert!(report.contains(expected), "{block}: {report}");
    }
    rules("      error_mode: IGNORE\n      span: 'true'\n");
}

#[test]
fn what_is_valid_and_never_true_is_noticed() {
    let block = r#"      span:
        - 'kind == "Server"'
        - 'attributes["service.name"] == "a"'
        - 'status.code == "ERROR"'
        - 'name != "a"'
"#;
    let notices = parse(&file(block)).unwrap().notices;
    let notices: Vec<String> = notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        notices.join("\n"),
        r#"6:11: policy `pay`, ottl_condition.span[0]: valid OTTL, but never true here: a number and a text are never equal, less or greater at column 6
  kind == "Server"
       ^
  write kind.string == "Server", or a constant such as SPAN_KIND_SERVER
7:11: policy `pay`, ottl_condition.span[1]: valid OTTL, but `service.name` is an attribute of resources, which spans do not have at column 1
  attributes["service.name"] == "a"
  ^
  write resource.attributes["service.name"]
8:11: policy `pay`, ottl_condition.span[2]: valid OTTL, but never true here: a number and a text are never equal, less or greater at column 13
  status.code == "ERROR"
              ^
  write STATUS_CODE_UNSET, STATUS_CODE_OK or STATUS_CODE_ERROR"#
    );
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue {
            value: Some(V::StringValue(value.into())),
        }),
        ..Default::default()
    }
}

/// Two scopes under one resource, one span each; the second has an event.
fn message() -> Vec<u8> {
    let span = |id: u8, event: bool| Span {
        trace_id: vec![7; 16],
        span_id: vec![id; 8],
        name: format!("span{id}"),
        attributes: vec![attribute("n", &id.to_string())],
        events: event
            .then(|| Event {
                name: "exception".into(),
                attributes: vec![attribute("type", "Timeout")],
                ..Default::default()
            })
            .into_iter()
            .collect(),
        ..Default::default()
    };
    let scope = |name: &str, span| ScopeSpans {
        scope: Some(InstrumentationScope {
            name: name.into(),
            attributes: vec![attribute("lang", name)],
            ..Default::default()
        }),
        spans: vec![span],
        ..Default::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", "checkout")],
                ..Default::default()
            }),
            scope_spans: vec![scope("one", span(1, false)), scope("two", span(2, true))],
            ..Default::default()
        }],
    }
    .encode_to_vec()
}

fn folded(rules: &Rules) -> (FoldState, FoldState) {
    let message = message();
    let (mut scan, mut fragments) = (Scan::default(), Fragments::default());
    scan.read(&message, &ScanLimits::default()).unwrap();
    fragments.group(&message, &scan);
    assert_eq!(fragments.all().len(), 1);
    let view = fragments.view(&message, &scan, 0);
    let arrival = Moment::from_unix_millis(1_581_452_775_000);
    let mut state = rules.begin();
    rules.fold(&mut state, &view, arrival);

    // As the log gives it back.
    let resource: Vec<u8> = view.resource().pieces().flatten().copied().collect();
    let scopes: Vec<(Vec<u8>, Vec<u8>)> = view
        .scopes()
        .map(|scope| {
            let header = scope.header.pieces().flatten().copied().collect();
            let mut spans = Vec::new();
            scope.write_spans_to(&mut spans);
            (header, spans)
        })
        .collect();
    let scopes = scopes
        .iter()
        .map(|(header, spans)| (&header[..], &spans[..]));
    let mut again = rules.begin();
    rules.fold_stored(&mut again, &resource, scopes, arrival);
    (state, again)
}

#[test]
fn a_trace_is_folded_alike_when_it_comes_and_when_it_is_read_back() {
    let trace = TraceId::new([7; 16]).unwrap();
    for (condition, kept) in [
        (r#"span: 'name == "span2"'"#, true),
        (r#"span: 'name == "span3"'"#, false),
        (
            r#"span: 'scope.name == "two" and attributes["n"] == "2"'"#,
            true,
        ),
        (
            r#"span: 'scope.name == "two" and attributes["n"] == "1"'"#,
            false,
        ),
        (r#"span: 'scope.attributes["lang"] == "two"'"#, true),
        (r#"span: 'scope.attributes["lang"] == "three"'"#, false),
        (
            r#"span: 'resource.attributes["service.name"] == "checkout"'"#,
            true,
        ),
        (
            r#"span: 'resource.attributes["service.name"] == "cart"'"#,
            false,
        ),
        (r#"span: 'Now() == Unix(1581452775)'"#, true),
        (
            r#"spanevent: 'attributes["type"] == "Timeout" and span.name == "span2"'"#,
            true,
        ),
        (r#"spanevent: 'span.name == "span1"'"#, false),
        (
            r#"spanevent: ['name == "x"', 'resource.attributes["service.name"] == "checkout"']"#,
            true,
        ),
    ] {
        let rules = rules(&format!("      {condition}\n"));
        let (state, again) = folded(&rules);
        assert_eq!(state, again, "{condition}");
        let expected = if kept { Verdict::Keep } else { Verdict::Drop };
        let vote = rules.vote(trace, &state, 2, &LimitAnswers::default());
        assert_eq!(vote.verdict, expected, "{condition}");
    }
}

#[test]
fn an_error_is_no_vote_where_it_is_propagated_and_no_match_elsewhere() {
    let trace = TraceId::new([7; 16]).unwrap();
    for (mode, kept) in [("ignore", true), ("silent", true), ("propagate", false)] {
        let rules = rules(&format!(
            "      error_mode: {mode}\n      span: ['Len(attributes[\"x\"]) > 0', 'name == \"span2\"']\n"
        ));
        let (state, again) = folded(&rules);
        assert_eq!(state, again);
        let vote = rules.vote(trace, &state, 2, &LimitAnswers::default());
        assert_eq!(vote.verdict == Verdict::Keep, kept, "{mode}");
    }
}

#[test]
fn policies_share_one_walk_and_not_their_answers() {
    let text = "policies:
  - {name: a, type: ottl_condition, ottl_condition: {span: ['attributes[\"n\"] == \"3\"']}}
  - {name: b, type: ottl_condition, ottl_condition: {span: ['attributes[\"n\"] == \"2\"']}}
  - {name: c, type: ottl_condition, ottl_condition: {spanevent: ['attributes[\"n\"] == \"2\"']}}
";
    let rules = parse(text).unwrap().rules;
    let (state, _) = folded(&rules);
    let trace = TraceId::new([7; 16]).unwrap();
    assert_eq!(
        rules
            .vote(trace, &state, 2, &LimitAnswers::default())
            .policy,
        Some(1)
    );
}

#[test]
fn other_conditions_are_other_rules() {
    let version = |block: &str| rules(block).version;
    let one = version("      span: ['true', 'false']\n");
    assert_eq!(one, version("      span: [ 'true', 'false' ]\n"));
    for other in [
        "      span: ['true']\n",
        "      span: ['true']\n      spanevent: ['false']\n",
        "      span: ['true', 'false']\n      error_mode: propagate\n",
    ] {
        assert_ne!(one, version(other), "{other}");
    }
    // What is only said about errors changes no verdict.
    assert_eq!(
        one,
        version("      span: ['true', 'false']\n      error_mode: silent\n")
    );
}

/// Row P23 of the reference: `not` passes an error on; where errors are no matches, it inverts that.
#[test]
fn an_error_goes_through_other_policies() {
    let trace = TraceId::new([7; 16]).unwrap();
    let no = Said::NotSampled { certain: true };
    let yes = Said::Sampled(Odds::CERTAIN);
    for (mode, inside_not, inside_and) in [
        ("propagate", Said::Error, Said::Error),
        ("ignore", yes, no),
        ("silent", yes, no),
    ] {
        let failing = format!(
            "{{name: x, type: ottl_condition, ottl_condition: {{error_mode: {mode}, span: 'Len(attributes[\"x\"]) > 0'}}}}"
        );
        let text = format!(
            "policies:
  - {{name: n, type: not, not: {{not_sub_policy: {failing}}}}}
  - {{name: a, type: and, and: {{and_sub_policy: [{{name: y, type: always_sample}}, {failing}]}}}}
"
        );
        let rules = parse(&text).unwrap().rules;
        let (state, _) = folded(&rules);
        let votes = rules.votes(trace, &state, 2, &LimitAnswers::default());
        assert_eq!(votes, [inside_not, inside_and], "{mode}");
    }
}
