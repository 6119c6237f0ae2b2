//! Calls to peers: two connections each, made at the first need, so that a hello never waits behind data.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::codec::{self, Call};
use super::{Caller, ClusterView, Hello, HelloAnswer, ITEMS_BYTES_MAX, PeerError, PeerMetrics};
use crate::model::{Fingerprint, Identity, Incarnation, Member, MemberState};
use crate::net::client::{ClientConfig, ExportError, GrpcClient, Message, Target};
use crate::net::status::RefusalReason;

/// Hello and view: half of the interval in which they are sent, so that a round ends before the next.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(1);
/// Handoff and sync: 4 MiB over a slow network, and a sync of a slow disk.
const DATA_TIMEOUT: Duration = Duration::from_secs(5);
/// As the ring.
const MEMBERS_MAX: usize = 4096;

/// Where a member is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerTarget {
    pub address: SocketAddr,
    /// Once known. Data is only given to this life of it.
    pub incarnation: Option<Incarnation>,
}

/// See the module.
#[derive(Debug)]
pub struct PeerClient {
    cluster: String,
    me: Option<Identity>,
    /// Who sends it is not asked about while this is locked.
    state: Mutex<State>,
    metrics: PeerMetrics,
}

#[derive(Debug)]
struct State {
    /// What every call says of the caller.
    member_state: MemberState,
    fingerprint: Fingerprint,
    peers: BTreeMap<Member, Peer>,
}

#[derive(Debug)]
struct Peer {
    target: PeerTarget,
    control: Arc<GrpcClient>,
    data: Arc<GrpcClient>,
}

struct Found {
    caller: Caller,
    client: Arc<GrpcClient>,
    address: SocketAddr,
}

impl PeerClient {
    /// `me` is `None` in a router.
    pub fn new(cluster: impl Into<String>, me: Option<Identity>, metrics: PeerMetrics) -> Self {
        Self {
            cluster: cluster.into(),
            me,
            state: Mutex::new(State {
                member_state: MemberState::Joining,
                fingerprint: Fingerprint(0),
                peers: BTreeMap::new(),
            }),
            metrics,
        }
    }

    /// What calls say of this process from now on.
    pub fn announce(&self, member_state: MemberState, fingerprint: Fingerprint) {
        let mut state = self.state();
        state.member_state = member_state;
        state.fingerprint = fingerprint;
    }

    /// Whom this process can call from now on, and where. Connections to others are cut.
    pub fn set_peers(&self, targets: &BTreeMap<Member, PeerTarget>) {
        let peers = &mut self.state().peers;
        peers.retain(|member, _| targets.contains_key(member));
        for (member, target) in targets {
            let Ok(address) = Target::plain(target.address) else {
                continue; // an address is always an authority
            };
            match peers.get_mut(member) {
                Some(peer) => {
                    peer.target = *target;
                    peer.control.set_target(address.clone());
                    peer.data.set_target(address);
                }
                None => {
                    let peer = Peer {
                        target: *target,
                        control: Arc::new(GrpcClient::new(address.clone(), config(1 << 20))),
                        data: Arc::new(GrpcClient::new(address, config(4 << 20))),
                    };
                    peers.insert(member.clone(), peer);
                }
            }
        }
    }

    /// Says `hello`, with the address at which it was answered.
    pub async fn hello(
        &self,
        to: &Member,
        hello: &Hello,
    ) -> Result<(HelloAnswer, SocketAddr), PeerError> {
        let result = self.say_hello(to, hello).await;
        self.metrics.count(Call::Hello, &result);
        result
    }

    /// Asks for the members that `to` knows.
    pub async fn view(&self, to: &Member) -> Result<ClusterView, PeerError> {
        let result = self.ask_view(to).await;
        self.metrics.count(Call::View, &result);
        result
    }

    /// Gives `items` to `to`, at most [`ITEMS_BYTES_MAX`]; its answer. `Ok`: this life of `to` has them in its log.
    pub async fn handoff(&self, to: &Member, items: Bytes) -> Result<Bytes, PeerError> {
        let result = self.items(Call::Handoff, to, items).await;
        self.metrics.count(Call::Handoff, &result);
        result
    }

