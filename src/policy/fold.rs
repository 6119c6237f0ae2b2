//! What policies remember of a trace's spans, and how a span changes it.
//!
//! Each fragment is folded once, when it arrives, in the order of arrival: the state is what the
//! Collector's evaluators would have found in the whole trace. Only what some policy of the rules
//! asks for is read. The votes over the state are cast in `rules`.

use std::collections::HashMap;

use crate::model::{Randomness, TraceId};
use crate::policy::conditions::{Conditions, Ends, joined};
use crate::policy::folding::Resources;
use crate::policy::ottl::OttlCondition;
use crate::policy::{Latency, TraceState, Values};
use crate::wire::{
    KeyFilter, Scalar, Wanted, member_value, read_resource, read_span, scalar_value,
    stated_randomness,
};

/// One trace's state: 56 bytes, and 8 more on the heap for each 64 facts beyond the first 64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldState {
    /// Earliest start and latest end so far, as the Collector keeps them: zero is "none yet", so
    /// that a span that says 0 makes it forget the earlier ones.
    start_unix_nanos: u64,
    end_unix_nanos: u64,
    /// The longest that the trace was after any of its spans.
    longest_millis: i64,
    /// The randomness that a span stated in the lower 56 bits; above them a bit for each status code that was seen,
    /// and `RANDOMNESS_STATED`.
    randomness_and_flags: u64,
    /// Of all fragments as OTLP protobuf.
    bytes: u64,
    facts: Facts,
}

/// A bit for each thing that a policy waits to see once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Facts {
    Few(u64),
    Many(Box<[u64]>),
}

const RANDOMNESS_BITS: u64 = (1 << 56) - 1;
/// A span with status UNSET, OK, ERROR; OTLP's numbers give the bit.
const SEEN_STATUS_SHIFT: u32 = 56;
const RANDOMNESS_STATED: u64 = 1 << 59;
const W3C_SAMPLED: u32 = 1;

/// What the policies of the rules need to see, made once.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Needs {
    wanted: Wanted,
    bytes: bool,
    keys: KeyFilter,
    /// Some attribute is matched with patterns.
    patterns: bool,
    /// Index into `asked` by key.
    by_key: HashMap<Box<[u8]>, u16, foldhash::fast::RandomState>,
    asked: Vec<Asked>,
    /// Latencies that are true of a trace while it grows, so not to be seen at its end.
    bounded: Vec<(Fact, Latency)>,
    trace_states: Vec<(Fact, TraceState)>,
    sampled_flag: Option<Fact>,
    pub(super) conditions: Conditions,
    facts: u16,
}

/// Index of a bit of [`Facts`].
pub(super) type Fact = u16;

/// Who asks for an attribute.
#[derive(Debug, Clone, PartialEq, Default)]
struct Asked {
    by: Vec<(Fact, Test)>,
}

/// What makes a fact of an attribute's value.
#[derive(Debug, Clone, PartialEq)]
enum Test {
    Text(Values),
    Integer { min: i64, max: i64 },
    Truth(bool),
}

impl Test {
    /// A value of another type reads as zero, false or empty, as in the Collector's typed getters.
    fn holds(&self, value: Scalar<'_>, of_resource: bool) -> bool {
        match self {
            Self::Text(values) => {
                let text = match value {
                    Scalar::String(text) => text,
                    _ => &[],
                };
                // An empty string of a resource is looked at, one of a span is not.
                (of_resource || !text.is_empty()) && values.matches(text)
            }
            Self::Integer { min, max } => {
                let number = match value {
                    Scalar::Int(number) => number,
                    _ => 0,
                };
                (*min..=*max).contains(&number)
            }
            Self::Truth(wanted) => (value == Scalar::Bool(true)) == *wanted,
        }
    }
}

impl Facts {
    pub(super) fn none(count: u16) -> Self {
        if count <= 64 {
            Self::Few(0)
        } else {
            Self::Many(vec![0; usize::from(count).div_ceil(64)].into())
        }
    }

    #[inline(always)]
    fn has(&self, fact: Fact) -> bool {
        let word = match self {
            Self::Few(word) => *word,
            Self::Many(words) => words[usize::from(fact / 64)],
        };
        word >> (fact % 64) & 1 == 1
    }

    /// What is in either.
    fn add_all(&mut self, others: &Self) {
        match (self, others) {
            (Self::Few(word), Self::Few(more)) => *word |= more,
            (Self::Many(words), Self::Many(more)) => {
                for (word, more) in words.iter_mut().zip(more) {
                    *word |= more;
                }
            }
            // All of one version of the rules are of one kind.
            _ => {}
        }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, fact: Fact) {
        let word = match self {
            Self::Few(word) => word,
            Self::Many(words) => &mut words[usize::from(fact / 64)],
        };
        *word |= 1 << (fact % 64);
    }
}

