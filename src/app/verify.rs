//! `tailring verify`: compares what was sent with what arrived, and says what was lost, doubled or
//! split. Memory: about 36 bytes a span of each ledger (sorted arrays, no map of traces).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::app::ledger::{self, LedgerError, LedgerKind, Record, SpanKey};
use crate::model::TraceId;

const EXAMPLES_MAX: usize = 10;

/// Compares the ledger of `tailring load` with the ledger of `tailring sink`.
///
/// Lost: an acknowledged span that never arrived. Doubled: a span that arrived more than once.
/// Split: a trace that was exported by two members or under two verdicts, or of which some
/// acknowledged spans are missing while others arrived. Spans that were sent, not acknowledged,
/// and arrived all the same are fine. Exit status: 0 when nothing was lost, doubled or split, 1
/// when something was, 2 when the ledgers prove nothing (empty, swapped, damaged, nothing
/// acknowledged).
#[derive(Debug, Clone, clap::Args)]
pub struct VerifyArgs {
    /// What was sent: the file given to `tailring load --ledger`.
    pub sent: PathBuf,
    /// What arrived: the file given to `tailring sink --ledger`.
    pub got: PathBuf,
    /// How to print the findings.
    #[arg(long, value_enum, default_value_t = VerifyOutput::Text)]
    pub output: VerifyOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum VerifyOutput {
    /// A table and up to ten examples of each fault.
    Text,
    /// One JSON object.
    Json,
}

/// Why nothing could be said.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("{}: no span was sent, so nothing is proved", .0.display())]
    NothingSent(PathBuf),
    #[error(
        "{}: {sent} spans were sent and none was acknowledged, so nothing is proved",
        path.display()
    )]
    NothingAcknowledged { path: PathBuf, sent: u64 },
}

/// What the comparison found. Spans are distinct (trace, span) pairs unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    pub sent_spans: u64,
    pub sent_traces: u64,
    pub acknowledged_spans: u64,
    /// Copies counted.
    pub got_spans: u64,
    pub got_traces: u64,
    /// Acknowledged spans that did not arrive.
    pub lost: u64,
    /// Extra copies: a span that came three times counts two.
    pub doubled: u64,
    /// Traces, each counted once whatever the reasons.
    pub split: u64,
    pub split_by_member: u64,
    pub split_by_verdict: u64,
    /// Some acknowledged spans of the trace missing, others here.
    pub split_by_missing: u64,
    /// Traces with acknowledged spans of which nothing arrived: lost, but not split.
    pub absent_traces: u64,
    /// Arrived, never sent.
    pub unknown: u64,
    /// Arrived though never acknowledged: allowed.
    pub unacknowledged_arrived: u64,
    /// Exported spans by member; copies counted.
    pub members: Vec<MemberCount>,
    /// A writer was killed in the middle of its last record, which was ignored.
    pub sent_torn: bool,
    pub got_torn: bool,
    pub examples: Examples,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MemberCount {
    /// `None`: exports that did not say who sent them.
    pub member: Option<String>,
    pub spans: u64,
}

/// Up to ten of each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Examples {
    pub lost: Vec<String>,
    pub doubled: Vec<String>,
    pub split: Vec<String>,
    pub unknown: Vec<String>,
}

#[derive(Clone, Copy)]
struct SentSpan {
    key: SpanKey,
    /// The batch while reading; afterwards 1 for acknowledged and 0 for not.
    mark: u64,
}

#[derive(Clone, Copy)]
struct GotSpan {
    key: SpanKey,
    /// Index into the members met; `None` is a member of its own (an export that hides who it is
    /// next to one that does not is two exporters).
    member: u32,
    verdict: Option<u32>,
}

impl Findings {
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.split == 0
    }
}

/// The subcommand.
pub async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let VerifyArgs { sent, got, output } = args;
    let found = tokio::task::spawn_blocking(move || compare(&sent, &got)).await?;
    Ok(match found {
        Ok(findings) => {
            print(&findings, output)?;
            if findings.is_clean() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            }
        }
        Err(error) => {
            print_error(&error);
            ExitCode::from(2)
        }
    })
}

#[allow(clippy::print_stdout, reason = "a tool for people answers on stdout")]
fn print(findings: &Findings, output: VerifyOutput) -> anyhow::Result<()> {
    match output {
        VerifyOutput::Text => print!("{}", findings.to_text()),
        VerifyOutput::Json => println!("{}", serde_json::to_string_pretty(findings)?),
    }
    Ok(())
}

#[allow(clippy::print_stderr, reason = "a tool for people complains on stderr")]
fn print_error(error: &VerifyError) {
    eprintln!("tailring verify: {error}");
}

