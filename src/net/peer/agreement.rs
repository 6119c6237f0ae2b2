//! `proto/tailring/v1/peer.proto` and the messages by hand are the same: every field of every message is
//! written by one and read by the other, both ways.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value,
};

use super::message;
use super::{Call, ITEMS_BYTES_MAX, REQUEST_BYTES_MAX};

fn pool() -> DescriptorPool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile(["tailring/v1/peer.proto"], [root]).unwrap();
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

/// A message with each of its fields set, to values that differ from each other and from zero.
fn filled(of: &MessageDescriptor, next: &mut u64) -> DynamicMessage {
    let mut filled = DynamicMessage::new(of.clone());
    for field in of.fields() {
        let value = value(&field, next);
        let value = if field.is_list() {
            Value::List(vec![value])
        } else {
            value
        };
        filled.set_field(&field, value);
    }
    filled
}

fn value(field: &FieldDescriptor, next: &mut u64) -> Value {
    *next += 1;
    match field.kind() {
        Kind::String => Value::String(format!("text {next}")),
        Kind::Bytes => Value::Bytes(format!("bytes {next}").into_bytes().into()),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(*next),
        Kind::Bool => Value::Bool(true),
        Kind::Enum(of) => Value::EnumNumber(of.values().last().unwrap().number()),
        Kind::Message(of) => Value::Message(filled(&of, next)),
        other => panic!("the test does not know {other:?} yet"),
    }
}

/// What the proto writes, `M` reads and writes the same; fields that only `M` knows would be seen in
/// `names`, those that only the proto knows are missing in what `M` writes.
#[track_caller]
fn agree<M: Message + Default + PartialEq>(pool: &DescriptorPool, name: &str, fields: usize) {
    let of = pool
        .get_message_by_name(&format!("tailring.v1.{name}"))
        .unwrap();
    assert_eq!(of.fields().len(), fields, "{name}: fields");
    let bytes = filled(&of, &mut 0).encode_to_vec();
    let read = M::decode(bytes.as_slice()).unwrap();
    assert_eq!(read.encode_to_vec(), bytes, "{name}");
    assert!(read != M::default(), "{name}");
}

#[test]
fn the_messages_are_those_of_the_proto() {
    let pool = pool();
    agree::<message::Identity>(&pool, "Identity", 3);
    agree::<message::Caller>(&pool, "Caller", 6);
    agree::<message::Callee>(&pool, "Callee", 2);
    agree::<message::HelloRequest>(&pool, "HelloRequest", 3);
    agree::<message::HelloResponse>(&pool, "HelloResponse", 3);
    agree::<message::ViewRequest>(&pool, "ViewRequest", 1);
    agree::<message::ViewResponse>(&pool, "ViewResponse", 2);
    agree::<message::ViewMember>(&pool, "ViewMember", 7);
    agree::<message::ItemsRequest>(&pool, "HandoffRequest", 2);
    agree::<message::ItemsResponse>(&pool, "HandoffResponse", 2);
    agree::<message::ItemsRequest>(&pool, "SyncRequest", 2);
    agree::<message::ItemsResponse>(&pool, "SyncResponse", 2);
    // `ItemsRequest` and `ItemsResponse` stand for two each.
    assert_eq!(pool.all_messages().count(), 12);
}

#[test]
fn the_states_and_the_methods_are_those_of_the_proto() {
    let pool = pool();
    let states = pool.get_enum_by_name("tailring.v1.State").unwrap();
    for state in states.values() {
        let ours = message::State::try_from(state.number()).unwrap();
        let name = format!("STATE_{}", format!("{ours:?}").to_uppercase());
        assert_eq!(state.name(), name);
    }
    assert_eq!(states.values().len(), 4);
    let service = pool.get_service_by_name("tailring.v1.Peer").unwrap();
    let paths: Vec<_> = service
        .methods()
        .map(|method| format!("/{}/{}", service.full_name(), method.name()))
        .collect();
    assert_eq!(paths, Call::ALL.map(|call| call.path().to_owned()));
    assert!(
        service
            .methods()
            .all(|it| !it.is_client_streaming() && !it.is_server_streaming())
    );
}

/// The longest legal caller and the most items fit into the longest request.
#[test]
fn the_largest_request_is_within_the_bound() {
    let request = message::ItemsRequest {
        caller: Some(message::Caller {
            cluster: "c".repeat(1024),
            from: Some(message::Identity {
                member: "m".repeat(253),
                incarnation: u64::MAX,
                store: Bytes::from(vec![1; 16]),
            }),
            state: 3,
            fingerprint: u64::MAX,
            to: "m".repeat(253),
            to_incarnation: u64::MAX,
        }),
        items: Bytes::from(vec![0; ITEMS_BYTES_MAX]),
    };
    assert!(request.encoded_len() <= REQUEST_BYTES_MAX);
}