    /// Asks `to` for what it holds that belongs here.
    pub async fn sync(&self, to: &Member, items: Bytes) -> Result<Bytes, PeerError> {
        let result = self.items(Call::Sync, to, items).await;
        self.metrics.count(Call::Sync, &result);
        result
    }

    async fn say_hello(
        &self,
        to: &Member,
        hello: &Hello,
    ) -> Result<(HelloAnswer, SocketAddr), PeerError> {
        let mut found = self.find(to, |peer| &peer.control)?;
        // A hello is how another life of a name is found out.
        found.caller.to.1 = None;
        let request = vec![codec::hello_request(&found.caller, hello)];
        let answer = call(&found.client, Call::Hello, request, CONTROL_TIMEOUT).await?;
        let answer = codec::hello_answer(answer.bytes, answer.view).map_err(PeerError::Impostor)?;
        check(to, None, &answer.hello.identity)?;
        Ok((answer, found.address))
    }

    async fn ask_view(&self, to: &Member) -> Result<ClusterView, PeerError> {
        let mut found = self.find(to, |peer| &peer.data)?;
        found.caller.to.1 = None;
        let request = vec![codec::view_request(&found.caller)];
        let answer = call(&found.client, Call::View, request, CONTROL_TIMEOUT).await?;
        let view = codec::view_answer(answer.bytes, answer.view, MEMBERS_MAX)
            .map_err(PeerError::Impostor)?;
        check(to, None, &view.from)?;
        Ok(view)
    }

    async fn items(&self, kind: Call, to: &Member, items: Bytes) -> Result<Bytes, PeerError> {
        if items.len() > ITEMS_BYTES_MAX {
            return Err(PeerError::TooLong(items.len()));
        }
        let Found { caller, client, .. } = self.find(to, |peer| &peer.data)?;
        let request = codec::items_request(&caller, items);
        let answer = call(&client, kind, request, DATA_TIMEOUT).await?;
        let (from, items) = codec::items_answer(answer.bytes).map_err(PeerError::Impostor)?;
        check(to, caller.to.1, &from)?;
        Ok(items)
    }

    fn find(
        &self,
        to: &Member,
        which: impl FnOnce(&Peer) -> &Arc<GrpcClient>,
    ) -> Result<Found, PeerError> {
        let state = self.state();
        let peer = state
            .peers
            .get(to)
            .ok_or_else(|| PeerError::NoAddress(to.clone()))?;
        Ok(Found {
            caller: Caller {
                cluster: self.cluster.clone(),
                from: self.me.clone().map(|me| (me, state.member_state)),
                fingerprint: state.fingerprint,
                to: (to.clone(), peer.target.incarnation),
            },
            client: Arc::clone(which(peer)),
            address: peer.target.address,
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing in this file panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without pings: a hello every 2 s is one, and a call that times out retires its connection.
fn config(response_bytes_max: usize) -> ClientConfig {
    ClientConfig {
        keep_alive: None,
        connect_timeout: CONTROL_TIMEOUT,
        response_bytes_max,
        ..ClientConfig::peer()
    }
}

async fn call(
    client: &GrpcClient,
    call: Call,
    request: Vec<Bytes>,
    timeout: Duration,
) -> Result<Message, PeerError> {
    let metadata = HeaderMap::new();
    let called = client.unary(call.path(), request, &metadata, timeout);
    called.await.map_err(|error| match error {
        ExportError::Refused { message, code, .. } => PeerError::Refused {
            reason: RefusalReason::in_message(&message).map(|(reason, _)| reason),
            message: format!("{code}: {message}"),
        },
        ExportError::Unreachable(why) => PeerError::Unreachable(why),
        ExportError::TimedOut(after) => PeerError::TimedOut(after),
    })
}

fn check(to: &Member, incarnation: Option<Incarnation>, from: &Identity) -> Result<(), PeerError> {
    if from.member != *to {
        return Err(PeerError::Impostor(format!(
            "{} answers for {to}",
            from.member
        )));
    }
    match incarnation {
        Some(meant) if meant != from.incarnation => Err(PeerError::Impostor(format!(
            "incarnation {} of {to} answers for {meant}",
            from.incarnation
        ))),
        _ => Ok(()),
    }
}
