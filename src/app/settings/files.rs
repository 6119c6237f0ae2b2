//! The files that settings name: the ring's seed, the export's headers, the policies.

use std::path::Path;

use http::HeaderMap;

use crate::app::settings::Surroundings;
use crate::policy::{Notice, Rules};
use crate::ring::Seed;
use crate::worker::export::parse_headers;

/// The policy file with its notices.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PolicyFile {
    pub(super) rules: Rules,
    pub(super) notices: Vec<Notice>,
}

const SEED_BYTES_MIN: usize = 16;
const SEED_FILE_BYTES_MAX: u64 = 4 << 10;
const HEADER_FILE_BYTES_MAX: u64 = 64 << 10;
/// A ConfigMap holds one MiB.
const POLICY_FILE_BYTES_MAX: u64 = 4 << 20;

/// The whole content, without the white space around it that editors and `echo` add, hashed.
pub(super) fn read_seed(machine: &impl Surroundings, path: &str) -> Result<Seed, String> {
    let content = read(machine, path, SEED_FILE_BYTES_MAX)?;
    let secret = content.trim_ascii();
    if secret.len() < SEED_BYTES_MIN {
        return Err(format!(
            "has {} bytes, and a secret of fewer than {SEED_BYTES_MIN} can be guessed; \
             write one with: head -c 32 /dev/urandom | base64",
            secret.len()
        ));
    }
    Ok(Seed(xxhash_rust::xxh3::xxh3_64(secret)))
}

/// The export's own rules for headers; its mistakes name lines, never values.
pub(super) fn read_headers(machine: &impl Surroundings, path: &str) -> Result<HeaderMap, String> {
    let content = read(machine, path, HEADER_FILE_BYTES_MAX)?;
    // Says nothing of the place: what is not text may be part of a secret.
    let text = std::str::from_utf8(&content).map_err(|_| "is not UTF-8".to_owned())?;
    parse_headers(text).map_err(|errors| {
        let mut problem = match errors.len() {
            1 => "has a mistake".to_owned(),
            count => format!("has {count} mistakes"),
        };
        for error in errors {
            problem.push_str(&format!("\n{error}"));
        }
        problem
    })
}

pub(super) fn read_policies(machine: &impl Surroundings, path: &str) -> Result<PolicyFile, String> {
    let content = read(machine, path, POLICY_FILE_BYTES_MAX)?;
    let text = std::str::from_utf8(&content)
        .map_err(|error| format!("is not UTF-8 at byte {}", error.valid_up_to()))?;
    match crate::policy::parse_in(&|name| machine.variable(name), text) {
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

fn read(machine: &impl Surroundings, path: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
    machine
        .read(Path::new(path), bytes_max)
        .map_err(|error| format!("cannot be read: {error}"))
}
