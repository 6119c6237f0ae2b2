//! What is said about a policy file: mistakes, which refuse it, and notices, which do not.

use std::fmt;

/// One mistake: where, what, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

/// Something in the file that means less here than its author may think.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

/// The one of `known` that was probably meant: few letters differ, as in typing mistakes.
pub(crate) fn nearest<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // One letter in three may be wrong, so that `foo` never becomes `and`. Nobody means a name of
    // 64 letters, and the distance costs their product.
    let letters = written.chars().count();
    let distance_max = (letters / 3).max(1);
    known
        .into_iter()
        .filter(|name| letters <= 64 && name.len().abs_diff(letters) <= distance_max)
        .map(|name| (distance(written, name), name))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Levenshtein's, where two swapped neighbours count once (`sapn` for `span`), without regard to
/// case and with `-` and `_` alike.
fn distance(left: &str, right: &str) -> usize {
    let letters = |text: &str| -> Vec<char> {
        text.chars()
            .map(|c| match c {
                '-' => '_',
                c => c.to_ascii_lowercase(),
            })
            .collect()
    };
    let (left, right) = (letters(left), letters(right));
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (i, &a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &b) in right.iter().enumerate() {
            let mut best = (above[j] + usize::from(a != b))
                .min(above[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && a == right[j - 1] && left[i - 1] == b {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[right.len()]
}

impl fmt::Display for Mistake {
    /// `line:column: message`, to be put behind the file's name and a colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl fmt::Display for Notice {
    /// `line:column: message`, to be put behind the file's name and a colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_find_their_word_and_strangers_find_none() {
        let known = ["decision_wait", "num_traces", "policies", "name", "and"];
        for (written, meant) in [
            ("decison_wait", Some("decision_wait")),
            ("decision-wait", Some("decision_wait")),
            ("Policies", Some("policies")),
            ("polices", Some("policies")),
            ("nmae", Some("name")),
            ("foo", None),
            ("probabilistic", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, known), meant, "{written}");
        }
    }
}
