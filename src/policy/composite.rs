//! The window of a composite: policies with parts of one rate, and who is taken by which.
//!
//! As in a [`Window`](super::window::Window), candidates gather for a second and are taken by
//! descending randomness R while there is something left: of the whole, and of the part of a policy
//! that would keep the trace. If the parts of all its policies are used up, one of those taken before
//! moves to another policy that would keep it, too, and makes room. So a part that nobody else needs
//! is used, and who is taken does not hang on who came when.
//!
//! For each trace that is taken T is where it would have been refused: for the trace that would take
//! its place, if it were gone, must have a lower R. Where every span costs the same this is exact
//! (the sets that can be taken are a matroid); otherwise what was said of overdrafts in `window`
//! holds here.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::model::{Moment, Randomness, Threshold};
use crate::policy::balance::Balance;
use crate::policy::vote::Odds;
use crate::policy::window::{Ticket, WINDOW};

#[cfg(test)]
mod tests;

/// Policies of one composite: bits of a mask.
pub(super) const SUBS_MAX: usize = 64;
/// Those with the lowest R go when there are more, as if a limit stood before this one.
const CANDIDATES_MAX: usize = 1 << 16;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct CompositeWindow {
    total: Balance,
    subs: Vec<Balance>,
    opened: Option<Moment>,
    /// Lowest randomness on top.
    candidates: BinaryHeap<Reverse<Candidate>>,
    /// The highest randomness that had to go for want of room.
    excluded: Option<Randomness>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    randomness: Randomness,
    ticket: Ticket,
    cost: u64,
    /// Who would keep it, in their order, and how likely that was.
    subs: Vec<(u8, Odds)>,
}

impl CompositeWindow {
    pub(super) fn new(per_second: u64, of_each: &[u64], now: Moment) -> Self {
        // Nothing is saved up beyond a second, which is what a Collector's composite counts in.
        Self {
            total: Balance::new(per_second, per_second, now),
            subs: of_each
                .iter()
                .map(|rate| Balance::new(*rate, *rate, now))
                .collect(),
            opened: None,
            candidates: BinaryHeap::new(),
            excluded: None,
        }
    }

    pub(super) fn set_share(&mut self, share: f64, now: Moment) {
        self.total.set_share(share, now);
        for sub in &mut self.subs {
            sub.set_share(share, now);
        }
    }

    /// Goes on with what an earlier composite has left. `from`: which of its policies each one was.
    pub(super) fn succeed(&mut self, earlier: &mut Self, from: &[Option<usize>], now: Moment) {
        self.total.succeed(&mut earlier.total, now);
        for (sub, from) in self.subs.iter_mut().zip(from) {
            if let Some(before) = from.and_then(|place| earlier.subs.get_mut(place)) {
                sub.succeed(before, now);
            }
        }
    }

    /// One more candidate; opens a window if none is open.
    pub(super) fn ask(
        &mut self,
        randomness: Randomness,
        cost: u64,
        ticket: Ticket,
        subs: Vec<(u8, Odds)>,
        now: Moment,
        excluded: &mut Vec<Ticket>,
    ) {
        self.opened.get_or_insert(now);
        self.candidates.push(Reverse(Candidate {
            randomness,
            ticket,
            cost: cost.max(1),
            subs,
        }));
        if self.candidates.len() > CANDIDATES_MAX
            && let Some(Reverse(lowest)) = self.candidates.pop()
        {
            self.excluded = self.excluded.max(Some(lowest.randomness));
            excluded.push(lowest.ticket);
        }
    }

    /// When [`CompositeWindow::close`] has something to do.
    pub(super) fn closes_at(&self) -> Option<Moment> {
        Some(self.total.positive_from(self.opened? + WINDOW))
    }

