//! Nothing acknowledged is lost, whatever ends a worker and whenever: a worker of several shards
//! runs a random plan on a simulated disk, and is ended at every single change it makes there.
//!
//! ```sh
//! cargo test --test crash                                        # some seeds, and the planted bugs
//! TAILRING_CRASH_SEEDS=1-10000 cargo test --release --test crash -- --nocapture outlives
//! TAILRING_CRASH_SEEDS=30 TAILRING_CRASH_AT=15 cargo test --test crash -- --nocapture outlives   # one run, told step by step
//! ```

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, in its helpers too, and tells people what it did"
)]

mod books;
mod damage;
mod life;
mod plan;

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use life::{Stage, run};
use plan::Plan;

/// What came of one seed: a run to the end, and one for each change on disk that ends there.
#[derive(Default)]
struct Tally {
    seeds: u64,
    runs: u64,
    crashes: u64,
    compacted: u64,
    acknowledged: u64,
    delivered: u64,
    doubled_in_window: u64,
    doubled_by_repetition: u64,
    violations: Vec<String>,
}

impl Tally {
    fn add(&mut self, seed: u64, stage: &Stage, is_enough: impl Fn(&Self) -> bool) {
        self.seeds += 1;
        let plan = Plan::new(seed);
        let changes = self.run(&plan, stage, None);
        for change in 1..=changes {
            if is_enough(self) {
                return;
            }
            self.run(&plan, stage, Some(change));
        }
    }

    fn run(&mut self, plan: &Plan, stage: &Stage, dies_at: Option<u64>) -> u64 {
        let outcome = run(plan, stage, dies_at);
        self.runs += 1;
        self.crashes += outcome.crashes;
        self.compacted += outcome.compacted;
        self.acknowledged += outcome.books.acknowledged.len() as u64;
        self.delivered += outcome.books.delivered.len() as u64;
        self.doubled_in_window += outcome.books.doubled_in_window;
        self.doubled_by_repetition += outcome.books.doubled_by_repetition;
        for what in outcome.books.violations {
            let end = dies_at.map_or("lived on".into(), |at| format!("ended at change {at}"));
            self.violations
                .push(format!("seed {}, {end}: {what}", plan.seed));
        }
        outcome.changes
    }

    fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.runs += other.runs;
        self.crashes += other.crashes;
        self.compacted += other.compacted;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.doubled_in_window += other.doubled_in_window;
        self.doubled_by_repetition += other.doubled_by_repetition;
        self.violations.extend(other.violations);
    }
}

fn seeds_asked_for() -> RangeInclusive<u64> {
    let Ok(asked) = std::env::var("TAILRING_CRASH_SEEDS") else {
        return 1..=25;
    };
    let (first, last) = asked.split_once('-').unwrap_or((&asked, &asked));
    let number = |text: &str| text.trim().parse().expect("TAILRING_CRASH_SEEDS=1-10000");
    number(first)..=number(last)
}

#[test]
fn what_was_acknowledged_outlives_an_end_at_any_change() {
    let seeds = seeds_asked_for();
    if let Ok(at) = std::env::var("TAILRING_CRASH_AT") {
        let mut plan = Plan::new(*seeds.start());
        plan.is_told = true;
        let violations = run(&plan, &Stage::new(), at.parse().ok()).books.violations;
        assert!(violations.is_empty(), "{violations:#?}");
        return;
    }
    let next = AtomicU64::new(*seeds.start());
    let total = Mutex::new(Tally::default());
    #[expect(clippy::disallowed_methods, reason = "for people: how long it took")]
    let began = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let stage = Stage::new();
                let mut tally = Tally::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        break;
                    }
                    tally.add(seed, &stage, |tally| tally.violations.len() > 20);
                }
                total.lock().expect("no thread panicked").merge(tally);
            });
        }
    });
    let total = total.into_inner().expect("no thread panicked");
    eprintln!(
        "seeds {}-{}: {} violations in {:.1} s\n\
         {} seeds, {} runs, {} crashes, {} segments compacted, {} spans acknowledged, {} delivered\n\
         doubled: {} between the backend's OK and its record, {} repeated by their clients after a restart",
        seeds.start(),
        seeds.end(),
        total.violations.len(),
        began.elapsed().as_secs_f64(),
        total.seeds,
        total.runs,
        total.crashes,
        total.compacted,
        total.acknowledged,
        total.delivered,
        total.doubled_in_window,
        total.doubled_by_repetition,
    );
    if !total.violations.is_empty() {
        let first: Vec<_> = total.violations.iter().take(10).collect();
        panic!("{first:#?}");
    }
    assert!(total.crashes > total.seeds && total.delivered > total.seeds);
    assert!(total.compacted > total.seeds, "compaction is not looked at");
}

/// The bugs are not in a release build, and neither is the switch.
#[cfg(debug_assertions)]
#[test]
fn every_planted_bug_is_found_within_a_thousand_seeds() {
    use tailring::log::PlantedBug;
    let next = AtomicU64::new(0);
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let stage = Stage::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(bug) = PlantedBug::ALL.get(number).copied() else {
                        return;
                    };
                    PlantedBug::plant(Some(bug));
                    let mut tally = Tally::default();
                    let seed = (1..=1_000).find(|seed| {
                        tally.add(*seed, &stage, |tally| !tally.violations.is_empty());
                        !tally.violations.is_empty()
                    });
                    PlantedBug::plant(None);
                    let how = tally.violations.into_iter().next().unwrap_or_default();
                    let runs = tally.runs;
                    eprintln!("{:<24} {runs:>6} runs: {how}", format!("{bug:?}"));
                    if seed.is_none() {
                        missed.lock().expect("no thread panicked").push(bug);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no thread panicked");
    assert!(missed.is_empty(), "not found: {missed:?}");
}
