//! `tailring check`, `tailring schema` and `tailring explain` as people start them.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

fn tailring(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tailring"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    // A tool that does not read it has ended already.
    pipe.write_all(stdin.as_bytes()).ok();
    drop(pipe);
    child.wait_with_output().expect("the tool ends")
}

#[track_caller]
fn check_output(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), stdout);
    assert_eq!(output.status.code(), Some(code), "{said}");
}

/// The only object in a line, or all of the text.
#[track_caller]
fn object(output: &Output, code: i32) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said, "");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    }
}

const POLICIES: &str = r#"
decision_wait: 30m
quiet_period: 30s
num_traces: 100
policies:
  - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
  - {name: slow, type: latency, latency: {threshold_ms: 5000, upper_threshold_ms: 60000}}
  - {name: share, type: probabilistic, probabilistic: {sampling_percentage: 1}}
  - {name: cap, type: rate_limiting, rate_limiting: {spans_per_second: 50}}
  - name: paying
    type: and
    and:
      and_sub_policy:
        - {name: tenant, type: string_attribute, string_attribute: {key: tenant.id, values: [acme]}}
        - {type: not, not: {not_sub_policy: {name: probe, type: ottl_condition, ottl_condition: {span: ['IsMatch(name, "^/health") or resource.attributes["probe"] == true'], spanevent: ['name == "probe"']}}}}
"#;

#[test]
fn check_shows_the_plan_of_a_file() {
    let files = Files::new();
    let file = files.write("policies.yaml", POLICIES);
    let output = tailring(&["check", &file], "");
    let version = tailring::policy::parse(POLICIES)
        .expect("a file")
        .rules
        .version;
    let expected = r#"FILE: valid, 5 policies

rules version      VERSION
a trace is judged  at the earliest of: 30m after its first span, 30s after its last span

What each policy looks at

policy       type              looks at
errors       status_code       span: status.code
slow         latency           span: end_time_unix_nano, start_time_unix_nano
share        probabilistic     trace: trace_id; span: trace_state["ot"].rv
cap          rate_limiting     trace: number of spans, trace_id; span: trace_state["ot"].rv
paying       and               resource: attributes["probe"], attributes["tenant.id"]; span: attributes["tenant.id"], name; event: name
  tenant     string_attribute  resource: attributes["tenant.id"]; span: attributes["tenant.id"]
  (unnamed)  not               resource: attributes["probe"]; span: name; event: name
    probe    ottl_condition    resource: attributes["probe"]; span: name; event: name

What settles an answer before a trace is complete (-: only the whole trace)

policy       yes                                                      no
errors       with the first span that has one of the codes            -
slow         -                                                        -
share        with the first span that states its randomness (rv)      with the first span that states its randomness (rv)
cap          -                                                        -
paying       -                                                        with the first no inside
  tenant     with the first resource or span that matches             -
  (unnamed)  -                                                        with the first span or event of which a condition holds
    probe    with the first span or event of which a condition holds  -

What is approximate

share: keeps 1.0000228882 % of traces (th:fd70a): shares are rounded to four hex digits
cap: 50 spans a second, at most 100 at once, divided among the workers by their share of the ring
cap: decides in windows of 1 s, the highest randomness first, and the last trace may overdraw; which traces it keeps depends on the others

What a worker says at its start

FILE:4:1: `num_traces` bounds nothing here; bytes do (--log-max-bytes, --memory-limit)
"#;
    let expected = expected
        .replace("FILE", &file)
        .replace("VERSION", &version.to_string());
    check_output(&output, 0, &expected, "");

    let plan = object(&tailring(&["check", &file, "--output", "json"], ""), 0);
    assert_eq!(plan["valid"], true);
    assert_eq!(plan["rules_version"], version.to_string());
    assert_eq!(plan["timing"]["quiet_period"], "30s");
    assert_eq!(
        plan["policies"][0],
        json!({
            "name": "errors", "type": "status_code",
            "looks_at": {"trace": [], "resource": [], "scope": [], "span": ["status.code"], "event": []},
            "settled": {"yes": "with the first span that has one of the codes", "no": null},
            "approximations": []
        })
    );
    let probe = &plan["policies"][4]["policies"][1]["policies"][0];
    assert_eq!(probe["looks_at"]["event"], json!(["name"]));
    assert_eq!(plan["notices"][0]["line"], 4);
}

