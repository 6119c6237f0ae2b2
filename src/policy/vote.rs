//! Votes of single policies, and how they become the verdict on a trace.
//!
//! Each vote carries what is needed to say with what probability the trace was kept. Over the
//! trace's randomness R, with all else fixed, a policy keeps an interval [T, 2^56), or a set that
//! no threshold can name. OR takes the smallest T, AND the largest; what no threshold can name is
//! above all of them. A no is certain if the policy keeps the trace at no R at all.

use crate::model::{Threshold, Verdict};

/// How likely a yes was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Odds {
    /// Whenever R is not below it.
    From(Threshold),
    Unknown,
}

/// What one policy says of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    Sampled(Odds),
    NotSampled {
        /// Not a matter of luck.
        certain: bool,
    },
    /// By a `drop` policy; goes before everything.
    Dropped,
    /// It could not be worked out. Counts as if the policy were not there.
    Error,
}

/// What the rules say of one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    pub verdict: Verdict,
    /// With which the trace was kept; [`None`] if nobody can say. Of a drop, [`None`] says that it is
    /// final.
    pub threshold: Option<Threshold>,
    /// The policy that kept it with the smallest threshold, the first of several: index into
    /// [`crate::policy::Rules::policies`]. So a certain keep goes before a share of 5 %. With
    /// `sample_on_first_match` the first one.
    pub policy: Option<u16>,
}

impl Odds {
    pub const CERTAIN: Self = Self::From(Threshold::ALWAYS);

    pub fn threshold(self) -> Option<Threshold> {
        match self {
            Self::From(threshold) => Some(threshold),
            Self::Unknown => None,
        }
    }
}

impl Said {
    pub(super) const NO: Self = Self::NotSampled { certain: true };
    pub(super) const NO_LUCK: Self = Self::NotSampled { certain: false };

    pub(super) fn certain(yes: bool) -> Self {
        if yes {
            Self::Sampled(Odds::CERTAIN)
        } else {
            Self::NO
        }
    }

    /// A yes was certain if the no is, and the other way round; with luck in it, what is left over
    /// by an interval from T on is none.
    pub(super) fn inverted(self) -> Self {
        match self {
            Self::Sampled(Odds::CERTAIN) => Self::NO,
            Self::Sampled(_) => Self::NO_LUCK,
            Self::NotSampled { certain: true } => Self::Sampled(Odds::CERTAIN),
            Self::NotSampled { certain: false } => Self::Sampled(Odds::Unknown),
            other => other,
        }
    }
}

impl Vote {
    pub(super) const DROP: Self = Self {
        verdict: Verdict::Drop,
        threshold: Some(Threshold::ALWAYS),
        policy: None,
    };

    /// By a policy that drops, or for the size of the trace: more spans do not change it.
    pub(super) const DROP_FOR_GOOD: Self = Self {
        threshold: None,
        ..Self::DROP
    };

    /// Kept whatever a limit says: with the smallest threshold there is.
    pub fn is_certain(&self) -> bool {
        self.verdict == Verdict::Keep && self.threshold == Some(Threshold::ALWAYS)
    }
}

/// Counts votes in the order in which policies are asked: those that drop first.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    first_match: bool,
    dropped: bool,
    /// A policy that drops let it pass by luck: what is kept now is no interval of R.
    let_pass: bool,
    /// A policy did not keep it by luck.
    unlucky: bool,
    best: Option<(Odds, u16)>,
    first: Option<u16>,
}

impl Tally {
    pub(super) fn new(first_match: bool) -> Self {
        Self {
            first_match,
            ..Self::default()
        }
    }

    /// A vote of one of the policies that drop.
    pub(super) fn drop_said(&mut self, said: Said) {
        match said {
            Said::Dropped => self.dropped = true,
            Said::NotSampled { certain } => self.let_pass |= !certain,
            Said::Sampled(_) | Said::Error => {}
        }
    }

    /// A vote of one of the others. `limited` if a limit has a part in it.
    pub(super) fn said(&mut self, policy: u16, said: Said, limited: bool) {
        match said {
            Said::Sampled(odds) => {
                // Only those whom an earlier policy left over by luck stood before this limit. The
                // lucky ones stand for them, so these must not stand for anybody, not even for
                // themselves when the limit had room for all.
                let left_over = self.first_match && self.unlucky && limited;
                let odds = if left_over { Odds::Unknown } else { odds };
                let this = (odds, policy);
                self.best = Some(self.best.map_or(this, |best| best.min(this)));
                self.first.get_or_insert(policy);
            }
            Said::NotSampled { certain } => self.unlucky |= !certain,
            Said::Dropped | Said::Error => {}
        }
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.dropped
    }

