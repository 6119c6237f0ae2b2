//! The judge is judged: ledgers with one fault each, and what `verify` says of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tailring::app::ledger::{
    self, GotExport, GotSpan, LedgerError, LedgerKind, LedgerWriter, Record, SpanKey,
};
use tailring::app::verify::{self, Findings, VerifyArgs, VerifyError, VerifyOutput, compare};
use tailring::model::{Member, Moment, SpanId, TraceId, VerdictId};
use tempfile::TempDir;

fn key(trace: u8, span: u8) -> SpanKey {
    SpanKey {
        trace: TraceId::new([trace; 16]).unwrap(),
        span: SpanId::new([span; 8]).unwrap(),
    }
}

fn got(member: &str, verdict: u32, keys: &[SpanKey]) -> Record {
    Record::Got(GotExport {
        at: Moment::from_unix_millis(1),
        member: Some(Member::parse(member).unwrap()),
        spans: keys
            .iter()
            .map(|key| GotSpan {
                key: *key,
                verdict: Some(VerdictId(verdict)),
            })
            .collect(),
    })
}

fn sent(batch: u64, keys: &[SpanKey]) -> Record {
    Record::Sent {
        batch,
        spans: keys.into(),
    }
}

async fn write(path: &Path, kind: LedgerKind, records: Vec<Record>) {
    let writer = LedgerWriter::append(path, kind).unwrap();
    let queue = writer.queue();
    for record in records {
        queue.put(record).await.unwrap();
    }
    drop(queue);
    writer.close().await.unwrap();
}

/// Traces 1 and 2 of three spans, acknowledged; trace 3, sent and never acknowledged.
fn sent_records() -> Vec<Record> {
    vec![
        sent(0, &[key(1, 1), key(2, 1), key(1, 2)]),
        sent(1, &[key(2, 2), key(1, 3), key(2, 3)]),
        Record::Acknowledged { batch: 1 },
        sent(2, &[key(3, 1), key(3, 2)]),
        Record::Acknowledged { batch: 0 },
    ]
}

fn whole_one() -> Record {
    got("worker-0", 7, &[key(1, 1), key(1, 2), key(1, 3)])
}

fn whole_two() -> Record {
    got("worker-1", 8, &[key(2, 1), key(2, 2), key(2, 3)])
}

struct Ledgers {
    dir: TempDir,
    sent: PathBuf,
    got: PathBuf,
}

async fn ledgers(got_records: Vec<Record>) -> Ledgers {
    let dir = tempfile::tempdir().unwrap();
    let (sent, got) = (dir.path().join("sent"), dir.path().join("got"));
    write(&sent, LedgerKind::Sent, sent_records()).await;
    write(&got, LedgerKind::Got, got_records).await;
    Ledgers { dir, sent, got }
}

/// Compares, and checks that the exit status agrees with what was found.
async fn find(got_records: Vec<Record>) -> Findings {
    let ledgers = ledgers(got_records).await;
    let findings = compare(&ledgers.sent, &ledgers.got).unwrap();
    let status = if findings.is_clean() { 0 } else { 1 };
    assert_eq!(
        exit(&ledgers.sent, &ledgers.got).await,
        ExitCode::from(status)
    );
    assert_eq!(findings.sent_spans, 8);
    assert_eq!(findings.acknowledged_spans, 6);
    findings
}

async fn exit(sent: &Path, got: &Path) -> ExitCode {
    verify::run(VerifyArgs {
        sent: sent.to_owned(),
        got: got.to_owned(),
        output: VerifyOutput::Json,
    })
    .await
    .unwrap()
}

fn counts(findings: &Findings) -> (u64, u64, u64) {
    (findings.lost, findings.doubled, findings.split)
}

#[tokio::test]
async fn whole_traces_are_clean_in_any_order_and_number_of_exports() {
    let findings = find(vec![
        got("worker-1", 8, &[key(2, 3)]),
        whole_one(),
        got("worker-1", 8, &[key(2, 2), key(2, 1)]),
    ])
    .await;
    assert_eq!(counts(&findings), (0, 0, 0));
    assert!(
        findings
            .to_text()
            .contains("clean: 0 lost, 0 doubled, 0 split")
    );
    assert_eq!(findings.members.len(), 2);
    assert_eq!(findings.members[1].spans, 3);
}

#[tokio::test]
async fn an_unacknowledged_span_may_arrive() {
    let findings = find(vec![whole_one(), whole_two(), got("w", 1, &[key(3, 1)])]).await;
    assert_eq!(counts(&findings), (0, 0, 0));
    assert_eq!(findings.unacknowledged_arrived, 1);
}

