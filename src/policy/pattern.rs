//! Regular expressions as Go's RE2 reads them, run by the `regex` crate.
//!
//! The two agree on most of the syntax. What they read differently is rewritten: Go's `\d \w \s \b`
//! are ASCII, `\s` is without `\v`, `\Q…\E` quotes, `\123` is octal, `{` that begins no count is
//! itself, and inside brackets `[`, `&&`, `--` and `~~` have no meaning. Where Go is the stricter one
//! (`a**`, counts of counts) so are we.

use std::fmt;

use regex::bytes::Regex;

/// Matches anywhere in a value, as Go's `MatchString` does.
#[derive(Clone)]
pub struct Pattern {
    written: String,
    regex: Regex,
}

/// Letters, digits and the underscore of ASCII: Go's `\w`.
const WORD: &str = "0-9A-Za-z_";
/// Go's `\s`.
const SPACE: &str = r"\t\n\x0C\r ";
/// A count beyond this is refused by Go.
const COUNT_MAX: u32 = 1_000;

impl Pattern {
    /// An error says what is wrong with the text, for people.
    pub fn new(written: &str) -> Result<Self, String> {
        let regex = Regex::new(&rewritten(written)?).map_err(|error| match error {
            regex::Error::CompiledTooBig(bytes) => {
                format!("it takes more than {} MiB when compiled", bytes >> 20)
            }
            // The parser draws the pattern, which is the rewritten one; its last line says why.
            error => {
                let text = error.to_string();
                let why = text.lines().last().unwrap_or_default();
                why.trim().trim_start_matches("error: ").to_owned()
            }
        })?;
        Ok(Self {
            written: written.to_owned(),
            regex,
        })
    }

    pub fn as_written(&self) -> &str {
        &self.written
    }

    /// `value` is valid UTF-8; the scan saw to that.
    pub fn is_match(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.fmt(f)
    }
}

fn rewritten(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut repeats = Repeats::default();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        match c {
            '\\' => {
                rest = escape(rest, &mut out)?;
                repeats.atom();
            }
            '[' => {
                rest = class(rest, &mut out)?;
                repeats.atom();
            }
            '{' => {
                let counted;
                (counted, rest) = count(rest, &mut out)?;
                match counted {
                    Some(count) => rest = repeats.repeat(count, rest, &mut out)?,
                    None => repeats.atom(),
                }
            }
            '*' | '+' | '?' => {
                out.push(c);
                rest = repeats.repeat(1, &rest[1..], &mut out)?;
            }
            '(' => {
                let flags = flags(rest)?;
                out.push_str(&rest[..flags]);
                rest = &rest[flags..];
                repeats.open();
            }
            ')' => {
                out.push(c);
                rest = &rest[1..];
                repeats.close();
            }
            // Not special to Go, and an error to nobody when escaped.
            '}' | ']' => {
                out.push('\\');
                out.push(c);
                rest = &rest[1..];
                repeats.atom();
            }
            _ => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
                repeats.atom();
            }
        }
    }
    Ok(out)
}

/// What Go refuses and the crate takes: a repetition of a repetition, unless it stands in a group,
/// and counts that come to more than [`COUNT_MAX`] when those of groups one inside the other are
/// multiplied.
#[derive(Default)]
struct Repeats {
    /// For each group that is open, and the whole, the largest count inside.
    open: Vec<u32>,
    whole: u32,
    /// That of what stands right before.
    last: u32,
    /// What stands right before is a repetition.
    repeated: bool,
}

impl Repeats {
    fn atom(&mut self) {
        self.last = 1;
        self.repeated = false;
    }

    fn open(&mut self) {
        self.open.push(1);
        self.atom();
    }

    fn close(&mut self) {
        // One too many is for the crate to refuse.
        let inner = self.open.pop().unwrap_or(1);
        self.atom();
        self.last = inner;
        self.note(inner);
    }

    fn note(&mut self, count: u32) {
        let around = self.open.last_mut().unwrap_or(&mut self.whole);
        *around = count.max(*around);
    }

    /// `rest` is behind the operator; gives what is behind its `?`, too.
    fn repeat<'a>(
        &mut self,
        count: u32,
        rest: &'a str,
        out: &mut String,
    ) -> Result<&'a str, String> {
        if self.repeated {
            return Err("a repetition of a repetition; put the first one into parentheses".into());
        }
        let count = self.last.max(1).saturating_mul(count.max(1));
        if count > COUNT_MAX {
            return Err(format!(
                "counts inside of counts come to more than {COUNT_MAX}"
            ));
        }
        self.note(count);
        self.last = count;
        self.repeated = true;
        Ok(match rest.strip_prefix('?') {
            Some(rest) => {
                out.push('?');
                rest
            }
            None => rest,
        })
    }
}

