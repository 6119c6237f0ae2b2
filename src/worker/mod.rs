//! (being built)

pub mod export;
