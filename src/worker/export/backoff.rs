//! How long to wait between attempts: exponential, with full jitter.

use std::time::Duration;

use rand::Rng;

/// The waits of one delivery.
#[derive(Debug)]
pub(super) struct Backoff {
    ceiling: Duration,
    last: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, last: Duration) -> Self {
        Self {
            ceiling: first.min(last),
            last,
        }
    }

    /// Anything between nothing and the ceiling: a thousand exporters whose backend comes back do
    /// not come back together.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.ceiling.mul_f64(rand::rng().random());
        self.ceiling = self.ceiling.saturating_mul(2).min(self.last);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_a_ceiling_that_doubles_up_to_the_last() {
        let (first, last) = (Duration::from_millis(250), Duration::from_secs(30));
        let mut longest = [Duration::ZERO; 12];
        for _ in 0..500 {
            let mut backoff = Backoff::new(first, last);
            for longest in &mut longest {
                *longest = backoff.next().max(*longest);
            }
        }
        for (n, longest) in (0..).zip(longest) {
            let ceiling = (first * (1 << n)).min(last);
            assert!(longest <= ceiling, "{n}: {longest:?} > {ceiling:?}");
            // The chance that 500 draws stay below 9/10 is 1e-23.
            assert!(longest > ceiling * 9 / 10, "{n}: {longest:?}");
        }
    }
}
