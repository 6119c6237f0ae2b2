//! What a check found, as tables for people and as JSON.

use serde::Serialize;

use crate::app::settings::PolicyFileError;
use crate::app::table::{Columns, table};
use crate::model::format_go_duration;
use crate::policy::{Compatibility, Parsed, PlannedPolicy, Settings, Sights, Strategy, Timing};

/// A file that a worker takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    pub valid: bool,
    pub file: String,
    /// As the worker logs it at its start; as a text, for it has more digits than a double.
    pub rules_version: String,
    pub timing: Waits,
    pub settings: Meant,
    pub policies: Vec<PlannedPolicy>,
    pub notices: Vec<Line>,
}

/// One that it does not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    pub valid: bool,
    pub file: String,
    /// Why it could not be read at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub mistakes: Vec<Line>,
}

/// As Go writes durations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waits {
    pub decision_wait: String,
    pub quiet_period: Option<String>,
    pub decision_wait_after_root_received: Option<String>,
}

/// The settings beside the policies, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Meant {
    pub compatibility: &'static str,
    pub sampling_strategy: &'static str,
    pub sample_on_first_match: bool,
    pub assume_unsampled_upstream: bool,
    pub maximum_trace_size_bytes: Option<u64>,
}

/// A mistake or a notice with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl Checked {
    pub(super) fn new(file: &str, parsed: &Parsed) -> Self {
        let rules = &parsed.rules;
        let notices = parsed.notices.iter();
        Self {
            valid: true,
            file: file.to_owned(),
            rules_version: rules.version.to_string(),
            timing: Waits::of(&rules.timing),
            settings: Meant::of(&rules.settings),
            policies: rules.plan().policies,
            notices: notices
                .map(|it| Line {
                    line: it.line,
                    column: it.column,
                    message: it.message.clone(),
                })
                .collect(),
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let count = match self.policies.len() {
            1 => "1 policy".to_owned(),
            count => format!("{count} policies"),
        };
        let mut text = format!("{}: valid, {count}\n\n", self.file);
        text += &table(&self.facts(), Columns::Words);
        text += "\nWhat each policy looks at\n\n";
        text += &self.sights();
        text += "\nWhat settles an answer before a trace is complete (-: only the whole trace)\n\n";
        text += &self.settling();
        let mut approximations = String::new();
        for policy in &self.policies {
            approximate(policy, "", &mut approximations);
        }
        if !approximations.is_empty() {
            text += "\nWhat is approximate\n\n";
            text += &approximations;
        }
        if !self.notices.is_empty() {
            text += "\nWhat a worker says at its start\n\n";
            for Line {
                line,
                column,
                message,
            } in &self.notices
            {
                let message = message.replace('\n', "\n  ");
                text += &format!("{}:{line}:{column}: {message}\n", self.file);
            }
        }
        text
    }

    fn facts(&self) -> Vec<Vec<String>> {
        let mut rows = vec![vec!["rules version".to_owned(), self.rules_version.clone()]];
        let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
        let waits = [
            (Some(&self.timing.decision_wait), "first"),
            (self.timing.quiet_period.as_ref(), "last"),
            (
                self.timing.decision_wait_after_root_received.as_ref(),
                "root",
            ),
        ];
        let waits: Vec<String> = waits
            .into_iter()
            .filter_map(|(wait, span)| Some(format!("{} after its {span} span", wait?)))
            .collect();
        let earliest = if waits.len() > 1 {
            "at the earliest of: "
        } else {
            ""
        };
        row(
            "a trace is judged",
            format!("{earliest}{}", waits.join(", ")),
        );
        let settings = &self.settings;
        if settings.compatibility == "collector" {
            row(
                "compatibility",
                "collector: its hash, its limits, its known bugs".to_owned(),
            );
        }
        if settings.sampling_strategy == "span-ingest" {
            row(
                "sampling strategy",
                "span-ingest: policies vote over each fragment as it comes".to_owned(),
            );
        }
        if settings.sample_on_first_match {
            row(
                "first match",
                "policies behind the first one that keeps a trace are not asked".to_owned(),
            );
        }
        if !settings.assume_unsampled_upstream {
            row(
                "upstream",
                "spans without a threshold of their own get none".to_owned(),
            );
        }
        if let Some(bytes) = settings.maximum_trace_size_bytes {
            row(
                "dropped at once",
                format!("traces of more than {bytes} bytes"),
            );
        }
        rows
    }

    fn sights(&self) -> String {
        let mut rows = vec![words(["policy", "type", "looks at"])];
        for policy in &self.policies {
            each(policy, 0, &mut |policy, depth| {
                rows.push(vec![
                    indented(policy, depth),
                    policy.kind.to_owned(),
                    shown(&policy.looks_at),
                ]);
            });
        }
        table(&rows, Columns::Words)
    }

    fn settling(&self) -> String {
        let mut rows = vec![words(["policy", "yes", "no"])];
        let said = |it: &Option<String>| it.clone().unwrap_or_else(|| "-".to_owned());
        for policy in &self.policies {
            each(policy, 0, &mut |policy, depth| {
                rows.push(vec![
                    indented(policy, depth),
                    said(&policy.settled.yes),
                    said(&policy.settled.no),
                ]);
            });
        }
        table(&rows, Columns::Words)
    }
}

