//! Settings: flags with `TAILRING_` twins.
//!
//! They are read twice. [`RouterArgs`] and [`WorkerArgs`] are what was written, as text;
//! [`RouterConfig`] and [`WorkerConfig`] are what was meant, and hold only legal values. Between
//! them everything is parsed before anything is refused, so that one start shows all mistakes.

mod args;
mod byte_size;
mod config;
mod files;
mod listen;
mod memory_plan;
mod policy_file;
mod reader;
mod surroundings;
mod wrong;

pub use args::{RouterArgs, SharedArgs, WorkerArgs};
pub use byte_size::{ByteSize, ByteSizeError};
pub use config::{
    Ack, LOG_SEGMENT_BYTES, MemoryLimit, MemoryOrigin, OnPressure, RecordPolicy, RouterConfig,
    SharedConfig, WorkerConfig,
};
pub use listen::{ListenAddress, ListenAddressError};
pub use memory_plan::MemoryPlan;
pub use policy_file::{ContentHash, PolicyFileError, PolicySource, PolicyText, load_policies};
pub use surroundings::{Machine, Surroundings, Volume};
pub use wrong::{WrongSetting, WrongSettings};
