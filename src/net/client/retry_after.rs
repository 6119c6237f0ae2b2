//! The `Retry-After` header: seconds, or an HTTP date.

use std::time::Duration;

use http::{HeaderMap, header};

use crate::model::SteadyClock;

/// How long the receiver asks us to wait. A date is measured against the answer's own `Date`, so
/// that our clock and the receiver's need not agree.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if value.bytes().all(|b| b.is_ascii_digit()) && !value.is_empty() {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = unix_seconds(value)?;
    let now = headers
        .get(header::DATE)
        .and_then(|date| unix_seconds(date.to_str().ok()?.trim()))
        .unwrap_or_else(|| SteadyClock::start().now().unix_millis() / 1000);
    Some(Duration::from_secs(until.saturating_sub(now)))
}

/// Reads `Sun, 06 Nov 1994 08:49:37 GMT`, the one form of RFC 9110 that senders may generate.
fn unix_seconds(date: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_weekday, rest) = date.split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = 1 + u64::try_from(MONTHS.iter().position(|m| *m == name)?).ok()?;
    let year: u64 = words.next()?.parse().ok()?;
    let mut time = words.next()?.splitn(3, ':').map(|part| part.parse().ok());
    let (hour, minute, second): (u64, u64, u64) = (time.next()??, time.next()??, time.next()??);
    let zone = words.next()?;
    let legal = zone == "GMT"
        && words.next().is_none()
        && (1..=31).contains(&day)
        && (1970..=9999).contains(&year)
        && hour < 24
        && minute < 60
        && second <= 60;
    legal.then(|| days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Howard Hinnant's days_from_civil, for years from 1970: the year begins in March, so that the
/// leap day is its last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days_in_years = year * 365 + year / 4 - year / 100 + year / 400;
    days_in_years + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), http::HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn dates_are_seconds_since_1970() {
        assert_eq!(unix_seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            unix_seconds("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(784_111_777)
        );
        assert_eq!(
            unix_seconds("Thu, 29 Feb 2024 23:59:60 GMT"),
            Some(1_709_251_200)
        );
        for bad in [
            "",
            "soon",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 25:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
        ] {
            assert_eq!(unix_seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn both_forms_are_read_and_a_date_is_relative_to_the_answers_own() {
        assert_eq!(
            retry_after(&headers(&[(header::RETRY_AFTER, "7")])),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            retry_after(&headers(&[
                (header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT"),
                (header::RETRY_AFTER, "Sun, 06 Nov 1994 08:50:07 GMT"),
            ])),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            retry_after(&headers(&[(
                header::RETRY_AFTER,
                "Sun, 06 Nov 1994 08:50:07 GMT"
            )])),
            Some(Duration::ZERO),
            "long past by our clock"
        );
        assert_eq!(retry_after(&headers(&[(header::RETRY_AFTER, "-3")])), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