#[test]
fn check_takes_what_a_worker_takes() {
    let root = env!("CARGO_MANIFEST_DIR");
    for file in [
        "deploy/policies/fleet.yaml",
        "tests/policies/every-policy.yaml",
        "tests/policies/collector.yaml",
    ] {
        let output = tailring(&["check", &format!("{root}/{file}")], "");
        assert_eq!(output.status.code(), Some(0), "{file}");
    }
}

#[test]
fn every_mistake_is_in_one_report() {
    let files = Files::new();
    let file = files.write(
        "policies.yaml",
        "decison_wait: 10s\npolicies:\n  - name: a\n    type: bytes_limiting\n  - {name: a, type: trace_flags}\n",
    );
    let expected = "FILE has 3 mistakes
  FILE:1:1: no setting is called `decison_wait`; did you mean `decision_wait`?
  FILE:4:11: the policy has no block `bytes_limiting`; write one, for example
    bytes_limiting:
      bytes_per_second: 1048576
  FILE:5:12: the name `a` is taken by the policy in line 3; names are told apart in metrics and decisions
"
    .replace("FILE", &file);
    let output = tailring(&["check", &file], "");
    check_output(&output, 64, "", &format!("tailring check: {expected}"));
    let output = tailring(&["explain", "--policies", &file, "-"], "");
    check_output(&output, 64, "", &format!("tailring explain: {expected}"));

    let refused = object(&tailring(&["check", &file, "--output", "json"], ""), 64);
    assert_eq!(refused["valid"], false);
    let places = refused["mistakes"].as_array().expect("a list").iter();
    let places: Vec<_> = places
        .map(|it| (it["line"].as_u64(), it["column"].as_u64()))
        .collect();
    assert_eq!(
        places,
        [(Some(1), Some(1)), (Some(4), Some(11)), (Some(5), Some(12))]
    );

    let absent = format!("{file}.yaml");
    let output = tailring(&["check", &absent], "");
    let said = "tailring check: FILE cannot be read: No such file or directory (os error 2)\n";
    check_output(&output, 64, "", &said.replace("FILE", &absent));
    let refused = object(&tailring(&["check", &absent, "--output", "json"], ""), 64);
    assert!(refused["error"].as_str().is_some(), "{refused}");
}

