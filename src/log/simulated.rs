//! A disk in memory that forgets what was not synced, for tests.

/// See [`crate::log::Disk`].
#[derive(Debug, Clone, Default)]
pub struct SimulatedDisk {}
