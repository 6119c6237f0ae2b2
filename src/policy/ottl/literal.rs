//! What the words of literals mean: numbers and strings as Go reads them.

use crate::policy::ottl::error::Error;

/// A leading zero means octal, as everywhere in Go.
pub(super) fn int(word: &str, at: usize) -> Result<i64, Error> {
    let (digits, radix) = match word.strip_prefix('0') {
        Some(rest) if !rest.is_empty() => (rest, 8),
        _ => (word, 10),
    };
    i64::from_str_radix(digits, radix).map_err(|_| {
        if radix == 8 && digits.contains(['8', '9']) {
            Error::not_ottl(at, format!("`{word}` is no octal number"))
                .hint("a leading 0 means octal; leave it out")
        } else {
            Error::not_ottl(at, "a whole number beyond 9223372036854775807")
                .hint("the smallest number is written -9223372036854775807 - 1")
        }
    })
}

pub(super) fn float(word: &str, at: usize) -> Result<f64, Error> {
    match word.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(Error::not_ottl(at, "a number beyond the range of a float")),
    }
}

/// `0x…`
pub(super) fn bytes(word: &str, at: usize) -> Result<Vec<u8>, Error> {
    let digits = word.as_bytes().get(2..).unwrap_or_default();
    let (pairs, odd) = digits.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(Error::not_ottl(at, "bytes with an odd number of digits")
            .hint("a byte is two digits, and there are no hexadecimal numbers"));
    }
    let nibble = |c: u8| char::from(c).to_digit(16).unwrap_or_default() as u8;
    Ok(pairs
        .iter()
        .map(|[high, low]| nibble(*high) << 4 | nibble(*low))
        .collect())
}

/// A string with its quotes, of which each backslash has something behind it.
pub(super) fn text(word: &str, at: usize) -> Result<Vec<u8>, Error> {
    let inner = word
        .get(1..word.len().saturating_sub(1))
        .unwrap_or_default();
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(backslash) = rest.find('\\') {
        let (plain, escaped) = rest.split_at(backslash);
        out.extend_from_slice(plain.as_bytes());
        let place = at + 1 + inner.len() - escaped.len();
        let (c, after) = escape(&escaped[1..]).ok_or_else(|| no_escape(&escaped[1..], place))?;
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

/// Go's `strconv.UnquoteChar` behind the backslash. Bytes name code points here: `\xff` is `ÿ`.
fn escape(rest: &str) -> Option<(char, &str)> {
    let letter = *rest.as_bytes().first()?;
    let plain = match letter {
        b'a' => '\x07',
        b'b' => '\x08',
        b'f' => '\x0C',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'v' => '\x0B',
        b'\\' => '\\',
        b'"' => '"',
        b'x' => return coded(rest, 1, 2, 16),
        b'u' => return coded(rest, 1, 4, 16),
        b'U' => return coded(rest, 1, 8, 16),
        b'0'..=b'7' => return coded(rest, 0, 3, 8).filter(|(c, _)| u32::from(*c) < 256),
        _ => return None,
    };
    Some((plain, &rest[1..]))
}

fn coded(rest: &str, from: usize, digits: usize, radix: u32) -> Option<(char, &str)> {
    let number = rest.get(from..from + digits)?;
    // `from_str_radix` would take a sign.
    let code = number
        .chars()
        .try_fold(0u32, |code, c| Some(code * radix + c.to_digit(radix)?))?;
    Some((char::from_u32(code)?, &rest[from + digits..]))
}

fn no_escape(rest: &str, at: usize) -> Error {
    let letter = rest.chars().next().unwrap_or_default();
    let error = Error::not_ottl(at, format!("`\\{letter}` means nothing in a string"));
    match letter {
        'd' | 'w' | 's' | 'S' | 'D' | 'W' | 'B' | '.' | '*' | '+' | '?' | '(' | ')' | '[' | ']'
        | '{' | '}' | '^' | '$' | '|' | '/' | '-' | 'p' | 'P' | 'z' | 'A' | 'Q' | 'E' => error
            .hint(format!(
                "in a regular expression write the backslash twice: \"\\\\{letter}\""
            )),
        '\'' => error.hint("a single quote stands for itself"),
        'x' | 'u' | 'U' | '0'..='9' => {
            error.hint("write \\xHH, \\uHHHH, \\UHHHHHHHH or three octal digits")
        }
        _ => error.hint("write the backslash twice"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_read_as_in_go() {
        for (word, expected) in [
            ("0", Some(0)),
            ("00", Some(0)),
            ("010", Some(8)),
            ("08", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
        ] {
            assert_eq!(int(word, 0).ok(), expected, "{word}");
        }
        for (word, expected) in [("1.", 1.0), (".5", 0.5), ("1.e3", 1000.0), ("00.5", 0.5)] {
            assert_eq!(float(word, 0), Ok(expected), "{word}");
        }
        assert!(float("1.0e999", 0).is_err());
        assert_eq!(bytes("0x00fF", 0), Ok(vec![0, 255]));
        assert!(bytes("0x012", 0).is_err());
    }

    #[test]
    fn strings_read_as_in_go() {
        for (word, expected) in [
            (r#""""#, Some("")),
            (r#""a\nb\\\"""#, Some("a\nb\\\"")),
            (r#""\xff\377""#, Some("ÿÿ")),
            (r#""\u00e9\U0001F980""#, Some("é🦀")),
            (r#""\ud800""#, None),
            (r#""\x+1""#, None),
            (r#""\400""#, None),
            (r#""\0""#, None),
            (r#""\d""#, None),
            (r#""\'""#, None),
            (r#""\/""#, None),
            (r#""\é""#, None),
            ("\"a\n\tb\"", Some("a\n\tb")),
        ] {
            let read = text(word, 0).ok();
            assert_eq!(read.as_deref(), expected.map(str::as_bytes), "{word}");
        }
        assert_eq!(text(r#""ab\d""#, 10).unwrap_err().offset, 13);
    }
}
