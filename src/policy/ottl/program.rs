//! All conditions of all policies, and the one walk over a span that fills what they ask for.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::model::Moment;
use crate::policy::ottl::condition::{Condition, ErrorMode, OttlCondition, Reach, SpanView};
use crate::policy::ottl::error::EvalError;
use crate::policy::ottl::eval::{Record, Slots};
use crate::policy::ottl::expr::{Expr, Level, Test, Visitor};
use crate::wire::{
    EventRecord, KeyFilter, RESOURCE_ATTRIBUTES, ResourceRecord, SCOPE_ATTRIBUTES, ScopeRecord,
    SpanRecord, read_attributes,
};

/// The conditions of all policies of a file, compiled together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Program {
    policies: Vec<Lists>,
    layout: Layout,
    /// Conditions of all policies: each has a number.
    conditions: usize,
    scope_conditions: Vec<usize>,
    any_event: bool,
}

/// How a policy ended. Until then it is asked about each span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Matched,
    /// Under [`ErrorMode::Propagate`].
    Errored,
}

/// Where a trace remembers how its policies ended, by their index in the program.
pub trait Latches {
    fn is_settled(&self, policy: usize) -> bool;
    /// Once for a policy.
    fn settle(&mut self, policy: usize, outcome: Outcome);
    /// One of its conditions had no answer for a span or an event.
    fn failed(&mut self, _policy: usize, _error: EvalError) {}
}

/// One policy.
#[derive(Debug, Clone, PartialEq)]
struct Lists {
    propagate: bool,
    span: Vec<Numbered>,
    event: Vec<Numbered>,
}

#[derive(Debug, Clone)]
struct Numbered {
    number: usize,
    reach: Reach,
    test: Test,
    /// As it was written, to compare by.
    text: Box<str>,
}

/// Which attributes are asked for, and the slot of each, by [`Level`].
#[derive(Debug, Clone, PartialEq, Default)]
struct Layout {
    levels: [Keys; 4],
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Keys {
    filter: KeyFilter,
    slots: HashMap<Box<[u8]>, u32, foldhash::fast::RandomState>,
}

impl PartialEq for Numbered {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number && self.text == other.text
    }
}

impl Keys {
    fn slot(&mut self, key: &[u8]) -> u32 {
        // A file has fewer bytes.
        let next = self.slots.len() as u32;
        self.filter.add(key);
        *self.slots.entry(key.into()).or_insert(next)
    }

    /// Of equal keys the first one counts, as in the Collector's maps.
    #[inline]
    fn fill<'a>(&self, slots: &mut [Option<&'a [u8]>], key: &[u8], key_value: &'a [u8]) {
        if let Some(slot) = self.slots.get(key)
            && let Some(slot) = slots.get_mut(*slot as usize)
        {
            slot.get_or_insert(key_value);
        }
    }

    fn empty_slots<'a>(&self) -> Vec<Option<&'a [u8]>> {
        vec![None; self.slots.len()]
    }
}

impl Layout {
    fn keys(&self, level: Level) -> &Keys {
        &self.levels[level as usize]
    }

    /// Takes over what a condition asks for. Gives its test with the slots of this layout.
    fn take(&mut self, condition: &Condition) -> Test {
        struct Moved([Vec<u32>; 4]);
        impl Visitor for Moved {
            fn expr(&mut self, expr: &mut Expr) {
                if let Expr::Attribute { level, slot, .. } = expr
                    && let Some(moved) = self.0[*level as usize].get(*slot as usize)
                {
                    *slot = *moved;
                }
            }
        }
        let mut moved = Moved(Default::default());
        for level in Level::ALL {
            let at = level as usize;
            moved.0[at] = condition.keys[at]
                .iter()
                .map(|key| self.levels[at].slot(key))
                .collect();
        }
        let mut test = condition.test.clone();
        test.visit(&mut moved);
        test
    }
}

