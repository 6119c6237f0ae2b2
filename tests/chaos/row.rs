//! A row of the report: what was measured, what was found wrong, and the verdict; and the table.

use std::fmt::Write as _;
use std::time::Duration;

use crate::cluster::Findings;

const COLUMNS: usize = 10;
/// The verdict.
const LAST: usize = COLUMNS - 1;
const MIB: f64 = (1 << 20) as f64;
/// Of the acknowledged spans, where a crash or a lost answer explains them.
const DOUBLED_SHARE_MAX: f64 = 0.001;
/// What the fleet sends in a tenth of a second: a message is made of what was decided while the one
/// before it was under way.
const MESSAGE_SPANS: u64 = 500;

/// How much of a fault: a short form for every change, or all that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Quick,
    /// Figures that depend on the machine are held to their bounds as well.
    Full,
}

/// What may come to the backend twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubling {
    /// No process died and no answer was lost.
    Never,
    AfterLostAnswers,
    /// A message is under way to the backend each time a worker dies: in a load that is too short for
    /// a share of 0.1 % of it to be as much as one message.
    InFlightAtDeaths(u64),
}

/// One row.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    doubling: Doubling,
    may_split: bool,
    found: Option<Findings>,
    recovery: Option<Duration>,
    rss_peak_bytes: Option<u64>,
    notes: Vec<String>,
    faults: Vec<String>,
    skipped: Option<String>,
}

impl Scale {
    pub fn pick<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

impl Row {
    pub fn new(name: impl Into<String>, doubling: Doubling) -> Self {
        Self {
            name: name.into(),
            doubling,
            may_split: true,
            found: None,
            recovery: None,
            rss_peak_bytes: None,
            notes: Vec::new(),
            faults: Vec::new(),
            skipped: None,
        }
    }

    /// No trace may be judged in pieces here, nor go to the backend by two members.
    pub fn splits_nothing(mut self) -> Self {
        self.may_split = false;
        self
    }

    /// A row that could not be shown here, and why.
    pub fn skipped(name: &str, why: String) -> Self {
        let mut row = Self::new(name, Doubling::Never);
        row.skipped = Some(why);
        row
    }

    /// A row that came to no end.
    pub fn broken(name: &str, why: String) -> Self {
        let mut row = Self::new(name, Doubling::Never);
        row.faults.push(why);
        row
    }

    /// The books were compared.
    pub fn judge(&mut self, found: Findings) {
        self.must(found.lost == 0, || {
            format!("{} acknowledged spans lost", found.lost)
        });
        self.must(found.unknown == 0, || {
            format!("{} spans that nobody sent", found.unknown)
        });
        let share = (found.acknowledged as f64 * DOUBLED_SHARE_MAX) as u64;
        let bound = match self.doubling {
            Doubling::Never => 0,
            Doubling::AfterLostAnswers => share,
            Doubling::InFlightAtDeaths(deaths) => share.max(deaths * MESSAGE_SPANS),
        };
        self.must(found.doubled <= bound, || {
            format!("{} spans doubled, more than {bound}", found.doubled)
        });
        self.must(self.may_split || found.split == 0, || {
            format!("{} traces split", found.split)
        });
        self.found = Some(found);
    }

    #[track_caller]
    pub fn must(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            let place = std::panic::Location::caller();
            self.faults.push(format!("{} ({place})", otherwise()));
        }
    }

    /// A figure that means something on a quiet machine and in a release build only.
    #[track_caller]
    pub fn figure(&mut self, scale: Scale, holds: bool, otherwise: impl FnOnce() -> String) {
        self.must(scale == Scale::Quick || holds, otherwise);
    }

    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// The longest counts.
    pub fn recovered_in(&mut self, time: Duration) {
        self.recovery = self.recovery.max(Some(time));
    }

    /// The highest counts.
    pub fn memory(&mut self, bytes: u64) {
        self.rss_peak_bytes = self.rss_peak_bytes.max(Some(bytes));
    }

    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    pub fn is_skipped(&self) -> bool {
        self.skipped.is_some()
    }

