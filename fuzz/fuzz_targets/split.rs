//! Any bytes, the first of them the number of destinations: fragment(split(m)) = fragment(m).
//! `tests/wire.rs` replays the corpus through the same claim.

#![no_main]

#[allow(dead_code, reason = "each target makes one of the claims")]
#[path = "../../tests/wire/claims.rs"]
mod claims;

libfuzzer_sys::fuzz_target!(|data: &[u8]| claims::split_keeps_every_fragment(data));
