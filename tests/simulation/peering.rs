//! What workers say to each other, and to routers, beside OTLP: the calls of `tailring.v1.Peer` as they
//! are on the simulated network. Who is believed is the roster's to say.

use std::net::SocketAddr;

use bytes::Bytes;
use tailring::cluster::ToldMember;
use tailring::cluster::roster::SyncWith;
use tailring::model::{Identity, Incarnation, Member, MemberState};

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct PeerCall {
    /// `None`: a router.
    pub(crate) from: Option<(Identity, MemberState)>,
    /// Which life is meant, if that is known.
    pub(crate) to: (Member, Option<Incarnation>),
    pub(crate) what: Said,
}

#[derive(Debug, Clone)]
pub(crate) enum Said {
    /// With where the caller serves.
    Hello {
        otlp: SocketAddr,
        peer: SocketAddr,
    },
    View,
    Handoff(Bytes),
    /// How much is there for the caller? `is_first`: once a round.
    Sync {
        is_first: bool,
    },
}

/// Its answer, with who gives it.
#[derive(Debug, Clone)]
pub(crate) struct PeerReply {
    pub(crate) by: Identity,
    pub(crate) state: MemberState,
    pub(crate) what: Told,
}

#[derive(Debug, Clone)]
pub(crate) enum Told {
    Hello {
        otlp: SocketAddr,
        peer: SocketAddr,
    },
    View(Vec<ToldMember>),
    Receipt(Bytes),
    /// `None`: the caller is not in this worker's ring.
    Left(Option<u64>),
}

/// What a process waits for that takes its answers as events.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    Hello(Member),
    View,
    Sync(SyncWith),
    Handoff(u64),
}
