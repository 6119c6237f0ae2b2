//! What was found in a data dir, as tables for people and as JSON.

use std::path::Path;

use serde::Serialize;

use super::census::{Census, Sum};
use crate::log::{DAMAGES_TOLD, DirFacts, SegmentFacts};
use crate::model::Moment;

/// Everything about one data dir. Bytes are those of records, or of files where it says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    pub data_dir: String,
    /// In hex; none if the dir has no sound IDENTITY file.
    pub store: Option<String>,
    pub incarnation: Option<u64>,
    /// The process that the lock file names: it uses the dir, or was killed while it did.
    pub lock_names: Option<String>,
    pub segments: Vec<Segment>,
    /// Removed by a running worker while this was looked at.
    pub segments_gone: u64,
    pub foreign_files: Vec<String>,
    pub traces: Traces,
    /// Of all segment files.
    pub bytes: u64,
    /// Of fragments of undecided traces, and of kept ones that are not exported.
    pub live_bytes: u64,
    /// Records that do not check.
    pub damaged: u64,
    pub torn_tails: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Segment {
    pub segment: u32,
    /// None if the segment's first bytes do not check.
    pub shard: Option<u16>,
    pub life: Option<u64>,
    /// Of the file.
    pub bytes: u64,
    pub live_bytes: u64,
    pub fragments: u64,
    pub headers: u64,
    pub verdicts: u64,
    pub exported: u64,
    pub moved: u64,
    pub commits: u64,
    pub checkpoints: u64,
    pub other: u64,
    /// A start reads that instead of the records.
    pub has_footer: bool,
    pub torn_tail: Option<TornTail>,
    pub damaged: u64,
    /// The first ones.
    pub damage: Vec<Damage>,
}

