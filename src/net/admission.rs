//! Bytes in flight: every message is paid for before it is held, and given back when it is not.
//!
//! A [`Budget`] never waits: who cannot pay is refused at once and told when to come back. What a
//! message costs beyond its bytes (parsing, queues) is the business of whoever holds it. What is there
//! whether anybody refuses it or not (an index of what was acknowledged) is charged: the others get
//! that much less.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// A bound on bytes, shared by everything that holds messages.
#[derive(Debug)]
pub struct Budget {
    bytes_max: u64,
    taken: AtomicU64,
    peak: AtomicU64,
}

/// Bytes taken from a [`Budget`]; given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    /// Atomic because parts of one message share its permit, and may need more.
    bytes: AtomicU64,
}

impl Budget {
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            taken: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        })
    }

    /// `None` when the bytes are not there; nothing waits here.
    pub fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        self.take(bytes).then(|| Permit {
            budget: Arc::clone(self),
            bytes: AtomicU64::new(bytes),
        })
    }

    /// Takes bytes whether they are there or not. Beyond the bound nobody else gets any.
    pub fn charge(self: &Arc<Self>, bytes: u64) -> Permit {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.note_peak();
        Permit {
            budget: Arc::clone(self),
            bytes: AtomicU64::new(bytes),
        }
    }

    /// More is charged than there is.
    pub fn is_overdrawn(&self) -> bool {
        self.taken_bytes() > self.bytes_max
    }

    pub fn taken_bytes(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The bound.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// The most that was taken at one moment since the process started.
    pub fn peak_bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    fn give(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    // Relaxed throughout: the counter guards no other memory, it only has to be exact.
    fn take(&self, bytes: u64) -> bool {
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                taken
                    .checked_add(bytes)
                    .filter(|after| *after <= self.bytes_max)
            });
        if taken.is_err() {
            return false;
        }
        self.note_peak();
        true
    }

    fn note_peak(&self) {
        let taken = self.taken_bytes();
        // A plain load first: the peak moves seldom, and a read-modify-write for each message
        // would bounce its cache line between the cores.
        if taken > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(taken, Ordering::Relaxed);
        }
    }
}

impl Permit {
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes `more` in addition; false (and unchanged) when they are not there.
    pub fn grow(&self, more: u64) -> bool {
        let there = self.budget.take(more);
        if there {
            self.bytes.fetch_add(more, Ordering::Relaxed);
        }
        there
    }

    /// Holds so many from now on, whether they are there or not; see [`Budget::charge`].
    pub fn recharge(&self, bytes: u64) {
        let held = self.bytes.swap(bytes, Ordering::Relaxed);
        match bytes.checked_sub(held) {
            Some(more) => {
                self.budget.taken.fetch_add(more, Ordering::Relaxed);
                self.budget.note_peak();
            }
            None => self.budget.give(held - bytes),
        }
    }

    /// Gives back `less`; all that is held when that is fewer.
    pub fn shrink_by(&self, less: u64) {
        let held = self
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                Some(held.saturating_sub(less))
            });
        let (Ok(held) | Err(held)) = held; // never `Err`: the closure always has a value
        self.budget.give(less.min(held));
    }

    /// Gives back all but `bytes`; nothing happens when fewer are held.
    pub fn shrink_to(&mut self, bytes: u64) {
        self.shrink_by(self.bytes().saturating_sub(bytes));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give(self.bytes());
    }
}

impl Permit {
    /// Another permit of the same budget, for what is made of this one's message; `None` when the
    /// bytes are not there.
    pub fn take_beside(&self, bytes: u64) -> Option<Self> {
        self.budget.try_take(bytes)
    }
}

/// Shows budgets at scrape time, so that taking and giving back stay two atomics.
pub struct BudgetMetrics {
    budgets: Vec<(&'static str, Arc<Budget>)>,
}

impl BudgetMetrics {
    /// `budgets`: each with the value of its `budget` label. Call once a registry.
    pub fn register(registry: &mut Registry, budgets: Vec<(&'static str, Arc<Budget>)>) {
        registry.register_collector(Box::new(Self { budgets }));
    }
}

impl fmt::Debug for BudgetMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.budgets).finish()
    }
}

impl Collector for BudgetMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        type Row = (&'static str, &'static str, fn(&Budget) -> u64);
        let rows: [Row; 3] = [
            (
                "in_flight",
                "Bytes of messages held in memory, by budget",
                Budget::taken_bytes,
            ),
            (
                "in_flight_peak",
                "Most bytes held at one moment since the start, by budget",
                Budget::peak_bytes,
            ),
            (
                "in_flight_max",
                "Bound on bytes held, by budget; beyond it requests are refused as retryable",
                Budget::bytes_max,
            ),
        ];
        for (name, help, read) in rows {
            let mut family =
                encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
            for (label, budget) in &self.budgets {
                let value = ConstGauge::new(i64::try_from(read(budget)).unwrap_or(i64::MAX));
                value.encode(family.encode_family(&[("budget", *label)])?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back_and_never_exceeds_the_bound() {
        let budget = Budget::new(100);
        let mut first = budget.try_take(60).unwrap();
        assert!(budget.try_take(41).is_none());
        assert!(!first.grow(41));
        assert_eq!((first.bytes(), budget.taken_bytes()), (60, 60));
        assert!(first.grow(40));
        assert!(budget.try_take(1).is_none());
        first.shrink_to(10);
        first.shrink_to(50);
        assert_eq!((first.bytes(), budget.taken_bytes()), (10, 10));
        assert!(first.grow(20));
        first.shrink_by(25);
        assert_eq!((first.bytes(), budget.taken_bytes()), (5, 5));
        first.shrink_by(25);
        assert_eq!((first.bytes(), budget.taken_bytes()), (0, 0));
        drop(first);
        assert_eq!((budget.taken_bytes(), budget.peak_bytes()), (0, 100));
        assert!(budget.try_take(u64::MAX).is_none());
    }

    #[test]
    fn what_is_charged_is_there_and_leaves_the_less_to_others() {
        let budget = Budget::new(100);
        let index = budget.charge(0);
        let request = budget.try_take(60).unwrap();
        index.recharge(50);
        assert!(budget.is_overdrawn());
        assert!(budget.try_take(0).is_none() && !request.grow(1));
        drop(request);
        assert!(!budget.is_overdrawn());
        assert!(budget.try_take(51).is_none());
        index.recharge(20);
        assert!(budget.try_take(80).is_some());
        drop(index);
        assert_eq!((budget.taken_bytes(), budget.peak_bytes()), (0, 110));
    }

    #[test]
    fn threads_never_take_more_than_there_is() {
        let budget = Budget::new(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for bytes in 0..5000_u64 {
                        let permit = budget.try_take(bytes % 700);
                        assert!(budget.taken_bytes() <= 1000);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(budget.taken_bytes(), 0);
        assert!(budget.peak_bytes() <= 1000);
    }

    #[test]
    fn a_scrape_shows_every_budget() {
        let budget = Budget::new(1000);
        let _permit = budget.try_take(7).unwrap();
        let mut registry = Registry::with_prefix("tailring");
        BudgetMetrics::register(&mut registry, vec![("clients", Arc::clone(&budget))]);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains("tailring_in_flight_bytes{budget=\"clients\"} 7"),
            "{text}"
        );
        assert!(
            text.contains("tailring_in_flight_max_bytes{budget=\"clients\"} 1000"),
            "{text}"
        );
    }
}