/// The crate has flags that would change how the rest is read.
/// Gives the bytes of what opens the group, up to its flags.
fn flags(rest: &str) -> Result<usize, String> {
    let Some(flags) = rest.strip_prefix("(?") else {
        return Ok(1);
    };
    if flags.starts_with("P<") || flags.starts_with('<') {
        return Ok(2);
    }
    match flags.chars().find(|c| !"imsU-".contains(*c)) {
        None | Some(':' | ')') => Ok(2),
        Some(c) => Err(format!("RE2 has nothing that begins with `(?{c}`")),
    }
}

/// `rest` begins with `\`, outside of brackets. Gives what comes after.
fn escape<'a>(rest: &'a str, out: &mut String) -> Result<&'a str, String> {
    let letter = rest[1..].chars().next();
    let Some(letter) = letter else {
        return Err("it ends with a lone `\\`".to_owned());
    };
    let after = &rest[1 + letter.len_utf8()..];
    match letter {
        'Q' => {
            let (quoted, after) = after.split_once("\\E").unwrap_or((after, ""));
            out.push_str(&regex::escape(quoted));
            return Ok(after);
        }
        'b' => out.push_str(r"(?-u:\b)"),
        'B' => out.push_str(r"(?-u:\B)"),
        'A' => out.push_str(r"\A"),
        'z' => out.push_str(r"\z"),
        'd' | 'D' | 's' | 'S' | 'w' | 'W' => out.push_str(&perl_class(letter)),
        'p' | 'P' => return unicode_class(rest, out),
        _ => {
            let (c, after) = escaped_char(rest)?;
            push_char(c, out);
            return Ok(after);
        }
    }
    Ok(after)
}

fn perl_class(letter: char) -> String {
    match letter {
        'd' => "[0-9]".to_owned(),
        'D' => "[^0-9]".to_owned(),
        's' => format!("[{SPACE}]"),
        'S' => format!("[^{SPACE}]"),
        'w' => format!("[{WORD}]"),
        _ => format!("[^{WORD}]"),
    }
}

/// `\pL`, `\p{Greek}`, `\P{^Greek}`: passed on as the crate writes them.
fn unicode_class<'a>(rest: &'a str, out: &mut String) -> Result<&'a str, String> {
    let mut negated = rest.as_bytes()[1] == b'P';
    let named = &rest[2..];
    let (name, after) = match named.strip_prefix('{') {
        Some(braced) => braced
            .split_once('}')
            .ok_or_else(|| format!("`{rest}` has no closing `}}`"))?,
        None => {
            let len = named.chars().next().map_or(0, char::len_utf8);
            named.split_at(len)
        }
    };
    let name = match name.strip_prefix('^') {
        Some(name) => {
            negated = !negated;
            name
        }
        None => name,
    };
    // Go knows categories and scripts by their own spelling, and nothing else.
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic() || c == '_') {
        return Err(format!("`{name}` is no category or script of Unicode"));
    }
    out.push_str(if negated { r"\P{" } else { r"\p{" });
    // The crate would read any other name of it, too.
    out.push_str(if name == "Any" { "any" } else { name });
    out.push('}');
    Ok(after)
}

/// One character written with `\`, inside or outside of brackets.
fn escaped_char(rest: &str) -> Result<(char, &str), String> {
    let Some(letter) = rest[1..].chars().next() else {
        return Err("it ends with a lone `\\`".to_owned());
    };
    let after = &rest[1 + letter.len_utf8()..];
    let unknown = || format!("`\\{letter}` means nothing in RE2");
    let plain = match letter {
        'a' => '\x07',
        'f' => '\x0C',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\x0B',
        // A single digit would refer to a group.
        '1'..='7' if !after.starts_with(|c| ('0'..='7').contains(&c)) => {
            return Err(format!("`\\{letter}` refers to a group, which RE2 cannot"));
        }
        '0'..='7' => {
            let digits = &rest[1..];
            let octal = |c: &u8| (b'0'..=b'7').contains(c);
            let len = digits.bytes().take(3).take_while(octal).count();
            let code = u32::from_str_radix(&digits[..len], 8).map_err(|_| unknown())?;
            let c = char::from_u32(code).ok_or_else(unknown)?;
            return Ok((c, &digits[len..]));
        }
        'x' => {
            let (digits, after) = match after.strip_prefix('{') {
                Some(braced) => braced.split_once('}').ok_or_else(unknown)?,
                None => after.split_at_checked(2).ok_or_else(unknown)?,
            };
            let hex = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_hexdigit());
            let code = u32::from_str_radix(digits, 16).ok().filter(|_| hex);
            let c = code.and_then(char::from_u32).ok_or_else(unknown)?;
            return Ok((c, after));
        }
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => c,
        _ => return Err(unknown()),
    };
    Ok((plain, after))
}

