//! What goes wrong, and the scenarios that are made of it.

use rand::Rng;
use rand::rngs::SmallRng;

use crate::plan::Millis;

/// Workers by their number; those that scaling out adds come after those of the beginning.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The process ends at once and comes back after `down`, somewhere else if its pod is replaced.
    Kill {
        worker: usize,
        down: Millis,
        is_replaced: bool,
    },
    /// The process and its disk are gone; another one with an empty disk takes its name.
    LoseDisk { worker: usize, down: Millis },
    /// SIGTERM, and a new process after `down`.
    Restart {
        worker: usize,
        down: Millis,
        is_replaced: bool,
    },
    /// A worker of a new name.
    Add { worker: usize },
    /// SIGTERM, and no new process.
    Remove { worker: usize },
    /// The process does nothing for a while, and does not notice.
    Stall { worker: usize, lasts: Millis },
    /// The router ends at once; another one takes its place.
    KillRouter { router: usize, down: Millis },
    /// Nothing gets from the one to the other.
    Cut {
        from: Party,
        to: Party,
        lasts: Millis,
    },
    /// One who asks gets the same answer all the time.
    StaleDns { who: Party, lasts: Millis },
    /// One who asks gets nothing, a part, or an address that is another one's.
    LyingDns { who: Party, lie: Lie, lasts: Millis },
    /// Writes to a worker's disk fail.
    DiskFails { worker: usize, lasts: Millis },
    /// The backend refuses everything for now.
    BackendDown { lasts: Millis },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    Worker(usize),
    Router(usize),
    AllRouters,
    AllWorkers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    Nothing,
    Half,
    SwappedAddresses,
}

/// The scenarios of the simulation that the protocol was designed by, and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    Quiet,
    Out,
    In,
    OutIn,
    Roll,
    Crash,
    Partition,
    Stale,
    Stall,
    LongPartition,
    Mix,
    Storm,
    /// One that was written down. Not among [`Scenario::ALL`].
    Kept,
}

impl Fault {
    pub(crate) fn lasts(&self) -> Millis {
        match self {
            Self::Kill { down, .. }
            | Self::Restart { down, .. }
            | Self::LoseDisk { down, .. }
            | Self::KillRouter { down, .. } => *down,
            Self::Add { .. } | Self::Remove { .. } => 0,
            Self::Stall { lasts, .. }
            | Self::Cut { lasts, .. }
            | Self::StaleDns { lasts, .. }
            | Self::LyingDns { lasts, .. }
            | Self::DiskFails { lasts, .. }
            | Self::BackendDown { lasts } => *lasts,
        }
    }
}

impl Scenario {
    pub(crate) const ALL: [Self; 12] = [
        Self::Quiet,
        Self::Out,
        Self::In,
        Self::OutIn,
        Self::Roll,
        Self::Crash,
        Self::Partition,
        Self::Stale,
        Self::Stall,
        Self::LongPartition,
        Self::Mix,
        Self::Storm,
    ];

    /// Faults that come while clients begin traces, with the moments at which they do.
    pub(crate) fn faults(
        self,
        random: &mut SmallRng,
        workers: usize,
        active: Millis,
    ) -> Vec<(Millis, Fault)> {
        let mut faults = Vec::new();
        match self {
            Self::Quiet | Self::Kept => {}
            Self::Out => out(random, workers, active, &mut faults),
            Self::In => remove(random, workers, active, &mut faults),
            Self::OutIn => {
                out(random, workers, active, &mut faults);
                remove(random, workers, active, &mut faults);
            }
            Self::Roll => roll(random, workers, active, &mut faults),
            Self::Crash => {
                for _ in 0..random.random_range(1..=3) {
                    crash(random, workers, active, &mut faults);
                }
            }
            Self::Partition => {
                for _ in 0..random.random_range(1..=2) {
                    partition(random, workers, active, 1_000..25_000, &mut faults);
                }
            }
            Self::Stale => {
                dns(random, workers, active, &mut faults);
                out(random, workers, active, &mut faults);
            }
            Self::Stall => {
                for _ in 0..random.random_range(1..=3) {
                    stall(random, workers, active, &mut faults);
                }
            }
            Self::LongPartition => {
                for _ in 0..random.random_range(1..=2) {
                    partition(random, workers, active, 20_000..90_000, &mut faults);
                }
            }
            Self::Mix => {
                out(random, workers, active, &mut faults);
                roll(random, workers, active, &mut faults);
                for _ in 0..2 {
                    crash(random, workers, active, &mut faults);
                    partition(random, workers, active, 1_000..25_000, &mut faults);
                }
            }
            Self::Storm => {
                out(random, workers, active, &mut faults);
                remove(random, workers, active, &mut faults);
                roll(random, workers, active, &mut faults);
                dns(random, workers, active, &mut faults);
                stall(random, workers, active, &mut faults);
                for _ in 0..2 {
                    crash(random, workers, active, &mut faults);
                    partition(random, workers, active, 1_000..90_000, &mut faults);
                }
            }
        }
        if !matches!(self, Self::Quiet | Self::Out | Self::In) {
            other(random, workers, active, &mut faults);
        }
        faults.sort_by_key(|(at, _)| *at);
        faults
    }
}

