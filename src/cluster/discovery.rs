//! Asks the source again and again and publishes views.

/// The running task and its metrics.
#[derive(Debug)]
pub struct Discovery {}

#[derive(Debug, Clone)]
pub struct DiscoveryMetrics {}