#[test]
fn schema_prints_the_schema() {
    let printed = object(&tailring(&["schema"], ""), 0);
    assert_eq!(printed, tailring::policy::schema());
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A request of one resource. Spans: ID, name, seconds from and to, what else there is.
fn request(resource: &str, spans: &[(u8, &str, u64, u64, &str)]) -> String {
    let spans: Vec<String> = spans
        .iter()
        .map(|(id, name, start, end, more)| {
            format!(
                r#"{{"traceId":"{TRACE}","spanId":"{id:016x}","name":"{name}","startTimeUnixNano":"{}","endTimeUnixNano":"{}"{more}}}"#,
                (1000 + start) * 1_000_000_000,
                (1000 + end) * 1_000_000_000,
            )
        })
        .collect();
    format!(
        r#"{{"resourceSpans":[{{"resource":{{"attributes":[{resource}]}},"scopeSpans":[{{"spans":[{}]}}]}}]}}"#,
        spans.join(",")
    )
}

fn attribute(key: &str, value: &str) -> String {
    format!(r#"{{"key":"{key}","value":{value}}}"#)
}

fn explained(policies: &str, traces: &str) -> Value {
    let files = Files::new();
    let policies = files.write("policies.yaml", policies);
    let args = ["explain", "--policies", &policies, "-", "--output", "json"];
    object(&tailring(&args, traces), 0)
}

#[test]
fn explain_says_which_span_made_each_vote() {
    let files = Files::new();
    let policies = files.write("policies.yaml", POLICIES);
    let acme = attribute("tenant.id", r#"{"stringValue":"acme"}"#);
    let first = request(
        &acme,
        &[
            (1, "POST /turn", 0, 3, ""),
            (2, "call tool", 1, 2, r#","status":{"code":2}"#),
        ],
    );
    let second = request(
        "",
        &[(
            3,
            "/healthz",
            2,
            8,
            r#","events":[{"name":"start"},{"name":"probe"}]"#,
        )],
    );
    let traces = files.write("trace.json", &format!("{first}\n{first}\n{second}\n"));
    let output = tailring(&["explain", "--policies", &policies, &traces], "");
    let expected = r#"trace 4bf92f3577b34da6a3ce929d0e0e4736  KEEP by errors, T = th:0, a share of 1
judged are                              3 spans in 2 fragments, and 1 that came twice and count once

errors (status_code): sampled
    span 0000000000000002 "call tool": status ERROR

slow (latency): sampled
    it took 8000 ms, from the start of span 0000000000000001 "POST /turn" to the end of span 0000000000000003 "/healthz"; wanted are more than 5000 and at most 60000

share (probabilistic): not_sampled
    the randomness R = ce929d0e0e4736 (from the trace ID) is below T = fd70a000000000 (th:fd70a, 1.0000228882 % of traces)

cap (rate_limiting): sampled
    50 spans a second, at most 100 at once: alone it has room for this trace of 3 spans; among others it depends on them

paying (and): not_sampled
    the not without a name says not_sampled
  tenant (string_attribute): sampled
      resource: tenant.id = "acme"
  (unnamed) (not): not_sampled
      `probe` says sampled
    probe (ottl_condition): sampled
        span 0000000000000003 "/healthz": span[0] holds: IsMatch(name, "^/health") or resource.attributes["probe"] ==…
        span 0000000000000003 "/healthz", event 1 "probe": spanevent[0] holds: name == "probe"
"#;
    check_output(&output, 0, expected, "");

    let told = explained(POLICIES, &format!("{first}{second}"));
    assert_eq!(told["trace_id"], TRACE);
    assert_eq!(told["verdict"], "keep");
    assert_eq!(told["threshold"], json!({"th": "0", "share": 1.0}));
    assert_eq!(told["kept_by"], "errors");
    assert_eq!(told["if_limits_refuse"], Value::Null);
    let votes = told["policies"].as_array().expect("a list").iter();
    let votes: Vec<_> = votes
        .map(|it| (it["name"].as_str(), it["vote"].as_str()))
        .collect();
    assert_eq!(
        votes,
        [
            (Some("errors"), Some("sampled")),
            (Some("slow"), Some("sampled")),
            (Some("share"), Some("not_sampled")),
            (Some("cap"), Some("sampled")),
            (Some("paying"), Some("not_sampled"))
        ]
    );
    assert_eq!(
        told["policies"][0]["reasons"],
        json!([{"at": "span", "span_id": "0000000000000002", "span_name": "call tool", "text": "status ERROR"}])
    );
}

#[test]
fn explain_says_what_hangs_on_limits_luck_and_errors() {
    let one = request("", &[(1, "a", 0, 1, "")]);
    // Kept by a limit alone, and by a share of a half, which says with which T.
    let cap = "{name: cap, type: rate_limiting, rate_limiting: {spans_per_second: 1}}";
    let told = explained(&format!("policies: [{cap}]"), &one);
    assert_eq!(told["verdict"], "keep");
    assert_eq!(told["if_limits_refuse"]["verdict"], "drop");
    let half = "{name: half, type: probabilistic, probabilistic: {sampling_percentage: 50}}";
    let told = explained(&format!("policies: [{half}, {cap}]"), &one);
    assert_eq!(told["threshold"], json!({"th": "0", "share": 1.0}));
    assert_eq!(
        told["if_limits_refuse"],
        json!({"verdict": "keep", "threshold": {"th": "8", "share": 0.5}, "kept_by": "half"})
    );
    // Nobody can say how likely a hash keeps it.
    let hash = "{name: hash, type: probabilistic, probabilistic: {sampling_percentage: 100, hash_salt: x}}";
    let told = explained(&format!("policies: [{hash}]"), &one);
    assert_eq!(
        (&told["verdict"], &told["threshold"]),
        (&json!("keep"), &Value::Null)
    );
    // A drop stands before all others, which are not asked then; an error is no vote.
    let all = "{name: all, type: always_sample}";
    let drop = "{name: never, type: drop, drop: {drop_sub_policy: [{type: latency, latency: {threshold_ms: 500}}]}}";
    let error = r#"{name: broken, type: ottl_condition, ottl_condition: {error_mode: propagate, span: ['Int(attributes["x"]) / 0 == 1']}}"#;
    let told = explained(&format!("policies: [{all}, {drop}, {error}]"), &one);
    assert_eq!(
        (&told["verdict"], &told["kept_by"]),
        (&json!("drop"), &Value::Null)
    );
    let votes = told["policies"].as_array().expect("a list").iter();
    let votes: Vec<_> = votes
        .map(|it| (it["vote"].as_str(), it["asked"].as_bool()))
        .collect();
    assert_eq!(
        votes,
        [
            (Some("sampled"), Some(false)),
            (Some("dropped"), Some(true)),
            (Some("error"), Some(false))
        ]
    );
    let reason = &told["policies"][2]["reasons"][0];
    assert_eq!(reason["span_id"], "0000000000000001", "{reason}");
}

#[test]
fn explain_judges_as_the_rules_say() {
    let two = [
        request("", &[(1, "a", 0, 1, "")]),
        request("", &[(2, "b", 0, 9, r#","status":{"code":2}"#)]),
    ]
    .concat();
    let errors = "{name: errors, type: status_code, status_code: {status_codes: [ERROR]}}";
    let told = explained(
        &format!("sampling_strategy: span-ingest\npolicies: [{errors}]"),
        &two,
    );
    assert_eq!(
        (&told["verdict"], &told["spans"]),
        (&json!("keep"), &json!(2))
    );
    let note = told["notes"][0].as_str().expect("a note");
    assert!(note.contains("fragment 2 of 2 decided"), "{note}");
    let told = explained(
        &format!("maximum_trace_size_bytes: 20\npolicies: [{errors}]"),
        &two,
    );
    assert_eq!(told["verdict"], "drop");
    assert_eq!(told["policies"][0]["vote"], "sampled");
    assert_eq!(told["policies"][0]["asked"], false);
    // As a Collector has it, a trace was within the bounds for a while.
    let bounds = "policies: [{name: slow, type: latency, latency: {threshold_ms: 500, upper_threshold_ms: 5000}}]";
    let told = explained(bounds, &two);
    assert_eq!(told["verdict"], "drop");
    let told = explained(&format!("compatibility: collector\n{bounds}"), &two);
    assert_eq!(told["verdict"], "keep");
    assert_eq!(
        told["policies"][0]["reasons"][0]["span_id"],
        "0000000000000001"
    );
}

#[test]
fn traces_come_one_after_the_other() {
    let files = Files::new();
    let policies = files.write(
        "policies.yaml",
        "policies: [{name: all, type: always_sample}]",
    );
    let one = request("", &[(1, "a", 0, 1, "")]);
    let other = one.replace("4736\"", "4737\"");
    let args = ["explain", "--policies", &policies, "-", "--output", "json"];
    // The first one goes on behind the second one.
    let late = request("", &[(2, "b", 0, 1, "")]);
    let output = tailring(&args, &format!("{one}\n{other}\n{late}\n"));
    let lines = String::from_utf8_lossy(&output.stdout);
    let told: Vec<_> = lines
        .lines()
        .map(|line| {
            let told: Value = serde_json::from_str(line).expect("an object a line");
            (told["trace_id"].clone(), told["spans"].clone())
        })
        .collect();
    let second = TRACE.replace("4736", "4737");
    assert_eq!(told, [(json!(TRACE), json!(2)), (json!(second), json!(1))]);
}

#[test]
fn bad_traces_are_refused_with_their_place() {
    let files = Files::new();
    let policies = files.write(
        "policies.yaml",
        "policies: [{name: all, type: always_sample}]",
    );
    let one = request("", &[(1, "a", 0, 1, "")]);
    let refused = |traces: &str, expected: &str| {
        let args = ["explain", "--policies", &policies, "-"];
        let output = tailring(&args, traces);
        check_output(&output, 1, "", &format!("tailring explain: {expected}\n"));
    };
    refused(
        &format!(
            "{one}\n{{\"resourceSpans\":[\n{{\"scopeSpans\":[{{\"spans\":[{{\"name\":5}}]}}]}}]}}\n"
        ),
        "stdin:3:34: resourceSpans[0].scopeSpans[0].spans[0].name: expected a string, found 5",
    );
    refused(
        &format!("{one}\nnonsense\n"),
        "stdin:2:1: the request: expected an object, the ExportTraceServiceRequest, found nonsense",
    );
    refused(
        "",
        "stdin has no span; an ExportTraceServiceRequest as JSON begins with {\"resourceSpans\":[",
    );
    let absent = files
        .0
        .path()
        .join("absent")
        .to_str()
        .expect("UTF-8")
        .to_owned();
    let output = tailring(&["explain", "--policies", &policies, &absent], "");
    let said = format!(
        "tailring explain: {absent} cannot be read: No such file or directory (os error 2)\n"
    );
    check_output(&output, 1, "", &said);
    // A span without a lawful ID is left out, as a worker leaves it out.
    let bad = one.replace("0000000000000001", "0000000000000000");
    let args = ["explain", "--policies", &policies, "-"];
    let output = tailring(&args, &format!("{bad}\n{one}\n"));
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("tailring explain: stdin:1: left out"),
        "{said}"
    );
    // Usage.
    assert_eq!(tailring(&["explain", "-"], "").status.code(), Some(64));
}