#[tokio::test]
async fn an_absent_trace_is_lost_and_not_split() {
    let findings = find(vec![whole_one()]).await;
    assert_eq!(counts(&findings), (3, 0, 0));
    assert_eq!(findings.absent_traces, 1);
    assert_eq!(findings.examples.lost.len(), 3);
    assert!(findings.examples.lost[0].contains(&key(2, 1).trace.to_string()));
}

#[tokio::test]
async fn a_missing_span_of_a_present_trace_is_lost_and_splits_it() {
    let findings = find(vec![
        whole_one(),
        got("worker-1", 8, &[key(2, 1), key(2, 3)]),
    ])
    .await;
    assert_eq!(counts(&findings), (1, 0, 1));
    assert_eq!(findings.split_by_missing, 1);
    assert!(findings.examples.lost[0].contains(&key(2, 2).span.to_string()));
}

#[tokio::test]
async fn extra_copies_are_doubled_however_they_came() {
    let same = vec![
        whole_one(),
        whole_two(),
        got("worker-0", 7, &[key(1, 2); 2]),
    ];
    let findings = find(same).await;
    assert_eq!(counts(&findings), (0, 2, 0));
    assert_eq!(findings.examples.doubled.len(), 1);
    assert!(findings.examples.doubled[0].ends_with("3 copies"));
}

#[tokio::test]
async fn two_members_split_a_trace() {
    let findings = find(vec![
        whole_one(),
        got("worker-1", 8, &[key(2, 1), key(2, 2)]),
        got("worker-2", 8, &[key(2, 3)]),
    ])
    .await;
    assert_eq!(counts(&findings), (0, 0, 1));
    assert_eq!(findings.split_by_member, 1);
    assert!(findings.examples.split[0].contains("worker-1 and worker-2"));
}

#[tokio::test]
async fn two_verdicts_split_a_trace() {
    let findings = find(vec![
        whole_one(),
        got("worker-1", 8, &[key(2, 1), key(2, 2)]),
        got("worker-1", 9, &[key(2, 3)]),
    ])
    .await;
    assert_eq!(counts(&findings), (0, 0, 1));
    assert_eq!(findings.split_by_verdict, 1);
    assert!(findings.examples.split[0].contains("00000008 and 00000009"));
}

#[tokio::test]
async fn an_export_that_hides_its_member_beside_one_that_does_not_is_a_split() {
    let nameless = Record::Got(GotExport {
        at: Moment::ZERO,
        member: None,
        spans: vec![GotSpan {
            key: key(2, 3),
            verdict: Some(VerdictId(8)),
        }],
    });
    let named = got("worker-1", 8, &[key(2, 1), key(2, 2)]);
    let findings = find(vec![whole_one(), named, nameless]).await;
    assert_eq!(counts(&findings), (0, 0, 1));
}

#[tokio::test]
async fn spans_nobody_sent_are_counted_apart() {
    let findings = find(vec![
        whole_one(),
        whole_two(),
        got("w", 1, &[key(1, 9), key(9, 1), key(9, 1)]),
    ])
    .await;
    assert_eq!(findings.unknown, 2);
    assert_eq!(findings.doubled, 1);
    assert_eq!(findings.lost, 0);
}

#[tokio::test]
async fn a_torn_last_record_is_ignored_and_told_wherever_it_tears() {
    let ledgers = ledgers(vec![whole_one(), whole_two()]).await;
    let whole = std::fs::read(&ledgers.got).unwrap();
    write(
        &ledgers.got,
        LedgerKind::Got,
        vec![got("worker-1", 8, &[key(2, 3)])],
    )
    .await;
    let longer = std::fs::read(&ledgers.got).unwrap();
    for cut in whole.len()..longer.len() {
        std::fs::write(&ledgers.got, &longer[..cut]).unwrap();
        let findings = compare(&ledgers.sent, &ledgers.got).unwrap();
        assert_eq!(counts(&findings), (0, 0, 0), "cut at {cut}");
        assert_eq!(findings.got_torn, cut > whole.len(), "cut at {cut}");
    }
    // The next run goes on behind the last whole record.
    write(
        &ledgers.got,
        LedgerKind::Got,
        vec![got("worker-1", 8, &[key(2, 3)])],
    )
    .await;
    assert_eq!(std::fs::read(&ledgers.got).unwrap(), longer);
}

