//! Sizes in bytes as people write them: `64MiB`, `1GB`, `64Mi`, `67108864`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Why a text is not a size. The text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ByteSizeError {
    #[error("is empty; write a size, for example 64MiB")]
    Empty,
    #[error("is not a size; write a whole number and a unit, for example 64MiB, 1GB or 67108864")]
    Malformed,
    #[error("is not a whole number; use a smaller unit, for example 1536MiB for 1.5GiB")]
    Fraction,
    #[error(
        "has the unit {0:?}; the units are kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB \
         (powers of 1024)"
    )]
    UnknownUnit(String),
    #[error("is more than 16 EiB")]
    TooLarge,
}

impl ByteSize {
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// `percent` of it, rounded down.
    pub fn percent(self, percent: u64) -> Self {
        Self((u128::from(self.0) * u128::from(percent.min(100)) / 100) as u64)
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let text = text.trim();
        let digits_end = text
            .find(|c: char| !(c.is_ascii_digit() || c == '_'))
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let digits = digits.replace('_', "");
        match (digits.is_empty(), unit.chars().next()) {
            (true, None) => return Err(ByteSizeError::Empty),
            (true, _) => return Err(ByteSizeError::Malformed),
            (_, Some('.' | ',')) => return Err(ByteSizeError::Fraction),
            _ => {}
        }
        let unit = unit.trim_start();
        // `Mi` and `M` are Kubernetes' spellings; its `m` is a thousandth, so case matters.
        let factor: u64 = match unit {
            "" | "B" => 1,
            "kB" | "KB" | "k" => 1_000,
            "MB" | "M" => 1_000_000,
            "GB" | "G" => 1_000_000_000,
            "TB" | "T" => 1_000_000_000_000,
            "KiB" | "Ki" => 1 << 10,
            "MiB" | "Mi" => 1 << 20,
            "GiB" | "Gi" => 1 << 30,
            "TiB" | "Ti" => 1 << 40,
            _ => return Err(ByteSizeError::UnknownUnit(unit.to_owned())),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(factor))
            .map(Self)
            .ok_or(ByteSizeError::TooLarge)
    }
}

impl fmt::Display for ByteSize {
    /// The largest binary unit that is exact, and for odd numbers a rounded one behind it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let Some((unit, shift)) = UNITS.into_iter().find(|(_, shift)| self.0 >> shift > 0) else {
            return write!(f, "{}B", self.0);
        };
        let exact = UNITS
            .into_iter()
            .find(|(_, shift)| self.0 >> shift > 0 && self.0.trailing_zeros() >= *shift);
        match exact {
            // 1536MiB, but not 1073741825KiB.
            Some((unit, shift)) if self.0 >> shift < 100_000 => {
                write!(f, "{}{unit}", self.0 >> shift)
            }
            _ => {
                let rounded = self.0 as f64 / (1_u64 << shift) as f64;
                write!(f, "{} ({rounded:.1}{unit})", self.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_in_every_spelling_that_people_and_kubernetes_use() {
        for (text, bytes) in [
            ("0", 0),
            ("67108864", 67_108_864),
            ("100_000", 100_000),
            ("7B", 7),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("64Mi", 64 << 20),
            ("1GB", 1_000_000_000),
            ("1G", 1_000_000_000),
            ("3KiB", 3072),
            ("3Ki", 3072),
            ("2kB", 2_000),
            ("2k", 2_000),
            ("1TiB", 1 << 40),
            ("1TB", 1_000_000_000_000),
            (" 5GiB\n", 5 << 30),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text:?}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_what_to_write() {
        use ByteSizeError as E;
        for (text, error) in [
            ("", E::Empty),
            ("much", E::Malformed),
            ("-1", E::Malformed),
            ("MiB", E::Malformed),
            ("1.5GiB", E::Fraction),
            ("64mb", E::UnknownUnit("mb".into())),
            ("64m", E::UnknownUnit("m".into())),
            ("64MiBs", E::UnknownUnit("MiBs".into())),
            ("50%", E::UnknownUnit("%".into())),
            ("18446744073709551616", E::TooLarge),
            ("99999999TiB", E::TooLarge),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_shown_so_that_a_person_can_read_them() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (64 << 20, "64MiB"),
            (1536 << 20, "1536MiB"),
            (1 << 40, "1TiB"),
            (1_000_000_000, "1000000000 (953.7MiB)"),
            (10_000_000_001, "10000000001 (9.3GiB)"),
        ] {
            let shown = ByteSize(bytes).to_string();
            assert_eq!(shown, text);
            let number = shown.split(' ').next().unwrap();
            assert_eq!(number.parse(), Ok(ByteSize(bytes)), "{shown} reads back");
        }
    }
}