    /// Nothing behind the vote that just came is asked.
    pub(super) fn is_over(&self) -> bool {
        self.first_match && self.first.is_some()
    }

    pub(super) fn vote(&self) -> Vote {
        if self.dropped {
            return Vote::DROP_FOR_GOOD;
        }
        let Some((odds, policy)) = self.best else {
            return Vote::DROP;
        };
        let first = self.first.filter(|_| self.first_match);
        Vote {
            verdict: Verdict::Keep,
            threshold: odds.threshold().filter(|_| !self.let_pass),
            policy: Some(first.unwrap_or(policy)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odds(bits: u64) -> Odds {
        Odds::From(Threshold::from_bits(bits).unwrap())
    }

    /// All lists of up to three of these.
    fn lists<T: Copy>(of: &[T]) -> Vec<Vec<T>> {
        let mut all = vec![Vec::new()];
        for from in 0.. {
            let Some(list) = all.get(from).cloned() else {
                return all;
            };
            if list.len() < 3 {
                all.extend(of.iter().map(|it| [&list[..], &[*it]].concat()));
            }
        }
        all
    }

    #[test]
    fn every_combination_of_votes_has_the_verdict_of_the_table() {
        let drops = [Said::Dropped, Said::NO, Said::NO_LUCK, Said::Error];
        let others = [
            Said::Sampled(Odds::CERTAIN),
            Said::Sampled(odds(5)),
            Said::Sampled(odds(9)),
            Said::Sampled(Odds::Unknown),
            Said::NO,
            Said::NO_LUCK,
            Said::Error,
        ];
        let mut seen = 0;
        for drops in lists(&drops) {
            for others in lists(&others) {
                for first_match in [false, true] {
                    check(&drops, &others, first_match);
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, (1 + 4 + 16 + 64) * (1 + 7 + 49 + 343) * 2);
    }

    fn check(drops: &[Said], others: &[Said], first_match: bool) {
        let mut tally = Tally::new(first_match);
        for said in drops {
            tally.drop_said(*said);
        }
        for (said, policy) in others.iter().zip(0..) {
            tally.said(policy, *said, false);
        }
        let vote = tally.vote();
        let what = format!("{drops:?} {others:?} {first_match}");
        let yes: Vec<(u16, Odds)> = others
            .iter()
            .zip(0..)
            .filter_map(|(said, policy)| match said {
                Said::Sampled(odds) => Some((policy, *odds)),
                _ => None,
            })
            .collect();
        // Dropped goes before sampled, sampled before all else; errors are not there.
        let kept = !drops.contains(&Said::Dropped) && !yes.is_empty();
        assert_eq!(vote.verdict == Verdict::Keep, kept, "{what}");
        if !kept {
            assert_eq!(vote.policy, None, "{what}");
            return;
        }
        let surest = yes.iter().map(|it| it.1).min().unwrap();
        let by = yes.iter().find(|it| first_match || it.1 == surest).unwrap();
        assert_eq!(vote.policy, Some(by.0), "{what}");
        let known = surest
            .threshold()
            .filter(|_| !drops.contains(&Said::NO_LUCK));
        assert_eq!(vote.threshold, known, "{what}");
    }

    #[test]
    fn behind_bad_luck_a_limit_keeps_with_odds_that_nobody_knows() {
        let vote = |first_match, before, limited, odds| {
            let mut tally = Tally::new(first_match);
            tally.said(0, before, false);
            tally.said(1, Said::Sampled(odds), limited);
            tally.vote().threshold
        };
        let five = odds(5);
        assert_eq!(vote(true, Said::NO_LUCK, true, five), None);
        assert_eq!(vote(true, Said::NO_LUCK, true, Odds::CERTAIN), None);
        for (first_match, before, limited) in [
            (false, Said::NO_LUCK, true),
            (true, Said::NO, true),
            (true, Said::NO_LUCK, false),
        ] {
            assert_eq!(vote(first_match, before, limited, five), five.threshold());
        }
    }

    #[test]
    fn a_no_is_turned_round_with_its_luck() {
        for (said, inverted) in [
            (Said::Sampled(Odds::CERTAIN), Said::NO),
            (Said::Sampled(odds(5)), Said::NO_LUCK),
            (Said::Sampled(Odds::Unknown), Said::NO_LUCK),
            (Said::NO, Said::Sampled(Odds::CERTAIN)),
            (Said::NO_LUCK, Said::Sampled(Odds::Unknown)),
            (Said::Dropped, Said::Dropped),
            (Said::Error, Said::Error),
        ] {
            assert_eq!(said.inverted(), inverted);
        }
    }
}
