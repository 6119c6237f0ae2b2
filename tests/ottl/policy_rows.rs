//! The rows of whole policies. What a file says wrongly (P1, P19, P25) is tested with the reader of
//! files.

use super::fixture::Fixture::{self, S, Z};
use super::{MODES, outcome};
use tailring::policy::ottl::{ErrorMode, Outcome};

/// An error on S.
const X: &str = r#"HasPrefix(attributes["nope"], "a")"#;
const M: &str = r#"name == "operationA""#;
const N: &str = r#"name == "x""#;
/// An error on Z.
const G: &str = r#"HasPrefix(attributes["http.method"], "g")"#;

#[test]
fn policies_end_as_in_the_collector() {
    let exception = r#"name == "exception""#;
    let x_or_m = format!("{X} or {M}");
    let x_and_false = format!("{X} and false");
    type Row<'r> = (
        u32,
        &'r [&'r str],
        &'r [&'r str],
        &'r [Fixture],
        [&'r str; 2],
    );
    let rows: &[Row<'_>] = &[
        (2, &[N, M], &[], &[S], ["sampled", "sampled"]),
        (4, &[N], &[], &[S], ["not", "not"]),
        (5, &[X], &[], &[S], ["error", "not"]),
        (7, &[M, X], &[], &[S], ["sampled", "sampled"]),
        (8, &[N, X], &[], &[S], ["error", "not"]),
        (10, &[G], &[], &[S, Z], ["sampled", "sampled"]),
        (11, &[X], &[exception], &[S], ["error", "sampled"]),
        (
            13,
            &[r#"HasPrefix(attributes["http.method"],"zzz")"#],
            &[exception],
            &[S, Z],
            ["sampled", "sampled"],
        ),
        (14, &[], &["true"], &[Z], ["not", "not"]),
        (
            16,
            &[r#"attributes["http.method"] == "post""#],
            &[r#"attributes["level"] == "info""#],
            &[S],
            ["sampled", "sampled"],
        ),
        (17, &[], &["event_index == 0"], &[S], ["error", "not"]),
        (20, &[&x_or_m], &[], &[S], ["error", "not"]),
        (22, &[&x_and_false], &[], &[S], ["not", "not"]),
        // P23 is the first column of 5 behind `not`.
    ];
    for (number, span, event, fixtures, [propagate, others]) in rows {
        for mode in MODES {
            let ours = match outcome(span, event, mode, fixtures) {
                Some(Outcome::Matched) => "sampled",
                Some(Outcome::Errored) => "error",
                None => "not",
            };
            let expected = match mode {
                ErrorMode::Propagate => propagate,
                _ => others,
            };
            assert_eq!(ours, *expected, "P{number} {mode:?}");
        }
    }
}

/// The order of arrival decides between a match and an error under `propagate`, and only there.
#[test]
fn the_first_of_match_and_error_wins() {
    let propagate = |fixtures: &[Fixture]| outcome(&[G], &[], ErrorMode::Propagate, fixtures);
    assert_eq!(propagate(&[S, Z]), Some(Outcome::Matched));
    assert_eq!(propagate(&[Z, S]), Some(Outcome::Errored));
    for mode in [ErrorMode::Ignore, ErrorMode::Silent] {
        assert_eq!(outcome(&[G], &[], mode, &[Z, S]), Some(Outcome::Matched));
    }
}
