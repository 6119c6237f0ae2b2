//! OTLP over HTTP in JSON: what a tier gets of it, limits, statuses.

use super::*;

use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

impl HttpReply {
    fn json(&self) -> Value {
        assert_eq!(
            self.headers.get("content-type").unwrap(),
            "application/json"
        );
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn post_json(running: &Running, body: &[u8]) -> HttpReply {
    post(running, "/v1/traces", &[JSON], body, Version::Http1).await
}

/// A request around the value of one attribute.
fn with_value(value: &str) -> String {
    format!(
        r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","attributes":[{{"key":"k","value":{value}}}]}}]}}]}}]}}"#
    )
}

async fn assert_still_serving(running: &Running) {
    let reply = post_json(running, with_value("{}").as_bytes()).await;
    assert_eq!((reply.status, reply.json()), (200, json!({})));
    assert_eq!(running.budget.taken_bytes(), 0);
}

#[tokio::test]
async fn a_tier_gets_protobuf_whatever_the_client_wrote() {
    let running = start(Protocol::Http, 1 << 30, |_| {}).await;
    // The last one is long enough to be read beside the runtime.
    for bytes in [0, 100, 213_000, 3 * MIB] {
        let original = request(bytes);
        let json = serde_json::to_vec(&original).unwrap();
        for version in [Version::Http1, Version::Http2, Version::Chunked] {
            for (name, packed) in [("identity", json.clone()), ("gzip", gzip(&json))] {
                let headers = [
                    ("content-encoding", name),
                    ("content-type", "application/json; charset=utf-8"),
                    (HOP, "3"),
                ];
                let reply = post(&running, "/v1/traces", &headers, &packed, version).await;
                assert_eq!((reply.status, reply.json()), (200, json!({})));
                assert_eq!(reply.headers.get(VIEW).unwrap(), "0123456789abcdef");
                let (seen, metadata, permit) = running.tier.seen.lock().unwrap().pop().unwrap();
                assert!(ExportTraceServiceRequest::decode(&seen[..]).unwrap() == original);
                assert_eq!(metadata.hop, 3);
                assert_eq!(permit, seen.len() as u64, "the text is given back");
            }
        }
    }
    assert_eq!(running.budget.taken_bytes(), 0);
}

#[tokio::test]
async fn answers_to_json_are_json() {
    let running = start(Protocol::Http, 1 << 30, |_| {}).await;
    running.tier.answer(Answer::Accept(Accepted {
        rejected_spans: 3,
        message: "3 spans rejected: \"why\"".into(),
    }));
    let reply = post_json(&running, b"{}").await;
    let partial = json!({"partialSuccess": {"rejectedSpans": "3", "errorMessage": "3 spans rejected: \"why\""}});
    assert_eq!((reply.status, reply.json()), (200, partial));

    let mut refusal = Refusal::new(RefusalReason::LogFull, "no room");
    refusal.retry_after = Some(Duration::from_millis(1500));
    running.tier.answer(Answer::Refuse(refusal));
    let reply = post_json(&running, b"{}").await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.headers.get("retry-after").unwrap(), "2");
    let info =
        json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.500s"}]);
    let status = json!({"code": 14, "message": "no room", "details": info});
    assert_eq!(reply.json(), status);

    running.tier.answer(Answer::Panic);
    let reply = post_json(&running, b"{}").await;
    assert_eq!((reply.status, &reply.json()["code"]), (500, &json!(13)));

    let reply = post(&running, "/v1/logs", &[JSON], b"{}", Version::Http2).await;
    assert_eq!((reply.status, &reply.json()["code"]), (404, &json!(12)));
    let headers = [JSON, ("content-encoding", "deflate")];
    let reply = post(&running, "/v1/traces", &headers, b"{}", Version::Http1).await;
    assert_eq!((reply.status, &reply.json()["code"]), (415, &json!(12)));
}

#[tokio::test]
async fn bad_json_is_400_and_says_where_and_the_process_goes_on() {
    let running = start(Protocol::Http, 1 << 30, |_| {}).await;
    let levels = "{\"arrayValue\":{\"values\":[".repeat(10_000);
    let closed = format!("{levels}{{}}{}", "]}}".repeat(10_000));
    let at = "resourceSpans[0].scopeSpans[0].spans[0]";
    let cases = [
        (String::new(), "the request: expected an object".to_owned()),
        ("[]".into(), "the request: expected an object".into()),
        ("\0".repeat(1000), "the request: expected an object".into()),
        (
            with_value("{\"intValue\":\"many\"}"),
            format!("{at}.attributes[0].value.intValue: expected an integer"),
        ),
        (
            with_value("{\"stringValue\":7}"),
            format!("{at}.attributes[0].value.stringValue: expected a string, found 7"),
        ),
        (
            with_value("{\"boolValue\":true,\"boolValue\":true}"),
            "expected each key once, found \"boolValue\"".into(),
        ),
        (
            with_value("{}").replace("spanId", "traceId"),
            format!("{at}.traceId: expected each key once"),
        ),
        (
            with_value("{}").replace("5b8e", "5b8g"),
            format!("{at}.traceId: expected hex digits"),
        ),
        (
            with_value(&closed),
            "expected at most 200 messages inside messages".into(),
        ),
        (
            with_value(&levels),
            "expected at most 200 messages inside messages".into(),
        ),
        (
            format!("{{\"x\":{}", "[".repeat(1_000_000)),
            "expected at most 256 levels".into(),
        ),
        (
            with_value(&format!("{{\"stringValue\":\"{}", "x".repeat(3 * MIB))),
            "expected the end of a string".into(),
        ),
    ];
    for (body, says) in cases {
        for version in [Version::Http1, Version::Http2] {
            let reply = post(&running, "/v1/traces", &[JSON], body.as_bytes(), version).await;
            let answer = reply.json();
            assert_eq!(
                (reply.status, &answer["code"]),
                (400, &json!(3)),
                "{answer}"
            );
            let message = answer["message"].as_str().unwrap();
            assert!(message.contains(&says), "{message}");
            assert!(message.contains("byte offset"), "{message}");
            assert!(reply.headers.get("retry-after").is_none());
        }
    }
    // Bytes that are no text at all.
    let reply = post_json(&running, b"{\"x\":\"\xff\"}").await;
    assert!(reply.json()["message"].as_str().unwrap().contains("UTF-8"));
    let line = "tailring_requests_total{protocol=\"http\",outcome=\"invalid_request\"}";
    assert_eq!(running.metric(line), 25.0);
    assert!(running.tier.messages().is_empty());
    assert_still_serving(&running).await;
}

#[tokio::test]
async fn sixty_four_mebibytes_of_one_string_are_taken_and_one_byte_more_is_not() {
    let running = start(Protocol::Http, 1 << 30, |_| {}).await;
    let frame = with_value("{\"stringValue\":\"\"}").len();
    for (bytes, status) in [(64 * MIB, 200), (64 * MIB + 1, 413)] {
        let json = with_value(&format!(
            "{{\"stringValue\":\"{}\"}}",
            "x".repeat(bytes - frame)
        ));
        assert_eq!(json.len(), bytes);
        let reply = post_json(&running, json.as_bytes()).await;
        assert_eq!(reply.status, status, "{}", reply.json());
        // The same after decompression.
        let packed = gzip(json.as_bytes());
        let headers = [JSON, ("content-encoding", "gzip")];
        let reply = post(&running, "/v1/traces", &headers, &packed, Version::Http1).await;
        assert_eq!(reply.status, status, "{}", reply.json());
        if status == 413 {
            assert_eq!(reply.json()["code"], 8);
        }
    }
    let messages = running.tier.messages();
    assert_eq!(messages.len(), 2);
    assert!(
        messages
            .iter()
            .all(|it| it.len() > 64 * MIB - frame && it.len() < 64 * MIB)
    );
    // The text, and what is reckoned for the message; no more than that was ever held.
    assert!(running.budget.peak_bytes() < 140 * MIB as u64);
    drop(messages);
    running.tier.seen.lock().unwrap().clear();
    assert_still_serving(&running).await;
}

#[tokio::test]
async fn a_message_that_is_too_large_as_protobuf_only_is_too_large() {
    let running = start(Protocol::Http, 1 << 30, |c| c.request_bytes_max = MIB).await;
    // The one thing that grows: 12 bytes that become 13.
    let spans = vec![r#"{"kind":-1}"#; 85_000].join(",");
    let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{spans}]}}]}}]}}"#);
    assert!(json.len() < MIB);
    let reply = post_json(&running, json.as_bytes()).await;
    let answer = reply.json();
    assert_eq!((reply.status, &answer["code"]), (413, &json!(8)));
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("--max-request-bytes")
    );
    assert_still_serving(&running).await;
}