impl Needs {
    pub(super) fn want_randomness(&mut self) {
        self.wanted.trace_state = true;
    }

    pub(super) fn want_status(&mut self) {
        self.wanted.status = true;
    }

    pub(super) fn want_times(&mut self) {
        self.wanted.times = true;
    }

    pub(super) fn want_bytes(&mut self) {
        self.bytes = true;
    }

    /// That the latency held after some span, as in the Collector.
    pub(super) fn bounded(&mut self, latency: &Latency) -> Fact {
        let fact = self.new_fact();
        self.bounded.push((fact, *latency));
        fact
    }

    pub(super) fn string_attribute(&mut self, key: &str, values: &Values) -> Fact {
        self.patterns |= matches!(values, Values::Matching(_));
        self.attribute_test(key, Test::Text(values.clone()))
    }

    pub(super) fn numeric_attribute(&mut self, key: &str, min: i64, max: i64) -> Fact {
        self.attribute_test(key, Test::Integer { min, max })
    }

    pub(super) fn boolean_attribute(&mut self, key: &str, value: bool) -> Fact {
        self.attribute_test(key, Test::Truth(value))
    }

    pub(super) fn trace_state(&mut self, policy: &TraceState) -> Fact {
        self.wanted.trace_state = true;
        let fact = self.new_fact();
        self.trace_states.push((fact, policy.clone()));
        fact
    }

    pub(super) fn sampled_flag(&mut self) -> Fact {
        self.wanted.flags = true;
        match self.sampled_flag {
            Some(fact) => fact,
            None => {
                let fact = self.new_fact();
                self.sampled_flag = Some(fact);
                fact
            }
        }
    }

    pub(super) fn ottl_condition(&mut self, policy: &OttlCondition, place: u16) -> Ends {
        let facts = &mut self.facts;
        self.conditions.add(policy, place, || {
            *facts += 1;
            *facts - 1
        })
    }

    fn attribute_test(&mut self, key: &str, test: Test) -> Fact {
        let fact = self.new_fact();
        let key = key.as_bytes();
        self.keys.add(key);
        let next = self.asked.len() as u16;
        let index = *self.by_key.entry(key.into()).or_insert(next);
        if index == next {
            self.asked.push(Asked::default());
        }
        self.asked[usize::from(index)].by.push((fact, test));
        fact
    }

    fn new_fact(&mut self) -> Fact {
        self.facts += 1;
        self.facts - 1
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.wanted == Wanted::default()
            && self.keys.is_empty()
            && self.conditions.is_empty()
            && !self.bytes
    }

    pub(super) fn begin(&self) -> FoldState {
        FoldState {
            start_unix_nanos: 0,
            end_unix_nanos: 0,
            longest_millis: i64::MIN,
            randomness_and_flags: 0,
            bytes: 0,
            facts: Facts::none(self.facts),
        }
    }

    /// Heap of one state.
    pub(super) fn state_heap_bytes(&self) -> usize {
        match self.facts {
            0..=64 => 0,
            facts => usize::from(facts).div_ceil(64) * size_of::<u64>(),
        }
    }

    pub(super) fn want_bytes_of_fragments(&self) -> bool {
        self.bytes
    }

