//! What the process says of itself: log lines on stderr (stdout belongs to `--export stdout`), for
//! people on a terminal and as JSON otherwise. Metrics are `admin`'s.

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::app::log_rate::LogRate;

/// What is logged: a level, and levels for parts of the program.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFilter(Targets);

/// Why a text is no filter. The text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    #[error("has {0:?} for a level; the levels are off, error, warn, info, debug and trace")]
    Level(String),
    #[error("names no part in {0:?}; write for example tailring::cluster=debug")]
    Target(String),
}

impl Default for LogFilter {
    fn default() -> Self {
        Self(Targets::new().with_default(LevelFilter::INFO))
    }
}

impl LogFilter {
    /// For tools, whose output is not a log.
    pub fn warnings() -> Self {
        Self(Targets::new().with_default(LevelFilter::WARN))
    }
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    /// `LEVEL` or `part=LEVEL`, separated by commas. Stricter than tracing's own filters, which
    /// take `warning` for the name of a part and then log nothing.
    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        let level = |text: &str| {
            // LevelFilter also reads digits, which mean something else in every other logger.
            text.parse::<LevelFilter>()
                .ok()
                .filter(|_| text.chars().all(|c| c.is_ascii_alphabetic()) && !text.is_empty())
                .ok_or_else(|| LogFilterError::Level(text.to_owned()))
        };
        let mut targets = Targets::new().with_default(LevelFilter::INFO);
        for directive in text.split(',').map(str::trim) {
            targets = match directive.split_once('=') {
                None => targets.with_default(level(directive)?),
                Some((target, _)) if target.trim().is_empty() => {
                    return Err(LogFilterError::Target(directive.to_owned()));
                }
                Some((target, text)) => targets.with_target(target.trim(), level(text.trim())?),
            };
        }
        Ok(Self(targets))
    }
}

/// Starts logging for the whole process; once.
pub fn start(filter: &LogFilter) -> Result<Arc<LogRate>, TryInitError> {
    let rate = Arc::new(LogRate::default());
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    let lines = if terminal {
        lines.boxed()
    } else {
        // Flat, so that fields are found under their own names.
        lines.json().flatten_event(true).boxed()
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter.0.clone().and(rate.filter())))
        .try_init()?;
    Ok(rate)
}

/// Says every second how many lines were left out, and where. Runs until it is dropped.
pub async fn report_suppressed(rate: Arc<LogRate>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        log_suppressed(&rate);
    }
}

/// One line for each place in the code that was cut short.
pub fn log_suppressed(rate: &LogRate) {
    for suppressed in rate.take_suppressed() {
        warn!(
            lines = suppressed.lines,
            target = suppressed.place.target(),
            file = suppressed.place.file().unwrap_or_default(),
            line = suppressed.place.line().unwrap_or_default(),
            "suppressed {} more lines from one place",
            suppressed.lines
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_filter_is_a_level_and_levels_for_parts() {
        let filter: LogFilter = "warn, tailring::cluster=debug".parse().unwrap();
        assert!(filter.0.would_enable("tailring::cluster", &Level::DEBUG));
        assert!(!filter.0.would_enable("tailring::net", &Level::INFO));
        assert!(filter.0.would_enable("tailring::net", &Level::WARN));
        assert!(LogFilter::default().0.would_enable("x", &Level::INFO));
        assert!(!LogFilter::default().0.would_enable("x", &Level::DEBUG));
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for (text, wrong) in [
            ("warning", "warning"),
            ("info,a=loud", "loud"),
            ("", ""),
            ("3", "3"),
        ] {
            assert_eq!(
                text.parse::<LogFilter>(),
                Err(LogFilterError::Level(wrong.into()))
            );
        }
        assert_eq!(
            "=info".parse::<LogFilter>(),
            Err(LogFilterError::Target("=info".into()))
        );
    }
}