impl Program {
    /// Gives the index of the policy.
    pub fn add(&mut self, policy: &OttlCondition) -> usize {
        let span = self.number(&policy.span);
        let event = self.number(&policy.span_event);
        self.any_event |= !event.is_empty();
        self.policies.push(Lists {
            propagate: policy.error_mode == ErrorMode::Propagate,
            span,
            event,
        });
        self.policies.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    fn number(&mut self, conditions: &[Condition]) -> Vec<Numbered> {
        let mut numbered = Vec::with_capacity(conditions.len());
        for condition in conditions {
            let number = self.conditions;
            self.conditions += 1;
            let reach = condition.reach();
            if reach == Reach::Scope {
                self.scope_conditions.push(number);
            }
            numbered.push(Numbered {
                number,
                reach,
                test: self.layout.take(condition),
                text: condition.as_written().into(),
            });
        }
        numbered
    }

    /// Asks the policies that are not settled about the spans of one fragment, in order, and about
    /// the events of each. `scopes` are the headers and the spans of its ScopeSpans; `now` is when
    /// the fragment arrived.
    pub fn fold<'a, S>(
        &self,
        resource_header: Cow<'a, [u8]>,
        scopes: impl Iterator<Item = (Cow<'a, [u8]>, S)>,
        now: Moment,
        latches: &mut impl Latches,
    ) where
        S: Iterator<Item = &'a [u8]>,
    {
        let mut open: Vec<usize> = (0..self.policies.len())
            .filter(|policy| !latches.is_settled(*policy))
            .collect();
        if open.is_empty() {
            return;
        }
        let resource = ResourceRecord::read(resource_header);
        let resource_slots = self.header_slots(Level::Resource, &resource.bytes);
        let span_keys = self.layout.keys(Level::Span);
        let mut span_slots = span_keys.empty_slots();
        // Conditions that say no for all spans that are still to come under this header.
        let mut refuted = vec![false; self.conditions];
        for (scope_header, spans) in scopes {
            let scope = ScopeRecord::read(scope_header);
            let scope_slots = self.header_slots(Level::Scope, &scope.bytes);
            for number in &self.scope_conditions {
                refuted[*number] = false;
            }
            for bytes in spans {
                span_slots.fill(None);
                let span = SpanRecord::read(bytes, &span_keys.filter, &mut |key, key_value| {
                    span_keys.fill(&mut span_slots, key, key_value);
                });
                let record = Record {
                    resource: &resource,
                    scope: &scope,
                    span: &span,
                    event: &EventRecord::default(),
                    slots: [&resource_slots, &scope_slots, &span_slots, &[]],
                    now,
                };
                self.ask(&mut open, &record, false, &mut refuted, latches);
                if self.any_event && span.events > 0 && !open.is_empty() {
                    self.events(&mut open, &record, &mut refuted, latches);
                }
                if open.is_empty() {
                    return;
                }
            }
        }
    }

    fn header_slots<'b>(&self, level: Level, message: &'b [u8]) -> Vec<Option<&'b [u8]>> {
        let keys = self.layout.keys(level);
        let tag = match level {
            Level::Resource => RESOURCE_ATTRIBUTES,
            _ => SCOPE_ATTRIBUTES,
        };
        let mut slots = keys.empty_slots();
        read_attributes(message, tag, &keys.filter, &mut |key, key_value| {
            keys.fill(&mut slots, key, key_value);
        });
        slots
    }

    fn events(
        &self,
        open: &mut Vec<usize>,
        of_span: &Record<'_>,
        refuted: &mut [bool],
        latches: &mut impl Latches,
    ) {
        // A policy that has no conditions on events is not asked again, and one is asked about all
        // events of a span before the next policy is: they do not see each other.
        let asked = |policy: &usize| !self.policies[*policy].event.is_empty();
        if !open.iter().any(asked) {
            return;
        }
        let keys = self.layout.keys(Level::Event);
        let mut slots = keys.empty_slots();
        for bytes in of_span.span.events() {
            slots.fill(None);
            let event = EventRecord::read(bytes, &keys.filter, &mut |key, key_value| {
                keys.fill(&mut slots, key, key_value);
            });
            let [resource, scope, span, _] = of_span.slots;
            let record = Record {
                event: &event,
                slots: [resource, scope, span, &slots],
                ..*of_span
            };
            self.ask(open, &record, true, refuted, latches);
            if !open.iter().any(asked) {
                return;
            }
        }
    }

    /// Asks about one span or event.
    fn ask(
        &self,
        open: &mut Vec<usize>,
        record: &Record<'_>,
        about_event: bool,
        refuted: &mut [bool],
        latches: &mut impl Latches,
    ) {
        open.retain(|policy| {
            let lists = &self.policies[*policy];
            let conditions = if about_event {
                &lists.event
            } else {
                &lists.span
            };
            for condition in conditions {
                if refuted[condition.number] {
                    continue;
                }
                let held = condition.test.holds(record);
                if let Err(error) = held {
                    latches.failed(*policy, error);
                }
                let outcome = match held {
                    Ok(true) => Outcome::Matched,
                    Err(_) if lists.propagate => Outcome::Errored,
                    Ok(false) | Err(_) => {
                        refuted[condition.number] = condition.reach < Reach::Span;
                        continue;
                    }
                };
                latches.settle(*policy, outcome);
                return false;
            }
            true
        });
    }
}

/// One condition about one span or event.
pub(super) fn evaluate_alone(
    condition: &Condition,
    view: &SpanView<'_>,
) -> Result<bool, EvalError> {
    let mut layout = Layout::default();
    let test = layout.take(condition);
    let resource = ResourceRecord::read(Cow::Borrowed(view.resource_header));
    let scope = ScopeRecord::read(Cow::Borrowed(view.scope_header));
    let mut slots: [Vec<Option<&[u8]>>; 4] = Default::default();
    for (level, slots) in Level::ALL.into_iter().zip(&mut slots) {
        *slots = layout.keys(level).empty_slots();
    }
    let [of_resource, of_scope, of_span, of_event] = &mut slots;
    let keys = |level| layout.keys(level);
    let fill_header = |level: Level, message, tag, slots: &mut Vec<_>| {
        read_attributes(message, tag, &keys(level).filter, &mut |key, key_value| {
            keys(level).fill(slots, key, key_value);
        });
    };
    fill_header(
        Level::Resource,
        &resource.bytes[..],
        RESOURCE_ATTRIBUTES,
        of_resource,
    );
    fill_header(Level::Scope, &scope.bytes[..], SCOPE_ATTRIBUTES, of_scope);
    let span_keys = keys(Level::Span);
    let span = SpanRecord::read(view.span, &span_keys.filter, &mut |key, key_value| {
        span_keys.fill(of_span, key, key_value);
    });
    let event_keys = keys(Level::Event);
    let event = view.event.unwrap_or_default();
    let event = EventRecord::read(event, &event_keys.filter, &mut |key, key_value| {
        event_keys.fill(of_event, key, key_value);
    });
    let slots: [Slots<'_>; 4] = [of_resource, of_scope, of_span, of_event];
    test.holds(&Record {
        resource: &resource,
        scope: &scope,
        span: &span,
        event: &event,
        slots,
        now: view.now,
    })
}
