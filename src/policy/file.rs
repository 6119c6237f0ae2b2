//! Reads a policy file and reports every mistake at once.

use crate::policy::Rules;

/// One mistake: where, what, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// `text` is a `tail_sampling` block, bare or inside a whole Collector configuration.
pub fn parse(text: &str) -> Result<Rules, Vec<Mistake>> {
    let _ = text;
    unimplemented!()
}
