//! Connections to other workers, for traces that belong to them.
//!
//! Rare traffic: a router with an older view, or a client that speaks to a worker directly. One
//! connection a peer, made at the first need, dropped when the peer leaves the view.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::cluster::View;
use crate::model::Member;
use crate::net::client::{ClientConfig, ExportError, GrpcClient, Target};
use crate::net::metadata::RequestMetadata;

/// How long an owner may take before its traces are held here. The sender upstream waits too: its
/// own attempt ends at 2 s, so this must end before.
const PASS_ON_TIMEOUT: Duration = Duration::from_millis(1500);

#[derive(Debug, Default)]
pub(crate) struct Peers {
    clients: Mutex<BTreeMap<Member, (SocketAddr, Arc<GrpcClient>)>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PassOnError {
    #[error("it has no address in this view")]
    NoAddress,
    #[error(transparent)]
    Export(#[from] ExportError),
}

impl Peers {
    pub(crate) async fn pass_on(
        &self,
        owner: &Member,
        message: Bytes,
        view: &View,
    ) -> Result<(), PassOnError> {
        let client = self.client(owner, view).ok_or(PassOnError::NoAddress)?;
        let metadata = RequestMetadata {
            to: Some((owner.clone(), None)),
            hop: 1,
            view: Some(view.fingerprint()),
            ..RequestMetadata::default()
        };
        let mut headers = http::HeaderMap::new();
        metadata.write_to(&mut headers);
        client
            .export(vec![message], &headers, PASS_ON_TIMEOUT)
            .await?;
        Ok(())
    }

    fn client(&self, owner: &Member, view: &View) -> Option<Arc<GrpcClient>> {
        let address = *view.addresses.get(owner)?;
        // Nothing in here panics, so a poisoned lock cannot hold a half-made map.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|member, _| view.addresses.contains_key(member));
        let target = Target::plain(address).ok()?;
        let (known, client) = clients.entry(owner.clone()).or_insert_with(|| {
            let client = GrpcClient::new(target.clone(), ClientConfig::peer());
            (address, Arc::new(client))
        });
        if *known != address {
            *known = address;
            client.set_target(target);
        }
        Some(client.clone())
    }
}
