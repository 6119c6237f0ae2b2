//! What people see: a table that is drawn again and again on a terminal, a line every few seconds
//! otherwise, and the summary. With `--output json` all of it goes to stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use super::figures::{Count, Figures, Price, share};
use super::oracle::{BASELINE, POLICIES, RATE_CAP};

const LINE_EVERY: Duration = Duration::from_secs(5);

/// Where progress goes, and what is there already.
#[derive(Debug)]
pub(super) struct Screen {
    to_stderr: bool,
    is_terminal: bool,
    drawn_lines: usize,
    next_line_at: Duration,
}

impl Screen {
    pub(super) fn new(to_stderr: bool) -> Self {
        let is_terminal = if to_stderr {
            io::stderr().is_terminal()
        } else {
            io::stdout().is_terminal()
        };
        Self {
            to_stderr,
            is_terminal,
            drawn_lines: 0,
            next_line_at: LINE_EVERY,
        }
    }

    /// Text that stays.
    pub(super) fn say(&mut self, text: &str) {
        self.drawn_lines = 0;
        self.write(text);
    }

    /// Something that happened; stays above the table.
    pub(super) fn tell(&mut self, at: Duration, event: &str) {
        self.clear();
        self.write(&format!("{:>4.0} s  {event}\n", at.as_secs_f64()));
    }

    /// The state so far; replaced by the next. Lines fit 80 columns: one that is wrapped would not
    /// be counted when it is replaced.
    pub(super) fn show(&mut self, title: &str, figures: &Figures, price: Price) {
        if self.is_terminal {
            let table = format!("\x1b[1m{title}\x1b[0m\n\n{}", table(figures, price));
            let up = match self.drawn_lines {
                0 => String::new(),
                lines => format!("\x1b[{lines}A\x1b[J"),
            };
            self.write(&format!("{up}{table}"));
            self.drawn_lines = table.lines().count();
        } else if figures.elapsed >= self.next_line_at {
            self.next_line_at = figures.elapsed + LINE_EVERY;
            self.write(&line(figures));
        }
    }

    /// Removes what was drawn last.
    pub(super) fn clear(&mut self) {
        if self.drawn_lines > 0 {
            self.write(&format!("\x1b[{}A\x1b[J", self.drawn_lines));
            self.drawn_lines = 0;
        }
    }

    /// Bold, where there is such a thing.
    pub(super) fn bold(&self, text: &str) -> String {
        if self.is_terminal {
            format!("\x1b[1m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn write(&self, text: &str) {
        // Nobody is left to tell that the terminal is gone; the result is in the exit status.
        let written = if self.to_stderr {
            io::stderr().write_all(text.as_bytes())
        } else {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        };
        written.unwrap_or(());
    }
}

/// Everything that is known so far.
pub(super) fn table(figures: &Figures, price: Price) -> String {
    let mut text = format!("{:<25}{:>11}{:>19}\n", "", "traces", "spans");
    let mut row = |name: &str, count: Count, of: Option<Count>, note: &str| {
        let percent = |part, whole: Option<u64>| match whole {
            Some(whole) => format!("{:>6.1} %", share(part, whole) * 100.0),
            None => " ".repeat(8),
        };
        text += &format!(
            "{name:<25}{:>11}{}{:>11}{}  {note}\n",
            grouped(count.traces),
            percent(count.traces, of.map(|of| of.traces)),
            grouped(count.spans),
            percent(count.spans, of.map(|of| of.spans))
        );
    };
    let rate = format!("{} spans/s", grouped(figures.spans_per_second() as u64));
    row("sent", figures.sent, None, &rate);
    row("judged", figures.judged, None, "");
    let kept = figures.kept();
    row("kept", kept, Some(figures.judged), "");
    for name in POLICIES {
        let count = figures.kept_by.get(name).copied().unwrap_or_default();
        row(&format!("  {name}"), count, Some(figures.judged), "");
    }
    for (name, count) in &figures.kept_by {
        if !POLICIES.contains(&name.as_str()) {
            row(&format!("  {name}"), *count, Some(figures.judged), "");
        }
    }
    text.push('\n');
    let spans_share = share(kept.spans, figures.judged.spans);
    let before = price.month(figures.spans_per_second());
    let baselines = [BASELINE, RATE_CAP].map(|name| figures.kept_by.get(name));
    let baselines: u64 = baselines.iter().flatten().map(|count| count.traces).sum();
    let useful = kept.traces.saturating_sub(baselines);
    let (each_before, each_after) = (
        price.of_each(figures.judged.spans, useful),
        price.of_each(kept.spans, useful),
    );
    let heading = format!("at ${} for a million spans", price.0);
    for (name, without, with) in [
        (&*heading, "without".into(), "with Tailring".into()),
        (
            "a month at this rate",
            dollars(before),
            dollars(before * spans_share),
        ),
        (
            "1,000 useful traces",
            dollars(each_before * 1000.0),
            dollars(each_after * 1000.0),
        ),
    ] {
        text += &format!("{name:<30}{without:>14}{with:>19}\n");
    }
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// The same for a log.
fn line(figures: &Figures) -> String {
    let kept = figures.kept();
    format!(
        "{:>4.0} s  {:>7} traces and {:>9} spans sent; {:>7} traces judged; kept {:>4.1} % of traces, {:>4.1} % of spans\n",
        figures.elapsed.as_secs_f64(),
        grouped(figures.sent.traces),
        grouped(figures.sent.spans),
        grouped(figures.judged.traces),
        share(kept.traces, figures.judged.traces) * 100.0,
        share(kept.spans, figures.judged.spans) * 100.0,
    )
}

/// 12,345,678.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Whole dollars, or cents where a dollar is much.
pub(super) fn dollars(amount: f64) -> String {
    if amount >= 100.0 {
        format!("${}", grouped(amount.round() as u64))
    } else {
        format!("${amount:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(dollars(12_345.6), "$12,346");
        assert_eq!(dollars(0.237), "$0.24");
    }

    #[test]
    fn the_table_shows_shares_of_what_was_judged_and_what_they_cost() {
        let count = |traces, spans| Count { traces, spans };
        let figures = Figures {
            elapsed: Duration::from_secs(17),
            sending: Duration::from_secs(10),
            sent: count(2000, 40_000),
            judged: count(1000, 20_000),
            kept_by: [
                ("keep-errors".to_owned(), count(10, 200)),
                (BASELINE.to_owned(), count(40, 3800)),
            ]
            .into(),
            awaiting_export: 0,
            undecided: 1000,
        };
        let table = table(&figures, Price(2.0));
        println!("{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 79));
        let row = |name: &str| -> Vec<String> {
            let row = table.lines().find(|line| line.trim().starts_with(name));
            let words = row.unwrap().split_whitespace();
            words.map(str::to_owned).collect()
        };
        assert_eq!(row("kept")[1..], ["50", "5.0", "%", "4,000", "20.0", "%"]);
        assert_eq!(row("keep-errors")[1..4], ["10", "1.0", "%"]);
        // 4,000 spans/s are 10,368 million a month.
        assert_eq!(row("a month")[5..], ["$20,736", "$4,147"]);
        // 10 useful traces out of 20,000 spans at $2 a million.
        assert_eq!(row("1,000 useful")[3..5], ["$4.00", "$0.80"]);
    }
}
