//! Any condition and any span: refused with a place, or an answer. `tests/ottl.rs` replays the
//! corpus through the same claim.

#![no_main]

#[path = "../../tests/ottl/claims.rs"]
mod claims;

libfuzzer_sys::fuzz_target!(|data: &[u8]| claims::a_condition_is_refused_or_answers(data));
