//! What holds for any text whatever. The fuzz target, the replay of its corpus and the tests of long
//! files make the same claim.

use tailring::model::{Moment, TraceId};
use tailring::policy::{LimitAnswers, Limits, TOLD_MAX, parse};

/// A file is refused with places in it, or means one thing, which can be shown and asked.
pub(crate) fn a_file_is_refused_with_places_or_means_something(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // As YAML counts them: \r alone ends a line, too.
    let lines = text.chars().filter(|c| matches!(c, '\n' | '\r')).count() + 1;
    match parse(text) {
        Err(mistakes) => {
            assert!((1..=TOLD_MAX + 1).contains(&mistakes.len()));
            assert!(mistakes.is_sorted());
            for mistake in mistakes {
                assert!((1..=lines + 1).contains(&mistake.line), "{mistake}");
                assert!(mistake.column >= 1, "{mistake}");
                assert!(!mistake.message.is_empty());
                assert!(mistake.message.len() < 10_000, "{mistake}");
            }
        }
        Ok(parsed) => {
            assert!(parsed.notices.len() <= TOLD_MAX + 1);
            assert!(parsed.notices.is_sorted());
            let rules = parsed.rules;
            assert_eq!(parse(text).expect("as before").rules.version, rules.version);
            assert_eq!(rules.plan().policies.len(), rules.policies.len());
            let trace = TraceId::new([7; 16]).expect("not zero");
            let state = rules.begin();
            let first = rules.first_vote(trace, &state, 1);
            if first.asks {
                assert!(Limits::<()>::of(&rules, Moment::ZERO).is_some());
            }
            rules.vote(trace, &state, 1, &LimitAnswers::default());
            let votes = rules.votes(trace, &state, 1, &LimitAnswers::default());
            assert_eq!(votes.len(), rules.policies.len());
        }
    }
}
