//! The tasks that give other members what shards have for them, and those that read traces again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::{message, parts};
use crate::log::{Disk, ReadError, StoredFragment, Volume};
use crate::model::{Extent, SteadyClock};
use crate::net::peer::{ITEMS_BYTES_MAX, PeerClient};
use crate::trace::FragmentRef;
use crate::worker::shard::{HandoffAnswer, HandoffTrace, HandoffWork};
use crate::worker::shard_thread::ShardHandle;

/// Pieces of work that a shard has under way: one member that does not answer holds one of them for as long
/// as a call may take.
const SENDERS_PER_SHARD: usize = 3;
/// Of fragments in one message; with their headers it is to fit into one call.
const WORK_BYTES: u64 = 2 << 20;
/// All senders of a worker together: 256 MiB in four seconds, and half of a gigabit link is left to clients.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// What the tasks of all shards share.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// When so many bytes may go.
    async fn wait(&self, bytes: usize) {
        let now = Instant::now();
        let at = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.unwrap_or(now).max(now);
            let nanos = bytes as u64 * 1_000_000_000 / BYTES_PER_SECOND;
            *next = Some(at + Duration::from_nanos(nanos));
            at
        };
        sleep_until(at).await;
    }
}

/// Of one shard.
pub(crate) struct Sender<D: Disk> {
    pub(crate) shard: ShardHandle,
    pub(crate) volume: Arc<Volume<D>>,
    /// Nothing is sent before there is one.
    pub(crate) peers: watch::Receiver<Option<Arc<PeerClient>>>,
    pub(crate) clock: SteadyClock,
    pub(crate) pace: Arc<Pace>,
}

/// Work as bytes.
enum Encoded {
    /// Of the first traces; the others are for a message of their own.
    Message(Bytes),
    /// Not even the first generation fits into a message.
    TooLong,
    Unreadable(ReadError),
}

impl<D: Disk> Sender<D> {
    pub(crate) fn spawn(self) -> Vec<JoinHandle<()>> {
        let sender = Arc::new(self);
        let mut tasks = vec![tokio::spawn(sender.clone().read_again())];
        for _ in 0..SENDERS_PER_SHARD {
            tasks.push(tokio::spawn(sender.clone().send()));
        }
        tasks
    }

    async fn send(self: Arc<Self>) {
        let mut peers = self.peers.clone();
        let Ok(peers) = peers.wait_for(Option::is_some).await.map(|it| it.clone()) else {
            return;
        };
        let Some(peers) = peers else {
            return;
        };
        let mut bytes_max = WORK_BYTES;
        while let Some(work) = self.shard.pull_handoff(bytes_max).await {
            let sender = self.clone();
            // Reading is file I/O: not for the threads that serve sockets.
            let encoded = tokio::task::spawn_blocking(move || {
                let encoded = sender.encode(&work);
                (work, encoded)
            });
            let Ok((work, encoded)) = encoded.await else {
                // The runtime is shutting down; what was not acknowledged stays in the log.
                return;
            };
            match encoded {
                Encoded::Message(message) => {
                    bytes_max = WORK_BYTES;
                    let answer = self.exchange(&peers, &work, &message).await;
                    self.shard.handed_over(work, answer);
                }
                Encoded::TooLong => {
                    bytes_max = (bytes_max / 8).max(1);
                    // Nothing of it was sent: it is asked for again, in smaller pieces.
                    let nothing = HandoffAnswer {
                        untold: work.decisions.iter().map(|it| it.trace).collect(),
                        ..HandoffAnswer::default()
                    };
                    self.shard.handed_over(work, Some(nothing));
                }
                Encoded::Unreadable(error) => {
                    tracing::error!(%error, "traces cannot be read back to be handed over; trying again");
                    self.shard.handed_over(work, None);
                }
            }
        }
    }

    /// The receiver's answer; `None` if nobody can say what became of it.
    async fn exchange(
        &self,
        peers: &PeerClient,
        work: &HandoffWork,
        message: &Bytes,
    ) -> Option<HandoffAnswer> {
        let mut last = None;
        for call in parts::cut(message, rand::random(), ITEMS_BYTES_MAX) {
            self.pace.wait(call.len()).await;
            match peers.handoff(&work.to, call).await {
                Ok(answer) => last = Some(answer),
                Err(error) => {
                    tracing::debug!(to = %work.to, %error, "a handoff failed; it will be repeated");
                    return None;
                }
            }
        }
        match message::decode_answer(&last?, self.clock.now()) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(to = %work.to, %error, "the answer to a handoff makes no sense");
                None
            }
        }
    }

    fn encode(&self, work: &HandoffWork) -> Encoded {
        let mut read: Vec<(&HandoffTrace, Vec<StoredFragment>)> = Vec::new();
        let mut bytes = 0;
        for trace in &work.traces {
            let extents: Vec<Extent> = trace.fragments.iter().map(FragmentRef::extent).collect();
            let stored = match self.volume.read(&extents) {
                Ok(stored) => stored,
                Err(error) => return Encoded::Unreadable(error),
            };
            let len: usize = stored.iter().map(message::fragment_len).sum();
            if read.is_empty() && len > parts::MESSAGE_BYTES_MAX / 2 && stored.len() > 1 {
                return Encoded::TooLong;
            }
            if !read.is_empty() && bytes + len > ITEMS_BYTES_MAX / 8 * 7 {
                break;
            }
            bytes += len;
            read.push((trace, stored));
        }
        let traces: Vec<_> = read
            .iter()
            .map(|(trace, stored)| (*trace, &stored[..]))
            .collect();
        let message = message::encode(&work.decisions, &traces, self.clock.now());
        Encoded::Message(message.into())
    }

    async fn read_again(self: Arc<Self>) {
        while let Some(reopen) = self.shard.pull_reopen().await {
            let sender = self.clone();
            let read = tokio::task::spawn_blocking(move || {
                let found = reopen.read(&sender.volume);
                (reopen, found)
            });
            let Ok((reopen, found)) = read.await else {
                return;
            };
            let found = found.map_err(|error| {
                tracing::error!(%error, "a trace cannot be read again; its verdict stands");
            });
            self.shard.reopened(reopen, found.ok());
        }
    }
}
