//! Between the messages on the wire and what they mean. What is not legal is an error that says which
//! field; nothing is guessed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::{Announced, Caller, ClusterView, Hello, HelloAnswer, KnownMember, message};
use crate::model::{Fingerprint, Identity, Incarnation, Member, MemberState, StoreId};

/// The methods of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::net) enum Call {
    Hello,
    View,
    Handoff,
    Sync,
}

/// A request as it was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Asked {
    Hello(Hello),
    View,
    Handoff(Bytes),
    Sync(Bytes),
}

/// Who answers.
#[derive(Debug)]
pub(in crate::net) struct Answering {
    pub(in crate::net) identity: Identity,
    pub(in crate::net) state: MemberState,
}

/// A cluster's name is one setting; longer than this it is an attack.
const CLUSTER_BYTES_MAX: usize = 1024;

impl Call {
    pub(in crate::net) const ALL: [Self; 4] = [Self::Hello, Self::View, Self::Handoff, Self::Sync];

    pub(in crate::net) const fn path(self) -> &'static str {
        match self {
            Self::Hello => "/tailring.v1.Peer/Hello",
            Self::View => "/tailring.v1.Peer/View",
            Self::Handoff => "/tailring.v1.Peer/Handoff",
            Self::Sync => "/tailring.v1.Peer/Sync",
        }
    }

    /// Value of the `call` metric label.
    pub(in crate::net) const fn label(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::View => "view",
            Self::Handoff => "handoff",
            Self::Sync => "sync",
        }
    }

    pub(in crate::net) fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.path() == path)
    }

    /// Reads a request. The error is for its sender.
    pub(in crate::net) fn read(self, bytes: Bytes) -> Result<(Caller, Asked), String> {
        match self {
            Self::Hello => {
                let message: message::HelloRequest = decoded(bytes)?;
                let caller = caller_of(message.caller)?;
                let (identity, state) = caller.from.clone().ok_or("a hello without caller.from")?;
                let hello = Hello {
                    identity,
                    state,
                    otlp: message.otlp_address.parse()?,
                    peer: message.peer_address.parse()?,
                };
                Ok((caller, Asked::Hello(hello)))
            }
            Self::View => {
                let message: message::ViewRequest = decoded(bytes)?;
                Ok((caller_of(message.caller)?, Asked::View))
            }
            Self::Handoff | Self::Sync => {
                let message: message::ItemsRequest = decoded(bytes)?;
                let caller = caller_of(message.caller)?;
                if caller.from.is_none() {
                    return Err("a call between workers without caller.from".to_owned());
                }
                let asked = match self {
                    Self::Handoff => Asked::Handoff(message.items),
                    _ => Asked::Sync(message.items),
                };
                Ok((caller, asked))
            }
        }
    }
}

pub(super) fn hello_request(caller: &Caller, hello: &Hello) -> Bytes {
    let request = message::HelloRequest {
        caller: Some(caller.into()),
        otlp_address: hello.otlp.to_string(),
        peer_address: hello.peer.to_string(),
    };
    request.encode_to_vec().into()
}

pub(super) fn view_request(caller: &Caller) -> Bytes {
    let caller = Some(caller.into());
    message::ViewRequest { caller }.encode_to_vec().into()
}

/// In pieces, so that the items are not copied: two messages in a row merge.
pub(super) fn items_request(caller: &Caller, items: Bytes) -> Vec<Bytes> {
    let head = message::ItemsRequest {
        caller: Some(caller.into()),
        items: Bytes::new(),
    };
    pieces(head.encode_to_vec(), items)
}

impl Answering {
    pub(in crate::net) fn hello(&self, hello: &Hello) -> Vec<Bytes> {
        let response = message::HelloResponse {
            callee: Some(self.into()),
            otlp_address: hello.otlp.to_string(),
            peer_address: hello.peer.to_string(),
        };
        vec![response.encode_to_vec().into()]
    }

    pub(in crate::net) fn view(&self, members: &[KnownMember]) -> Vec<Bytes> {
        let response = message::ViewResponse {
            callee: Some(self.into()),
            members: members.iter().map(Into::into).collect(),
        };
        vec![response.encode_to_vec().into()]
    }

    pub(in crate::net) fn items(&self, items: Bytes) -> Vec<Bytes> {
        let head = message::ItemsResponse {
            callee: Some(self.into()),
            items: Bytes::new(),
        };
        pieces(head.encode_to_vec(), items)
    }
}

pub(super) fn hello_answer(
    bytes: Bytes,
    fingerprint: Option<Fingerprint>,
) -> Result<HelloAnswer, String> {
    let message: message::HelloResponse = decoded(bytes)?;
    let (identity, state) = callee_of(message.callee)?;
    Ok(HelloAnswer {
        hello: Hello {
            identity,
            state,
            otlp: message.otlp_address.parse()?,
            peer: message.peer_address.parse()?,
        },
        fingerprint,
    })
}

pub(super) fn view_answer(
    bytes: Bytes,
    fingerprint: Option<Fingerprint>,
    members_max: usize,
) -> Result<ClusterView, String> {
    let message: message::ViewResponse = decoded(bytes)?;
    let (from, state) = callee_of(message.callee)?;
    if message.members.len() > members_max {
        return Err(format!(
            "a view of {} members; at most {members_max} are supported",
            message.members.len()
        ));
    }
    let members = message.members.into_iter().map(known_member);
    Ok(ClusterView {
        from,
        state,
        fingerprint,
        members: members.collect::<Result<_, _>>()?,
    })
}

pub(super) fn items_answer(bytes: Bytes) -> Result<(Identity, Bytes), String> {
    let message: message::ItemsResponse = decoded(bytes)?;
    let (identity, _) = callee_of(message.callee)?;
    Ok((identity, message.items))
}