    /// The resource of a fragment, before its spans: its header in stretches of whole fields.
    #[inline]
    pub(super) fn resource<'a>(
        &self,
        state: &mut FoldState,
        header: impl Iterator<Item = &'a [u8]>,
        version: u64,
        known: &mut Resources,
    ) {
        if self.keys.is_empty() {
            return;
        }
        if !self.patterns {
            // Reading it again is as cheap as finding it.
            self.resource_facts(&mut state.facts, header);
            return;
        }
        let header = joined(header);
        let facts = known.facts(version, &header, || {
            let mut facts = Facts::none(self.facts);
            self.resource_facts(&mut facts, std::iter::once(&header[..]));
            facts
        });
        state.facts.add_all(&facts);
    }

    fn resource_facts<'a>(&self, facts: &mut Facts, header: impl Iterator<Item = &'a [u8]>) {
        let mut once = Once::default();
        for piece in header {
            read_resource(piece, &self.keys, &mut |key, attribute| {
                self.attribute(facts, &mut once, key, attribute, true);
            });
        }
    }

    #[inline]
    pub(super) fn span(&self, state: &mut FoldState, span: &[u8]) {
        let mut once = Once::default();
        let facts = &mut state.facts;
        let fields = read_span(span, self.wanted, &self.keys, &mut |key, attribute| {
            self.attribute(facts, &mut once, key, attribute, false);
        });
        if self.wanted.times {
            self.times(state, fields.start_unix_nanos, fields.end_unix_nanos);
        }
        if self.wanted.status && matches!(fields.status_code, 0..=2) {
            state.randomness_and_flags |= 1 << (SEEN_STATUS_SHIFT + fields.status_code as u32);
        }
        if let Some(fact) = self.sampled_flag
            && fields.flags & W3C_SAMPLED != 0
        {
            state.facts.add(fact);
        }
        if !fields.trace_state.is_empty() {
            self.state_text(state, fields.trace_state);
        }
    }

    #[inline(never)]
    fn state_text(&self, state: &mut FoldState, text: &[u8]) {
        if state.randomness_and_flags & RANDOMNESS_STATED == 0
            && let Some(stated) = stated_randomness(text)
        {
            // The first one wins: spans that disagree must not move a decision about.
            state.randomness_and_flags |= stated.bits() | RANDOMNESS_STATED;
        }
        for (fact, policy) in &self.trace_states {
            if !state.facts.has(*fact)
                && member_value(text, &policy.key).is_some_and(|it| policy.values.contains(it))
            {
                state.facts.add(*fact);
            }
        }
    }

    fn times(&self, state: &mut FoldState, start: u64, end: u64) {
        if state.start_unix_nanos == 0 || start < state.start_unix_nanos {
            state.start_unix_nanos = start;
        }
        if state.end_unix_nanos == 0 || end > state.end_unix_nanos {
            state.end_unix_nanos = end;
        }
        let millis = state.final_millis();
        state.longest_millis = state.longest_millis.max(millis);
        for (fact, latency) in &self.bounded {
            if latency.holds(millis) {
                state.facts.add(*fact);
            }
        }
    }

    /// One attribute that passed the filter. Of equal keys the first one counts, as in the
    /// Collector's maps.
    #[inline]
    fn attribute(
        &self,
        facts: &mut Facts,
        once: &mut Once,
        key: &[u8],
        attribute: &[u8],
        of_resource: bool,
    ) {
        let Some(&index) = self.by_key.get(key) else {
            return;
        };
        if !once.is_first(index) {
            return;
        }
        let mut value = None;
        for (fact, test) in &self.asked[usize::from(index)].by {
            if facts.has(*fact) {
                continue;
            }
            let value = *value.get_or_insert_with(|| scalar_value(attribute));
            if test.holds(value, of_resource) {
                facts.add(*fact);
            }
        }
    }
}

/// Which keys were seen in one set of attributes.
#[derive(Default)]
struct Once {
    first_64: u64,
    /// Rules with more keys than 64 pay for a list.
    others: Vec<u16>,
}

impl Once {
    #[inline(always)]
    fn is_first(&mut self, index: u16) -> bool {
        if index < 64 {
            let bit = 1 << index;
            let is_first = self.first_64 & bit == 0;
            self.first_64 |= bit;
            return is_first;
        }
        let is_first = !self.others.contains(&index);
        if is_first {
            self.others.push(index);
        }
        is_first
    }
}

impl FoldState {
    pub(super) fn has(&self, fact: Fact) -> bool {
        self.facts.has(fact)
    }

    pub(super) fn add(&mut self, fact: Fact) {
        self.facts.add(fact);
    }

    /// A bit for each status code seen.
    pub(super) fn statuses(&self) -> u8 {
        (self.randomness_and_flags >> SEEN_STATUS_SHIFT) as u8 & 0b111
    }

    pub(super) fn longest_millis(&self) -> i64 {
        self.longest_millis
    }

    /// From the earliest start to the latest end. Go's times are signed, its durations saturate.
    pub(super) fn final_millis(&self) -> i64 {
        let nanos = (self.end_unix_nanos as i64).saturating_sub(self.start_unix_nanos as i64);
        nanos / 1_000_000
    }

    /// What decides where shares and limits are concerned: what a span states, or else the trace ID.
    pub(super) fn randomness(&self, trace: TraceId) -> Randomness {
        if self.randomness_and_flags & RANDOMNESS_STATED == 0 {
            return Randomness::of(trace);
        }
        let stated = Randomness::from_bits(self.randomness_and_flags & RANDOMNESS_BITS);
        stated.unwrap_or(Randomness::of(trace))
    }

    /// Of all fragments, as OTLP protobuf; 0 if no policy asks for it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn add_bytes(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_small_enough_for_every_trace() {
        assert_eq!(size_of::<FoldState>(), 56);
    }
}
