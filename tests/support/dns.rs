//! A real DNS server inside the test's process: hickory-server over UDP and TCP on one port of
//! 127.0.0.1, whose records and misbehaviour change while it runs. Knows nothing about Tailring.
//!
//! Used with `#[path = "support/dns.rs"] mod dns;`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unreachable_pub,
    reason = "a module of several tests, each of which uses its part"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// How long a port that was given up may stay taken by someone else.
const REBIND_TIMEOUT: Duration = Duration::from_secs(10);

/// How the server answers while it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Answer,
    ServFail,
    NxDomain,
    /// NOERROR without records.
    Empty,
    /// Half of the answer with TC over UDP, all of it over TCP.
    TruncatedOverUdp,
    /// Half of the answer with TC, always.
    Truncated,
    Refused,
    /// Takes queries and never answers.
    Silent,
}

/// See the module.
pub struct DnsServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    state: State,
}

enum State {
    Up(Server<Handler>),
    /// Aborts its tasks on drop.
    Garbage(JoinSet<()>),
    Down,
}

struct Zone {
    mode: Mode,
    ttl: u32,
    /// Addresses of SRV targets come along.
    glue: bool,
    services: BTreeMap<Name, Vec<SRV>>,
    hosts: BTreeMap<Name, Vec<IpAddr>>,
    queries_udp: u64,
    queries_tcp: u64,
}

struct Handler {
    zone: Arc<Mutex<Zone>>,
}

impl DnsServer {
    pub async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into()).await
    }

    /// At another address of this machine.
    pub async fn start_at(ip: IpAddr) -> Self {
        let zone = Zone {
            mode: Mode::Answer,
            ttl: 5,
            glue: true,
            services: BTreeMap::new(),
            hosts: BTreeMap::new(),
            queries_udp: 0,
            queries_tcp: 0,
        };
        let (udp, tcp) = bind((ip, 0).into()).await;
        let mut server = Self {
            address: udp.local_addr().unwrap(),
            zone: Arc::new(Mutex::new(zone)),
            state: State::Down,
        };
        server.serve(udp, tcp);
        server
    }

    /// `ip:port`, as `?nameserver=` wants it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the SRV records of `service` (`_otlp-grpc._tcp....`) and the addresses of their
    /// targets. A target with several records keeps the addresses of all.
    pub fn set_records(&self, service: &str, targets: &[(&str, SocketAddr)]) {
        let mut hosts = BTreeMap::<Name, Vec<IpAddr>>::new();
        for (target, address) in targets {
            hosts.entry(name(target)).or_default().push(address.ip());
        }
        self.set_targets(
            service,
            targets.iter().map(|(target, a)| (*target, a.port())),
        );
        self.zone().hosts.extend(hosts);
    }

    /// Replaces the SRV records of `service` and no address.
    pub fn set_targets<'a>(
        &self,
        service: &str,
        targets: impl IntoIterator<Item = (&'a str, u16)>,
    ) {
        let records = targets.into_iter();
        let records = records.map(|(target, port)| SRV::new(0, 50, port, name(target)));
        let records = records.collect();
        self.zone().services.insert(name(service), records);
    }

    /// Replaces the A and AAAA records of a host; none removes it.
    pub fn set_host(&self, host: &str, addresses: &[IpAddr]) {
        let mut zone = self.zone();
        if addresses.is_empty() {
            zone.hosts.remove(&name(host));
        } else {
            zone.hosts.insert(name(host), addresses.to_vec());
        }
    }

    pub fn set_mode(&self, mode: Mode) {
        self.zone().mode = mode;
    }

    pub fn set_glue(&self, glue: bool) {
        self.zone().glue = glue;
    }

    pub fn set_ttl(&self, seconds: u32) {
        self.zone().ttl = seconds;
    }

    pub fn queries_udp(&self) -> u64 {
        self.zone().queries_udp
    }

    pub fn queries_tcp(&self) -> u64 {
        self.zone().queries_tcp
    }

    /// Closes the port: queries meet "connection refused".
    pub async fn go_down(&mut self) {
        if let State::Up(mut server) = std::mem::replace(&mut self.state, State::Down) {
            server.shutdown_gracefully().await.unwrap();
        }
    }

    pub async fn come_up(&mut self) {
        self.go_down().await;
        let (udp, tcp) = bind(self.address).await;
        self.serve(udp, tcp);
    }

    /// Answers every query with its ID and bytes that are no message, over UDP and TCP, until
    /// [`DnsServer::come_up`].
    pub async fn answer_garbage(&mut self) {
        self.go_down().await;
        let (udp, tcp) = bind(self.address).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(garbage_over_udp(udp, self.zone.clone()));
        tasks.spawn(garbage_over_tcp(tcp, self.zone.clone()));
        self.state = State::Garbage(tasks);
    }

    fn serve(&mut self, udp: UdpSocket, tcp: TcpListener) {
        let zone = self.zone.clone();
        let mut server = Server::new(Handler { zone });
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(30), 64);
        self.state = State::Up(server);
    }

    fn zone(&self) -> std::sync::MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(text: &str) -> Name {
    // Raw bytes, so that a test can publish names that no zone file would take. "." is the root.
    let labels = text.split('.').filter(|label| !label.is_empty());
    let name = Name::from_labels(labels.map(str::as_bytes)).unwrap();
    name.to_lowercase()
}