/// As a number, which means the character everywhere, also under `(?i)`.
fn push_char(c: char, out: &mut String) {
    out.push_str(&format!("\\x{{{:X}}}", u32::from(c)));
}

/// `rest` begins with `{`: a count, or just a brace. Gives the highest number of the count, and what
/// comes after.
fn count<'a>(rest: &'a str, out: &mut String) -> Result<(Option<u32>, &'a str), String> {
    let number = |text: &str| {
        // Go takes no leading zeros here.
        let lawful = text.bytes().all(|c| c.is_ascii_digit()) && !text.is_empty();
        (lawful && (text.len() == 1 || !text.starts_with('0'))).then_some(())
    };
    let counted = rest[1..].split_once('}').filter(|(inside, _)| {
        match inside.split_once(',') {
            None => number(inside),
            Some((min, "")) => number(min),
            Some((min, max)) => number(min).and(number(max)),
        }
        .is_some()
    });
    let Some((inside, after)) = counted else {
        out.push_str(r"\{");
        return Ok((None, &rest[1..]));
    };
    let counts = inside.split(',').filter(|text| !text.is_empty());
    // What does not fit is beyond the limit, too.
    let highest = counts.map(|text| text.parse().unwrap_or(u32::MAX)).max();
    if highest.is_some_and(|highest| highest > COUNT_MAX) {
        return Err(format!("`{{{inside}}}` counts beyond {COUNT_MAX}"));
    }
    out.push_str(&format!("{{{inside}}}"));
    Ok((highest, after))
}

/// `rest` begins with `[`. Written anew with every character as a number.
fn class<'a>(rest: &'a str, out: &mut String) -> Result<&'a str, String> {
    let unclosed = || "a `[` has no closing `]`".to_owned();
    out.push('[');
    let mut rest = &rest[1..];
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    loop {
        match rest.strip_prefix(']') {
            Some(after) if !first => {
                out.push(']');
                return Ok(after);
            }
            _ => first = false,
        }
        if rest.starts_with("[:")
            && let Some((name, after)) = rest[2..].split_once(":]")
        {
            out.push_str(&format!("[:{name}:]"));
            rest = after;
            continue;
        }
        match rest.as_bytes() {
            [b'\\', b'p' | b'P', ..] => {
                rest = unicode_class(rest, out)?;
                continue;
            }
            [
                b'\\',
                letter @ (b'd' | b'D' | b's' | b'S' | b'w' | b'W'),
                ..,
            ] => {
                out.push_str(&perl_class(char::from(*letter)));
                rest = &rest[2..];
                continue;
            }
            _ => {}
        }
        let (low, after) = class_char(rest).ok_or_else(unclosed)??;
        rest = after;
        let ranged = rest.strip_prefix('-').filter(|it| !it.starts_with(']'));
        push_char(low, out);
        if let Some(after) = ranged {
            let (high, after) = class_char(after).ok_or_else(unclosed)??;
            if high < low {
                return Err(format!("the range `{low}-{high}` goes backwards"));
            }
            out.push('-');
            push_char(high, out);
            rest = after;
        }
    }
}

