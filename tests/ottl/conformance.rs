//! The language against what the Collector answered, and against an oracle.

mod fixture;
mod policy_rows;
mod rows;
mod semantics;

use fixture::{Fixture, of};
use rows::ROWS;

use tailring::model::Moment;
use tailring::policy::ottl::{
    Condition, Context, ErrorMode, Latches, OttlCondition, Outcome, Program, SpanView,
};

/// What the Collector says to a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// True.
    T,
    /// False.
    F,
    /// An error for this span.
    E,
    /// Refused at start.
    P,
}

const NOW: Moment = Moment {
    unix_nanos: 1_581_452_775_000_000_000,
};

/// How the only policy of a program ended.
#[derive(Default)]
struct Latch(Option<Outcome>);

impl Latches for Latch {
    fn is_settled(&self, policy: usize) -> bool {
        assert_eq!(policy, 0);
        self.0.is_some()
    }

    fn settle(&mut self, policy: usize, outcome: Outcome) {
        assert_eq!(policy, 0);
        assert_eq!(self.0, None, "a policy is settled once");
        self.0 = Some(outcome);
    }
}

fn answer(text: &str, fixture: Fixture) -> Answer {
    let of = of(fixture);
    let context = match fixture {
        Fixture::Ev | Fixture::ZEv => Context::SpanEvent,
        _ => Context::Span,
    };
    let Ok(condition) = Condition::compile(text, context) else {
        return Answer::P;
    };
    let events: Vec<Option<&[u8]>> = match context {
        Context::Span => vec![None],
        Context::SpanEvent => of.events.iter().map(|it| Some(&it[..])).collect(),
    };
    for event in events {
        match condition.eval(&SpanView {
            resource_header: &of.resource_header,
            scope_header: &of.scope_header,
            span: &of.span,
            event,
            now: NOW,
        }) {
            Ok(true) => return Answer::T,
            Ok(false) => {}
            Err(_) => return Answer::E,
        }
    }
    Answer::F
}

/// What a policy of these conditions says of a trace of these spans, in this order.
fn outcome(
    span: &[&str],
    span_event: &[&str],
    error_mode: ErrorMode,
    fixtures: &[Fixture],
) -> Option<Outcome> {
    let list = |texts: &[&str], context| -> Vec<Condition> {
        texts
            .iter()
            .map(|text| Condition::compile(text, context).unwrap())
            .collect()
    };
    let mut program = Program::default();
    program.add(&OttlCondition {
        error_mode,
        span: list(span, Context::Span),
        span_event: list(span_event, Context::SpanEvent),
    });
    let mut latch = Latch::default();
    for fixture in fixtures {
        let of = of(*fixture);
        let scopes = std::iter::once((of.scope_header.into(), std::iter::once(&of.span[..])));
        program.fold(of.resource_header.into(), scopes, NOW, &mut latch);
    }
    latch.0
}

const MODES: [ErrorMode; 3] = [ErrorMode::Propagate, ErrorMode::Ignore, ErrorMode::Silent];

#[test]
fn every_row_has_the_answer_of_the_collector() {
    assert_eq!(ROWS.len(), 166);
    let wrong: Vec<String> = ROWS
        .iter()
        .map(|row| (row, answer(row.2, row.1)))
        .filter(|(row, ours)| row.3 != *ours)
        .map(|((number, fixture, text, theirs), ours)| {
            format!("{number} {fixture:?} {text}: {theirs:?}, and we say {ours:?}")
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_row_has_the_same_answer_as_a_policy_in_all_error_modes() {
    for (number, fixture, text, expected) in ROWS {
        if *expected == Answer::P {
            continue;
        }
        let (span, event): (&[&str], &[&str]) = match fixture {
            Fixture::Ev | Fixture::ZEv => (&[], &[text]),
            _ => (&[text], &[]),
        };
        for mode in MODES {
            let expected = match (expected, mode) {
                (Answer::T, _) => Some(Outcome::Matched),
                (Answer::E, ErrorMode::Propagate) => Some(Outcome::Errored),
                _ => None,
            };
            let ours = outcome(span, event, mode, &[*fixture]);
            assert_eq!(ours, expected, "{number} {mode:?} {text}");
        }
    }
}
