//! The metadata (gRPC) and headers (HTTP) that Tailring's processes exchange beside OTLP.

use std::time::Duration;

use crate::model::{Fingerprint, Incarnation, Member};

/// The member that a router means to reach; a reused address is found out by it.
pub const TO: &str = "tailring-to";
/// How many workers have passed the message on already.
pub const HOP: &str = "tailring-hop";
/// Fingerprint of the sender's view; in every response, the receiver's.
pub const VIEW: &str = "tailring-view";
/// The owner in whose stead the receiver is asked to hold the traces.
pub const SURROGATE_FOR: &str = "tailring-surrogate-for";
/// On exports: who exports.
pub const MEMBER: &str = "tailring-member";
/// On exports: one u32 (big endian) for each distinct trace of the message, in ascending order of
/// trace ID: the verdict under which it is exported.
pub const VERDICTS: &str = "tailring-verdicts-bin";

/// What a request said beside its body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestMetadata {
    pub to: Option<(Member, Option<Incarnation>)>,
    pub hop: u32,
    pub view: Option<Fingerprint>,
    pub surrogate_for: Option<Member>,
    /// What the client said it will wait (`grpc-timeout`).
    pub timeout: Option<Duration>,
}
