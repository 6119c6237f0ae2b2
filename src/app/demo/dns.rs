//! The demo's DNS server: what a cluster's DNS is to the workers' headless Service. Knows the
//! records that its starter writes to stdin, and nothing else.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr as _;
use std::time::Duration;

use hickory_proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};

use super::service::say;

/// Serves SRV and A records that come as one JSON line on stdin.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct DnsArgs {}

/// All there is to know, as one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Records {
    pub(super) services: Vec<Service>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Service {
    /// The name that is asked for SRV records.
    pub(super) name: String,
    /// Host names and where they are reached.
    pub(super) targets: Vec<(String, SocketAddr)>,
}

const TTL_SECONDS: u32 = 5;
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_RESPONSES: usize = 64;
/// Tries to find a port that is free in UDP and TCP.
const BIND_TRIES: usize = 100;

/// Until it is ended.
pub(super) async fn run(mut lines: mpsc::Receiver<String>) -> anyhow::Result<ExitCode> {
    let (udp, tcp) = bind().await?;
    let address = udp.local_addr()?;
    // A question that comes before the records waits for them: everything starts at the same
    // time, and who was told no asks again only seconds later.
    let (known, zone) = watch::channel(None);
    let mut server = Server::new(Handler { zone });
    server.register_socket(udp);
    server.register_listener(tcp, TCP_TIMEOUT, TCP_RESPONSES);
    say("listening for DNS", address);
    while let Some(line) = lines.recv().await {
        known.send_replace(Some(Zone::new(&serde_json::from_str(&line)?)?));
    }
    server.block_until_done().await?;
    Ok(ExitCode::SUCCESS)
}

async fn bind() -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(error) if tries == BIND_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

#[derive(Debug, Clone)]
struct Zone {
    services: Vec<(Name, Targets)>,
}

type Targets = Vec<(SRV, SocketAddr)>;

struct Handler {
    zone: watch::Receiver<Option<Zone>>,
}

impl Zone {
    fn new(records: &Records) -> anyhow::Result<Self> {
        let services = records.services.iter().map(|service| {
            let targets = service.targets.iter().map(|(target, address)| {
                let srv = SRV::new(0, 50, address.port(), Name::from_str(target)?);
                Ok((srv, *address))
            });
            let targets = targets.collect::<anyhow::Result<_>>()?;
            Ok((Name::from_str(&service.name)?, targets))
        });
        Ok(Self {
            services: services.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Answers and additional records; `None` for a name that does not exist.
    fn answer(&self, question: &Name, kind: RecordType) -> Option<(Vec<Record>, Vec<Record>)> {
        let record = |owner: &Name, data| Record::from_rdata(owner.clone(), TTL_SECONDS, data);
        let host = |(srv, address): &(SRV, SocketAddr)| match address {
            SocketAddr::V4(address) => Some(record(&srv.target, RData::A(A(*address.ip())))),
            SocketAddr::V6(_) => None,
        };
        if let Some((_, targets)) = self.services.iter().find(|(name, _)| name == question) {
            let targets = targets.iter().filter(|_| kind == RecordType::SRV);
            return Some((
                targets
                    .clone()
                    .map(|(srv, _)| record(question, RData::SRV(srv.clone())))
                    .collect(),
                targets.filter_map(host).collect(),
            ));
        }
        // Each service has all hosts.
        let mut hosts = self
            .services
            .first()?
            .1
            .iter()
            .filter(|(srv, _)| srv.target == *question);
        hosts.clone().next()?;
        let addresses = hosts.by_ref().filter(|_| kind == RecordType::A);
        Some((addresses.filter_map(host).collect(), Vec::new()))
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let mut head = Metadata::response_from_request(&request.metadata);
        head.authoritative = true;
        let mut zone = self.zone.clone();
        // An error: the sender is gone, with the process.
        let zone = zone.wait_for(Option::is_some).await;
        let zone = zone.ok().and_then(|zone| zone.clone());
        let answer = match (request.request_info(), zone) {
            (Ok(info), Some(zone)) => {
                let question = Name::from(info.query.name()).to_lowercase();
                zone.answer(&question, info.query.query_type())
                    .ok_or(ResponseCode::NXDomain)
            }
            (Err(_), _) => Err(ResponseCode::FormErr),
            (_, None) => Err(ResponseCode::ServFail),
        };
        let (answers, additionals) = match answer {
            Ok(records) => records,
            Err(code) => {
                head.response_code = code;
                Default::default()
            }
        };
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &request.edns {
            builder.edns(edns);
        }
        let message = builder.build(head, &answers, [], [], &additionals);
        // A client that went away has no use for it.
        let sent = response.send_response(message).await;
        sent.unwrap_or_else(|_| {
            ResponseInfo::from(Header {
                metadata: head,
                counts: HeaderCounts::default(),
            })
        })
    }
}
