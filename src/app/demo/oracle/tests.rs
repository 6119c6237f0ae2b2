//! An oracle that finds nothing proves nothing: each fault that a system can have is put into
//! books that are right, and must be found.

use std::sync::Arc;

use super::*;
use crate::model::{Moment, SpanId};

const TERMS: Terms = Terms {
    decision_wait: Duration::from_secs(6),
    judged_for: Duration::from_secs(1),
    lives: 3,
    are_killed: false,
};
const SECOND_NANOS: u64 = 1_000_000_000;

/// `random` is from 0 to 1: what the trace ID says to the baseline.
fn trace(number: u8, random: f64) -> TraceId {
    let mut id = [number; 16];
    let bits = (random * 2_f64.powi(56)) as u64;
    id[9..].copy_from_slice(&bits.to_be_bytes()[1..]);
    TraceId::new(id).unwrap()
}

fn spans(count: u8) -> Vec<SpanId> {
    (1..=count).filter_map(|n| SpanId::new([n; 8])).collect()
}

/// Ten spans in three seconds, of nobody's interest, dropped.
fn dull() -> Turn {
    Turn {
        spans: spans(10),
        acknowledged_spans: 10,
        first_sent_at: Moment::from_unix_millis(1_000),
        last_acknowledged_at: Moment::from_unix_millis(2_000),
        start_unix_nanos: SECOND_NANOS,
        end_unix_nanos: 4 * SECOND_NANOS,
        tenants: vec!["tenant-03".into()],
        ..Turn::default()
    }
}

fn kept(turn: Turn) -> Turn {
    Turn {
        got: turn.spans.clone(),
        exports: vec![(Some("a".into()), Some(1))],
        ..turn
    }
}

fn findings(turns: impl IntoIterator<Item = (TraceId, Turn)>) -> Findings {
    let turns: std::collections::HashMap<_, _> = turns.into_iter().collect();
    let books = Books {
        got_spans: turns.values().map(|turn| turn.got.len() as u64).sum(),
        turns,
        unknown_traces: 0,
    };
    Findings::of(&books, TERMS)
}

/// What is complained about one turn, given that the workers say what the oracle worked out.
fn complaints(turn: Turn, random: f64) -> Vec<String> {
    let found = findings([(trace(1, random), turn)]);
    let said = found.sure.iter().map(|(k, v)| ((*k).to_owned(), *v));
    found.complaints(TERMS, &said.collect())
}

#[track_caller]
fn refuse(turn: Turn, random: f64, what: &str) {
    let complaints = complaints(turn, random).join("\n");
    assert!(complaints.contains(what), "{complaints:?}");
}

#[test]
fn what_the_file_says_is_fine() {
    // (turn, the rule that keeps it)
    let errors = Turn {
        has_error: true,
        ..dull()
    };
    let slow = Turn {
        end_unix_nanos: SECOND_NANOS + 10_001_000_000,
        ..dull()
    };
    let heavy = Turn {
        spans: spans(20),
        acknowledged_spans: 20,
        ..dull()
    };
    let debugged = Turn {
        tenants: vec!["tenant-01".into(), "acme-corp".into()],
        ..dull()
    };
    for (turn, rule) in [
        (errors, "keep-errors"),
        (slow, "keep-slow"),
        (heavy, "keep-tool-heavy"),
        (debugged, "keep-debug-tenants"),
    ] {
        let found = findings([(trace(1, 0.2), kept(turn.clone()))]);
        assert_eq!(found.sure, BTreeMap::from([(rule, 1)]));
        assert_eq!((found.useful, found.baseline_of), (1, 0));
        assert!(complaints(kept(turn.clone()), 0.2).is_empty());
        refuse(turn, 0.2, "1 turns were dropped that a rule keeps");
    }
    assert!(complaints(dull(), 0.2).is_empty());
    // One turn that the rate cap took.
    assert!(complaints(kept(dull()), 0.2).is_empty());
}

#[test]
fn limits_are_where_the_collector_has_them() {
    let at = |nanos| Turn {
        end_unix_nanos: SECOND_NANOS + nanos,
        ..dull()
    };
    // Whole milliseconds, and more than the threshold.
    assert_eq!(sure_rule(&at(10_000_999_999)), None);
    assert_eq!(sure_rule(&at(10_001_000_000)), Some("keep-slow"));
    let of = |count| Turn {
        spans: spans(count),
        ..dull()
    };
    assert_eq!(sure_rule(&of(19)), None);
    assert_eq!(sure_rule(&of(20)), Some("keep-tool-heavy"));
    let tenant = |name: &str| Turn {
        tenants: vec![Arc::from(name)],
        ..dull()
    };
    assert_eq!(sure_rule(&tenant("acme-corp-2")), None);
    assert_eq!(
        sure_rule(&tenant("big-bank-inc")),
        Some("keep-debug-tenants")
    );
}