impl Refused {
    pub(super) fn new(file: &str, error: &PolicyFileError) -> Self {
        let (error, mistakes) = match error {
            PolicyFileError::Unreadable(problem) => (Some(problem.clone()), &[][..]),
            PolicyFileError::Refused(mistakes) => (None, &mistakes[..]),
        };
        Self {
            valid: false,
            file: file.to_owned(),
            error,
            mistakes: mistakes
                .iter()
                .map(|it| Line {
                    line: it.line,
                    column: it.column,
                    message: it.message.clone(),
                })
                .collect(),
        }
    }
}

impl Waits {
    fn of(timing: &Timing) -> Self {
        Self {
            decision_wait: format_go_duration(timing.decision_wait),
            quiet_period: timing.quiet_period.map(format_go_duration),
            decision_wait_after_root_received: timing
                .decision_wait_after_root_received
                .map(format_go_duration),
        }
    }
}

impl Meant {
    fn of(settings: &Settings) -> Self {
        Self {
            compatibility: match settings.compatibility {
                Compatibility::Tailring => "tailring",
                Compatibility::Collector => "collector",
            },
            sampling_strategy: match settings.strategy {
                Strategy::TraceComplete => "trace-complete",
                Strategy::SpanIngest => "span-ingest",
            },
            sample_on_first_match: settings.sample_on_first_match,
            assume_unsampled_upstream: settings.assume_unsampled_upstream,
            maximum_trace_size_bytes: settings.trace_bytes_max,
        }
    }
}

fn words<const N: usize>(row: [&str; N]) -> Vec<String> {
    row.map(str::to_owned).to_vec()
}

/// The policy and those inside of it, with how deep they are.
fn each(policy: &PlannedPolicy, depth: usize, on: &mut impl FnMut(&PlannedPolicy, usize)) {
    on(policy, depth);
    for sub in &policy.policies {
        each(sub, depth + 1, on);
    }
}

fn indented(policy: &PlannedPolicy, depth: usize) -> String {
    format!("{}{}", "  ".repeat(depth), called(policy))
}

/// A policy inside another one may have no name.
fn called(policy: &PlannedPolicy) -> &str {
    match policy.name.as_str() {
        "" => "(unnamed)",
        name => name,
    }
}

fn shown(sights: &Sights) -> String {
    let places = sights.by_place().into_iter();
    let places: Vec<String> = places
        .filter(|(_, paths)| !paths.is_empty())
        .map(|(place, paths)| {
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            format!("{place}: {}", paths.join(", "))
        })
        .collect();
    match places.is_empty() {
        true => "nothing".to_owned(),
        false => places.join("; "),
    }
}

fn approximate(policy: &PlannedPolicy, within: &str, text: &mut String) {
    let name = format!("{within}{}", called(policy));
    for line in &policy.approximations {
        *text += &format!("{name}: {line}\n");
    }
    for sub in &policy.policies {
        approximate(sub, &format!("{name} / "), text);
    }
}
