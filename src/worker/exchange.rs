//! What moves between this worker and its peers: traces and verdicts. Who is there, and when they are
//! asked, is `peering`'s.

use bytes::Bytes;

use crate::model::{Identity, Member, MemberState};
use crate::net::peer::{Exchange, PeerClient, PeerError};
use crate::net::status::{Refusal, RefusalReason};
use crate::worker::Worker;

impl Exchange for Worker {
    async fn receive_handoff(
        &self,
        _from: &Identity,
        _state: MemberState,
        _items: Bytes,
    ) -> Result<Bytes, Refusal> {
        Err(Refusal::new(
            RefusalReason::Unimplemented,
            "this version takes no traces over; the sender keeps them",
        ))
    }

    /// Nothing is kept apart for others in this version.
    async fn answer_sync(&self, _from: &Identity, _items: Bytes) -> Result<Bytes, Refusal> {
        Ok(Bytes::new())
    }
}

impl Worker {
    /// Asks `peer` for all that it holds for this worker. `Ok`: there is no more.
    pub(crate) async fn sync_with(
        &self,
        peers: &PeerClient,
        peer: &Member,
    ) -> Result<(), PeerError> {
        peers.sync(peer, Bytes::new()).await.map(drop)
    }
}