    fn verdict(&self) -> &'static str {
        match (&self.skipped, self.holds()) {
            (Some(_), _) => "SKIPPED",
            (None, true) => "held",
            (None, false) => "FAILED",
        }
    }

    fn cells(&self) -> [String; COLUMNS] {
        let count = |of: fn(&Findings) -> u64| match &self.found {
            Some(found) => grouped(of(found)),
            None => "-".to_owned(),
        };
        [
            self.name.clone(),
            count(|found| found.sent),
            count(|found| found.acknowledged),
            count(|found| found.lost),
            count(|found| found.doubled),
            match &self.found {
                Some(found) => format!("{:.4} %", 100.0 * doubled_share(found)),
                None => "-".to_owned(),
            },
            count(|found| found.split),
            match self.recovery {
                Some(time) => format!("{:.2} s", time.as_secs_f64()),
                None => "-".to_owned(),
            },
            match self.rss_peak_bytes {
                Some(bytes) => format!("{:.0} MiB", bytes as f64 / MIB),
                None => "-".to_owned(),
            },
            self.verdict().to_owned(),
        ]
    }
}

fn doubled_share(found: &Findings) -> f64 {
    found.doubled as f64 / (found.acknowledged as f64).max(1.0)
}

/// 1234567 as 1,234,567.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The rows as a table, what was noted of each below it.
pub fn table(rows: &[Row]) -> String {
    let heading = [
        "row", "sent", "acked", "lost", "doubled", "share", "split", "recovery", "RSS peak",
        "verdict",
    ];
    let mut lines = vec![heading.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let mut widths = [0; COLUMNS];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            match column {
                0 => write!(text, "{cell:<width$}").unwrap(),
                LAST => write!(text, "  {cell}").unwrap(),
                _ => write!(text, "  {cell:>width$}").unwrap(),
            }
        }
        text.push('\n');
    }
    for row in rows {
        let said = row.skipped.iter().chain(&row.notes);
        for note in said {
            writeln!(text, "{}: {note}", row.name).unwrap();
        }
        for fault in &row.faults {
            writeln!(text, "{}: FAILED: {fault}", row.name).unwrap();
        }
    }
    text
}

#[test]
fn a_row_fails_by_what_is_lost_and_by_what_is_doubled_without_a_reason() {
    let found = Findings {
        sent: 1_000_000,
        acknowledged: 1_000_000,
        got: 1_000_000,
        lost: 0,
        doubled: 0,
        split: 0,
        unknown: 0,
    };
    let judged = |doubling, found| {
        let mut row = Row::new("row", doubling);
        row.judge(found);
        row.holds()
    };
    let lost = Findings { lost: 1, ..found };
    let unknown = Findings {
        unknown: 1,
        ..found
    };
    let doubled = |doubled| Findings { doubled, ..found };
    for doubling in [Doubling::Never, Doubling::AfterLostAnswers] {
        assert!(judged(doubling, found));
        assert!(!judged(doubling, lost));
        assert!(!judged(doubling, unknown));
        assert!(!judged(doubling, doubled(1_001)));
    }
    let split = Findings { split: 1, ..found };
    assert!(judged(Doubling::Never, split));
    let mut strict = Row::new("row", Doubling::Never).splits_nothing();
    strict.judge(split);
    assert!(!strict.holds());
    assert!(!judged(Doubling::Never, doubled(1)));
    assert!(judged(Doubling::AfterLostAnswers, doubled(1_000)));
    let short = |doubled| Findings {
        doubled,
        acknowledged: 40_000,
        ..found
    };
    assert!(judged(Doubling::InFlightAtDeaths(3), short(1_500)));
    assert!(!judged(Doubling::InFlightAtDeaths(3), short(1_501)));
}

#[test]
fn a_skipped_row_is_neither_held_nor_failed_and_columns_stand_below_each_other() {
    let rows = [
        Row::skipped("tmpfs", "needs root".to_owned()),
        Row::broken("kill", "it was late".to_owned()),
    ];
    let text = table(&rows);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("tmpfs ") && lines[1].ends_with(" SKIPPED"));
    assert!(lines[2].starts_with("kill ") && lines[2].ends_with(" FAILED"));
    let column = lines[0].find("verdict").unwrap();
    assert!(lines[1].find("SKIPPED") == Some(column) && lines[2].find("FAILED") == Some(column));
    assert_eq!(
        lines[3..],
        ["tmpfs: needs root", "kill: FAILED: it was late"]
    );
    assert_eq!(grouped(1_234_567), "1,234,567");
}
