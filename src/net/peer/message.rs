//! The messages of `proto/tailring/v1/peer.proto` as Rust types, by hand. What they mean, and whether
//! a value is legal, is said by the types beside this file.

use bytes::Bytes;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum State {
    Unspecified = 0,
    Joining = 1,
    Ready = 2,
    Draining = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Identity {
    #[prost(string, tag = "1")]
    pub(super) member: String,
    #[prost(uint64, tag = "2")]
    pub(super) incarnation: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) store: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Caller {
    #[prost(string, tag = "1")]
    pub(super) cluster: String,
    #[prost(message, optional, tag = "2")]
    pub(super) from: Option<Identity>,
    #[prost(enumeration = "State", tag = "3")]
    pub(super) state: i32,
    #[prost(fixed64, tag = "4")]
    pub(super) fingerprint: u64,
    #[prost(string, tag = "5")]
    pub(super) to: String,
    #[prost(uint64, tag = "6")]
    pub(super) to_incarnation: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Callee {
    #[prost(message, optional, tag = "1")]
    pub(super) identity: Option<Identity>,
    #[prost(enumeration = "State", tag = "2")]
    pub(super) state: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HelloRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) caller: Option<Caller>,
    #[prost(string, tag = "2")]
    pub(super) otlp_address: String,
    #[prost(string, tag = "3")]
    pub(super) peer_address: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HelloResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) callee: Option<Callee>,
    #[prost(string, tag = "2")]
    pub(super) otlp_address: String,
    #[prost(string, tag = "3")]
    pub(super) peer_address: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ViewRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) caller: Option<Caller>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ViewResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) callee: Option<Callee>,
    #[prost(message, repeated, tag = "2")]
    pub(super) members: Vec<ViewMember>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ViewMember {
    #[prost(string, tag = "1")]
    pub(super) member: String,
    #[prost(uint64, tag = "2")]
    pub(super) incarnation: u64,
    #[prost(enumeration = "State", tag = "3")]
    pub(super) state: i32,
    #[prost(bool, tag = "4")]
    pub(super) suspect: bool,
    #[prost(uint64, tag = "5")]
    pub(super) silent_millis: u64,
    #[prost(string, tag = "6")]
    pub(super) otlp_address: String,
    #[prost(string, tag = "7")]
    pub(super) peer_address: String,
}

/// Handoff and Sync, both ways of asking.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ItemsRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) caller: Option<Caller>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) items: Bytes,
}

/// Handoff and Sync, both answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ItemsResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) callee: Option<Callee>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) items: Bytes,
}
