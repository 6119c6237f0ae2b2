//! Any bytes: every fragment is a request of its own and the one fragment of itself.
//! `tests/wire.rs` replays the corpus through the same claim.

#![no_main]

#[allow(dead_code, reason = "each target makes one of the claims")]
#[path = "../../tests/wire/claims.rs"]
mod claims;

libfuzzer_sys::fuzz_target!(|data: &[u8]| claims::fragments_are_requests_of_their_own(data));
