//! The policy file: read at the start, again while a worker runs, and by the tools that look at one.

use std::path::Path;

use crate::app::settings::Surroundings;
use crate::policy::{Mistake, Parsed, TOLD_MAX};

/// A ConfigMap holds one MiB.
const POLICY_FILE_BYTES_MAX: u64 = 4 << 20;

/// Which file the rules are from, and what it held then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    pub path: String,
    pub content: ContentHash,
}

/// Tells one content from another. Times and inodes do not: a ConfigMap's file is a link to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentHash(u128);

/// A policy file as it was read.
#[derive(Debug)]
pub struct PolicyText {
    bytes: Vec<u8>,
    pub content: ContentHash,
}

/// Why a policy file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyFileError {
    /// Continues "FILE": "cannot be read: …".
    Unreadable(String),
    Refused(Vec<Mistake>),
}

/// What a policy file means.
pub fn load_policies(machine: &impl Surroundings, path: &str) -> Result<Parsed, PolicyFileError> {
    PolicyText::read(machine, path)?.parse(machine)
}

impl PolicyText {
    pub fn read(machine: &impl Surroundings, path: &str) -> Result<Self, PolicyFileError> {
        let bytes = machine
            .read(Path::new(path), POLICY_FILE_BYTES_MAX)
            .map_err(|error| PolicyFileError::Unreadable(format!("cannot be read: {error}")))?;
        let content = ContentHash(xxhash_rust::xxh3::xxh3_128(&bytes));
        Ok(Self { bytes, content })
    }

    pub fn parse(&self, machine: &impl Surroundings) -> Result<Parsed, PolicyFileError> {
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            let at = error.valid_up_to();
            PolicyFileError::Unreadable(format!("is not UTF-8 at byte {at}"))
        })?;
        crate::policy::parse_in(&|name| machine.variable(name), text)
            .map_err(PolicyFileError::Refused)
    }
}

impl PolicyFileError {
    /// Continues "FILE": "has 2 mistakes", with each of them in a line of its own.
    pub fn describe(&self, path: &str) -> String {
        let mistakes = match self {
            Self::Unreadable(problem) => return problem.clone(),
            Self::Refused(mistakes) => mistakes,
        };
        let mut problem = match mistakes.len() {
            1 => "has a mistake".to_owned(),
            count if count > TOLD_MAX => format!("has more than {TOLD_MAX} mistakes"),
            count => format!("has {count} mistakes"),
        };
        for mistake in mistakes {
            let mistake = mistake.to_string().replace('\n', "\n  ");
            problem.push_str(&format!("\n{path}:{mistake}"));
        }
        problem
    }
}