/// Reads and compares two ledgers.
pub fn compare(sent: &Path, got: &Path) -> Result<Findings, VerifyError> {
    let mut findings = Findings::default();
    let sent_spans = read_sent(sent, &mut findings)?;
    if sent_spans.is_empty() {
        return Err(VerifyError::NothingSent(sent.to_owned()));
    }
    if !sent_spans.iter().any(|span| span.mark != 0) {
        return Err(VerifyError::NothingAcknowledged {
            path: sent.to_owned(),
            sent: sent_spans.len() as u64,
        });
    }
    let (got_spans, names) = read_got(got, &mut findings)?;

    let mut sent_left = sent_spans.as_slice();
    let mut got_left = got_spans.as_slice();
    loop {
        let trace = match (sent_left.first(), got_left.first()) {
            (None, None) => break,
            (Some(sent), None) => sent.key.trace,
            (None, Some(got)) => got.key.trace,
            (Some(sent), Some(got)) => sent.key.trace.min(got.key.trace),
        };
        let sent_here = take_while(&mut sent_left, |span| span.key.trace == trace);
        let got_here = take_while(&mut got_left, |span| span.key.trace == trace);
        findings.compare_trace(trace, sent_here, got_here, &names);
    }
    Ok(findings)
}

fn read_sent(path: &Path, findings: &mut Findings) -> Result<Vec<SentSpan>, VerifyError> {
    let mut spans = Vec::new();
    let mut acknowledged = std::collections::HashSet::new();
    let end = ledger::read(path, LedgerKind::Sent, |record| match record {
        Record::Sent { batch, spans: keys } => {
            spans.extend(keys.iter().map(|key| SentSpan {
                key: *key,
                mark: batch,
            }));
        }
        Record::Acknowledged { batch } => {
            acknowledged.insert(batch);
        }
        Record::Played(played) => {
            acknowledged.insert(played.batch);
        }
        Record::Got(_) => {}
    })?;
    findings.sent_torn = end.torn;
    for span in &mut spans {
        span.mark = u64::from(acknowledged.contains(&span.mark));
    }
    // A span in two batches counts once, and as acknowledged if one of them was.
    spans.sort_unstable_by_key(|span| (span.key, std::cmp::Reverse(span.mark)));
    spans.dedup_by_key(|span| span.key);
    Ok(spans)
}

fn read_got(
    path: &Path,
    findings: &mut Findings,
) -> Result<(Vec<GotSpan>, Vec<Option<String>>), VerifyError> {
    let mut spans = Vec::new();
    let mut names: Vec<Option<String>> = Vec::new();
    let mut indexes: HashMap<Option<String>, u32> = HashMap::new();
    let end = ledger::read(path, LedgerKind::Got, |record| {
        let Record::Got(export) = record else { return };
        let name = export.member.map(|member| member.to_string());
        let member = *indexes.entry(name.clone()).or_insert_with(|| {
            names.push(name.clone());
            findings.members.push(MemberCount {
                member: name,
                spans: 0,
            });
            names.len() as u32 - 1
        });
        findings.members[member as usize].spans += export.spans.len() as u64;
        spans.extend(export.spans.iter().map(|span| GotSpan {
            key: span.key,
            member,
            verdict: span.verdict.map(|verdict| verdict.0),
        }));
    })?;
    findings.got_torn = end.torn;
    findings.members.sort_by(|a, b| a.member.cmp(&b.member));
    spans.sort_unstable_by_key(|span| span.key);
    Ok((spans, names))
}

fn take_while<'a, T>(left: &mut &'a [T], belongs: impl Fn(&T) -> bool) -> &'a [T] {
    let count = left.iter().position(|item| !belongs(item));
    let (here, rest) = left.split_at(count.unwrap_or(left.len()));
    *left = rest;
    here
}