type Faults = Vec<(Millis, Fault)>;

fn out(random: &mut SmallRng, workers: usize, active: Millis, faults: &mut Faults) {
    for number in 0..random.random_range(1..=2) {
        let worker = workers + number;
        faults.push((random.random_range(5_000..active), Fault::Add { worker }));
    }
}

/// The highest number goes, as in a StatefulSet.
fn remove(random: &mut SmallRng, workers: usize, active: Millis, faults: &mut Faults) {
    let worker = workers - 1;
    faults.push((random.random_range(5_000..active), Fault::Remove { worker }));
}

/// From the highest number down, the next one when the last one is there again.
fn roll(random: &mut SmallRng, workers: usize, active: Millis, faults: &mut Faults) {
    let mut at = random.random_range(5_000..active / 2);
    for worker in (0..workers).rev() {
        let down = [1_000, 8_000, 20_000][random.random_range(0..3)];
        let is_replaced = random.random_range(0..4) > 0;
        let fault = Fault::Restart {
            worker,
            down,
            is_replaced,
        };
        faults.push((at, fault));
        at += down + random.random_range(2_000..15_000);
    }
}

fn crash(random: &mut SmallRng, workers: usize, active: Millis, faults: &mut Faults) {
    let fault = Fault::Kill {
        worker: random.random_range(0..workers),
        down: [500, 5_000, 30_000][random.random_range(0..3)],
        is_replaced: random.random(),
    };
    faults.push((random.random_range(5_000..active), fault));
}

fn partition(
    random: &mut SmallRng,
    workers: usize,
    active: Millis,
    lasts: std::ops::Range<Millis>,
    faults: &mut Faults,
) {
    let at = random.random_range(5_000..active);
    let lasts = random.random_range(lasts);
    let one = Party::Worker(random.random_range(0..workers));
    let other = match random.random_range(0..5) {
        0 | 1 => Party::Worker(random.random_range(0..workers)),
        2 => Party::AllWorkers,
        3 => Party::AllRouters,
        _ => Party::Router(0),
    };
    let ways = random.random_range(0..3);
    if ways != 1 {
        let (from, to) = (one, other);
        faults.push((at, Fault::Cut { from, to, lasts }));
    }
    if ways != 2 {
        let (from, to) = (other, one);
        faults.push((at, Fault::Cut { from, to, lasts }));
    }
}

fn dns(random: &mut SmallRng, workers: usize, active: Millis, faults: &mut Faults) {
    for _ in 0..random.random_range(1..=3) {
        let who = match random.random_range(0..3) {
            0 => Party::Router(0),
            1 => Party::AllRouters,
            _ => Party::Worker(random.random_range(0..workers)),
        };
        let lasts = random.random_range(10_000..240_000);
        let fault = match random.random_range(0..5) {
            0 => Fault::LyingDns {
                who,
                lie: Lie::Nothing,
                lasts,
            },
            1 => Fault::LyingDns {
                who,
                lie: Lie::Half,
                lasts: lasts / 4,
            },
            2 => Fault::LyingDns {
                who,
                lie: Lie::SwappedAddresses,
                lasts: lasts / 4,
            },
            _ => Fault::StaleDns { who, lasts },
        };
        faults.push((random.random_range(1_000..active), fault));
    }
}

fn stall(random: &mut SmallRng, workers: usize, active: Millis, faults: &mut Faults) {
    let fault = Fault::Stall {
        worker: random.random_range(0..workers),
        lasts: [1_500, 8_000, 40_000][random.random_range(0..3)],
    };
    faults.push((random.random_range(5_000..active), fault));
}

/// What may come along with everything.
fn other(random: &mut SmallRng, workers: usize, active: Millis, faults: &mut Faults) {
    let at = random.random_range(5_000..active);
    match random.random_range(0..8) {
        0 => {
            let lasts = random.random_range(1_000..40_000);
            faults.push((at, Fault::BackendDown { lasts }));
        }
        1 => {
            let worker = random.random_range(0..workers);
            let lasts = random.random_range(500..10_000);
            faults.push((at, Fault::DiskFails { worker, lasts }));
        }
        2 => {
            let worker = random.random_range(0..workers);
            let down = random.random_range(1_000..20_000);
            faults.push((at, Fault::LoseDisk { worker, down }));
        }
        3 => {
            let down = random.random_range(100..5_000);
            faults.push((at, Fault::KillRouter { router: 0, down }));
        }
        _ => {}
    }
}
