//! The policy file: read at the start, and again while a worker runs.

use std::path::Path;

use crate::app::settings::Surroundings;
use crate::policy::{Notice, Rules};

/// A ConfigMap holds one MiB.
const POLICY_FILE_BYTES_MAX: u64 = 4 << 20;

/// What a policy file means, with its notices.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyFile {
    pub rules: Rules,
    pub notices: Vec<Notice>,
}

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

impl PolicyText {
    /// `Err` says in words why it cannot be read.
    pub fn read(machine: &impl Surroundings, path: &str) -> Result<Self, String> {
        let bytes = machine
            .read(Path::new(path), POLICY_FILE_BYTES_MAX)
            .map_err(|error| format!("cannot be read: {error}"))?;
        let content = ContentHash(xxhash_rust::xxh3::xxh3_128(&bytes));
        Ok(Self { bytes, content })
    }

    /// `Err` is the report of all mistakes, each with its place in `path`.
    pub fn parse(&self, path: &str) -> Result<PolicyFile, String> {
        let text = std::str::from_utf8(&self.bytes)
            .map_err(|error| format!("is not UTF-8 at byte {}", error.valid_up_to()))?;
        match crate::policy::parse(text) {
            Ok(parsed) => Ok(PolicyFile {
                rules: parsed.rules,
                notices: parsed.notices,
            }),
            Err(mistakes) => {
                let mut problem = match mistakes.len() {
                    1 => "has a mistake".to_owned(),
                    count => format!("has {count} mistakes"),
                };
                for mistake in mistakes {
                    let mistake = mistake.to_string().replace('\n', "\n  ");
                    problem.push_str(&format!("\n{path}:{mistake}"));
                }
                Err(problem)
            }
        }
    }
}
