//! Any bytes: JSON that is accepted becomes a message that prost decodes, and no longer than was said.
//! `tests/wire.rs` replays the corpus through the same claim.

#![no_main]

#[allow(dead_code, reason = "each target makes one of the claims")]
#[path = "../../tests/wire/claims.rs"]
mod claims;

libfuzzer_sys::fuzz_target!(|data: &[u8]| claims::json_becomes_what_prost_decodes(data));