    /// Closes the window if its time has come, or (`early`) if the balance allows it now. Whoever
    /// waits for a policy in debt waits for the next one.
    pub(super) fn close(
        &mut self,
        now: Moment,
        early: bool,
        answers: &mut Vec<(Ticket, Option<Odds>)>,
    ) {
        let due = self.closes_at().is_some_and(|at| at <= now);
        let total = self.total.settle(now);
        let solvent = total > 0.0 || self.total.earns_nothing();
        if self.opened.is_none() || !solvent || !(due || early) {
            return;
        }
        let (mut open, mut in_debt) = (0_u64, 0_u64);
        let mut left = Vec::with_capacity(self.subs.len());
        for (sub, place) in self.subs.iter_mut().zip(0..) {
            left.push(sub.settle(now));
            if left[place] > 0.0 {
                open |= 1 << place;
            } else if !sub.earns_nothing() {
                in_debt |= 1 << place;
            }
        }
        let floor = self.excluded.take();
        let mut candidates = Vec::new();
        let mut later = BinaryHeap::new();
        for Reverse(mut candidate) in std::mem::take(&mut self.candidates) {
            let mask = mask_of(&candidate.subs);
            if mask & open == 0 && mask & in_debt != 0 {
                later.push(Reverse(candidate));
                continue;
            }
            candidate.subs.retain(|(sub, _)| open >> sub & 1 == 1);
            candidates.push(candidate);
        }
        self.opened = (!later.is_empty()).then_some(now);
        self.candidates = later;
        candidates.sort_unstable_by(|left, right| right.cmp(left));
        let mut sweep = Sweep::new(total, left, candidates);
        sweep.run();
        let thresholds = sweep.thresholds();
        for (candidate, (taken_by, odds)) in sweep
            .candidates
            .iter()
            .zip(sweep.taken_by.iter().zip(thresholds))
        {
            let odds = odds.filter(|_| taken_by.is_some()).map(|odds| {
                let after = floor.and_then(|floor| Threshold::from_bits(floor.bits() + 1));
                odds.max(after.map_or(Odds::CERTAIN, Odds::From))
            });
            // Of equals at the boundary none is taken: the threshold could not tell them apart.
            let odds = odds.filter(|odds| {
                odds.threshold()
                    .is_none_or(|threshold| threshold.admits(candidate.randomness))
            });
            if let (Some(_), Some(sub)) = (odds, taken_by) {
                self.total.spend(candidate.cost as f64);
                self.subs[usize::from(*sub)].spend(candidate.cost as f64);
            }
            answers.push((candidate.ticket, odds));
        }
    }

    /// See [`Balance::take_beyond_burst`]: of the whole.
    pub(super) fn take_beyond_burst(&mut self) -> u64 {
        self.total.take_beyond_burst()
    }
}

fn mask_of(subs: &[(u8, Odds)]) -> u64 {
    subs.iter().fold(0, |mask, (sub, _)| mask | 1 << sub)
}

fn bits(mask: u64) -> impl Iterator<Item = usize> {
    (0..SUBS_MAX).filter(move |bit| mask >> bit & 1 == 1)
}

/// Cost and place of those who could move.
type Movable = BinaryHeap<(u64, Reverse<usize>)>;

/// One pass over the candidates of a window, highest R first.
struct Sweep {
    total: f64,
    left: Vec<f64>,
    candidates: Vec<Candidate>,
    masks: Vec<u64>,
    taken_by: Vec<Option<u8>>,
    /// `movable[s][t]`: those whom s took and t would keep, the dearest on top. Some have moved
    /// away since.
    movable: Vec<Vec<Movable>>,
    /// Those from where room can be had.
    reaching: u64,
}

impl Sweep {
    fn new(total: f64, left: Vec<f64>, candidates: Vec<Candidate>) -> Self {
        let subs = left.len();
        let mut sweep = Self {
            total,
            left,
            masks: candidates.iter().map(|it| mask_of(&it.subs)).collect(),
            taken_by: vec![None; candidates.len()],
            candidates,
            movable: vec![vec![BinaryHeap::new(); subs]; subs],
            reaching: 0,
        };
        sweep.reaching = sweep.reaching_room();
        sweep
    }

    fn run(&mut self) {
        for index in 0..self.candidates.len() {
            if self.total <= 0.0 {
                return;
            }
            if self.masks[index] & self.reaching == 0 {
                continue;
            }
            let Some(path) = self.path_to_room(self.masks[index]) else {
                continue;
            };
            // From the end: each makes room for the one before it.
            for step in path.windows(2).rev() {
                if let Some(moved) = self.dearest(step[0], step[1]) {
                    self.left[step[0]] += self.candidates[moved].cost as f64;
                    self.put(moved, step[1]);
                }
            }
            self.put(index, path[0]);
            self.total -= self.candidates[index].cost as f64;
            self.reaching = self.reaching_room();
        }
    }

    fn put(&mut self, index: usize, sub: usize) {
        let cost = self.candidates[index].cost;
        self.taken_by[index] = Some(sub as u8);
        self.left[sub] -= cost as f64;
        for other in bits(self.masks[index]).filter(|other| *other != sub) {
            self.movable[sub][other].push((cost, Reverse(index)));
        }
    }

    /// Whom `from` would give away to `to` first.
    fn dearest(&mut self, from: usize, to: usize) -> Option<usize> {
        let heap = &mut self.movable[from][to];
        while let Some((_, Reverse(index))) = heap.peek().copied() {
            if self.taken_by[index] == Some(from as u8) {
                return Some(index);
            }
            heap.pop();
        }
        None
    }

    /// Whether `from` has room after giving one to `to`.
    fn can_move(&mut self, from: usize, to: usize) -> bool {
        let left = self.left[from];
        self.dearest(from, to)
            .is_some_and(|index| left + self.candidates[index].cost as f64 > 0.0)
    }

