//! Time as a value. The pure layers are given a [`Moment`]; only process code owns a clock.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time: nanoseconds since the Unix epoch. Good until the year 2554.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Moment {
    pub unix_nanos: u64,
}

/// The process's clock: wall time at start plus monotonic time since, so that it never jumps or
/// goes back while the process lives, and still means something to the next process.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    started: Instant,
    started_at: Moment,
}

impl Moment {
    pub const ZERO: Self = Self { unix_nanos: 0 };
    /// Later than every deadline.
    pub const NEVER: Self = Self {
        unix_nanos: u64::MAX,
    };

    pub fn from_unix_millis(millis: u64) -> Self {
        Self {
            unix_nanos: millis.saturating_mul(1_000_000),
        }
    }

    /// So long earlier; not before [`Moment::ZERO`].
    pub fn before(self, wait: Duration) -> Self {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        Self {
            unix_nanos: self.unix_nanos.saturating_sub(nanos),
        }
    }

    pub fn unix_millis(self) -> u64 {
        self.unix_nanos / 1_000_000
    }

    /// How long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.unix_nanos.saturating_sub(earlier.unix_nanos))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, wait: Duration) -> Self {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        Self {
            unix_nanos: self.unix_nanos.saturating_add(nanos),
        }
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:09}",
            self.unix_nanos / 1_000_000_000,
            self.unix_nanos % 1_000_000_000
        )
    }
}

impl SteadyClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clocks; everyone else is given a Moment"
    )]
    pub fn start() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started: Instant::now(),
            started_at: Moment::ZERO + wall,
        }
    }

    pub fn now(&self) -> Moment {
        self.started_at + self.started.elapsed()
    }
}
