//! A router, three workers and the backend behind them; what the backend got, and what the processes counted.

use std::net::SocketAddr;

use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use serde_json::Value;
use tempfile::TempDir;

use crate::books::received;
use crate::process::{PATIENCE, Process, ROUTER, Scrape, WORKER, free_address, page, until};
use crate::receiver::Receiver;

/// Keeps half of the traces, each known by its ID. Longer than the SDKs hold a span back, see `fleet`.
pub const POLICIES: &str = "decision_wait: 3s
policies:
  - name: half
    type: probabilistic
    probabilistic: {sampling_percentage: 50}
";

pub struct Installation {
    backend: Receiver,
    workers: Vec<Tier>,
    router: Tier,
    pub dir: TempDir,
}

pub struct Tier {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    admin: SocketAddr,
    _process: Process,
}

impl Tier {
    async fn ready(&self) {
        until("the processes are ready", PATIENCE, async || {
            matches!(page(self.admin, "/readyz").await, Some((200, _))).then_some(())
        })
        .await;
    }

    async fn metrics(&self) -> Scrape {
        until("metrics", PATIENCE, async || Scrape::of(self.admin).await).await
    }
}

impl Installation {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::write(dir.path().join("policies.yaml"), POLICIES).unwrap();
        let backend = Receiver::start().await;
        let names = ["a", "b", "c"];
        let listeners: Vec<[SocketAddr; 3]> = (0..=names.len())
            .map(|_| [(); 3].map(|()| free_address()))
            .collect();
        let peers = names.map(|name| (name, free_address()));
        let peers = std::collections::BTreeMap::from(peers);
        let members: Vec<String> = names
            .iter()
            .zip(&listeners)
            .map(|(name, [grpc, ..])| format!("{name}={grpc}/{}", peers[name].port()))
            .collect();
        let members = format!("static://{}", members.join(","));
        let tier = |binary, name: &str, listeners: [SocketAddr; 3], more: &[String]| {
            let [grpc, http, admin] = listeners;
            let mut args = vec![
                format!("--workers={members}"),
                format!("--listen-grpc={grpc}"),
                format!("--listen-http={http}"),
                format!("--listen-admin={admin}"),
            ];
            args.extend_from_slice(more);
            Tier {
                grpc,
                http,
                admin,
                _process: Process::start(binary, &args, dir.path(), name),
            }
        };
        let workers: Vec<Tier> = names
            .iter()
            .zip(&listeners)
            .map(|(name, listeners)| {
                let more = [
                    format!("--name={name}"),
                    format!("--listen-peers={}", peers[name]),
                    "--policies=policies.yaml".to_owned(),
                    format!("--data-dir=data-{name}"),
                    format!("--export=grpc://{}", backend.address),
                    "--log-max-bytes=4GiB".to_owned(),
                ];
                tier(WORKER, name, *listeners, &more)
            })
            .collect();
        let router = tier(ROUTER, "router", listeners[names.len()], &[]);
        for each in workers.iter().chain([&router]) {
            each.ready().await;
        }
        Self {
            backend,
            workers,
            router,
            dir,
        }
    }

    pub fn router(&self) -> &Tier {
        &self.router
    }

    async fn workers_sum(&self, metric: &str) -> u64 {
        let mut sum = 0;
        for worker in &self.workers {
            sum += worker.metrics().await.sum(metric, &[]);
        }
        sum
    }

    /// Waits until so many traces are decided and so many spans exported, and nothing is left to do.
    pub async fn settled(&self, traces: usize, spans: usize) {
        until("all is decided and exported", PATIENCE, async || {
            let decided = self
                .workers_sum("tailring_worker_traces_decided_total")
                .await;
            let exported = self.workers_sum("tailring_export_spans_total").await;
            let undecided = self.workers_sum("tailring_worker_undecided_traces").await;
            let awaiting = self
                .workers_sum("tailring_worker_awaiting_export_traces")
                .await;
            println!("{decided} of {traces} decided, {exported} of {spans} exported");
            (decided == traces as u64 && exported >= spans as u64 && undecided + awaiting == 0)
                .then_some(())
        })
        .await;
    }

    /// The router took every request over this protocol, and every span of them.
    pub async fn assert_all_accepted(&self, protocol: &str, spans: usize) {
        let metrics = self.router.metrics().await;
        let requests = "tailring_requests_total";
        let label = match protocol {
            "grpc" => "protocol=\"grpc\"",
            _ => "protocol=\"http\"",
        };
        let accepted = metrics.sum(requests, &["outcome=\"accepted\"", label]);
        assert!(accepted > 0);
        assert_eq!(metrics.sum(requests, &[]), accepted);
        for counter in ["received", "accepted"] {
            let counter = format!("tailring_router_spans_{counter}_total");
            assert_eq!(metrics.sum(&counter, &[]), spans as u64, "{counter}");
        }
        for counter in ["spans_rejected", "spans_surrogate"] {
            let counter = format!("tailring_router_{counter}_total");
            assert_eq!(metrics.sum(&counter, &[]), 0, "{counter}");
        }
    }

    /// All spans that the backend has, in the form of [`received`].
    pub fn got(&self, sdk: &str) -> Vec<Value> {
        let got = self.backend.got();
        let resources = got.iter().flat_map(|got| {
            let member = got.metadata["tailring-member"].to_str().unwrap();
            let of_member = |resource: &ResourceSpans| received(resource, sdk, member);
            got.request.resource_spans.iter().map(of_member)
        });
        resources.flatten().collect()
    }
}
