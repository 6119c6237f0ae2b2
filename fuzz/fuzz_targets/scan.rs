//! Any bytes: what the scanner accepts is what prost decodes.
//! `tests/wire.rs` replays the corpus through the same claim.

#![no_main]

#[allow(dead_code, reason = "each target makes one of the claims")]
#[path = "../../tests/wire/claims.rs"]
mod claims;

libfuzzer_sys::fuzz_target!(|data: &[u8]| claims::scan_accepts_only_what_prost_decodes(data));
