//! Sockets and protocols: OTLP servers over gRPC and HTTP, gRPC and HTTP clients, what peers say to
//! each other, byte admission, and the one table of statuses. Knows nothing about rings, traces or policies.

pub mod admission;
pub mod client;
pub mod json;
pub mod metadata;
pub mod peer;
pub mod server;
pub mod status;