#[tokio::test]
async fn without_room_for_both_the_client_is_asked_to_come_back() {
    let original = request(200_000);
    let json = serde_json::to_vec(&original).unwrap();
    let both = (json.len() * 17 / 8) as u64;
    let running = start(Protocol::Http, both + 40_000, |_| {}).await;
    let held = running.budget.try_take(100_000).unwrap();
    let reply = post_json(&running, &json).await;
    assert_eq!((reply.status, &reply.json()["code"]), (503, &json!(14)));
    assert_eq!(reply.headers.get("retry-after").unwrap(), "1");
    drop(held);
    let reply = post_json(&running, &json).await;
    assert_eq!(reply.status, 200, "{}", reply.json());
    assert!(running.budget.peak_bytes() <= both + 40_000);

    // What never can have room is not asked to come back.
    let running = start(Protocol::Http, both * 3 / 4, |_| {}).await;
    let reply = post_json(&running, &json).await;
    assert_eq!((reply.status, &reply.json()["code"]), (413, &json!(8)));
    assert_still_serving(&running).await;
}

#[tokio::test]
async fn long_texts_of_many_clients_are_read_in_turn() {
    let running = Arc::new(start(Protocol::Http, 1 << 30, |_| {}).await);
    let json = Arc::new(serde_json::to_vec(&request(2 * MIB)).unwrap());
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (running, json) = (Arc::clone(&running), Arc::clone(&json));
            tokio::spawn(async move { post_json(&running, &json).await.status })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.unwrap(), 200);
    }
    assert_eq!(running.tier.messages().len(), 8);
    running.tier.seen.lock().unwrap().clear();
    assert_still_serving(&running).await;
}