/// UDP and TCP on one port. Port 0 finds one that is free in both.
async fn bind(address: SocketAddr) -> (UdpSocket, TcpListener) {
    let both = async {
        loop {
            if let Ok(tcp) = TcpListener::bind(address).await
                && let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await
            {
                return (udp, tcp);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let bound = tokio::time::timeout(REBIND_TIMEOUT, both).await;
    bound.expect("a port free in UDP and TCP")
}

fn nonsense(query: &[u8]) -> Vec<u8> {
    // The query's ID, "response, NOERROR", counts far beyond the bytes, and noise.
    let mut bytes = query.get(..2).unwrap_or(&[0, 0]).to_vec();
    bytes.extend_from_slice(&[0x84, 0x00, 0, 1, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff]);
    bytes.extend((0..64u8).map(|i| i.wrapping_mul(197) | 0xc0));
    bytes
}

async fn garbage_over_udp(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        zone.lock().unwrap().queries_udp += 1;
        let answer = nonsense(&buffer[..length]);
        if socket.send_to(&answer, from).await.is_err() {
            return;
        }
    }
}

async fn garbage_over_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 1500];
    while let Ok((mut stream, _)) = listener.accept().await {
        zone.lock().unwrap().queries_tcp += 1;
        let length = stream.read(&mut buffer).await.unwrap_or(0);
        let answer = nonsense(buffer.get(2..length).unwrap_or(&[]));
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        // A client that hung up has its garbage already.
        let _gone = stream.write_all(&framed).await;
    }
}

/// What the server says to one question.
struct Reply {
    code: ResponseCode,
    truncated: bool,
    answers: Vec<Record>,
    additionals: Vec<Record>,
}

impl Zone {
    /// `None`: says nothing.
    fn reply(&mut self, question: &Name, kind: RecordType, over_udp: bool) -> Option<Reply> {
        if over_udp {
            self.queries_udp += 1;
        } else {
            self.queries_tcp += 1;
        }
        let bare = |code| Reply {
            code,
            truncated: false,
            answers: Vec::new(),
            additionals: Vec::new(),
        };
        match self.mode {
            Mode::Silent => return None,
            Mode::ServFail => return Some(bare(ResponseCode::ServFail)),
            Mode::NxDomain => return Some(bare(ResponseCode::NXDomain)),
            Mode::Refused => return Some(bare(ResponseCode::Refused)),
            Mode::Empty => return Some(bare(ResponseCode::NoError)),
            Mode::Answer | Mode::TruncatedOverUdp | Mode::Truncated => {}
        }
        let mut reply = bare(ResponseCode::NoError);
        match self.services.get(question) {
            Some(records) if kind == RecordType::SRV => {
                for srv in records {
                    let record = self.record(question, RData::SRV(srv.clone()));
                    reply.answers.push(record);
                    if self.glue {
                        let addresses = self.addresses(&srv.target, None);
                        reply.additionals.extend(addresses);
                    }
                }
            }
            Some(_) => {}
            None if self.hosts.contains_key(question) => {
                reply.answers = self.addresses(question, Some(kind));
            }
            None => reply.code = ResponseCode::NXDomain,
        }
        reply.truncated = match self.mode {
            Mode::TruncatedOverUdp => over_udp,
            mode => mode == Mode::Truncated,
        };
        if reply.truncated {
            // Partial on purpose: whoever took it for an answer would shrink the ring.
            reply.answers.truncate(reply.answers.len().div_ceil(2));
            reply.additionals.clear();
        }
        Some(reply)
    }

    fn addresses(&self, host: &Name, kind: Option<RecordType>) -> Vec<Record> {
        let addresses = self.hosts.get(host).into_iter().flatten();
        let data = addresses.map(|ip| match ip {
            IpAddr::V4(ip) => RData::A(A(*ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
        });
        data.filter(|data| kind.is_none_or(|kind| data.record_type() == kind))
            .map(|data| self.record(host, data))
            .collect()
    }

    fn record(&self, owner: &Name, data: RData) -> Record {
        Record::from_rdata(owner.clone(), self.ttl, data)
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let info = request.request_info().unwrap();
        let question = Name::from(info.query.name()).to_lowercase();
        let over_udp = matches!(request.protocol(), Protocol::Udp);
        let kind = info.query.query_type();
        let reply = self.zone.lock().unwrap().reply(&question, kind, over_udp);
        let Some(reply) = reply else {
            return std::future::pending().await;
        };
        let mut head = Metadata::response_from_request(&request.metadata);
        head.authoritative = true;
        head.response_code = reply.code;
        head.truncation = reply.truncated;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &request.edns {
            builder.edns(edns);
        }
        let message = builder.build(head, &reply.answers, [], [], &reply.additionals);
        response.send_response(message).await.unwrap()
    }
}
