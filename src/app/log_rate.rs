//! Cuts a place in the code that logs too often: a line for each refused request is fine at one a
//! minute and an outage at 20,000 a second. Which lines exist at all is the filter's business.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use crate::model::{Moment, SteadyClock};

/// Lines of one place in one window.
pub const LINES_MAX: u32 = 10;
pub const WINDOW: Duration = Duration::from_secs(1);

/// Counts lines by the place in the code they come from, of which there are a fixed number.
#[derive(Debug)]
pub struct LogRate {
    clock: SteadyClock,
    places: Mutex<HashMap<Identifier, Window>>,
}

/// Lines left out.
#[derive(Debug)]
pub struct Suppressed {
    pub place: &'static Metadata<'static>,
    pub lines: u64,
}

/// To be put on a layer.
#[derive(Debug, Clone)]
pub struct RateFilter(Arc<LogRate>);

#[derive(Debug)]
struct Window {
    place: &'static Metadata<'static>,
    since: Moment,
    admitted: u32,
    /// Since it was last taken; outlives the window.
    suppressed: u64,
}

impl Default for LogRate {
    fn default() -> Self {
        Self {
            clock: SteadyClock::start(),
            places: Mutex::default(),
        }
    }
}

impl LogRate {
    pub fn filter(self: &Arc<Self>) -> RateFilter {
        RateFilter(Arc::clone(self))
    }

    /// What was left out in windows that are over.
    pub fn take_suppressed(&self) -> Vec<Suppressed> {
        self.take_suppressed_at(self.clock.now())
    }

    fn take_suppressed_at(&self, now: Moment) -> Vec<Suppressed> {
        // A panic while logging must not end logging.
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places
            .values_mut()
            .filter(|window| window.suppressed > 0 && now.since(window.since) >= WINDOW)
            .map(|window| Suppressed {
                place: window.place,
                lines: std::mem::take(&mut window.suppressed),
            })
            .collect()
    }

    fn admit(&self, place: &'static Metadata<'static>, now: Moment) -> bool {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let window = places.entry(place.callsite()).or_insert(Window {
            place,
            since: now,
            admitted: 0,
            suppressed: 0,
        });
        if now.since(window.since) >= WINDOW {
            window.since = now;
            window.admitted = 0;
        }
        if window.admitted < LINES_MAX {
            window.admitted += 1;
            true
        } else {
            window.suppressed += 1;
            false
        }
    }
}

impl<S: Subscriber> Filter<S> for RateFilter {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.0.admit(event.metadata(), self.0.clock.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tracing::Callsite;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::FilterExt;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn count(&self, of: &str) -> usize {
            String::from_utf8(self.0.lock().unwrap().clone())
                .unwrap()
                .lines()
                .filter(|line| line.contains(of))
                .count()
        }
    }

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn later(rate: &LogRate) -> Moment {
        rate.clock.now() + WINDOW
    }

    #[test]
    fn a_noisy_place_is_cut_and_its_neighbours_are_not() {
        let rate = Arc::new(LogRate::default());
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_filter(tracing_subscriber::filter::LevelFilter::INFO.and(rate.filter()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for round in 0..50 {
                tracing::info!(round, "noisy");
                tracing::debug!("not logged, and not counted");
                if round % 10 == 0 {
                    tracing::warn!("seldom");
                }
            }
            // The loop takes microseconds; should it straddle two windows, the sums still hold.
            let printed = lines.count("noisy");
            let taken = rate.take_suppressed_at(later(&rate));
            assert!((10..=20).contains(&printed), "{printed}");
            assert_eq!(taken.len(), 1, "only one place was cut");
            assert_eq!(printed as u64 + taken[0].lines, 50);
            assert!(taken[0].place.file().unwrap().ends_with("log_rate.rs"));
            assert_eq!(lines.count("seldom"), 5);
            assert!(rate.take_suppressed_at(later(&rate)).is_empty());
        });
    }

    #[test]
    fn a_new_window_admits_again_and_keeps_what_was_not_yet_told() {
        let rate = LogRate::default();
        let place = {
            tracing::callsite!(name: "test", kind: tracing::metadata::Kind::EVENT, fields: )
                .metadata()
        };
        let start = Moment::from_unix_millis(1_000);
        let admitted = |at: Moment| (0..25).filter(|_| rate.admit(place, at)).count();
        assert_eq!(admitted(start), 10);
        assert!(
            rate.take_suppressed_at(start).is_empty(),
            "the window is open"
        );
        assert_eq!(admitted(start + WINDOW), 10);
        let taken = rate.take_suppressed_at(start + WINDOW + WINDOW);
        assert_eq!(taken[0].lines, 30);
    }
}
