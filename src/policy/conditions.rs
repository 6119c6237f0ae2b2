//! Policies of type `ottl_condition`: how a file writes them, and what they leave on a trace. The
//! language itself is `ottl`'s.

use std::borrow::Cow;

use crate::model::Moment;
use crate::policy::file::{Entries, Reader, is_text, text_of};
use crate::policy::fold::Fact;
use crate::policy::ottl::{
    Condition, Context, ErrorMode, EvalError, Latches, OttlCondition, Outcome, Program,
};
use crate::policy::tree::{Item, Node};
use crate::policy::{FoldState, Folding, PolicyKind};

/// Conditions of one policy. Each span is shown to every one.
pub(super) const CONDITIONS_MAX: usize = 1_000;

/// The conditions of all policies, and where each policy leaves how it ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Conditions {
    program: Program,
    /// By the index of the policy in the program.
    ends: Vec<Ends>,
    /// The same: the policy of the file that it stands in, and whether its failures are logged.
    told_as: Vec<(u16, bool)>,
}

/// The facts of one policy. At most one of them is ever there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) matched: Fact,
    /// That the policy has no vote; only where errors are propagated.
    pub(super) errored: Option<Fact>,
}

impl Conditions {
    /// `place` is that of the policy at the top of the file; `new_fact` numbers one.
    pub(super) fn add(
        &mut self,
        policy: &OttlCondition,
        place: u16,
        mut new_fact: impl FnMut() -> Fact,
    ) -> Ends {
        let propagates = policy.error_mode == ErrorMode::Propagate;
        let ends = Ends {
            matched: new_fact(),
            errored: propagates.then(new_fact),
        };
        self.program.add(policy);
        self.ends.push(ends);
        let is_logged = policy.error_mode == ErrorMode::Ignore;
        self.told_as.push((place, is_logged));
        ends
    }

    pub(super) fn is_empty(&self) -> bool {
        self.program.is_empty()
    }

    /// The header of the resource in stretches of whole fields, and for each ScopeSpans that of its
    /// scope and its spans.
    pub(super) fn fold<'a, H, S>(
        &self,
        state: &mut FoldState,
        resource_header: impl Iterator<Item = &'a [u8]>,
        scopes: impl Iterator<Item = (H, S)>,
        now: Moment,
        folding: &mut Folding,
    ) where
        H: Iterator<Item = &'a [u8]>,
        S: Iterator<Item = &'a [u8]>,
    {
        if self.is_empty() {
            return;
        }
        let mut latches = OnState {
            of: self,
            state,
            folding,
        };
        let scopes = scopes.map(|(header, spans)| (joined(header), spans));
        self.program
            .fold(joined(resource_header), scopes, now, &mut latches);
    }
}

struct OnState<'s> {
    of: &'s Conditions,
    state: &'s mut FoldState,
    folding: &'s mut Folding,
}

impl Latches for OnState<'_> {
    fn is_settled(&self, policy: usize) -> bool {
        self.of.ends.get(policy).is_none_or(|ends| {
            self.state.has(ends.matched) || ends.errored.is_some_and(|it| self.state.has(it))
        })
    }

    fn settle(&mut self, policy: usize, outcome: Outcome) {
        let fact = self.of.ends.get(policy).and_then(|ends| match outcome {
            Outcome::Matched => Some(ends.matched),
            Outcome::Errored => ends.errored,
        });
        if let Some(fact) = fact {
            self.state.add(fact);
        }
    }

    fn failed(&mut self, policy: usize, error: EvalError) {
        if let Some(&(place, is_logged)) = self.of.told_as.get(policy) {
            self.folding.failed(place, error, is_logged);
        }
    }
}

/// Nearly always one stretch, which is not copied.
pub(super) fn joined<'a>(mut pieces: impl Iterator<Item = &'a [u8]>) -> Cow<'a, [u8]> {
    let mut whole = Cow::Borrowed(pieces.next().unwrap_or_default());
    for piece in pieces {
        whole.to_mut().extend_from_slice(piece);
    }
    whole
}

impl Reader {
    pub(super) fn ottl_condition(&mut self, kind: &Item, entries: &Entries) -> Option<PolicyKind> {
        let block = self.block_of(
            kind,
            entries,
            "ottl_condition",
            &["error_mode", "span", "spanevent"],
            "error_mode: ignore\n  span: ['attributes[\"http.route\"] == \"/pay\"']",
        )?;
        let named = entries.iter().find(|(key, _)| is_text(key, "name"));
        let policy = named
            .and_then(|(_, name)| text_of(name))
            .unwrap_or_default();
        let error_mode = match block.get("error_mode") {
            None => Some(ErrorMode::Ignore),
            Some(item) => self.error_mode(item),
        };
        let lists = [("span", Context::Span), ("spanevent", Context::SpanEvent)];
        let [span, span_event] = lists.map(|(list, context)| match block.get(list) {
            None => Some(Vec::new()),
            Some(item) => self.conditions(item, policy, list, context),
        });
        let (error_mode, span, span_event) = (error_mode?, span?, span_event?);
        if span.is_empty() && span_event.is_empty() {
            self.wrong(
                block.item,
                "`ottl_condition` has no condition; write one under `span` or `spanevent`",
            );
            return None;
        }
        Some(PolicyKind::OttlCondition(OttlCondition {
            error_mode,
            span,
            span_event,
        }))
    }

    fn error_mode(&mut self, item: &Item) -> Option<ErrorMode> {
        let word = text_of(item).unwrap_or_default().to_ascii_lowercase();
        match word.as_str() {
            "ignore" => Some(ErrorMode::Ignore),
            "silent" => Some(ErrorMode::Silent),
            "propagate" => Some(ErrorMode::Propagate),
            _ => {
                self.wrong(
                    item,
                    format!(
                        "`error_mode` is {}; write ignore, silent or propagate, or leave it out",
                        item.describe()
                    ),
                );
                None
            }
        }
    }

    /// One condition may stand without a list.
    fn conditions(
        &mut self,
        item: &Item,
        policy: &str,
        list: &str,
        context: Context,
    ) -> Option<Vec<Condition>> {
        let items = match &item.node {
            Node::List(items) => items.as_slice(),
            Node::Null => &[],
            _ => std::slice::from_ref(item),
        };
        if items.len() > CONDITIONS_MAX {
            self.wrong(
                item,
                format!("{} conditions; at most {CONDITIONS_MAX}", items.len()),
            );
            return None;
        }
        let mut conditions = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let place = format!("policy `{policy}`, ottl_condition.{list}[{index}]");
            let Some(text) = text_of(item) else {
                self.wrong(
                    item,
                    format!(
                        "{place} is {}; write a condition in quotes, for example \
                         'attributes[\"http.route\"] == \"/pay\"'",
                        item.describe()
                    ),
                );
                continue;
            };
            match Condition::compile(text, context) {
                Ok(condition) => {
                    for warning in condition.warnings() {
                        self.notice(item, format!("{place}: {}", warning.render(text)));
                    }
                    conditions.push(condition);
                }
                Err(error) => self.wrong(item, format!("{place}: {}", error.render(text))),
            }
        }
        (conditions.len() == items.len()).then_some(conditions)
    }
}