#[tokio::test]
async fn a_flipped_bit_before_the_end_is_damage_and_not_a_finding() {
    let ledgers = ledgers(vec![whole_one(), whole_two()]).await;
    let whole = std::fs::read(&ledgers.got).unwrap();
    let record = (whole.len() - 16) / 2;
    // The first record's payload, behind its length and checksum.
    for byte in 16 + 8..16 + record {
        let mut bytes = whole.clone();
        bytes[byte] ^= 4;
        std::fs::write(&ledgers.got, &bytes).unwrap();
        let error = compare(&ledgers.sent, &ledgers.got).unwrap_err();
        assert!(
            matches!(
                error,
                VerifyError::Ledger(LedgerError::Damaged { offset: 16, .. })
            ),
            "{error}"
        );
    }
    assert_eq!(exit(&ledgers.sent, &ledgers.got).await, ExitCode::from(2));
}

#[tokio::test]
async fn ledgers_that_prove_nothing_are_errors_that_say_so() {
    let good = ledgers(vec![whole_one(), whole_two()]).await;
    let file = |name: &str| good.dir.path().join(name);
    std::fs::File::create(file("empty")).unwrap();
    std::fs::write(file("garbage"), [0x5a; 4096]).unwrap();
    std::fs::write(file("short"), b"{").unwrap();
    write(&file("header"), LedgerKind::Sent, vec![]).await;
    let records = vec![sent(0, &[key(1, 1)])];
    write(&file("unacknowledged"), LedgerKind::Sent, records).await;

    for (sent, got, says) in [
        (&good.got, &good.sent, "swapped"),
        (&good.sent, &good.sent, "swapped"),
        (&file("empty"), &good.got, "empty: is empty"),
        (&good.sent, &file("empty"), "empty: is empty"),
        (&file("garbage"), &good.got, "garbage: is not a ledger"),
        (&good.sent, &file("garbage"), "garbage: is not a ledger"),
        (&file("short"), &good.got, "is not a ledger"),
        (&file("absent"), &good.got, "absent: cannot be read"),
        (&file("header"), &good.got, "no span was sent"),
        (&file("unacknowledged"), &good.got, "none was acknowledged"),
    ] {
        let error = compare(sent, got).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
        assert_eq!(exit(sent, got).await, ExitCode::from(2), "{says}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_this_kind_of_ledger_is_never_written_over() {
    let good = ledgers(vec![whole_one()]).await;
    let error = LedgerWriter::append(&good.sent, LedgerKind::Got).unwrap_err();
    assert!(matches!(error, LedgerError::OtherKind { .. }), "{error}");
    let mut file = std::fs::File::create(good.dir.path().join("notes")).unwrap();
    file.write_all(b"a text that somebody still needs").unwrap();
    let notes = good.dir.path().join("notes");
    for open in [LedgerWriter::append, LedgerWriter::create] {
        let error = open(&notes, LedgerKind::Got).unwrap_err();
        assert!(matches!(error, LedgerError::Foreign { .. }), "{error}");
    }
    assert!(std::fs::read(&notes).unwrap().starts_with(b"a text"));
}

#[tokio::test]
async fn a_million_spans_are_written_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sent");
    let writer = LedgerWriter::create(&path, LedgerKind::Sent).unwrap();
    let queue = writer.queue();
    let spans: std::sync::Arc<[SpanKey]> = (0..512_u64)
        .map(|n| SpanKey {
            trace: TraceId::new((u128::from(n) + 1).to_be_bytes()).unwrap(),
            span: SpanId::new((n + 1).to_be_bytes()).unwrap(),
        })
        .collect();
    for batch in 0..2048 {
        let spans = spans.clone();
        queue.put(Record::Sent { batch, spans }).await.unwrap();
        queue.put(Record::Acknowledged { batch }).await.unwrap();
    }
    drop(queue);
    writer.close().await.unwrap();
    let mut sent = 0;
    let mut acknowledged = 0;
    let end = ledger::read(&path, LedgerKind::Sent, |record| match record {
        Record::Sent { batch, spans: read } => {
            assert_eq!((batch, read), (acknowledged, spans.clone()));
            sent += 512;
        }
        Record::Acknowledged { .. } => acknowledged += 1,
        Record::Got(_) | Record::Played(_) => unreachable!(),
    })
    .unwrap();
    assert_eq!((sent, acknowledged), (1 << 20, 2048));
    assert_eq!((end.records, end.torn), (4096, false));
}
