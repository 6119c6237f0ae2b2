//! Thresholds against what they mean: from which R on the trace would have been taken.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

const NOW: Moment = Moment {
    unix_nanos: 1_800_000_000_000_000_000,
};

fn r(bits: u64) -> Randomness {
    Randomness::from_bits(bits).unwrap()
}

/// What a window says of these, each of cost 1: `(R, policies with their odds)`.
fn closed(total: u64, parts: &[u64], asked: &[(u64, Vec<(u8, Odds)>)]) -> Vec<Option<Odds>> {
    let mut window = CompositeWindow::new(total, parts, NOW);
    let mut excluded = Vec::new();
    for ((bits, subs), ticket) in asked.iter().zip(0..) {
        let lucky = |(_, odds): &&(u8, Odds)| {
            odds.threshold()
                .is_none_or(|threshold| threshold.bits() <= *bits)
        };
        let subs: Vec<_> = subs.iter().filter(lucky).copied().collect();
        if !subs.is_empty() {
            window.ask(r(*bits), 1, ticket, subs, NOW, &mut excluded);
        }
    }
    assert!(excluded.is_empty());
    let mut answers = Vec::new();
    window.close(NOW + WINDOW, false, &mut answers);
    let mut found = vec![None; asked.len()];
    for (ticket, odds) in answers {
        found[ticket as usize] = odds;
    }
    found
}

#[test]
fn where_spans_cost_the_same_thresholds_are_exact() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut taken = 0;
    for _ in 0..3_000 {
        let policies = rng.random_range(1..5_u8);
        let parts: Vec<u64> = (0..policies).map(|_| rng.random_range(1..4)).collect();
        let total = rng.random_range(1..=parts.iter().sum::<u64>() + 1);
        let mut asked: Vec<(u64, Vec<(u8, Odds)>)> = Vec::new();
        for place in 0..rng.random_range(1..16_u64) {
            // In steps of 100, so that there is room between any two.
            let bits = 100 * (20 * rng.random_range(1..50) + place);
            let mut subs = Vec::new();
            for policy in 0..policies {
                let odds = match rng.random_range(0..8) {
                    0..4 => Odds::CERTAIN,
                    4 => Odds::From(Threshold::from_bits(rng.random_range(0..100_000)).unwrap()),
                    _ => continue,
                };
                subs.push((policy, odds));
            }
            asked.push((bits, subs));
        }
        let found = closed(total, &parts, &asked);
        for (place, odds) in found.iter().enumerate() {
            let Some(odds) = odds else { continue };
            taken += 1;
            let threshold = odds.threshold().expect("no odds are unknown here").bits();
            // The same window, with this one elsewhere.
            let taken_at = |bits: u64| {
                let mut asked = asked.clone();
                asked[place].0 = bits;
                closed(total, &parts, &asked)[place].is_some()
            };
            let context = format!("{place} of {asked:?} in {parts:?}, {total}: {threshold}");
            assert!(taken_at(threshold), "{context}");
            assert!(threshold == 0 || !taken_at(threshold - 1), "{context}");
            for at in [50, 20_050, 50_050, 80_050] {
                assert_eq!(taken_at(at), at >= threshold, "at {at}: {context}");
            }
        }
    }
    assert!(taken > 5_000, "{taken}");
}

fn ask(window: &mut CompositeWindow, bits: u64, cost: u64, policy: u8, now: Moment) {
    let mut excluded = Vec::new();
    let subs = vec![(policy, Odds::CERTAIN)];
    window.ask(r(bits), cost, bits as Ticket, subs, now, &mut excluded);
    assert!(excluded.is_empty());
}

fn close(window: &mut CompositeWindow, now: Moment) -> Vec<(Ticket, bool)> {
    let mut answers = Vec::new();
    window.close(now, false, &mut answers);
    answers
        .into_iter()
        .map(|(ticket, odds)| (ticket, odds.is_some()))
        .collect()
}

#[test]
fn who_waits_for_a_policy_in_debt_waits_for_the_next_window() {
    let at = |millis| NOW + Duration::from_millis(millis);
    let mut window = CompositeWindow::new(100, &[10, 90], NOW);
    ask(&mut window, 1, 35, 0, at(0));
    assert_eq!(window.closes_at(), Some(at(1_000)));
    assert_eq!(close(&mut window, at(1_000)), [(1, true)]);
    // The first policy owes 25, which is 2.5 s.
    ask(&mut window, 2, 5, 0, at(1_000));
    ask(&mut window, 3, 5, 1, at(1_000));
    assert_eq!(close(&mut window, at(2_000)), [(3, true)]);
    assert_eq!(window.closes_at(), Some(at(3_000)));
    assert_eq!(close(&mut window, at(3_000)), []);
    assert_eq!(close(&mut window, at(4_000)), [(2, true)]);
    assert_eq!(window.closes_at(), None);
}

#[test]
fn without_a_share_nobody_is_taken_and_nobody_waits() {
    let mut window = CompositeWindow::new(10, &[10], NOW);
    ask(&mut window, 1, 35, 0, NOW);
    close(&mut window, NOW + WINDOW);
    window.set_share(0.0, NOW + WINDOW);
    ask(&mut window, 2, 1, 0, NOW + WINDOW);
    assert_eq!(close(&mut window, NOW + WINDOW * 2), [(2, false)]);
}

#[test]
fn beyond_the_bound_the_lowest_go_and_those_who_stay_stand_for_them() {
    let mut window = CompositeWindow::new(1_000_000, &[1_000_000], NOW);
    let mut excluded = Vec::new();
    for bits in 1..=CANDIDATES_MAX as u64 + 10 {
        let subs = vec![(0, Odds::CERTAIN)];
        window.ask(r(bits), 1, bits as Ticket, subs, NOW, &mut excluded);
    }
    assert_eq!(excluded, (1..=10).collect::<Vec<_>>());
    let mut answers = Vec::new();
    window.close(NOW + WINDOW, false, &mut answers);
    assert_eq!(answers.len(), CANDIDATES_MAX);
    let eleven = Some(Odds::From(Threshold::from_bits(11).unwrap()));
    assert!(answers.iter().all(|(_, odds)| *odds == eleven));
}