/// A start cuts it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TornTail {
    pub offset: u32,
    pub bytes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub offset: u32,
    pub what: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Traces {
    pub undecided: Group,
    /// Of traces in part exported what is left.
    pub kept_not_exported: Group,
    pub kept_exported: Group,
    pub dropped: Group,
    /// Verdicts on traces of which nothing else is left.
    pub verdicts_only: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Group {
    pub traces: u64,
    pub fragments: u64,
    pub spans: u64,
    pub bytes: u64,
    /// Since the first arrival. None for nothing, and for what was exported.
    pub oldest_seconds: Option<u64>,
}

impl Inspection {
    pub(super) fn new(dir: &Path, facts: DirFacts, census: &Census, now: Moment) -> Self {
        let counts = census.count();
        let group = |sum: &Sum| Group {
            traces: sum.traces,
            fragments: sum.fragments,
            spans: sum.spans,
            bytes: sum.bytes,
            oldest_seconds: sum.oldest.map(|oldest| now.since(oldest).as_secs()),
        };
        let live = |segment: &SegmentFacts| counts.live.get(&segment.id).copied().unwrap_or(0);
        Self {
            data_dir: dir.display().to_string(),
            store: facts.identity.map(|it| format!("{:032x}", it.store)),
            incarnation: facts.identity.map(|it| it.incarnation.0),
            lock_names: facts.holder,
            traces: Traces {
                undecided: group(&counts.undecided),
                kept_not_exported: group(&counts.kept),
                kept_exported: group(&counts.exported),
                dropped: group(&counts.dropped),
                verdicts_only: counts.remembered,
            },
            bytes: facts.segments.iter().map(|it| it.bytes).sum(),
            live_bytes: counts.live.values().sum(),
            damaged: facts.segments.iter().map(|it| it.damaged).sum(),
            torn_tails: facts.segments.iter().filter_map(|it| it.torn_tail).count() as u64,
            segments_gone: facts.gone,
            foreign_files: facts.foreign,
            segments: facts
                .segments
                .iter()
                .map(|segment| Segment::new(segment, live(segment)))
                .collect(),
        }
    }

    pub fn is_damaged(&self) -> bool {
        self.damaged > 0
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = format!("data dir  {}\n", self.data_dir);
        if let (Some(store), Some(incarnation)) = (&self.store, self.incarnation) {
            text += &format!("store     {store}, incarnation {incarnation}\n");
        } else {
            text += "store     unknown: there is no sound IDENTITY file\n";
        }
        if let Some(holder) = &self.lock_names {
            text += &format!(
                "lock      names process {holder}: a worker that runs here, or was killed; what it writes now may look torn\n"
            );
        }
        text += "\n";
        text += &self.segment_table();
        text += "\n";
        text += &self.trace_table();
        text += &format!(
            "\nlive      {} of {} bytes in files, {}\n",
            self.live_bytes,
            self.bytes,
            share(self.live_bytes, self.bytes)
        );
        for segment in &self.segments {
            text += &segment.faults();
        }
        if self.segments_gone > 0 {
            text += &format!(
                "gone      {} segments that the worker removed meanwhile\n",
                self.segments_gone
            );
        }
        for name in &self.foreign_files {
            text += &format!("other     {name} is not a segment\n");
        }
        text += &match self.damaged {
            0 => "sound     every record checks\n".to_owned(),
            count => format!(
                "DAMAGED   {count} places; a start skips and counts them, and goes on with the rest\n"
            ),
        };
        text
    }

    fn segment_table(&self) -> String {
        let mut rows = vec![
            [
                "segment",
                "shard",
                "life",
                "bytes",
                "live",
                "fragments",
                "headers",
                "verdicts",
                "exported",
                "moved",
                "commits",
                "checkpoints",
                "other",
                "footer",
                "faults",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        let known = |number: Option<u64>| number.map_or("?".to_owned(), |it| it.to_string());
        rows.extend(self.segments.iter().map(|it| {
            let counts = [
                it.fragments,
                it.headers,
                it.verdicts,
                it.exported,
                it.moved,
                it.commits,
                it.checkpoints,
                it.other,
            ];
            let faults = it.damaged + u64::from(it.torn_tail.is_some());
            let mut row = vec![
                it.segment.to_string(),
                known(it.shard.map(u64::from)),
                known(it.life),
                it.bytes.to_string(),
                share(it.live_bytes, it.bytes),
            ];
            row.extend(counts.map(|count| count.to_string()));
            row.push(if it.has_footer { "yes" } else { "-" }.to_owned());
            row.push(faults.to_string());
            row
        }));
        table(&rows)
    }

    fn trace_table(&self) -> String {
        let head = ["", "traces", "fragments", "spans", "bytes", "oldest"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let traces = &self.traces;
        for (name, group) in [
            ("undecided", &traces.undecided),
            ("kept, not exported", &traces.kept_not_exported),
            ("kept, exported", &traces.kept_exported),
            ("dropped", &traces.dropped),
        ] {
            let oldest = group
                .oldest_seconds
                .map_or("-".to_owned(), |seconds| format!("{seconds} s"));
            let mut row = vec![name.to_owned()];
            row.extend(
                [group.traces, group.fragments, group.spans, group.bytes].map(|it| it.to_string()),
            );
            row.push(oldest);
            rows.push(row);
        }
        let mut row = vec!["verdict only".to_owned(), traces.verdicts_only.to_string()];
        row.resize(head.len(), "-".to_owned());
        rows.push(row);
        table(&rows)
    }
}

impl Segment {
    fn new(facts: &SegmentFacts, live_bytes: u64) -> Self {
        let records = facts.records;
        Self {
            segment: facts.id.0,
            shard: facts.writer.map(|(shard, _)| shard),
            life: facts.writer.map(|(_, life)| life),
            bytes: facts.bytes,
            live_bytes,
            fragments: records.fragments,
            headers: records.headers,
            verdicts: records.verdicts,
            exported: records.exported,
            moved: records.moved,
            commits: records.commits,
            checkpoints: records.checkpoints,
            other: records.other,
            has_footer: facts.has_footer,
            torn_tail: facts.torn_tail.map(|tail| TornTail {
                offset: tail.offset,
                bytes: tail.len,
            }),
            damaged: facts.damaged,
            damage: facts
                .damages
                .iter()
                .map(|it| Damage {
                    offset: it.offset,
                    what: it.what,
                })
                .collect(),
        }
    }

    fn faults(&self) -> String {
        let mut text = String::new();
        if let Some(tail) = self.torn_tail {
            text += &format!(
                "torn      segment {} from {} on, {} bytes; a start cuts them off\n",
                self.segment, tail.offset, tail.bytes
            );
        }
        for Damage { offset, what } in &self.damage {
            text += &format!("damage    segment {} at {offset}: {what}\n", self.segment);
        }
        if self.damaged > DAMAGES_TOLD as u64 {
            let more = self.damaged - DAMAGES_TOLD as u64;
            text += &format!("damage    segment {}: {more} more\n", self.segment);
        }
        text
    }
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

/// The first column to the left, all others to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.len()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        text += "\n";
    }
    text
}
