//! What a number says: an integer exactly, however it is written, or a double.

use super::text::Number;

/// Digits of the longest 64-bit integer.
const DIGITS_MAX: usize = 20;

impl Number<'_> {
    /// `None` when it has a fraction or more than 20 digits. `1.50e1` is 15.
    #[inline]
    pub(super) fn integer(&self) -> Option<i128> {
        let (is_negative, digits) = match self.bytes {
            [b'-', digits @ ..] => (true, digits),
            digits => (false, digits),
        };
        if digits.len() >= DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
            return self.long_integer();
        }
        // 19 digits fit.
        let value = digits
            .iter()
            .fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
        let value = i128::from(value);
        Some(if is_negative { -value } else { value })
    }

    #[cold]
    fn long_integer(&self) -> Option<i128> {
        let is_negative = self.bytes.starts_with(b"-");
        let unsigned = &self.bytes[usize::from(is_negative)..];
        let mantissa_len = unsigned
            .iter()
            .position(|byte| matches!(byte, b'e' | b'E'))
            .unwrap_or(unsigned.len());
        let (mantissa, exponent) = unsigned.split_at(mantissa_len);
        let point = mantissa.iter().position(|byte| *byte == b'.');
        let whole_digits = point.unwrap_or(mantissa_len);
        let digits = || mantissa.iter().filter(|byte| **byte != b'.');
        let Some(first) = digits().position(|digit| *digit != b'0') else {
            return Some(0);
        };
        let last = digits().count() - 1 - digits().rev().position(|digit| *digit != b'0')?;
        // The value is the digits from first to last, times ten to the power of this.
        let power = written_exponent(exponent)
            .checked_add(i64::try_from(whole_digits).ok()?)?
            .checked_sub(i64::try_from(last).ok()? + 1)?;
        let power = usize::try_from(power).ok()?;
        if (last - first + 1).checked_add(power)? > DIGITS_MAX {
            return None;
        }
        let significant = digits().skip(first).take(last - first + 1);
        let zeros = std::iter::repeat_n(&b'0', power);
        let value = significant
            .chain(zeros)
            .fold(0_i128, |value, digit| value * 10 + i128::from(digit - b'0'));
        Some(if is_negative { -value } else { value })
    }

    /// `None` beyond the largest double.
    pub(super) fn double(&self) -> Option<f64> {
        let text = std::str::from_utf8(self.bytes).ok()?;
        text.parse().ok().filter(|value: &f64| value.is_finite())
    }
}

/// The number after an `e`; what is far too large for anything stays so.
fn written_exponent(exponent: &[u8]) -> i64 {
    const FAR: i64 = 1 << 40;
    let mut value = 0;
    for byte in exponent.iter().filter(|byte| byte.is_ascii_digit()) {
        value = (value * 10 + i64::from(byte - b'0')).min(FAR);
    }
    if exponent.get(1) == Some(&b'-') {
        -value
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn integer(text: &str) -> Option<i128> {
        let bytes = text.as_bytes();
        Number { bytes, offset: 0 }.integer()
    }

    #[test]
    fn integers_are_exact_however_they_are_written() {
        for (text, expect) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-0.0e5", Some(0)),
            ("1e3", Some(1000)),
            ("1.50E+1", Some(15)),
            ("1200e-2", Some(12)),
            ("1.5", None),
            ("15e-1", None),
            ("-9223372036854775808", Some(i128::from(i64::MIN))),
            ("18446744073709551615", Some(i128::from(u64::MAX))),
            ("18446744073709551615.000", Some(i128::from(u64::MAX))),
            ("1.8446744073709551615e19", Some(i128::from(u64::MAX))),
            ("99999999999999999999", Some(99_999_999_999_999_999_999)),
            ("100000000000000000000", None),
            ("1e20", None),
            ("1e99999999999999999999999", None),
            ("1e-99999999999999999999999", None),
            ("0e99999999999999999999999", Some(0)),
        ] {
            assert_eq!(integer(text), expect, "{text}");
        }
        let long = format!("1{}e-5000", "0".repeat(5000));
        assert_eq!(integer(&long), Some(1));
        assert_eq!(integer(&format!("0.{}1e5001", "0".repeat(5000))), Some(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_point_and_an_exponent_change_nothing(value: i64, shift in 0..30usize, power in -30..30i32) {
            let plain = value.to_string();
            let (sign, digits) = plain.strip_prefix('-').map_or(("", &plain[..]), |it| ("-", it));
            let digits = format!("{digits}{}", "0".repeat(shift));
            for point in 1..=digits.len() {
                let exponent = digits.len() as i32 - point as i32 - shift as i32;
                let (whole, fraction) = digits.split_at(point);
                let fraction = if fraction.is_empty() { String::new() } else { format!(".{fraction}") };
                let text = format!("{sign}{whole}{fraction}e{exponent}");
                prop_assert_eq!(integer(&text), Some(i128::from(value)), "{}", text);
            }
            // Against a number that is written out.
            let text = format!("{value}e{power}");
            let expect = if power >= 0 {
                i128::from(value).checked_mul(10_i128.pow(power as u32 % 30))
                    .filter(|it| it.abs() < 10_i128.pow(20))
            } else {
                let scale = 10_i128.pow(-power as u32);
                (i128::from(value) % scale == 0).then(|| i128::from(value) / scale)
            };
            prop_assert_eq!(integer(&text), expect, "{}", text);
        }
    }
}
