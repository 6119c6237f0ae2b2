//! Connections to other workers, for traces that belong to them.
//!
//! Rare traffic: a router with an older view, or a client that speaks to a worker directly. One
//! connection a peer, made at the first need, dropped when the peer leaves the view.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::cluster::View;
use crate::model::Member;
use crate::net::client::{Channel, ClientConfig, Dial, ExportError};
use crate::net::metadata::RequestMetadata;

/// How long an owner may take before its traces are held here. The sender upstream waits too: its
/// own attempt ends at 2 s, so this must end before.
const PASS_ON_TIMEOUT: Duration = Duration::from_millis(1500);

/// Each with the address that it goes to.
type Channels = BTreeMap<Member, (SocketAddr, Arc<dyn Channel>)>;

#[derive(Debug)]
pub(crate) struct Peers {
    dial: Arc<dyn Dial>,
    channels: Mutex<Channels>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PassOnError {
    #[error("it has no address in this view")]
    NoAddress,
    /// An address that was given to somebody else, who says OK to everything.
    #[error("who is there is no worker: its OK names no view")]
    NoWorker,
    #[error(transparent)]
    Export(#[from] ExportError),
}

impl Peers {
    pub(crate) fn new(dial: Arc<dyn Dial>) -> Self {
        Self {
            dial,
            channels: Mutex::default(),
        }
    }

    pub(crate) async fn pass_on(
        &self,
        owner: &Member,
        message: Bytes,
        view: &View,
    ) -> Result<(), PassOnError> {
        let channel = self.channel(owner, view).ok_or(PassOnError::NoAddress)?;
        let metadata = RequestMetadata {
            to: Some((owner.clone(), None)),
            hop: 1,
            view: Some(view.fingerprint()),
            ..RequestMetadata::default()
        };
        let mut headers = http::HeaderMap::new();
        metadata.write_to(&mut headers);
        let answer = channel
            .export(vec![message], &headers, PASS_ON_TIMEOUT)
            .await?;
        match answer.view {
            Some(_) => Ok(()),
            None => Err(PassOnError::NoWorker),
        }
    }

    fn channel(&self, owner: &Member, view: &View) -> Option<Arc<dyn Channel>> {
        let address = *view.addresses.get(owner)?;
        // Nothing in here panics, so a poisoned lock cannot hold a half-made map.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|member, _| view.addresses.contains_key(member));
        match channels.entry(owner.clone()) {
            Entry::Vacant(place) => {
                let channel = self.dial.dial(address, ClientConfig::peer()).ok()?;
                place.insert((address, channel.clone()));
                Some(channel)
            }
            Entry::Occupied(mut place) => {
                let (known, channel) = place.get_mut();
                if *known != address {
                    channel.redirect(address).ok()?;
                    *known = address;
                }
                Some(channel.clone())
            }
        }
    }
}
