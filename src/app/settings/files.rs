//! The files that settings name and that are read once: the ring's seed, the export's headers.

use std::path::Path;

use http::HeaderMap;

use crate::app::settings::Surroundings;
use crate::ring::Seed;
use crate::worker::export::parse_headers;

const SEED_BYTES_MIN: usize = 16;
const SEED_FILE_BYTES_MAX: u64 = 4 << 10;
const HEADER_FILE_BYTES_MAX: u64 = 64 << 10;

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

fn read(machine: &impl Surroundings, path: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
    machine
        .read(Path::new(path), bytes_max)
        .map_err(|error| format!("cannot be read: {error}"))
}
