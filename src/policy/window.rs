//! One limit, which decides in windows: the rule behind every limit, whatever it counts.
//!
//! A window gathers candidates for a second and longer if the balance is not positive then. When it
//! closes, candidates are taken by descending randomness R while the balance is positive. The last
//! one may overdraw; the debt is carried. T = R of the first excluded + 1, and 0 if none is: by it
//! those taken stand for all, without bias, down to budgets of a single trace. (Stopping *before*
//! the one that does not fit under-counts by a fifth and more where few fit.) Knows neither traces
//! nor spans: costs are numbers, and who asks is a number.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::model::{Moment, Randomness, Threshold};
use crate::policy::balance::Balance;

/// How long a window gathers candidates.
pub const WINDOW: Duration = Duration::from_secs(1);

/// Who asked; whoever asked knows what it means.
pub(super) type Ticket = u32;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Window {
    balance: Balance,
    opened: Option<Moment>,
    /// Lowest randomness on top.
    candidates: BinaryHeap<Reverse<Candidate>>,
    /// Sum of the candidates' costs.
    cost: u64,
    /// The highest randomness that was excluded from this window already.
    excluded: Option<Randomness>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    randomness: Randomness,
    ticket: Ticket,
    cost: u64,
}

impl Window {
    /// The balance begins full.
    pub(super) fn new(rate_per_second: u64, burst: u64, now: Moment) -> Self {
        Self {
            balance: Balance::new(rate_per_second, burst, now),
            opened: None,
            candidates: BinaryHeap::new(),
            cost: 0,
            excluded: None,
        }
    }

    pub(super) fn set_share(&mut self, share: f64, now: Moment) {
        self.balance.set_share(share, now);
    }

    /// Goes on with what an earlier window has left. Its candidates are whoever asked's.
    pub(super) fn succeed(&mut self, earlier: &mut Self, now: Moment) {
        self.balance.succeed(&mut earlier.balance, now);
    }

    /// One more candidate; opens a window if none is open. Those that cannot be taken any more,
    /// whatever comes, go to `excluded` at once: so a window in debt holds no more than the burst
    /// has room for.
    pub(super) fn ask(
        &mut self,
        randomness: Randomness,
        cost: u64,
        ticket: Ticket,
        now: Moment,
        excluded: &mut Vec<Ticket>,
    ) {
        self.opened.get_or_insert(now);
        // Even what is free counts as one of those that are held.
        let cost = cost.max(1);
        self.cost = self.cost.saturating_add(cost);
        self.candidates.push(Reverse(Candidate {
            randomness,
            ticket,
            cost,
        }));
        // When the window closes the balance is the burst at most; it is used up before the lowest
        // has its turn if those above it cost as much.
        while let Some(Reverse(lowest)) = self.candidates.peek().copied()
            && self.cost - lowest.cost >= self.balance.burst() as u64
        {
            self.candidates.pop();
            self.cost -= lowest.cost;
            self.excluded = self.excluded.max(Some(lowest.randomness));
            excluded.push(lowest.ticket);
        }
    }

    /// When [`Window::close`] has something to do. Moves only when a share is set.
    pub(super) fn closes_at(&self) -> Option<Moment> {
        Some(self.balance.positive_from(self.opened? + WINDOW))
    }

