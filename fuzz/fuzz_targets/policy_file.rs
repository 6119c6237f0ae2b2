//! Any policy file: refused with places, or rules that can be shown and asked. `tests/policy_file.rs`
//! replays the corpus through the same claim.

#![no_main]

#[path = "../../tests/policy_file/claims.rs"]
mod claims;

libfuzzer_sys::fuzz_target!(|data: &[u8]| claims::a_file_is_refused_with_places_or_means_something(data));