impl Findings {
    fn compare_trace(
        &mut self,
        trace: TraceId,
        sent: &[SentSpan],
        got: &[GotSpan],
        names: &[Option<String>],
    ) {
        self.sent_traces += u64::from(!sent.is_empty());
        self.got_traces += u64::from(!got.is_empty());
        self.sent_spans += sent.len() as u64;
        self.got_spans += got.len() as u64;

        let mut arrived_sent = 0_u64;
        let mut missing = 0_u64;
        let mut got_left = got;
        for span in sent {
            let acknowledged = span.mark != 0;
            self.acknowledged_spans += u64::from(acknowledged);
            let unknown = take_while(&mut got_left, |got| got.key < span.key);
            self.count_unknown(unknown);
            let copies = take_while(&mut got_left, |got| got.key == span.key);
            self.count_doubled(copies);
            arrived_sent += u64::from(!copies.is_empty());
            match (acknowledged, copies.is_empty()) {
                (true, true) => {
                    missing += 1;
                    let text = || format!("trace {trace} span {}", span.key.span);
                    keep_example(&mut self.examples.lost, text);
                }
                (false, false) => self.unacknowledged_arrived += 1,
                (true, false) | (false, true) => {}
            }
        }
        self.count_unknown(got_left);
        self.lost += missing;
        self.absent_traces += u64::from(missing > 0 && arrived_sent == 0);

        let by_missing = missing > 0 && arrived_sent > 0;
        let by_member = got.iter().any(|span| span.member != got[0].member);
        let by_verdict = got.iter().any(|span| span.verdict != got[0].verdict);
        self.split_by_missing += u64::from(by_missing);
        self.split_by_member += u64::from(by_member);
        self.split_by_verdict += u64::from(by_verdict);
        if by_missing || by_member || by_verdict {
            self.split += 1;
            keep_example(&mut self.examples.split, || {
                let mut text = format!("trace {trace}:");
                if by_member {
                    let members = distinct(got.iter().map(|span| {
                        let name = names.get(span.member as usize).and_then(Option::as_deref);
                        name.unwrap_or("(unnamed)").to_owned()
                    }));
                    text += &format!(" exported by {}", members.join(" and "));
                }
                if by_verdict {
                    let verdicts = distinct(got.iter().map(|span| match span.verdict {
                        Some(verdict) => format!("{verdict:08x}"),
                        None => "(none)".to_owned(),
                    }));
                    text += &format!(" under verdicts {}", verdicts.join(" and "));
                }
                if by_missing {
                    text += &format!(
                        " {missing} acknowledged spans missing while {arrived_sent} arrived"
                    );
                }
                text
            });
        }
    }

    /// Spans that were never sent; sorted, copies beside each other.
    fn count_unknown(&mut self, mut spans: &[GotSpan]) {
        while let Some(first) = spans.first() {
            let copies = take_while(&mut spans, |span| span.key == first.key);
            self.unknown += 1;
            keep_example(&mut self.examples.unknown, || {
                format!("trace {} span {}", first.key.trace, first.key.span)
            });
            self.count_doubled(copies);
        }
    }

    fn count_doubled(&mut self, copies: &[GotSpan]) {
        let [first, _, ..] = copies else { return };
        self.doubled += copies.len() as u64 - 1;
        keep_example(&mut self.examples.doubled, || {
            let SpanKey { trace, span } = first.key;
            format!("trace {trace} span {span}: {} copies", copies.len())
        });
    }

    /// The findings for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, count: u64, note: &str| {
            text += &format!("{name:<26}{count:>14}   {note}\n");
        };
        row("sent", self.sent_spans, "spans");
        row("  in traces", self.sent_traces, "");
        row("acknowledged", self.acknowledged_spans, "spans");
        row("got", self.got_spans, "spans, copies counted");
        row("  in traces", self.got_traces, "");
        for member in &self.members {
            let name = member.member.as_deref().unwrap_or("(unnamed)");
            row("  exported by", member.spans, name);
        }
        row(
            "not acknowledged, arrived",
            self.unacknowledged_arrived,
            "allowed",
        );
        row("unknown", self.unknown, "spans that arrived, never sent");
        row("lost", self.lost, "acknowledged spans that did not arrive");
        row("  traces wholly absent", self.absent_traces, "");
        row("doubled", self.doubled, "extra copies of spans");
        row("split", self.split, "traces");
        row("  by member", self.split_by_member, "");
        row("  by verdict", self.split_by_verdict, "");
        row("  by missing spans", self.split_by_missing, "");
        for (torn, book) in [(self.sent_torn, "sent"), (self.got_torn, "got")] {
            if torn {
                text += &format!(
                    "note: the last record of the {book} ledger is torn (its writer was killed); ignored\n"
                );
            }
        }
        for (fault, examples) in [
            ("lost", &self.examples.lost),
            ("doubled", &self.examples.doubled),
            ("split", &self.examples.split),
            ("unknown", &self.examples.unknown),
        ] {
            for example in examples {
                text += &format!("{fault}: {example}\n");
            }
        }
        text += if self.is_clean() {
            "clean: 0 lost, 0 doubled, 0 split\n"
        } else {
            "NOT CLEAN\n"
        };
        text
    }
}

fn keep_example(examples: &mut Vec<String>, text: impl FnOnce() -> String) {
    if examples.len() < EXAMPLES_MAX {
        examples.push(text());
    }
}

fn distinct(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    names
}
