//! What moves between this worker and its peers: traces and verdicts. Who is there, and when they are
//! asked, is `peering`'s; what comes of a call is `handoff`'s.

use bytes::Bytes;

use crate::model::{Identity, MemberState};
use crate::net::peer::Exchange;
use crate::net::status::Refusal;
use crate::worker::Worker;

impl Exchange for Worker {
    async fn receive_handoff(
        &self,
        from: &Identity,
        _state: MemberState,
        items: Bytes,
    ) -> Result<Bytes, Refusal> {
        self.take_over(&from.member, items).await
    }

    async fn answer_sync(&self, from: &Identity, items: Bytes) -> Result<Bytes, Refusal> {
        self.say_what_is_left(&from.member, &items).await
    }
}
