//! Instants and durations with Go's ranges and Go's texts. All instants are in UTC.

use crate::model::parse_go_duration;

/// Nanoseconds since the Unix epoch, wide enough for every instant that Go has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Timestamp {
    seconds: i64,
    nanos: u32,
}

/// Of an instant in the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    pub(super) month: u32,
    pub(super) day: u32,
    pub(super) hour: u32,
    pub(super) minute: u32,
    pub(super) second: u32,
    pub(super) nanos: u32,
    /// From Sunday, 0.
    pub(super) weekday: u32,
}

const NANOS: i128 = 1_000_000_000;
/// From the first day of year 1 to the Unix epoch.
const SECONDS_BEFORE_UNIX: i128 = 62_135_596_800;

impl Timestamp {
    /// A time as spans have it, which Go reads as a signed number.
    pub(super) fn of_span(nanos: u64) -> Self {
        // Without the division of 128 bits, which costs more than all the rest of a comparison.
        let nanos = nanos as i64;
        Self {
            seconds: nanos.div_euclid(NANOS as i64),
            nanos: nanos.rem_euclid(NANOS as i64) as u32,
        }
    }

    pub(super) fn from_unix_nanos(nanos: i128) -> Self {
        let seconds = nanos.div_euclid(NANOS);
        Self {
            seconds: seconds.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
            nanos: nanos.rem_euclid(NANOS) as u32,
        }
    }

    pub(super) fn from_unix(seconds: i64, nanos: i64) -> Self {
        Self::from_unix_nanos(i128::from(seconds) * NANOS + i128::from(nanos))
    }

    pub(super) fn unix_nanos(self) -> i128 {
        i128::from(self.seconds) * NANOS + i128::from(self.nanos)
    }

    pub(super) fn plus(self, nanos: i128) -> Self {
        Self::from_unix_nanos(self.unix_nanos() + nanos)
    }

    /// As Go's `Sub`: what is longer than a duration can be is the longest.
    pub(super) fn since(self, earlier: Self) -> i64 {
        let nanos = self.unix_nanos() - earlier.unix_nanos();
        nanos.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// Down to a multiple of `nanos` since year 1.
    pub(super) fn truncated(self, nanos: i64) -> Self {
        if nanos <= 0 {
            return self;
        }
        let since_year_1 = self.unix_nanos() + SECONDS_BEFORE_UNIX * NANOS;
        self.plus(-since_year_1.rem_euclid(nanos.into()))
    }

    /// The civil calendar, by Howard Hinnant's `civil_from_days`.
    pub(super) fn civil(self) -> Civil {
        let days = self.seconds.div_euclid(86_400);
        let second = self.seconds.rem_euclid(86_400) as u32;
        let shifted = i128::from(days) + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = (shifted_month + 2) % 12 + 1;
        let year = era * 400 + year_of_era + i128::from(month <= 2);
        Civil {
            year: year as i64,
            month: month as u32,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32,
            hour: second / 3_600,
            minute: second / 60 % 60,
            second: second % 60,
            nanos: self.nanos,
            weekday: (days + 4).rem_euclid(7) as u32,
        }
    }

    /// `2020-02-11T20:26:12.000000321Z`; none outside of the years 0 to 9999.
    pub(super) fn rfc3339(self) -> Option<String> {
        let civil = self.civil();
        if !(0..=9_999).contains(&civil.year) {
            return None;
        }
        let mut text = format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            civil.year, civil.month, civil.day, civil.hour, civil.minute, civil.second
        );
        if civil.nanos > 0 {
            let nanos = format!(".{:09}", civil.nanos);
            text.push_str(nanos.trim_end_matches('0'));
        }
        text.push('Z');
        Some(text)
    }
}

/// Go's `time.ParseDuration`, in nanoseconds.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (positive, sign) = match text.strip_prefix('-') {
        Some(positive) if positive.starts_with('+') => return None,
        Some(positive) => (positive, -1),
        None => (text, 1),
    };
    let nanos = parse_go_duration(positive).ok()?.as_nanos();
    Some(sign * i64::try_from(nanos).ok()?)
}

/// Hours, minutes or seconds of a duration, as Go rounds them.
pub(super) fn in_units(nanos: i64, unit_nanos: i64) -> f64 {
    (nanos / unit_nanos) as f64 + (nanos % unit_nanos) as f64 / unit_nanos as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_read_as_in_go() {
        let start = Timestamp::from_unix_nanos(1_581_452_772_000_000_321);
        for nanos in [
            0,
            1,
            u64::MAX,
            1 << 63,
            (1 << 63) - 1,
            1_581_452_772_000_000_321,
        ] {
            let expected = Timestamp::from_unix_nanos((nanos as i64).into());
            assert_eq!(Timestamp::of_span(nanos), expected);
        }
        assert_eq!(
            start.rfc3339().as_deref(),
            Some("2020-02-11T20:26:12.000000321Z")
        );
        assert_eq!(start.civil().weekday, 2);
        let before = Timestamp::from_unix(-1, 500_000_000);
        assert_eq!(before.rfc3339().as_deref(), Some("1969-12-31T23:59:59.5Z"));
        let leap = Timestamp::from_unix(951_782_400, 0);
        assert_eq!(leap.rfc3339().as_deref(), Some("2000-02-29T00:00:00Z"));
        assert_eq!(Timestamp::from_unix(i64::MAX, 0).rfc3339(), None);
        assert_eq!(Timestamp::from_unix(i64::MIN, i64::MIN).rfc3339(), None);
        let hour = start.truncated(3_600_000_000_000);
        assert_eq!(hour.rfc3339().as_deref(), Some("2020-02-11T20:00:00Z"));
        assert_eq!(
            Timestamp::from_unix(i64::MAX, 0).since(Timestamp::from_unix(0, 0)),
            i64::MAX
        );
    }

    #[test]
    fn durations_read_as_in_go() {
        for (text, nanos) in [
            ("1h2m3.5s", Some(3_723_500_000_000)),
            ("-1.5h", Some(-5_400_000_000_000)),
            ("+1µs", Some(1_000)),
            ("0", Some(0)),
            ("-+1s", None),
            ("1d", None),
            ("", None),
            ("1", None),
        ] {
            assert_eq!(duration(text), nanos, "{text}");
        }
        assert_eq!(in_units(5_400_000_000_000, 3_600_000_000_000), 1.5);
    }
}
