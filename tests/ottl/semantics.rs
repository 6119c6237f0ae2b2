//! More of the language than the rows show, by the text of the reference.

use super::Answer::{self, E, F, P, T};
use super::answer;
use super::fixture::Fixture::{self, H, S, W, Z};
use tailring::policy::ottl::{Condition, Context, ErrorKind};

fn check(rows: &[(Fixture, &str, Answer)]) {
    let wrong: Vec<String> = rows
        .iter()
        .map(|row| (row, answer(row.1, row.0)))
        .filter(|(row, ours)| row.2 != *ours)
        .map(|((fixture, text, expected), ours)| {
            format!("{fixture:?} {text}: expected {expected:?}, and we say {ours:?}")
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_are_what_the_reference_says() {
    check(&[
        (S, r#"kind.string == "Server" and span.kind == 2"#, T),
        (Z, r#"kind.string == "Unspecified""#, T),
        (W, r#"kind.deprecated_string == "" and status.code == 7"#, T),
        (S, r#"status.message == "boom failed""#, T),
        (S, "status == status", T),
        (S, "events == events and events != links", T),
        (
            S,
            r#"trace_id.string == "0102030405060708090a0b0c0d0e0f10""#,
            T,
        ),
        (S, r#"span_id.string == "0102030405060708""#, T),
        (S, r#"parent_span_id == SpanID("0807060504030201")"#, T),
        (Z, "parent_span_id == SpanID(0x0000000000000000)", T),
        (Z, "parent_span_id == nil", F),
        (S, r#"trace_state == "key1=val1,key2=val2""#, T),
        (S, r#"trace_state["key1"]["x"] == nil"#, P),
        (S, "trace_state[0] == nil", E),
        (S, "trace_state[name] == nil", E),
        (Z, r#"trace_state["a"] == """#, T),
        (S, "start_time_unix_nano == 1581452772000000321", T),
        (
            S,
            "UnixNano(end_time) - start_time_unix_nano == 1500000000",
            T,
        ),
        (H, "end_time > start_time and start_time < Unix(0)", T),
        (
            S,
            "dropped_events_count == 20 and dropped_links_count == 30",
            T,
        ),
        (S, "Len(links) == 1 and IsList(events)", T),
        (S, "flags == 257", T),
        (S, r#"cache["x"] == nil and Len(cache) == 0"#, T),
        (S, "resource.cache == nil", P),
        (
            S,
            r#"resource.attributes["k8s"]["pod"]["name"] == "p-1""#,
            T,
        ),
        (S, "resource.dropped_attributes_count == 3", T),
        (
            S,
            r#"resource.schema_url == "" and scope.schema_url == """#,
            T,
        ),
        (H, r#"resource.attributes["service.name"] == nil"#, T),
        (S, r#"scope.attributes["lang"] == "rust""#, T),
        (S, "scope.dropped_attributes_count == 4", T),
        (Fixture::Ev, "time_unix_nano == 1581452772500000000", T),
        (Fixture::Ev, "time - span.start_time < Duration(\"1s\")", T),
        (Fixture::Ev, "dropped_attributes_count == 2", T),
        (Fixture::Ev, r#"spanevent.attributes["escaped"] == true"#, T),
        (Fixture::Ev, "span.cache == nil", P),
        (Fixture::Ev, "cache == nil", F),
        (S, "otelcol.client.addr == nil", T),
        (S, r#"otelcol.client.metadata["k"][0] == nil"#, T),
        (S, "otelcol.nothing == nil", P),
        (S, "span == nil", P),
        (S, "resource == nil", P),
        (S, "attributes.http == nil", P),
        (S, r#"status["code"] == 2"#, P),
        (S, r#"Len(attributes) == 28"#, T),
        (
            S,
            r#"attributes["k" ] == nil and attributes ["ok"] == true"#,
            T,
        ),
    ]);
}

#[test]
fn keys_go_into_maps_and_lists_and_nothing_else() {
    check(&[
        (H, r#"attributes["dup"] == "one""#, T),
        (H, r#"attributes[String("dup")] == "one""#, T),
        (S, r#"attributes["arr"][2] == "c""#, T),
        (S, r#"attributes["arr"][3] == nil"#, E),
        (S, r#"attributes["arr"]["x"] == nil"#, E),
        (S, r#"attributes["nested"][0] == nil"#, E),
        (S, r#"attributes["http.method"]["x"] == nil"#, E),
        (S, r#"attributes["nested"]["nope"][name] == nil"#, T),
        (S, r#"attributes["nope"][start_time] == nil"#, T),
        (S, r#"attributes["arr"][1.5] == nil"#, E),
        (S, r#"attributes["arr"][1 + 1] == "c""#, P),
        (S, r#"attributes["arr"][+1] == "b""#, T),
        (S, r#"Split("a,b", ",")[1] == "b""#, T),
        (S, r#"Split("a,b", ",")[2] == "b""#, E),
        (S, r#"Keys(attributes["nested"])[0] == "bar""#, T),
        (S, r#"Values(attributes["nested"])[0] == "pass""#, T),
        (S, "[1, 2][0] == 1", P),
        (S, r#"{"a": 1}["a"] == 1"#, P),
        (S, r#""abc"[0] == "a""#, P),
        (S, r#"(attributes["one"]) == 1"#, T),
        (S, r#"("a") == "a""#, P),
        (S, "(nil) == nil", P),
        (S, "(1 == 1) == true", P),
        (S, "1 == 1 == true", P),
    ]);
}

#[test]
fn values_compare_as_the_reference_says() {
    check(&[
        (S, r#"attributes["big"] == 9007199254740992.0"#, T),
        (S, "true == 1", F),
        (S, "0.0 == -0.0 and -0.0 == 0", T),
        (
            H,
            r#"attributes["eb"] <= nil and nil >= attributes["eb"]"#,
            T,
        ),
        (H, r#"0x01 == attributes["eb"]"#, F),
        (
            H,
            r#"0x01 != attributes["eb"] and Len(attributes["eb"]) == 0"#,
            T,
        ),
        (H, r#"attributes["arrnull"] == [nil, 1]"#, T),
        (H, r#"attributes["m1"] == {"b": 2, "a": 1}"#, T),
        (H, r#"attributes["m1"] == {"b": 2, "a": 1.0}"#, F),
        (
            S,
            r#"attributes["things"] == [{"name": "foo", "value": 2}, {"name": "bar", "value": 5}]"#,
            F,
        ),
        (S, r#"[attributes["ints"]] == [attributes["ints"]]"#, T),
        (
            S,
            r#"attributes["ints"] == [1, 2, 3] and [1] != [1.0] and [nil] == [nil]"#,
            T,
        ),
        (S, r#"attributes["arr"] < ["b"]"#, F),
        (S, r#"{"a": 1, "a": 2} == {"a": 2}"#, T),
        (S, r#"Split("a", ",") != nil"#, T),
        (S, r#"Split("a", ",") == Split("a", ",")"#, E),
        (S, "0x0102 > 0x01 and 0x02 > 0x0102", T),
        (S, r#"trace_id != span_id and trace_id != "x""#, T),
        (S, "trace_id >= trace_id", F),
        (
            S,
            r#"Duration("1m") == Duration("60s") and Duration("-1s") < Duration("0")"#,
            T,
        ),
        (
            S,
            "start_time < end_time and start_time != start_time_unix_nano",
            T,
        ),
        (S, "9223372036854775807 + 1 == -9223372036854775807 - 1", T),
        (S, "1.0 / 0 == 1", E),
        (S, r#"-name == "x""#, E),
        (S, r#"name + name == "x""#, E),
        (S, "-Duration(\"1s\") == Duration(\"1s\")", E),
        (S, "start_time + Duration(\"1500ms\") == end_time", T),
        (S, "Duration(\"1500ms\") + start_time == end_time", T),
        (S, "end_time - Duration(\"1500ms\") == start_time", T),
        (S, "1 / 0 == 1 and false", F),
        (S, "1 / 0 == 1 or 1 == 1", T),
        (S, "1 / 0 == 1 and 1 == 1", E),
        (S, "1 / 0 == 1 and [] == [1]", E),
        (S, "false and Foo()", P),
    ]);
}

#[test]
fn functions_answer_as_the_reference_says() {
    check(&[
        (S, r#"HasSuffix(attributes["http.route"], "users")"#, T),
        (S, "HasPrefix(name, nil)", P),
        (
            S,
            r#"Int(" 1") == nil and Int("+5") == 5 and Int(true) == 1"#,
            T,
        ),
        (S, r#"Int(attributes["arr"]) == nil"#, E),
        (
            S,
            r#"Double("1_000") == 1000 and Double(attributes["nope"]) == nil"#,
            T,
        ),
        (S, r#"Double("abc") == 1"#, P),
        (
            S,
            r#"String(1.0) == "1" and String(true) == "true" and String(0x0aff) == "0aff""#,
            T,
        ),
        (S, r#"String(attributes["nope"]) == nil"#, T),
        (
            S,
            r#"String(attributes["things"]) == "[{\"name\":\"foo\",\"value\":2},{\"name\":\"bar\",\"value\":5}]""#,
            T,
        ),
        (S, r#"String(["<"]) == "[\"\\u003c\"]""#, T),
        (
            S,
            r#"String({"b": 0x01, "a": nil}) == "{\"a\":null,\"b\":\"AQ==\"}""#,
            T,
        ),
        (S, r#"String(Duration("1us")) == "1000""#, T),
        (
            S,
            r#"String(start_time) == "\"2020-02-11T20:26:12.000000321Z\"""#,
            T,
        ),
        (
            S,
            r#"String(1.e21) == "1e+21" and String(0.0000001) == "1e-07""#,
            T,
        ),
        (S, "Len(1) == 1", E),
        (S, r#"Len(attributes["one"]) == 1"#, E),
        (S, "Len(trace_id) == 16", E),
        (S, r#"Len(attributes["bin"]) == 3 and Len(["a"]) == 1"#, T),
        (
            S,
            r#"IsInt(attributes["one"]) and IsDouble(attributes["one_f"]) and IsBool(attributes["ok"])"#,
            T,
        ),
        (
            S,
            r#"IsMap(attributes["nested"]) and IsList(attributes["arr"]) and IsMap(attributes)"#,
            T,
        ),
        (S, r#"IsString(attributes["http.method"]["x"])"#, E),
        (
            S,
            r#"Concat(["a", 1, nil, true], "-") == "a-1-<nil>-true""#,
            T,
        ),
        (S, r#"Concat(attributes["arr"], "-") == "a-b-c""#, P),
        (
            S,
            r#"ToUpperCase("straße é") == "STRAßE É" and ToLowerCase("ÀB") == "àb""#,
            T,
        ),
        (S, r#"ConvertCase(name, "upper") == "OPERATIONA""#, T),
        (S, r#"ConvertCase(name, "sideways") == """#, P),
        (S, r#"Len(Split("aé", "")) == 2"#, T),
        (S, r#"ContainsValue(attributes["ints"], 2.0)"#, T),
        (S, r#"ContainsValue(Split("a,b", ","), "b")"#, T),
        (
            S,
            r#"Substring("一二", 0, 3) == "一" and Substring("一二", 1, 1, true) == "二""#,
            T,
        ),
        (
            S,
            r#"Substring("一二", 1, 1, utf8_safe=true) == "二" and Substring("ab", 0, 1, utf8Safe=true) == "a""#,
            T,
        ),
        (S, r#"Substring("ab", -1, 1) == "a""#, E),
        (S, r#"Substring("ab", 0, 0) == """#, E),
        (S, r#"Substring("ab", "0", 1) == "a""#, P),
        (S, r#"Trim("  a ") == "a" and Trim("xax", "x") == "a""#, T),
        (S, r#"Trim("a", name) == "a""#, P),
        (
            S,
            r#"TrimPrefix(name, "operation") == "A" and TrimSuffix(name, "A") == "operation""#,
            T,
        ),
        (S, r#"TrimPrefix(name, "x") == name"#, T),
        (
            S,
            r#"Index(name, "ration") == 3 and Index(name, "x") == -1"#,
            T,
        ),
        (S, r#"Index(attributes["arr"], "c") == 2"#, T),
        (S, r#"Index(attributes["nope"], "c") == 2"#, E),
        (
            S,
            r#"Coalesce([attributes["nope"], attributes["one"]]) == 1"#,
            T,
        ),
        (S, "Coalesce([]) == nil", P),
        (S, r#"Coalesce([nil, nil]) == nil"#, T),
        (
            S,
            r#"Bool("T") and Bool(1) and Bool(0.5) and not Bool("false")"#,
            T,
        ),
        (S, r#"Bool(attributes["bad_num"])"#, E),
        (S, r#"Bool("maybe")"#, P),
        (S, r#"TraceID("xyz") == trace_id"#, P),
        (S, r#"TraceID(attributes["bad_num"]) == trace_id"#, E),
        (S, r#"TraceID(attributes["nope"]) == trace_id"#, E),
        (S, r#"SpanID("abcdefgh") == SpanID("6162636465666768")"#, T),
        (
            S,
            r#"Milliseconds(end_time - start_time) == 1500 and Seconds(Duration("1500ms")) == 1.5"#,
            T,
        ),
        (
            S,
            r#"Hours(Duration("90m")) == 1.5 and Minutes(Duration("90s")) == 1.5"#,
            T,
        ),
        (
            S,
            r#"Microseconds(Duration("1ms")) == 1000 and Nanoseconds(Duration("1us")) == 1000"#,
            T,
        ),
        (S, "Milliseconds(5) == 5", P),
        (S, r#"Milliseconds(attributes["one"]) == 5"#, E),
        (
            S,
            "UnixSeconds(start_time) == 1581452772 and UnixMilli(start_time) == 1581452772000",
            T,
        ),
        (S, "UnixMicro(start_time) == 1581452772000000", T),
        (S, "Unix(1, 500000000) - Unix(1) == Duration(\"500ms\")", T),
        (
            S,
            "TruncateTime(start_time, Duration(\"1h\")) == Unix(1581451200)",
            T,
        ),
        (
            S,
            "Year(start_time) == 2020 and Month(start_time) == 2 and Day(start_time) == 11",
            T,
        ),
        (
            S,
            "Hour(start_time) == 20 and Minute(start_time) == 26 and Second(start_time) == 12",
            T,
        ),
        (
            S,
            "Nanosecond(start_time) == 321 and Weekday(start_time) == 2",
            T,
        ),
        (S, r#"Hex(attributes["bin"]) == "010203""#, T),
        (S, r#"IsInCIDR(name, ["10.0.0.0/8"])"#, F),
        (
            S,
            r#"IsInCIDR("10.1.1.1", [Concat(["10.0.0.0", "8"], "/")])"#,
            T,
        ),
        (S, r#"IsInCIDR("10.1.1.1", [name])"#, E),
        (S, r#"ParseJSON("[1, {\"a\": null}]")[1]["a"] == nil"#, T),
        (S, r#"ParseJSON("1") == 1"#, E),
        (S, "Now() > end_time", T),
        (S, "IsRootSpan(1) or true", T),
        (S, r#"IsMatch(attributes["nope"], "a")"#, F),
        (S, r#"IsMatch(name, attributes["nope"])"#, E),
        (S, r#"IsMatch(name, Concat(["("], ""))"#, E),
        (
            S,
            r#"IsMatch(500, "^5") and IsMatch(0xab, "ab") and IsMatch(attributes["ok"], "tru")"#,
            T,
        ),
        (S, r#"IsMatch(Substring("一", 0, 1), "^.$")"#, T),
        (S, r#"IsMatch(name, pattern="o", pattern="p")"#, P),
        (S, r#"IsMatch(name)"#, P),
        (S, r#"IsMatch(name, "a", "b")"#, P),
        (S, r#"IsMatch(name, "a",)"#, P),
        (S, r#"IsMatch(name, what="a")"#, P),
        (S, "(x) => true", P),
        (S, "Len(name) + 1 == 11", T),
        (S, "name == \"a\" and", P),
        (S, "not", P),
        (S, "", P),
    ]);
}

#[test]
fn three_kinds_of_refusal_are_told_apart_and_say_what_to_write() {
    use ErrorKind::{NotOttl, NotSupported};
    for (text, context, kind, offset, hint) in [
        ("name == 'a'", Context::Span, NotOttl, 8, "double quotes"),
        (
            "true AND true",
            Context::Span,
            NotOttl,
            5,
            "`and` in lower case",
        ),
        ("name = \"a\"", Context::Span, NotOttl, 5, "write `==`"),
        ("name =~ \"a\"", Context::Span, NotOttl, 6, "IsMatch"),
        (
            "name == \"a\" && true",
            Context::Span,
            NotOttl,
            12,
            "write `and`",
        ),
        (
            "name == \"a\" || true",
            Context::Span,
            NotOttl,
            12,
            "write `or`",
        ),
        ("!IsRootSpan()", Context::Span, NotOttl, 0, "write `not`"),
        (
            "exists(attributes[\"e\"])",
            Context::Span,
            NotOttl,
            0,
            "x != nil",
        ),
        (
            "isMatch(name, \"a\")",
            Context::Span,
            NotOttl,
            0,
            "IsMatch(…)",
        ),
        ("attributes[\"ok\"]", Context::Span, NotOttl, 0, "== true"),
        (
            "IsMtach(name, \"a\")",
            Context::Span,
            NotOttl,
            0,
            "did you mean IsMatch?",
        ),
        (
            "name == TRUE",
            Context::Span,
            NotOttl,
            8,
            "`true` in lower case",
        ),
        (
            "name == UNKNOWN",
            Context::Span,
            NotOttl,
            8,
            "double quotes",
        ),
        (
            "kind == SPAN_KIND_SEVER",
            Context::Span,
            NotOttl,
            8,
            "SPAN_KIND_SERVER",
        ),
        (
            "httpMethod == 1",
            Context::Span,
            NotOttl,
            4,
            "attributes[\"…\"]",
        ),
        (
            "resource.attribute[\"a\"] == 1",
            Context::Span,
            NotOttl,
            9,
            "resource.attributes",
        ),
        (
            "spanevent.name == \"a\"",
            Context::Span,
            NotOttl,
            0,
            "`spanevent` list",
        ),
        (
            "trace_id == 1",
            Context::SpanEvent,
            NotOttl,
            0,
            "span.trace_id",
        ),
        (
            "IsRootSpan()",
            Context::SpanEvent,
            NotOttl,
            0,
            "`span` list",
        ),
        (
            "duration > 1",
            Context::SpanEvent,
            NotOttl,
            0,
            "attributes[\"duration\"]",
        ),
        ("IsMatch(name, \"\\\\K\")", Context::Span, NotOttl, 14, ""),
        (
            "ParseXML(name)[\"a\"] == 1",
            Context::Span,
            NotSupported,
            0,
            "IsMatch",
        ),
        (
            "SHA256(name) == \"a\"",
            Context::Span,
            NotSupported,
            0,
            "supported are",
        ),
        (
            "ConvertCase(name, \"snake\") == \"a\"",
            Context::Span,
            NotSupported,
            18,
            "\"lower\"",
        ),
        ("() => true", Context::Span, NotSupported, 0, ""),
    ] {
        let error = Condition::compile(text, context).expect_err(text);
        assert_eq!(
            (error.kind, error.offset),
            (kind, offset),
            "{text}: {error:?}"
        );
        let said = error.hint.unwrap_or_default();
        assert!(said.contains(hint), "{text}: {said}");
    }
    let deep = format!("{}1{} == 1", "(".repeat(101), ")".repeat(101));
    let error = Condition::compile(&deep, Context::Span).expect_err("too deep");
    assert_eq!(error.kind, NotSupported);
    let long = format!("name == \"{}\"", "a".repeat(70_000));
    let error = Condition::compile(&long, Context::Span).expect_err("too long");
    assert_eq!(error.kind, NotSupported);
}

#[test]
fn what_cannot_be_true_is_warned_of() {
    for (text, context, offset, what) in [
        (r#"kind == "Server""#, Context::Span, 5, "never true"),
        (r#"name == nil"#, Context::Span, 5, "never nil"),
        (r#"trace_id == "00""#, Context::Span, 9, "never true"),
        (
            r#"trace_id > TraceID("00000000000000000000000000000001")"#,
            Context::Span,
            9,
            "no less",
        ),
        (
            r#"attributes["host.name"] == "a""#,
            Context::Span,
            0,
            "resources",
        ),
        ("event_index == 0", Context::SpanEvent, 0, "no index"),
        (
            r#"resource.schema_url == "x""#,
            Context::Span,
            9,
            "always empty",
        ),
        ("Len(name)", Context::Span, 0, "neither true nor false"),
        (
            "otelcol.client.addr == nil",
            Context::Span,
            15,
            "never there",
        ),
    ] {
        let condition = Condition::compile(text, context).unwrap();
        let [warning] = condition.warnings() else {
            panic!("{text}: {:?}", condition.warnings());
        };
        assert_eq!(warning.offset, offset, "{text}");
        assert!(warning.message.contains(what), "{text}: {warning:?}");
    }
    for text in [
        r#"attributes["a"] == "b""#,
        r#"name != nil"#,
        r#"Int(name) == nil"#,
        r#"attributes["a"] == nil"#,
        "kind == 2.0",
        "nil <= nil",
    ] {
        let condition = Condition::compile(text, Context::Span).unwrap();
        assert!(condition.warnings().is_empty(), "{text}");
    }
}
