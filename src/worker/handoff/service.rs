//! What other members ask of this one: to take traces and verdicts over, and to say what is theirs. And the
//! worker's own part when it comes and goes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::intake;
use super::message::{self, MessageError};
use super::parts::Joined;
use crate::model::{Fingerprint, Member, Moment};
use crate::net::peer::{PeerClient, PeerError};
use crate::net::status::{Refusal, RefusalReason};
use crate::worker::Worker;
use crate::worker::shard::{AppendRefused, HandoffAnswer, Ownership};

/// Asked again so often while a peer has something left.
const SYNC_AGAIN: Duration = Duration::from_millis(100);
/// A peer that has not given all in this time is not waited for: it may have more than a few seconds' worth, or not have this worker
/// in its ring.
const SYNC_WITHIN: Duration = Duration::from_secs(20);
/// Looked whether all is handed over so often.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

impl Worker {
    /// `Ok` promises that what it names is in this worker's log.
    pub(crate) async fn take_over(&self, from: &Member, call: Bytes) -> Result<Bytes, Refusal> {
        if *self.leaving.borrow() {
            return Err(Refusal::new(
                RefusalReason::Unready,
                "this worker is leaving, or another one has its name: it takes nothing over",
            ));
        }
        let message = match self.unfinished_messages.take(from, &call, self.clock.now()) {
            Joined::Whole(message) => message,
            Joined::MoreToCome => return Ok(Bytes::new()),
            Joined::Refused(why) => {
                return Err(Refusal::new(RefusalReason::InvalidRequest, why));
            }
        };
        let senseless =
            |error: MessageError| Refusal::new(RefusalReason::InvalidRequest, error.to_string());
        let handed = message::decode(&message, self.clock.now()).map_err(senseless)?;
        // Its copy for the log; peers' calls are bounded before they get here.
        let permit = self.config.budget.charge(2 * message.len() as u64);
        let (incoming, received) =
            intake::divide(handed, permit, self.shards.len()).map_err(senseless)?;
        let incoming = Arc::new(incoming);
        let mut answers = Vec::new();
        for (shard, part) in self.shards.iter().zip(received) {
            if part.is_empty() {
                continue;
            }
            let answer = shard.receive(incoming.clone(), part).ok_or_else(|| {
                Refusal::new(
                    RefusalReason::ShardBusy,
                    "a shard's queue is full; send again later",
                )
            })?;
            answers.push(answer);
        }
        drop(incoming);
        let mut whole = HandoffAnswer::default();
        for answer in answers {
            match answer.await {
                Ok(Ok(answer)) => whole.add(answer),
                Ok(Err(AppendRefused::LogFull | AppendRefused::MemoryFull)) => {
                    whole.has_refused = true;
                }
                Ok(Err(AppendRefused::LogFailed)) => {
                    return Err(Refusal::new(
                        RefusalReason::LogFailed,
                        "the log cannot be written; send again later",
                    ));
                }
                Err(_) => {
                    return Err(Refusal::new(
                        RefusalReason::Unready,
                        "this worker is stopping; send again",
                    ));
                }
            }
        }
        Ok(message::encode_answer(&whole, self.clock.now()).into())
    }

    /// How much is here that belongs to `from`; it goes there as it always does.
    pub(crate) async fn say_what_is_left(
        &self,
        from: &Member,
        asked: &Bytes,
    ) -> Result<Bytes, Refusal> {
        let is_first = message::decode_sync(asked)
            .map_err(|error| Refusal::new(RefusalReason::InvalidRequest, error.to_string()))?;
        let mut left = 0_u64;
        for shard in &self.shards {
            // Who is not in this ring yet will be: its hello is on its way here.
            let here = shard.sync(from.clone(), is_first).await.unwrap_or(1);
            left = left.saturating_add(here);
        }
        Ok(message::encode_left(left).into())
    }

    /// Asks `peer` for all that it holds for this worker. `Ok`: there is no more.
    pub(crate) async fn sync_with(
        &self,
        peers: &PeerClient,
        peer: &Member,
    ) -> Result<(), PeerError> {
        let end = Instant::now() + SYNC_WITHIN;
        let mut is_first = true;
        loop {
            let asked = message::encode_sync(is_first).into();
            let answer = peers.sync(peer, asked).await?;
            let left = message::decode_left(&answer)
                .map_err(|error| PeerError::Impostor(error.to_string()))?;
            if left == 0 {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(PeerError::TimedOut(SYNC_WITHIN));
            }
            is_first = false;
            sleep(SYNC_AGAIN).await;
        }
    }

    /// From now on what belongs to others goes there.
    pub fn hand_over_by(&self, peers: Arc<PeerClient>) {
        self.peer_client.send_replace(Some(peers));
    }

    /// Tells the shards who owns what, whenever that changes.
    pub(crate) async fn follow_ring(self: Arc<Self>) {
        let mut changes = self.view.changes();
        let mut leaving = self.leaving.subscribe();
        let mut told: Option<(Fingerprint, bool)> = None;
        loop {
            let view = self.view.load();
            let leaves = *leaving.borrow_and_update();
            if told != Some((view.fingerprint(), leaves)) {
                told = Some((view.fingerprint(), leaves));
                let name = self.name.clone();
                let ownership = if leaves {
                    Ownership::of_leaving(&view.table, name)
                } else {
                    Ownership::new(view.table.clone(), name)
                };
                for shard in &self.shards {
                    shard.set_ownership(ownership.clone());
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                changed = leaving.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Waits until no request came for `quiet`, at most `longest`. At once if there is nobody to whom others could go.
    pub async fn linger(&self, quiet: Duration, longest: Duration) {
        let end = Instant::now() + longest;
        while self.has_others() && Instant::now() < end {
            let last = Moment::from_unix_millis(self.last_request.load(Ordering::Relaxed));
            if self.clock.now().since(last) >= quiet {
                return;
            }
            sleep(DRAIN_LOOK).await;
        }
    }

    fn has_others(&self) -> bool {
        let view = self.view.load();
        view.table.members().iter().any(|it| *it != self.name)
    }

    /// Without an end: another process has this one's name.
    pub(crate) fn give_all_away(&self) {
        self.leaving.send_replace(true);
    }

    /// Hands everything to the others, at most until `deadline` is over; requests may still come. Returns how
    /// many bytes are left, which the next life goes on with.
    pub async fn drain(&self, deadline: Duration) -> u64 {
        let has_others = self.has_others();
        self.leaving.send_replace(true);
        let end = Instant::now() + deadline;
        loop {
            let mut is_drained = true;
            let mut left = 0;
            for shard in &self.shards {
                let (is_empty, bytes) = shard.drained().await;
                is_drained &= is_empty;
                left += bytes;
            }
            if !has_others {
                return 0;
            }
            if is_drained || Instant::now() >= end {
                self.metrics.handoff.drain_leftover_bytes.set(left as i64);
                return left;
            }
            sleep(DRAIN_LOOK).await;
        }
    }
}