    /// Closes the window if its time has come, or (`early`) if its balance allows it now.
    /// `answers` gets everyone who still waited: the threshold of who was taken, [`None`] for who
    /// was not.
    pub(super) fn close(
        &mut self,
        now: Moment,
        early: bool,
        answers: &mut Vec<(Ticket, Option<Threshold>)>,
    ) {
        let due = self.closes_at().is_some_and(|at| at <= now);
        let balance = self.balance.settle(now);
        // With a rate of nothing there is no end of debt to wait for.
        let solvent = balance > 0.0 || self.balance.earns_nothing();
        if self.opened.is_none() || !solvent || !(due || early) {
            return;
        }
        self.opened = None;
        self.cost = 0;
        let mut candidates: Vec<Candidate> = std::mem::take(&mut self.candidates)
            .into_iter()
            .map(|Reverse(candidate)| candidate)
            .collect();
        candidates.sort_unstable_by(|left, right| right.cmp(left));
        let mut left = balance;
        let mut first_excluded = self.excluded.take();
        for candidate in &candidates {
            if left <= 0.0 {
                first_excluded = first_excluded.max(Some(candidate.randomness));
                break;
            }
            left -= candidate.cost as f64;
        }
        // Beside the last possible randomness nothing is left to take.
        let threshold = match first_excluded {
            None => Some(Threshold::ALWAYS),
            Some(randomness) => Threshold::from_bits(randomness.bits() + 1),
        };
        for candidate in candidates {
            // Of equals at the boundary none is taken: the threshold could not tell them apart.
            let taken = threshold.filter(|threshold| threshold.admits(candidate.randomness));
            if taken.is_some() {
                self.balance.spend(candidate.cost as f64);
            }
            answers.push((candidate.ticket, taken));
        }
    }

