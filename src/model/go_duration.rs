//! Durations as Go writes them (`300ms`, `1m30s`, `1.5h`): what settings and policy files say.
//!
//! Go's units and no others. A reader that also knows days, weeks and months has `1M` beside
//! `1m`, a silent factor of 43,830.

use std::time::Duration;

/// Why a text is not a duration. The text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoDurationError {
    #[error("is empty; write a number with a unit, for example 30s")]
    Empty,
    #[error("has no unit; write {0}s for seconds or {0}ms for milliseconds")]
    NoUnit(String),
    #[error("has the unit {0:?}; the units are h, m, s, ms, us and ns, for example 1h30m")]
    UnknownUnit(String),
    #[error("is negative; a duration here is zero or more")]
    Negative,
    #[error("is not a duration; write a number with a unit, for example 30s or 1h30m")]
    Malformed,
    #[error("is longer than Go's longest duration, 292 years")]
    TooLong,
}

/// Go's `time.ParseDuration`, without negative durations. What is finer than a nanosecond is cut.
pub fn parse_go_duration(text: &str) -> Result<Duration, GoDurationError> {
    if text.is_empty() {
        return Err(GoDurationError::Empty);
    }
    if text.starts_with('-') {
        return Err(GoDurationError::Negative);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    loop {
        let (number, after) = cut(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = cut(after, |c| !(c.is_ascii_digit() || c == '.'));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(GoDurationError::Malformed);
        }
        if unit.is_empty() {
            return Err(GoDurationError::NoUnit(number.to_owned()));
        }
        let unit_nanos: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(GoDurationError::UnknownUnit(unit.trim().to_owned())),
        };
        nanos += scaled(whole, fraction, unit_nanos).ok_or(GoDurationError::TooLong)?;
        if nanos > i64::MAX as u128 {
            return Err(GoDurationError::TooLong);
        }
        rest = after;
        if rest.is_empty() {
            return u64::try_from(nanos)
                .map(Duration::from_nanos)
                .map_err(|_| GoDurationError::TooLong);
        }
    }
}

/// The shortest text that [`parse_go_duration`] reads back as this duration.
pub fn format_go_duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 6] = [
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
    let mut left = duration.as_nanos();
    if left == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, nanos) in UNITS {
        let count = left / nanos;
        left %= nanos;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

fn cut(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !belongs(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// `whole.fraction × unit`, cut to whole nanoseconds; `None` beyond what Go can hold.
fn scaled(whole: &str, fraction: &str, unit_nanos: u128) -> Option<u128> {
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    // The largest unit has 13 digits: digits beyond 18 cannot reach a nanosecond, and 18 digits
    // times 13 fit into a u128.
    let digits = &fraction[..fraction.len().min(18)];
    let part: u128 = if digits.is_empty() {
        0
    } else {
        digits.parse().ok()?
    };
    let scale = 10_u128.pow(digits.len() as u32);
    Some(u128::from(whole) * unit_nanos + part * unit_nanos / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_go_reads_is_read_alike() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30_000_000_000),
            ("+5s", 5_000_000_000),
            ("300ms", 300_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("1m30.5s", 90_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("100us", 100_000),
            ("1µs", 1_000),
            ("1μs", 1_000),
            ("7ns", 7),
            ("1.9ns", 1),
            ("0.3333333333333333333333h", 1_199_999_999_999),
            ("9223372036854775807ns", i64::MAX as u64),
        ] {
            assert_eq!(
                parse_go_duration(text),
                Ok(Duration::from_nanos(nanos)),
                "{text}"
            );
        }
    }

    #[test]
    fn everything_else_is_refused_with_what_to_write() {
        use GoDurationError as E;
        for (text, error) in [
            ("", E::Empty),
            ("30", E::NoUnit("30".into())),
            ("1h30", E::NoUnit("30".into())),
            ("1d", E::UnknownUnit("d".into())),
            ("1M", E::UnknownUnit("M".into())),
            ("1m 30s", E::UnknownUnit("m".into())),
            ("30S", E::UnknownUnit("S".into())),
            ("-1s", E::Negative),
            ("s", E::Malformed),
            (".s", E::Malformed),
            ("1.2.3s", E::Malformed),
            ("soon", E::Malformed),
            (" 30s", E::Malformed),
            ("9223372036854775808ns", E::TooLong),
            ("99999999999999999999999s", E::TooLong),
            ("2562048h", E::TooLong),
        ] {
            assert_eq!(parse_go_duration(text), Err(error), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for nanos in [0, 1, 999, 1_000, 90_500_000_000, 5_400_000_000_001] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(
                parse_go_duration(&format_go_duration(duration)),
                Ok(duration)
            );
        }
        assert_eq!(format_go_duration(Duration::from_secs(90)), "1m30s");
    }
}
