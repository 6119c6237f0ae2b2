//! What a limit may still spend: earned at a steady rate, saved up to a burst, overdrawn into debt.

use std::time::Duration;

use crate::model::Moment;

/// What rounding may cost when the end of a debt is foretold.
pub(super) const SLACK: Duration = Duration::from_micros(1);
/// A debt of ages is as good as one of a year.
const DEBT_SECONDS_MAX: f64 = 31_536_000.0;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Balance {
    rate_per_second: f64,
    /// The part of the rate that is ours, 0 to 1. The burst is not divided.
    share: f64,
    burst: f64,
    /// Below zero is debt. True at `settled`.
    left: f64,
    settled: Moment,
    /// Spent at once although it was more than a quiet time can ever save up.
    beyond_burst: u64,
}

impl Balance {
    /// Begins full.
    pub(super) fn new(rate_per_second: u64, burst: u64, now: Moment) -> Self {
        Self {
            rate_per_second: rate_per_second as f64,
            share: 1.0,
            burst: burst as f64,
            left: burst as f64,
            settled: now,
            beyond_burst: 0,
        }
    }

    /// Goes on with what an earlier balance has left, at this rate and burst: a debt stays one.
    pub(super) fn succeed(&mut self, earlier: &mut Self, now: Moment) {
        self.left = earlier.settle(now).min(self.burst);
        self.settled = earlier.settled;
        self.share = earlier.share;
    }

    pub(super) fn burst(&self) -> f64 {
        self.burst
    }

    /// How many since this was asked last were larger than the burst, and passed by overdraft.
    pub(super) fn take_beyond_burst(&mut self) -> u64 {
        std::mem::take(&mut self.beyond_burst)
    }

    pub(super) fn set_share(&mut self, share: f64, now: Moment) {
        self.settle(now);
        self.share = share.clamp(0.0, 1.0);
    }

    /// No debt is ever paid off.
    pub(super) fn earns_nothing(&self) -> bool {
        self.rate() <= 0.0
    }

    /// What is left now.
    pub(super) fn settle(&mut self, now: Moment) -> f64 {
        self.left = self.at(now);
        self.settled = self.settled.max(now);
        self.left
    }

    pub(super) fn spend(&mut self, cost: f64) {
        self.left -= cost;
        self.beyond_burst += u64::from(cost > self.burst);
    }

    /// `end`, or when the debt is paid off if that is later. Moves only when a share is set.
    pub(super) fn positive_from(&self, end: Moment) -> Moment {
        if self.at(end) > 0.0 || self.earns_nothing() {
            return end;
        }
        let seconds = (-self.left / self.rate()).min(DEBT_SECONDS_MAX);
        self.settled + Duration::from_secs_f64(seconds) + SLACK
    }

    fn rate(&self) -> f64 {
        self.rate_per_second * self.share
    }

    fn at(&self, at: Moment) -> f64 {
        let earned = at.since(self.settled).as_secs_f64() * self.rate();
        (self.left + earned).min(self.burst)
    }
}
