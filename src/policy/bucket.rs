//! The limits of a Collector, for `compatibility: collector`: first come, first served, in each
//! process for itself. Nobody can say how likely a trace was to come first, so what they keep has no
//! threshold.

use std::time::Duration;

use crate::model::Moment;

/// The token bucket of Go's `x/time/rate`, as `rate_limiting` and `bytes_limiting` use it.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    per_second: f64,
    burst: u64,
    tokens: f64,
    last: Moment,
}

impl Bucket {
    /// Begins full.
    pub(super) fn new(per_second: u64, burst: u64, now: Moment) -> Self {
        Self {
            per_second: per_second as f64,
            burst,
            tokens: burst as f64,
            last: now,
        }
    }

    /// Goes on with what an earlier bucket has left.
    pub(super) fn succeed(&mut self, earlier: &Self, now: Moment) {
        let earned = now.since(earlier.last).as_secs_f64() * earlier.per_second;
        let tokens = (earlier.tokens + earned).min(earlier.burst as f64);
        self.tokens = tokens.min(self.burst as f64);
        self.last = earlier.last.max(now);
    }

    /// All of the trace or nothing; one that is larger than the burst never passes. A refusal
    /// changes nothing.
    pub(super) fn allows(&mut self, cost: u64, now: Moment) -> bool {
        let earned = now.since(self.last).as_secs_f64() * self.per_second;
        let tokens = (self.tokens + earned).min(self.burst as f64) - cost as f64;
        // A wait is cut to whole nanoseconds, and none is left of a deficit that small.
        let wait = (-tokens).max(0.0) / self.per_second * 1e9;
        if cost > self.burst || wait >= 1.0 {
            return false;
        }
        self.tokens = tokens;
        self.last = self.last.max(now);
        true
    }
}

/// A composite's counters: of each policy, in seconds of the process.
#[derive(Debug, Clone)]
pub(super) struct Seconds {
    max: u64,
    of_each: Vec<u64>,
    counted: Vec<u64>,
    start: Moment,
    second: u64,
}

impl Seconds {
    pub(super) fn new(max: u64, of_each: &[u64], now: Moment) -> Self {
        Self {
            max,
            of_each: of_each.to_vec(),
            counted: vec![0; of_each.len()],
            start: now,
            second: 0,
        }
    }

    /// Goes on in the same second. `from`: which of the earlier policies each one was.
    pub(super) fn succeed(&mut self, earlier: &Self, from: &[Option<usize>]) {
        (self.start, self.second) = (earlier.start, earlier.second);
        for (counted, from) in self.counted.iter_mut().zip(from) {
            let before = from.and_then(|place| earlier.counted.get(place));
            *counted = before.copied().unwrap_or(0);
        }
    }

    /// The whole rate bounds each policy, and never their sum.
    pub(super) fn allows(&mut self, policy: u8, cost: u64, now: Moment) -> bool {
        let second = (now.since(self.start).as_nanos() / Duration::from_secs(1).as_nanos()) as u64;
        if second != self.second {
            self.second = second;
            self.counted.fill(0);
        }
        let place = usize::from(policy);
        let (Some(counted), Some(of_this)) = (self.counted.get_mut(place), self.of_each.get(place))
        else {
            return false;
        };
        let sum = counted.saturating_add(cost);
        let allows = sum <= *of_this && sum <= self.max;
        if allows {
            *counted = sum;
        }
        allows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_unix_millis(1_800_000_000_000 + millis)
    }

    #[test]
    fn a_bucket_allows_what_gos_allows() {
        let mut bucket = Bucket::new(10, 20, at(0));
        // Larger than the burst, full, empty, refilled, capped; a refusal costs nothing.
        for (millis, cost, allowed) in [
            (0, 21, false),
            (0, 20, true),
            (0, 1, false),
            (99, 1, false),
            (100, 1, true),
            (100, 1, false),
            (1_100, 11, false),
            (1_100, 10, true),
            (60_000, 21, false),
            (60_000, 20, true),
            (60_000, 0, true),
        ] {
            assert_eq!(
                bucket.allows(cost, at(millis)),
                allowed,
                "{cost} at {millis}"
            );
        }
        // Less than a nanosecond's worth is missing.
        let mut bucket = Bucket::new(3, 3, at(0));
        assert!(bucket.allows(3, at(0)));
        assert!(bucket.allows(1, at(0) + Duration::from_nanos(333_333_333)));
    }

    #[test]
    fn a_second_is_counted_from_the_start_and_forgotten() {
        let mut seconds = Seconds::new(10, &[8, 12], at(500));
        for (millis, policy, cost, allowed) in [
            (500, 0, 8, true),
            (1_499, 0, 1, false),
            // 8 and 10 are more than 10 together.
            (1_499, 1, 10, true),
            (1_499, 1, 1, false),
            // What does not fit is not counted: a smaller one may.
            (1_500, 0, 9, false),
            (1_500, 0, 8, true),
            (9_000, 1, 11, false),
        ] {
            assert_eq!(
                seconds.allows(policy, cost, at(millis)),
                allowed,
                "{millis}"
            );
        }
    }
}