fn class_char(rest: &str) -> Option<Result<(char, &str), String>> {
    let c = rest.chars().next()?;
    Some(if c == '\\' {
        escaped_char(rest)
    } else {
        Ok((c, &rest[c.len_utf8()..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        // Each row as Go 1.22's regexp answers.
        let rows = [
            ("v[0-9]+.HealthCheck$", "grpc.v1.HealthCheck", true),
            ("v[0-9]+.HealthCheck$", "grpc.v1.HealthChecks", false),
            ("", "", true),
            ("^$", "x", false),
            (r"\d", "७", false),
            (r"\D", "७", true),
            (r"^\w+$", "naïve", false),
            (r"^\w+$", "naive_7", true),
            (r"\s", "\u{a0}", false),
            (r"\s", "\x0B", false),
            (r"\v", "\x0B", true),
            (r"\bé", "é", false),
            (r"\Bé", "é", true),
            (r"a\b", "aé", true),
            (r"\Qa.b[\E+", "a.b[[[", true),
            (r"\Qa.b", "axb", false),
            (r"\Qa.b", "a.b", true),
            (r"\x41\x{1F980}", "A🦀", true),
            (r"\101\07", "A\x07", true),
            ("a{,5}", "a{,5}", true),
            ("a{,5}", "aaa", false),
            ("^a{2,3}$", "aaa", true),
            ("^a{2}$", "aaa", false),
            ("{id}", "/orders/{id}", true),
            ("[[a]+", "[", true),
            ("^[a&&b]+$", "a&b", true),
            ("^[~~]+$", "~", true),
            ("^[+--]+$", "+,-", true),
            ("[]a]", "]", true),
            ("[^]a]", "]", false),
            ("^[a-]+$", "a-", true),
            ("^[-a]+$", "a-", true),
            ("[^a]", "\n", true),
            (".", "\n", false),
            ("(?s).", "\n", true),
            ("^b", "a\nb", false),
            ("(?m)^b", "a\nb", true),
            ("a$", "a\n", false),
            ("(?i)straße", "STRAßE", true),
            ("(?i)k", "\u{212a}", true),
            (r"(?i)^\w$", "\u{17f}", true),
            (r"[[:alpha:]\d]", "é", false),
            (r"^[\w.]+$", "a.b", true),
            (r"^[^\w]+$", "é!", true),
            (r"^\pL+$", "né", true),
            (r"\p{Greek}", "λ", true),
            (r"\P{^Greek}", "λ", true),
            (r"\p{^Greek}", "λ", false),
            ("(?P<name>a)(?<other>b)", "ab", true),
            (r"\.\-\/", ".-/", true),
            ("acme|umbrella", "the acme corp", true),
            ("^(a*)*$", "aa", true),
            ("^a*?b+?c??$", "aab", true),
            ("^(?:a{10}){100}$", "a", false),
            ("^(?P<n>a)?(?i:b)+$", "aBb", true),
            ("(?i)A|b*", "", true),
        ];
        for (pattern, value, expected) in rows {
            let compiled = Pattern::new(pattern);
            let compiled = compiled.unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert_eq!(
                compiled.is_match(value.as_bytes()),
                expected,
                "{pattern} in {value:?}"
            );
        }
    }

    #[test]
    fn what_re2_refuses_is_refused_with_the_reason() {
        for (pattern, why) in [
            ("[", "a `[` has no closing `]`"),
            ("[a", "a `[` has no closing `]`"),
            ("[]", "a `[` has no closing `]`"),
            ("[a--c]", "the range `a--` goes backwards"),
            ("[b-a]", "the range `b-a` goes backwards"),
            ("\\", "it ends with a lone `\\`"),
            (r"(a)\1", "`\\1` refers to a group, which RE2 cannot"),
            (r"\Z", "`\\Z` means nothing in RE2"),
            (r"\x{zz}", "`\\x` means nothing in RE2"),
            (
                r"\p{Klingon!}",
                "`Klingon!` is no category or script of Unicode",
            ),
            (r"\p{Klingon}", "Unicode property not found"),
            ("a{1001}", "`{1001}` counts beyond 1000"),
            ("(a", "unclosed group"),
            ("*a", "repetition operator missing expression"),
            ("(?=a)", "RE2 has nothing that begins with `(?=`"),
            ("(?x) a", "RE2 has nothing that begins with `(?x`"),
            (
                "(?<=a)b",
                "look-around, including look-ahead and look-behind, is not supported",
            ),
            (
                r"(\pL{999}){1}(\pL{999}){1}(\pL{999}){1}(\pL{999}){1}",
                "it takes more than 10 MiB when compiled",
            ),
            (
                "a**",
                "a repetition of a repetition; put the first one into parentheses",
            ),
            (
                "a++",
                "a repetition of a repetition; put the first one into parentheses",
            ),
            (
                "a*??",
                "a repetition of a repetition; put the first one into parentheses",
            ),
            (
                r"\pL{10}{10}",
                "a repetition of a repetition; put the first one into parentheses",
            ),
            (
                "((a{100})*b){11}",
                "counts inside of counts come to more than 1000",
            ),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap_err(), why, "{pattern}");
        }
    }
}