fn pieces(head: Vec<u8>, items: Bytes) -> Vec<Bytes> {
    let mut head = head;
    if !items.is_empty() {
        prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut head);
        prost::encoding::encode_varint(items.len() as u64, &mut head);
    }
    vec![head.into(), items]
}

fn decoded<M: prost::Message + Default>(bytes: Bytes) -> Result<M, String> {
    M::decode(bytes).map_err(|error| format!("not the message of this call: {error}"))
}

fn caller_of(message: Option<message::Caller>) -> Result<Caller, String> {
    let message = message.ok_or("a call without a caller")?;
    if message.cluster.len() > CLUSTER_BYTES_MAX {
        return Err(format!(
            "caller.cluster has more than {CLUSTER_BYTES_MAX} bytes"
        ));
    }
    let state = message.state();
    let from = match message.from {
        Some(identity) => Some((identity_of(identity)?, member_state(state)?)),
        None => None,
    };
    let to = Member::parse(&message.to).map_err(|error| format!("caller.to: {error}"))?;
    let to_incarnation = Some(message.to_incarnation).filter(|it| *it > 0);
    Ok(Caller {
        cluster: message.cluster,
        from,
        fingerprint: Fingerprint(message.fingerprint),
        to: (to, to_incarnation.map(Incarnation)),
    })
}

fn callee_of(message: Option<message::Callee>) -> Result<(Identity, MemberState), String> {
    let message = message.ok_or("an answer without a callee")?;
    let state = member_state(message.state())?;
    let identity = message.identity.ok_or("an answer without an identity")?;
    Ok((identity_of(identity)?, state))
}

fn identity_of(message: message::Identity) -> Result<Identity, String> {
    let member = Member::parse(&message.member).map_err(|error| error.to_string())?;
    let store = <[u8; 16]>::try_from(message.store.as_ref())
        .map_err(|_| format!("a store of {} bytes; it has 16", message.store.len()))?;
    if message.incarnation == 0 {
        return Err(format!("{member} has the incarnation 0"));
    }
    Ok(Identity {
        member,
        incarnation: Incarnation(message.incarnation),
        store: StoreId(u128::from_be_bytes(store)),
    })
}

fn member_state(state: message::State) -> Result<MemberState, String> {
    match state {
        message::State::Unspecified => Err("a state that is not known here".to_owned()),
        message::State::Joining => Ok(MemberState::Joining),
        message::State::Ready => Ok(MemberState::Ready),
        message::State::Draining => Ok(MemberState::Draining),
    }
}

fn known_member(message: message::ViewMember) -> Result<KnownMember, String> {
    let state = message.state();
    let said = match message.incarnation {
        0 => None,
        incarnation => Some((Incarnation(incarnation), member_state(state)?)),
    };
    let member = Member::parse(&message.member).map_err(|error| error.to_string())?;
    let address = |text: &str| -> Result<Option<SocketAddr>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = |_| format!("{member} has the address {text:?}; it is ip:port");
        text.parse().map(Some).map_err(wrong)
    };
    Ok(KnownMember {
        said,
        suspect: message.suspect,
        silent: Duration::from_millis(message.silent_millis),
        otlp: address(&message.otlp_address)?,
        peer: address(&message.peer_address)?,
        member,
    })
}

impl From<&Identity> for message::Identity {
    fn from(identity: &Identity) -> Self {
        Self {
            member: identity.member.to_string(),
            incarnation: identity.incarnation.0,
            store: Bytes::copy_from_slice(&identity.store.0.to_be_bytes()),
        }
    }
}

impl From<MemberState> for message::State {
    fn from(state: MemberState) -> Self {
        match state {
            MemberState::Joining => Self::Joining,
            MemberState::Ready => Self::Ready,
            MemberState::Draining => Self::Draining,
        }
    }
}

impl From<&Caller> for message::Caller {
    fn from(caller: &Caller) -> Self {
        let (from, state) = match &caller.from {
            Some((identity, state)) => (Some(identity.into()), (*state).into()),
            None => (None, message::State::Unspecified),
        };
        Self {
            cluster: caller.cluster.clone(),
            from,
            state: state.into(),
            fingerprint: caller.fingerprint.0,
            to: caller.to.0.to_string(),
            to_incarnation: caller.to.1.map_or(0, |incarnation| incarnation.0),
        }
    }
}

impl From<&Answering> for message::Callee {
    fn from(answering: &Answering) -> Self {
        Self {
            identity: Some((&answering.identity).into()),
            state: message::State::from(answering.state).into(),
        }
    }
}

impl From<&KnownMember> for message::ViewMember {
    fn from(known: &KnownMember) -> Self {
        let (incarnation, state) = match known.said {
            Some((incarnation, state)) => (incarnation.0, state.into()),
            None => (0, message::State::Unspecified),
        };
        let text =
            |address: Option<SocketAddr>| address.map_or_else(String::new, |it| it.to_string());
        Self {
            member: known.member.to_string(),
            incarnation,
            state: state.into(),
            suspect: known.suspect,
            silent_millis: u64::try_from(known.silent.as_millis()).unwrap_or(u64::MAX),
            otlp_address: text(known.otlp),
            peer_address: text(known.peer),
        }
    }
}

impl Hello {
    /// Where the member serves OTLP and its peers, for one who sees it at `seen_at`.
    pub fn addresses(&self, seen_at: IpAddr) -> (SocketAddr, SocketAddr) {
        let at = |announced: Announced| announced.as_seen_at(seen_at);
        (at(self.otlp), at(self.peer))
    }
}
