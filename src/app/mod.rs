//! (being built)

pub mod interrupt;
pub mod ledger;
pub mod load;
pub mod sink;
pub mod verify;