    fn with_room(&self) -> u64 {
        let mut mask = 0;
        for (place, left) in self.left.iter().enumerate() {
            mask |= u64::from(*left > 0.0) << place;
        }
        mask
    }

    fn reaching_room(&mut self) -> u64 {
        let subs = self.left.len();
        let mut reaching = self.with_room();
        loop {
            let before = reaching;
            for from in 0..subs {
                if reaching >> from & 1 == 0
                    && bits(reaching).any(|to| to < subs && self.can_move(from, to))
                {
                    reaching |= 1 << from;
                }
            }
            if reaching == before {
                return reaching;
            }
        }
    }

    /// From the first of these policies, over as few as possible, to one with room.
    fn path_to_room(&mut self, mask: u64) -> Option<Vec<usize>> {
        let subs = self.left.len();
        let room = self.with_room();
        let mut from: Vec<Option<usize>> = vec![None; subs];
        let mut seen = mask;
        let mut queue: VecDeque<usize> = bits(mask).collect();
        while let Some(sub) = queue.pop_front() {
            if room >> sub & 1 == 1 {
                let mut path = vec![sub];
                let mut at = sub;
                while let Some(before) = from[at] {
                    path.push(before);
                    at = before;
                }
                path.reverse();
                return Some(path);
            }
            for next in bits(!seen).take_while(|next| *next < subs) {
                if self.can_move(sub, next) {
                    seen |= 1 << next;
                    from[next] = Some(sub);
                    queue.push_back(next);
                }
            }
        }
        None
    }

    /// For each that was taken, from which R on it would have been.
    fn thresholds(&mut self) -> Vec<Option<Odds>> {
        let subs = self.left.len();
        let room = self.with_room();
        let is_tight = self.total <= 0.0;
        let all = u64::MAX >> (SUBS_MAX - subs.clamp(1, SUBS_MAX));
        // Whom a policy can send on, over how many steps ever.
        let mut reach: Vec<u64> = (0..subs).map(|sub| 1 << sub).collect();
        loop {
            let before = reach.clone();
            for from in 0..subs {
                for to in 0..subs {
                    if reach[from] >> to & 1 == 0 && self.can_move(from, to) {
                        reach[from] |= reach[to];
                    }
                }
                for to in bits(reach[from]) {
                    reach[from] |= before[to];
                }
            }
            if reach == before {
                break;
            }
        }
        // With the whole used up, whoever could have had a part competes with everybody.
        if is_tight {
            for mask in &mut reach {
                if *mask & room != 0 {
                    *mask = all;
                }
            }
        }
        // The two lowest of each: one of them may be the trace itself.
        let mut lowest: Vec<Vec<usize>> = vec![Vec::new(); subs];
        // Who would take the place of one that a policy took.
        let mut next: Vec<Option<Randomness>> = vec![None; subs];
        for (index, taken_by) in self.taken_by.iter().enumerate() {
            match taken_by {
                Some(sub) => {
                    let lowest = &mut lowest[usize::from(*sub)];
                    lowest.insert(0, index);
                    lowest.truncate(2);
                }
                None => {
                    let randomness = self.candidates[index].randomness;
                    let wanted = bits(self.masks[index]).fold(0, |mask, sub| mask | reach[sub]);
                    for sub in bits(wanted) {
                        next[sub] = next[sub].max(Some(randomness));
                    }
                }
            }
        }
        (0..self.candidates.len())
            .map(|index| {
                let taken_by = usize::from(self.taken_by[index]?);
                let candidate = &self.candidates[index];
                let odds = candidate.subs.iter().map(|(sub, odds)| {
                    let reach = reach[usize::from(*sub)];
                    let beside = if reach & room != 0 && !is_tight {
                        None
                    } else {
                        let rivals = bits(reach).flat_map(|sub| &lowest[sub]);
                        let rivals = rivals.filter(|rival| **rival != index);
                        let lowest = rivals.map(|rival| self.candidates[*rival].randomness).min();
                        match (reach >> taken_by & 1 == 1, next[taken_by]) {
                            (false, _) => lowest,
                            // Its own place would be free.
                            (true, None) => None,
                            (true, next) => lowest.min(next).or(next),
                        }
                    };
                    let after = match beside {
                        None => Odds::CERTAIN,
                        Some(rival) => {
                            Threshold::from_bits(rival.bits() + 1).map_or(Odds::Unknown, Odds::From)
                        }
                    };
                    after.max(*odds)
                });
                // Not by one that takes it at a higher R only: by whom it was taken, it was.
                let at_its_own = |odds: &Odds| {
                    odds.threshold()
                        .is_none_or(|threshold| threshold.admits(candidate.randomness))
                };
                odds.filter(at_its_own).min()
            })
            .collect()
    }
}