#[test]
fn the_baseline_keeps_the_upper_twentieth_of_trace_ids() {
    assert_eq!(baseline(trace(1, 0.9501)), Baseline::Keeps);
    assert_eq!(baseline(trace(1, 0.9499)), Baseline::Leaves);
    assert_eq!(baseline(trace(1, 0.950_000_1)), Baseline::Open);
    refuse(dull(), 0.97, "dropped that a rule keeps");
    let found = findings([(trace(1, 0.97), kept(dull()))]);
    assert_eq!((found.baseline_of, found.baseline_kept), (1, 1));
    assert_eq!(found.rate_capped, 0);
}

#[test]
fn spans_that_are_missing_doubled_foreign_or_split_are_found() {
    let error = || Turn {
        has_error: true,
        ..dull()
    };
    let mut turn = kept(error());
    turn.got.pop();
    assert_eq!(findings([(trace(1, 0.5), turn.clone())]).incomplete, 1);
    refuse(turn, 0.5, "1 kept turns are not whole");
    let mut turn = kept(error());
    turn.got.push(turn.got[9]);
    refuse(turn, 0.5, "1 spans came more than once");
    let mut turn = kept(error());
    turn.got.push(SpanId::new([99; 8]).unwrap());
    refuse(turn, 0.5, "1 turns have spans that were never sent");
    let mut turn = kept(error());
    turn.exports.push((Some("b".into()), Some(1)));
    refuse(turn, 0.5, "two workers or under two verdicts");
    let turn = Turn {
        acknowledged_spans: 9,
        ..kept(error())
    };
    refuse(turn, 0.5, "never acknowledged");
}

#[test]
fn more_than_the_rate_cap_may_keep_is_found() {
    let many = |count: u8| {
        let turns = (1..=count).map(|n| (trace(n, 0.2), kept(dull())));
        findings(turns).complaints(TERMS, &BTreeMap::new())
    };
    // 50 in the second, 300 of bursts, 360 of overdraft: 710 spans.
    assert!(many(71).is_empty(), "{:?}", many(71));
    assert!(many(72)[0].contains("72 turns with 720 spans"));
}

#[test]
fn a_share_that_is_not_five_percent_is_found() {
    let of = |kept: u64| Findings {
        turns: 10_000,
        baseline_of: 10_000,
        baseline_kept: kept,
        ..Findings::default()
    };
    // A standard error is 21.8.
    for kept in [500, 413, 587] {
        assert!(of(kept).complaints(TERMS, &BTreeMap::new()).is_empty());
    }
    for kept in [0, 412, 588, 10_000] {
        let complaints = of(kept).complaints(TERMS, &BTreeMap::new());
        assert!(complaints[0].contains("standard errors from 5 %"));
    }
}

#[test]
fn workers_that_count_otherwise_are_found() {
    let error = Turn {
        has_error: true,
        ..dull()
    };
    let found = findings([(trace(1, 0.2), kept(error))]);
    let said = BTreeMap::from([("keep-slow".to_owned(), 1)]);
    let complaints = found.complaints(TERMS, &said);
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints[0].contains("keep-errors kept 0 turns; it must be 1"));

    // The rate cap stands before the tenants in the file.
    let debugged = || Turn {
        tenants: vec!["acme-corp".into()],
        ..dull()
    };
    let found = findings([1, 2].map(|n| (trace(n, 0.2), kept(debugged()))));
    let complaints = |said: &[(&str, u64)]| {
        let said = said
            .iter()
            .map(|(rule, count)| ((*rule).to_owned(), *count));
        found.complaints(TERMS, &said.collect())
    };
    assert!(complaints(&[("keep-debug-tenants", 2)]).is_empty());
    assert!(complaints(&[(RATE_CAP, 1), ("keep-debug-tenants", 1)]).is_empty());
    assert_eq!(complaints(&[("keep-debug-tenants", 1)]).len(), 1);
    assert_eq!(complaints(&[("keep-debug-tenants", 3)]).len(), 1);
}

#[test]
fn a_machine_that_is_too_slow_shows_nothing() {
    let late = Turn {
        last_acknowledged_at: Moment::from_unix_millis(7_000),
        has_error: true,
        ..dull()
    };
    refuse(late.clone(), 0.2, "too busy to show anything");
    // One in a thousand is left out, and the rest is looked at.
    let others = (0..=250_u8).flat_map(|n| [(trace(n, 0.1), dull()), (trace(n, 0.2), dull())]);
    let found = findings(others.chain([(trace(1, 0.3), late)]));
    assert_eq!((found.overdue, found.wrongly_dropped), (1, 0));
    let complaints = found.complaints(TERMS, &BTreeMap::new());
    assert!(
        complaints
            .iter()
            .all(|text| text.contains("standard errors")),
        "{complaints:?}"
    );
    assert!(!findings([]).complaints(TERMS, &BTreeMap::new()).is_empty());
}
