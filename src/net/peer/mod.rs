//! How workers talk to each other, and routers ask them who is there: `proto/tailring/v1/peer.proto`.
//!
//! [`PeerClient`] calls, a [`PeerService`] is called (through [`crate::net::server::PeerServer`]). Every call says who
//! calls and who is meant; both sides check it before they look at anything else, because an address may have
//! got a new owner and a name may be claimed twice. Who is believed is not decided here: the service is asked
//! ([`PeerService::admit`]). What handoff and sync carry is opaque here: bytes that `worker` writes and reads.

mod client;
mod codec;
mod message;
mod metrics;

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;

use crate::model::{Fingerprint, Identity, Incarnation, Member, MemberState};
use crate::net::status::Refusal;

pub use client::{PeerClient, PeerTarget};
pub use metrics::PeerMetrics;

pub(in crate::net) use codec::{Answering, Asked, Call};

/// The most that one handoff or sync carries, each way: 4 MiB with who calls.
pub const ITEMS_BYTES_MAX: usize = (4 << 20) - (4 << 10);

/// Longest request: [`ITEMS_BYTES_MAX`] and the longest caller.
pub(in crate::net) const REQUEST_BYTES_MAX: usize = 4 << 20;

/// Where a member says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// `None`: where the other side sees it.
    pub ip: Option<IpAddr>,
    pub port: u16,
}

/// Who calls, and whom it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub cluster: String,
    /// `None`: a router, which may only ask for the view.
    pub from: Option<(Identity, MemberState)>,
    /// Of the caller's view.
    pub fingerprint: Fingerprint,
    pub to: (Member, Option<Incarnation>),
}

/// What a worker says of itself, and a peer in answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub identity: Identity,
    pub state: MemberState,
    pub otlp: Announced,
    pub peer: Announced,
}

/// A hello that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloAnswer {
    pub hello: Hello,
    /// Of the callee's view.
    pub fingerprint: Option<Fingerprint>,
}

/// One member as a worker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMember {
    pub member: Member,
    /// `None`: nothing but DNS speaks of it.
    pub said: Option<(Incarnation, MemberState)>,
    /// Left out of the ring because it was unreachable for so long.
    pub suspect: bool,
    /// Since it was last heard of by hello.
    pub silent: Duration,
    pub otlp: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
}

/// What a worker knows of its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    pub from: Identity,
    pub state: MemberState,
    /// Of the callee's ring. `None` if the header was lost on its way.
    pub fingerprint: Option<Fingerprint>,
    pub members: Vec<KnownMember>,
}

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Wait for the next view: no address of it is known.
    #[error("no peer address of {0} is known")]
    NoAddress(Member),
    /// Cut it in two: this is a mistake of ours.
    #[error("{0} bytes are more than one call carries")]
    TooLong(usize),
    /// It may have been heard or not. Try again.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The same.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The peer answered, and not with OK.
    #[error("refused: {message}")]
    Refused {
        /// `None`: none of ours, so no peer of this version.
        reason: Option<crate::net::status::RefusalReason>,
        message: String,
    },
    /// Somebody else answered, another life of the peer, or nonsense. What was asked for counts as not done.
    #[error("not an answer of the one that was asked: {0}")]
    Impostor(String),
}

/// What a worker does when its peers call. `hello` and `view` are answered from memory, never after another call.
pub trait PeerService: Send + Sync + 'static {
    /// Who this is. Calls for another cluster, member or incarnation never reach the methods below.
    fn identity(&self) -> &Identity;
    fn cluster(&self) -> &str;
    fn state(&self) -> MemberState;
    /// Sent with every response.
    fn fingerprint(&self) -> Fingerprint;

    /// Whether to believe that a caller is who it says it is; asked before each of the methods below but `hello`,
    /// which tells itself. `gives`: it hands over.
    fn admit(&self, caller: &Caller, gives: bool) -> Result<(), Refusal>;

    /// `seen_at`: where the caller's connection comes from.
    fn hello(&self, hello: Hello, seen_at: IpAddr) -> Result<Hello, Refusal>;

    fn view(&self) -> Vec<KnownMember>;

    fn handoff(
        &self,
        from: &Identity,
        state: MemberState,
        items: Bytes,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send;

    fn sync(
        &self,
        from: &Identity,
        items: Bytes,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send;
}

/// What moves between workers: the part of [`PeerService`] that is not about who is there. Answers are at
/// most [`ITEMS_BYTES_MAX`] long.
pub trait Exchange: Send + Sync + 'static {
    /// Takes traces and verdicts over. `Ok` promises that they are in this worker's log.
    fn receive_handoff(
        &self,
        from: &Identity,
        state: MemberState,
        items: Bytes,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send;

    /// Says what of the caller's traces and verdicts is held here.
    fn answer_sync(
        &self,
        from: &Identity,
        items: Bytes,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send;
}

impl Announced {
    /// Where that is for one who sees the member at `seen_at`.
    pub fn as_seen_at(self, seen_at: IpAddr) -> SocketAddr {
        // A socket for both families shows IPv4 as ::ffff:a.b.c.d.
        SocketAddr::new(self.ip.unwrap_or(seen_at).to_canonical(), self.port)
    }
}

impl From<SocketAddr> for Announced {
    /// A listener on all interfaces cannot say which of them others see.
    fn from(listener: SocketAddr) -> Self {
        Self {
            ip: Some(listener.ip()).filter(|ip| !ip.is_unspecified()),
            port: listener.port(),
        }
    }
}

impl fmt::Display for Announced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

impl FromStr for Announced {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither ip:port nor :port");
        let announced = match text.strip_prefix(':') {
            Some(port) => Self {
                ip: None,
                port: port.parse().map_err(|_| wrong())?,
            },
            None => Self::from(text.parse::<SocketAddr>().map_err(|_| wrong())?),
        };
        Some(announced).filter(|it| it.port > 0).ok_or_else(wrong)
    }
}

impl Caller {
    /// The part of the check that needs no memory: is it this cluster, this member, this life of it?
    pub(in crate::net) fn means(&self, me: &Identity, cluster: &str) -> Result<(), Refusal> {
        use crate::net::status::RefusalReason as Why;
        let (to, to_incarnation) = &self.to;
        if self.cluster != cluster {
            let detail = format!(
                "this is cluster {cluster:?}, the caller's is {:?}",
                self.cluster
            );
            return Err(Refusal::new(Why::WrongCluster, detail));
        }
        if *to != me.member {
            let detail = format!("this is {}, the call is for {to}", me.member);
            return Err(Refusal::new(Why::WrongMember, detail));
        }
        match to_incarnation {
            Some(meant) if *meant != me.incarnation => {
                let detail = format!(
                    "this is incarnation {}, the call is for {meant}",
                    me.incarnation
                );
                Err(Refusal::new(Why::WrongIncarnation, detail))
            }
            _ => Ok(()),
        }
    }
}