    /// See [`Balance::take_beyond_burst`].
    pub(super) fn take_beyond_burst(&mut self) -> u64 {
        self.balance.take_beyond_burst()
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.candidates.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;
    use crate::policy::balance::SLACK;

    const RANGE: u64 = 1 << 56;

    fn at(millis: u64) -> Moment {
        Moment::from_unix_millis(1_800_000_000_000 + millis)
    }

    fn r(bits: u64) -> Randomness {
        Randomness::from_bits(bits).unwrap()
    }

    /// Everyone's answers at the moment the window closes by itself.
    fn closed(window: &mut Window) -> (Moment, Vec<(Ticket, Option<Threshold>)>) {
        let at = window.closes_at().expect("a window is open");
        let mut answers = Vec::new();
        window.close(at, false, &mut answers);
        assert_eq!(window.closes_at(), None, "it closed");
        (at, answers)
    }

    #[test]
    fn the_highest_are_taken_the_last_overdraws_and_the_debt_is_waited_for() {
        let mut window = Window::new(50, 100, at(0));
        let mut excluded = Vec::new();
        for (ticket, bits) in [(1, 10), (2, 40), (3, 30), (4, 20)] {
            window.ask(r(bits), 60, ticket, at(1_000), &mut excluded);
        }
        // 2 and 3 use up what a full balance has: 1 and 4 have no chance, whoever comes.
        assert_eq!(excluded, [1, 4]);
        let (closed_at, answers) = closed(&mut window);
        assert_eq!(closed_at, at(2_000));
        let threshold = Threshold::from_bits(21);
        assert_eq!(answers, [(2, threshold), (3, threshold)]);
        // 100 - 120 = -20: the next window may close when 400 ms have paid for it.
        window.ask(r(5), 60, 5, at(2_000), &mut excluded);
        assert_eq!(window.closes_at(), Some(at(3_000)));
        window.ask(r(6), 60, 6, at(2_100), &mut excluded);
        let (_, answers) = closed(&mut window);
        // 30 are there: the higher one overdraws.
        assert_eq!(answers, [(6, Threshold::from_bits(6)), (5, None)]);
        window.ask(r(7), 100, 7, at(3_000), &mut excluded);
        let (closed_at, answers) = closed(&mut window);
        assert_eq!(answers, [(7, Some(Threshold::ALWAYS))]);
        assert_eq!(closed_at, at(4_000));
        // -30 + 50 - 100 = -80: 1.6 s of debt.
        window.ask(r(8), 1, 8, at(4_000), &mut excluded);
        let (closed_at, _) = closed(&mut window);
        assert_eq!(closed_at.since(at(5_600)), SLACK);
    }

    #[test]
    fn a_quiet_time_saves_up_no_more_than_the_burst() {
        let mut window = Window::new(10, 20, at(0));
        let mut excluded = Vec::new();
        for hour in 1..3 {
            let now = at(hour * 3_600_000);
            for ticket in 0..100 {
                window.ask(r(ticket.into()), 1, ticket, now, &mut excluded);
            }
            let (_, answers) = closed(&mut window);
            assert!(
                answers
                    .iter()
                    .all(|(ticket, taken)| *ticket >= 80 && taken.is_some())
            );
            assert_eq!(answers.len(), 20);
        }
        assert_eq!(excluded.len(), 160);
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_by_overdraft_and_is_counted() {
        let mut window = Window::new(50, 100, at(0));
        let mut excluded = Vec::new();
        for (ticket, cost) in [(1, 100), (2, 101), (3, 250)] {
            window.ask(
                r(1),
                cost,
                ticket,
                at(10_000 * u64::from(ticket)),
                &mut excluded,
            );
            let (_, answers) = closed(&mut window);
            assert_eq!(answers, [(ticket, Some(Threshold::ALWAYS))]);
        }
        assert_eq!(
            (window.take_beyond_burst(), window.take_beyond_burst()),
            (2, 0)
        );
    }

    #[test]
    fn equals_at_the_boundary_are_excluded_together() {
        let mut window = Window::new(10, 10, at(0));
        let mut excluded = Vec::new();
        window.ask(r(RANGE - 1), 5, 1, at(0), &mut excluded);
        for ticket in 2..5 {
            window.ask(r(77), 5, ticket, at(0), &mut excluded);
        }
        let (_, answers) = closed(&mut window);
        let taken: Vec<_> = answers.iter().filter(|it| it.1.is_some()).collect();
        assert_eq!(taken, [&(1, Threshold::from_bits(78))]);
        // Nothing lies above the highest of all.
        for ticket in 5..8 {
            window.ask(r(RANGE - 1), 50, ticket, at(2_000), &mut excluded);
        }
        let (_, answers) = closed(&mut window);
        assert!(answers.iter().all(|(_, taken)| taken.is_none()));
        assert_eq!(
            window.balance.settle(at(3_000)),
            10.0,
            "who is not taken is not charged"
        );
    }

    #[test]
    fn without_a_share_a_debt_is_not_waited_for() {
        let mut window = Window::new(10, 10, at(0));
        let mut excluded = Vec::new();
        window.ask(r(1), 100, 1, at(0), &mut excluded);
        closed(&mut window);
        window.set_share(0.0, at(1_000));
        window.ask(r(1), 1, 2, at(1_000), &mut excluded);
        let (closed_at, answers) = closed(&mut window);
        assert_eq!((closed_at, answers), (at(2_000), vec![(2, None)]));
        // And it is paid off once there is one again.
        window.ask(r(1), 1, 3, at(2_000), &mut excluded);
        window.set_share(1.0, at(2_500));
        assert_eq!(window.closes_at(), Some(at(11_500) + SLACK));
    }

    #[test]
    fn closed_early_a_window_decides_unless_it_is_in_debt() {
        let mut window = Window::new(10, 10, at(0));
        let (mut excluded, mut answers) = (Vec::new(), Vec::new());
        window.ask(r(1), 100, 1, at(0), &mut excluded);
        window.close(at(1), true, &mut answers);
        assert_eq!(answers, [(1, Some(Threshold::ALWAYS))]);
        window.ask(r(1), 100, 2, at(2), &mut excluded);
        window.close(at(3), true, &mut answers);
        assert_eq!(answers.len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a window that holds everyone until it closes.
        #[test]
        fn those_sent_away_early_would_not_have_been_taken(
            burst in 1..300_u64,
            rate in 1..200_u64,
            asked in prop::collection::vec((0..500_u64, 0..90_u64, 0..400_u64), 1..300),
        ) {
            let mut window = Window::new(rate, burst, at(0));
            let (mut excluded, mut answers) = (Vec::new(), Vec::new());
            let mut now = at(0);
            let mut open: Vec<(u64, Ticket, u64)> = Vec::new();
            let mut balance = burst as f64;
            let mut settled = now;
            for (ticket, (bits, cost, wait)) in asked.into_iter().enumerate() {
                let ticket = ticket as Ticket;
                now = now + Duration::from_millis(wait);
                if let Some(close_at) = window.closes_at().filter(|it| *it <= now) {
                    window.close(close_at, false, &mut answers);
                    balance += close_at.since(settled).as_secs_f64() * rate as f64;
                    balance = balance.min(burst as f64);
                    settled = close_at;
                    prop_assert!(balance > 0.0);
                    open.sort_unstable_by(|a, b| b.cmp(a));
                    let mut left = balance;
                    let cut = open.iter().position(|(.., cost)| {
                        let is_excluded = left <= 0.0;
                        left -= *cost as f64;
                        is_excluded
                    });
                    let threshold = cut.map_or(0, |cut| open[cut].0 + 1);
                    let expected: Vec<Ticket> = open
                        .iter()
                        .filter(|(bits, ..)| *bits >= threshold)
                        .map(|(_, ticket, _)| *ticket)
                        .collect();
                    balance -= open
                        .iter()
                        .filter(|(bits, ..)| *bits >= threshold)
                        .map(|(.., cost)| *cost as f64)
                        .sum::<f64>();
                    let mut taken: Vec<Ticket> = Vec::new();
                    for (ticket, answer) in &answers {
                        if let Some(answer) = answer {
                            prop_assert_eq!(answer.bits(), threshold);
                            taken.push(*ticket);
                        }
                    }
                    prop_assert_eq!(&taken, &expected);
                    prop_assert_eq!(answers.len() + excluded.len(), open.len());
                    open.clear();
                    answers.clear();
                    excluded.clear();
                }
                window.ask(r(bits), cost, ticket, now, &mut excluded);
                open.push((bits, ticket, cost.max(1)));
                prop_assert!(window.held() as u64 <= burst);
            }
        }
    }

    /// The table of the reference: windows of few traces with small budgets, debts waited for.
    #[test]
    fn thresholds_estimate_without_bias_down_to_budgets_of_one_trace() {
        let mut rng = SmallRng::seed_from_u64(1);
        // Traces a second, spans a second.
        for (traces, budget) in [(200_u64, 1_500), (40, 300), (40, 100), (12, 80)] {
            let mut window = Window::new(budget, budget, at(0));
            let (mut excluded, mut answers) = (Vec::new(), Vec::new());
            let seconds = 4_000;
            let (mut total, mut estimate, mut variance, mut kept_spans) = (0, 0.0, 0.0, 0);
            let mut costs = Vec::new();
            for n in 0..traces * seconds {
                let now = at(n * 1_000 / traces);
                if window.closes_at().is_some_and(|at| at <= now) {
                    window.close(now, false, &mut answers);
                }
                let cost = rng.random_range(5..=120);
                costs.push(cost);
                total += 1;
                window.ask(
                    r(rng.random_range(0..RANGE)),
                    cost,
                    n as Ticket,
                    now,
                    &mut excluded,
                );
                excluded.clear();
                for (ticket, threshold) in answers.drain(..) {
                    let Some(threshold) = threshold else { continue };
                    let p = (RANGE - threshold.bits()) as f64 / RANGE as f64;
                    estimate += 1.0 / p;
                    variance += (1.0 - p) / (p * p);
                    kept_spans += costs[ticket as usize];
                }
            }
            let error = (estimate - f64::from(total)) / variance.sqrt();
            assert!(
                error.abs() < 4.0,
                "{traces}/{budget}: {estimate} of {total}, {error} standard errors"
            );
            let rate = kept_spans as f64 / seconds as f64 / budget as f64;
            assert!(
                (0.97..1.03).contains(&rate),
                "{traces}/{budget}: {rate} of the budget used"
            );
        }
    }
}
