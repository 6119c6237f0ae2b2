//! What is told of a trace, as text for people and as JSON.

use serde::Serialize;

use super::traces::Trace;
use crate::app::table::{Columns, table};
use crate::model::{Threshold, Verdict};
use crate::policy::{At, Explained, Explanation, Reason, Vote};
use crate::wire::th_digits;

/// Everything about one trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    pub trace_id: String,
    /// With no other trace before the limits.
    #[serde(flatten)]
    pub judged: Judged,
    /// If every limit refuses; none if no limit makes a difference.
    pub if_limits_refuse: Option<Judged>,
    pub spans: u32,
    pub fragments: usize,
    /// Byte-identical ones, which count once.
    pub fragments_doubled: usize,
    pub notes: Vec<String>,
    /// In the order of the file.
    pub policies: Vec<PolicyTold>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// keep or drop
    pub verdict: &'static str,
    /// None for a drop, and if nobody can say how likely the trace was to be kept.
    pub threshold: Option<Weight>,
    /// The policy that it is counted for.
    pub kept_by: Option<String>,
}

/// T.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Weight {
    /// As in a trace state.
    pub th: String,
    /// Of traces that are kept with it.
    pub share: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyTold {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// sampled, not_sampled, dropped or error
    pub vote: &'static str,
    /// False if nothing hangs on its vote: what stands before it has decided.
    pub asked: bool,
    /// With which it would keep the trace.
    pub threshold: Option<Weight>,
    pub reasons: Vec<ReasonTold>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Self>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReasonTold {
    /// trace, resource, span or event
    pub at: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_name: Option<String>,
    /// Among the events of the span, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_name: Option<String>,
    pub text: String,
}

/// Reasons that are told to people; JSON has all of them.
const REASONS_TOLD: usize = 10;

impl Told {
    pub(super) fn new(trace: &Trace<'_>, explanation: &Explanation) -> Self {
        let policies: Vec<_> = explanation.policies.iter().map(PolicyTold::new).collect();
        let judged = |vote: &Vote| Judged::new(vote, &explanation.policies);
        Self {
            trace_id: trace.id.to_string(),
            judged: judged(&explanation.vote),
            if_limits_refuse: explanation.without_limits.as_ref().map(judged),
            spans: explanation.spans,
            fragments: trace.fragments.len(),
            fragments_doubled: trace.copies,
            notes: explanation.notes.clone(),
            policies,
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut rows = vec![vec![
            format!("trace {}", self.trace_id),
            self.judged.describe(),
        ]];
        if let Some(without) = &self.if_limits_refuse {
            rows.push(vec!["if limits refuse it".to_owned(), without.describe()]);
        }
        let plural = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        };
        let mut size = format!(
            "{} in {}",
            plural(self.spans as usize, "span"),
            plural(self.fragments, "fragment")
        );
        if self.fragments_doubled > 0 {
            size += &format!(
                ", and {} that came twice and count once",
                self.fragments_doubled
            );
        }
        rows.push(vec!["judged are".to_owned(), size]);
        let mut text = table(&rows, Columns::Words);
        if self.if_limits_refuse.is_some() {
            text += "What a limit says hangs on other traces; here there are none.\n";
        }
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        for policy in &self.policies {
            text += "\n";
            policy.write(0, &mut text);
        }
        text
    }
}

impl Judged {
    fn new(vote: &Vote, policies: &[Explained]) -> Self {
        let is_kept = vote.verdict == Verdict::Keep;
        let by = vote.policy.and_then(|it| policies.get(usize::from(it)));
        Self {
            verdict: vote.verdict.label(),
            threshold: vote.threshold.filter(|_| is_kept).map(Weight::of),
            kept_by: by.filter(|_| is_kept).map(|it| it.name.clone()),
        }
    }

    fn describe(&self) -> String {
        let Some(policy) = &self.kept_by else {
            return self.verdict.to_uppercase();
        };
        let weight = match &self.threshold {
            Some(weight) => weight.describe(),
            None => "nobody can say with which T".to_owned(),
        };
        format!("{} by {policy}, {weight}", self.verdict.to_uppercase())
    }
}

impl Weight {
    fn of(threshold: Threshold) -> Self {
        Self {
            th: th_digits(threshold),
            share: threshold.share(),
        }
    }

    fn describe(&self) -> String {
        format!("T = th:{}, a share of {}", self.th, self.share)
    }
}

impl PolicyTold {
    fn new(explained: &Explained) -> Self {
        Self {
            name: explained.name.clone(),
            kind: explained.kind,
            vote: explained.said.label(),
            asked: explained.is_asked,
            threshold: explained.said.threshold().map(Weight::of),
            reasons: explained.reasons.iter().map(ReasonTold::new).collect(),
            policies: explained.policies.iter().map(Self::new).collect(),
        }
    }

    fn write(&self, depth: usize, text: &mut String) {
        let indent = "  ".repeat(depth);
        let name = match self.name.as_str() {
            "" => "(unnamed)",
            name => name,
        };
        let asked = if self.asked { "" } else { ", but is not asked" };
        *text += &format!("{indent}{name} ({}): {}{asked}\n", self.kind, self.vote);
        for reason in self.reasons.iter().take(REASONS_TOLD) {
            *text += &format!("{indent}    {}\n", reason.describe());
        }
        let more = self.reasons.len().saturating_sub(REASONS_TOLD);
        if more > 0 {
            *text += &format!("{indent}    and {more} more\n");
        }
        for policy in &self.policies {
            policy.write(depth + 1, text);
        }
    }
}

impl ReasonTold {
    fn new(reason: &Reason) -> Self {
        let mut told = Self {
            at: "trace",
            span_id: None,
            span_name: None,
            event_index: None,
            event_name: None,
            text: reason.text.clone(),
        };
        match &reason.at {
            At::Trace => {}
            At::Resource => told.at = "resource",
            At::Span { id, name } => {
                told.at = "span";
                told.span_id = id.map(|id| id.to_string());
                told.span_name = Some(name.clone());
            }
            At::Event {
                span,
                span_name,
                index,
                name,
            } => {
                told.at = "event";
                told.span_id = span.map(|id| id.to_string());
                told.span_name = Some(span_name.clone());
                told.event_index = Some(*index);
                told.event_name = Some(name.clone());
            }
        }
        told
    }

    fn describe(&self) -> String {
        let id = self.span_id.as_deref().unwrap_or_default();
        let name = self.span_name.as_deref().unwrap_or_default();
        match (self.at, self.event_index) {
            ("trace", _) => self.text.clone(),
            ("event", Some(index)) => {
                let event = self.event_name.as_deref().unwrap_or_default();
                format!("span {id} {name:?}, event {index} {event:?}: {}", self.text)
            }
            ("span", _) => format!("span {id} {name:?}: {}", self.text),
            (place, _) => format!("{place}: {}", self.text),
        }
    }
}
