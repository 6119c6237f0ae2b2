//! Asks workers who is there, so that a router need not wait for DNS: one worker every two seconds, and at most one
//! a second when an answer shows that a worker believes in another ring. What is made of it is `cluster/followed`'s.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::seq::IteratorRandom as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::cluster::{Following, Told, ToldMember, ViewHandle};
use crate::model::Member;
use crate::net::peer::{ClusterView, KnownMember, PeerClient, PeerMetrics, PeerTarget};

/// As workers say hello.
const EVERY: Duration = Duration::from_secs(2);
/// Every response of every lane may be such a hint.
const HINTED_MIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Follower {
    client: PeerClient,
    view: ViewHandle,
    told: mpsc::Sender<Told>,
    peers: watch::Receiver<BTreeMap<Member, SocketAddr>>,
}

impl Follower {
    pub fn new(cluster: &str, following: Following, calls: PeerMetrics) -> Self {
        Self {
            client: PeerClient::new(cluster, None, calls),
            view: following.view,
            told: following.told,
            peers: following.peers,
        }
    }

    /// Runs until it is aborted.
    pub fn spawn(self) -> JoinHandle<()> {
        tokio::spawn(self.run())
    }

    async fn run(mut self) {
        loop {
            let asked_at = Instant::now();
            self.ask().await;
            tokio::select! {
                () = sleep_until(asked_at + EVERY) => {}
                () = self.view.difference_seen() => sleep_until(asked_at + HINTED_MIN).await,
                changed = self.peers.changed() => match changed {
                    // The first ones, or others: at once only if there was nobody to ask.
                    Ok(()) => sleep_until(asked_at + HINTED_MIN).await,
                    Err(_) => return,
                },
            }
        }
    }

    async fn ask(&mut self) {
        let peers = self.peers.borrow_and_update().clone();
        let target = |address: SocketAddr| PeerTarget {
            address,
            incarnation: None,
        };
        let targets: BTreeMap<_, _> = peers
            .iter()
            .map(|(member, address)| (member.clone(), target(*address)))
            .collect();
        self.client.set_peers(&targets);
        self.client.announce(
            crate::model::MemberState::Joining,
            self.view.load().fingerprint(),
        );
        // Whoever it is tells of all.
        let Some(member) = peers.into_keys().choose(&mut rand::rng()) else {
            return;
        };
        match self.client.view(&member).await {
            // Only the end of the process makes it fail.
            Ok(view) => drop(self.told.send(told(view)).await),
            Err(error) => debug!(%member, %error, "a worker did not say who is there"),
        }
    }
}

fn told(view: ClusterView) -> Told {
    let member = |it: KnownMember| ToldMember {
        member: it.member,
        said: it.said,
        suspect: it.suspect,
        silent: it.silent,
        otlp: it.otlp,
        peer: it.peer,
    };
    Told {
        members: view.members.into_iter().map(member).collect(),
    }
}
