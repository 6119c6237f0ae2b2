//! Asks DNS once and reads the answer. Remembers nothing but its connections: no cache, because
//! the poll beside it decides how old an answer may be.
//!
//! Whatever is not a whole, well-formed answer with at least one name is a [`Failure`], and a
//! failure changes nothing: a truncated list read as a list would be a smaller ring.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::cluster::membership::Answer;
use crate::cluster::roster::Listed;
use crate::cluster::source::{Host, PEER_PORT, Source, StaticMember};
use crate::model::Member;
use crate::ring::Table;

/// For one query to one server. A cluster's DNS answers within milliseconds or not at all.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);

/// For everything that one question takes: UDP, then TCP, each possibly twice.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(4);

/// For the addresses of all SRV targets that came without. Those not found by then keep what they
/// have.
const TARGETS_TIMEOUT: Duration = Duration::from_secs(3);

/// Lookups in flight for targets that came without addresses.
const TARGETS_IN_FLIGHT: usize = 16;

/// See the module.
pub(super) struct Resolver {
    source: Source,
    /// Made at the first question, so that an unreadable resolv.conf is a failed answer like
    /// others and is tried again.
    dns: Option<TokioResolver>,
    /// Of `srv://`.
    peer_ports: PeerPorts,
}

/// What the SRV records of the peer service say. They seldom change, and a member's hello says the same,
/// so they are asked for when there is a name that they do not list, and now and then.
#[derive(Default)]
struct PeerPorts {
    ports: BTreeMap<Member, u16>,
    asked_for: BTreeSet<Member>,
    asked_at: Option<Instant>,
}

/// Between two looks at the peer service's records if no name is new, …
const PEER_PORTS_EVERY: Duration = Duration::from_secs(30);

/// … and if there are names without one.
const MISSING_PORTS_EVERY: Duration = Duration::from_secs(5);

/// A good answer.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) answer: Answer,
    /// The smallest TTL in it; `None` when nothing in it came from DNS.
    pub(super) ttl: Option<Duration>,
    /// Names with several SRV records of different ports, of which the first port counts.
    pub(super) ambiguous: usize,
    /// Names whose address was not found.
    pub(super) without_address: usize,
}

/// Why an answer was no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("the DNS server failed (SERVFAIL)")]
    ServFail,
    #[error("the name does not exist (NXDOMAIN); names are taken as absolute, without search list")]
    NxDomain,
    #[error("the name has no records of that kind")]
    Empty,
    #[error("the answer is truncated over TCP too")]
    Truncated,
    #[error("no answer in time")]
    Timeout,
    #[error("the answer has {0} names, more than 4096")]
    TooMany(usize),
    #[error("the answer cannot be read: {0}")]
    Garbage(String),
    #[error("{0}")]
    Other(String),
}

impl Resolver {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            dns: None,
            peer_ports: PeerPorts::default(),
        }
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    pub(super) async fn ask(&mut self) -> Result<Resolved, Failure> {
        let targets = match &self.source {
            Source::Static { members, .. } => members,
            Source::Srv { service, .. } => {
                let dns = connection(&mut self.dns, &self.source)?;
                let mut resolved = ask_srv(dns, service).await?;
                self.peer_ports
                    .add(dns, service, &mut resolved.answer)
                    .await;
                return Ok(resolved);
            }
            Source::Dns {
                host,
                port,
                peer_port,
                ..
            } => {
                let dns = connection(&mut self.dns, &self.source)?;
                return ask_addresses(dns, host, *port, *peer_port).await;
            }
        };
        let mut resolved = Resolved::default();
        let mut hosts = Vec::new();
        for StaticMember {
            name,
            host,
            port,
            peer_port,
        } in targets
        {
            let otlp = match host {
                Host::Address(ip) => vec![SocketAddr::new(*ip, *port)],
                Host::Name(host) => {
                    hosts.push((name.clone(), host.clone(), *port));
                    Vec::new()
                }
            };
            let listed = Listed {
                otlp,
                peer_port: *peer_port,
            };
            resolved.answer.insert(name.clone(), listed);
        }
        if !hosts.is_empty() {
            // A list of addresses works where there is no DNS at all.
            let dns = connection(&mut self.dns, &self.source)?;
            find_addresses(dns, hosts, &mut resolved).await?;
        }
        Ok(resolved)
    }
}

impl PeerPorts {
    /// Whatever goes wrong here, the ring is known: a member without a port has the default one.
    async fn add(&mut self, dns: &TokioResolver, service: &str, answer: &mut Answer) {
        let now = Instant::now();
        let every = match answer.keys().all(|member| self.ports.contains_key(member)) {
            true => PEER_PORTS_EVERY,
            false => MISSING_PORTS_EVERY,
        };
        let is_due = self.asked_at.is_none_or(|at| now - at >= every);
        let is_new = |member| !self.asked_for.contains(member);
        if (is_due || answer.keys().any(is_new))
            && let Some(service) = peer_service(service)
        {
            self.asked_at = Some(now);
            self.asked_for = answer.keys().cloned().collect();
            if let Ok(lookup) = question(dns.srv_lookup(&service)).await {
                self.ports = peer_ports(&lookup, answer);
            }
        }
        for (member, listed) in answer {
            listed.peer_port = self.ports.get(member).copied().unwrap_or(PEER_PORT);
        }
    }
}

/// Beside `_otlp-grpc._tcp.workers.obs.svc.cluster.local.` stands `_tailring-peer._tcp.workers.…`.
fn peer_service(service: &str) -> Option<String> {
    let (_, domain) = service.split_once("._tcp.")?;
    Some(format!("_tailring-peer._tcp.{domain}"))
}

/// Bounded by `answer`: others are nobody's.
fn peer_ports(lookup: &Lookup, answer: &Answer) -> BTreeMap<Member, u16> {
    let mut ports = BTreeMap::new();
    for record in lookup.answers() {
        if let RData::SRV(srv) = &record.data
            && srv.port > 0
            && let Ok(Some(member)) = read_target(srv)
            && answer.contains_key(&member)
        {
            let port = ports.entry(member).or_insert(srv.port);
            *port = srv.port.min(*port);
        }
    }
    ports
}

fn connection<'a>(
    dns: &'a mut Option<TokioResolver>,
    source: &Source,
) -> Result<&'a TokioResolver, Failure> {
    match dns {
        Some(dns) => Ok(dns),
        None => Ok(dns.insert(connect(source)?)),
    }
}

fn connect(source: &Source) -> Result<TokioResolver, Failure> {
    let other = |error: NetError| Failure::Other(error.to_string());
    let (Source::Srv { nameserver, .. }
    | Source::Dns { nameserver, .. }
    | Source::Static { nameserver, .. }) = source;
    let mut builder = match nameserver {
        Some(address) => {
            // UDP alone would have no way to read a truncated answer again.
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            let mut builder =
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        }
        None => TokioResolver::builder_tokio().map_err(other)?,
    };
    set_options(builder.options_mut());
    builder.build().map_err(other)
}

fn set_options(options: &mut ResolverOpts) {
    options.cache_size = 0;
    options.edns0 = true;
    options.timeout = QUERY_TIMEOUT;
    options.attempts = 1;
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
}

/// One question, with everything that makes its answer no good checked.
async fn question(
    lookup: impl Future<Output = Result<Lookup, NetError>>,
) -> Result<Lookup, Failure> {
    let lookup = match timeout(QUESTION_TIMEOUT, lookup).await {
        Ok(result) => result.map_err(classify)?,
        Err(_) => return Err(Failure::Timeout),
    };
    let head = &lookup.message().metadata;
    // The resolver passes codes on that it does not know, and NXDOMAIN if records came with it.
    if head.response_code != ResponseCode::NoError {
        return Err(Failure::Other(format!(
            "the DNS server answered {}",
            head.response_code
        )));
    }
    if head.truncation {
        return Err(Failure::Truncated);
    }
    Ok(lookup)
}

fn classify(error: NetError) -> Failure {
    match &error {
        NetError::Timeout => Failure::Timeout,
        NetError::Truncated => Failure::Truncated,
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Failure::NxDomain,
            _ => Failure::Empty,
        },
        NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)) => Failure::ServFail,
        NetError::Proto(_) | NetError::ForeignClassRecord { .. } => {
            Failure::Garbage(error.to_string())
        }
        _ => Failure::Other(error.to_string()),
    }
}

async fn ask_srv(dns: &TokioResolver, service: &str) -> Result<Resolved, Failure> {
    let lookup = question(dns.srv_lookup(service)).await?;
    let mut resolved = Resolved {
        ttl: ttl(&lookup),
        ..Resolved::default()
    };
    let mut ports = BTreeMap::<Member, (u16, Name)>::new();
    for record in lookup.answers() {
        if let RData::SRV(srv) = &record.data
            && let Some(member) = read_target(srv)?
        {
            let (port, _) = ports
                .entry(member)
                .or_insert_with(|| (srv.port, srv.target.clone()));
            if *port != srv.port {
                resolved.ambiguous += 1;
                *port = srv.port.min(*port);
            }
        }
    }
    // None are left also when the target is ".": no such service here (RFC 2782).
    check_count(ports.len())?;
    let mut glue = glue(&lookup);
    let mut targets = Vec::new();
    for (member, (port, target)) in ports {
        let addresses = glue.remove(&target.to_lowercase()).unwrap_or_default();
        if addresses.is_empty() {
            targets.push((member.clone(), target.to_ascii(), port));
        }
        let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, port));
        let listed = Listed {
            otlp: addresses.collect(),
            peer_port: PEER_PORT,
        };
        resolved.answer.insert(member, listed);
    }
    find_addresses(dns, targets, &mut resolved).await?;
    Ok(resolved)
}

/// The name a record points at, `None` for "nothing here".
fn read_target(srv: &SRV) -> Result<Option<Member>, Failure> {
    if srv.target.is_root() {
        return Ok(None);
    }
    if srv.port == 0 {
        return Err(Failure::Garbage(format!("{} has port 0", srv.target)));
    }
    Member::parse(&srv.target.to_ascii())
        .map(Some)
        .map_err(|error| Failure::Garbage(error.to_string()))
}

/// Addresses that came along with the SRV records, IPv4 first.
fn glue(lookup: &Lookup) -> BTreeMap<Name, Vec<IpAddr>> {
    let mut addresses = BTreeMap::<Name, Vec<IpAddr>>::new();
    for record in lookup.additionals() {
        if let Some(ip) = record.data.ip_addr() {
            let name = record.name.to_lowercase();
            addresses.entry(name).or_default().push(ip);
        }
    }
    for list in addresses.values_mut() {
        list.sort_unstable();
        list.dedup();
    }
    addresses
}

async fn ask_addresses(
    dns: &TokioResolver,
    host: &str,
    port: u16,
    peer_port: u16,
) -> Result<Resolved, Failure> {
    // AAAA only where there is no A: a host with both would stand in the ring twice.
    let lookup = match question(dns.ipv4_lookup(host)).await {
        Err(Failure::Empty) => question(dns.ipv6_lookup(host)).await?,
        other => other?,
    };
    let mut resolved = Resolved {
        ttl: ttl(&lookup),
        ..Resolved::default()
    };
    for record in lookup.answers() {
        if let Some(ip) = record.data.ip_addr() {
            let address = SocketAddr::new(ip, port);
            let member = Member::parse(&address.to_string())
                .map_err(|error| Failure::Garbage(error.to_string()))?;
            let listed = Listed {
                otlp: vec![address],
                peer_port,
            };
            resolved.answer.insert(member, listed);
        }
    }
    check_count(resolved.answer.len())?;
    Ok(resolved)
}

/// The 64 KiB of a DNS message end below the bound today; the ring does not rely on it.
fn check_count(names: usize) -> Result<(), Failure> {
    match names {
        0 => Err(Failure::Empty),
        n if n > Table::MEMBERS_MAX => Err(Failure::TooMany(n)),
        _ => Ok(()),
    }
}

/// Looks up (member, host, port) and adds what it finds. A host that is not found fails only its
/// member, for the list of names is whole; the answer fails when no name at all has an address.
async fn find_addresses(
    dns: &TokioResolver,
    targets: Vec<(Member, String, u16)>,
    resolved: &mut Resolved,
) -> Result<(), Failure> {
    let deadline = Instant::now() + TARGETS_TIMEOUT;
    let mut targets = targets.into_iter();
    // Dropped with this future, which ends what is still in flight.
    let mut in_flight = JoinSet::new();
    let mut failed = None;
    loop {
        while in_flight.len() < TARGETS_IN_FLIGHT
            && let Some((member, host, port)) = targets.next()
        {
            let dns = dns.clone();
            in_flight.spawn(async move {
                let lookup = timeout_at(deadline, dns.lookup_ip(host)).await;
                let lookup = lookup.unwrap_or(Err(NetError::Timeout));
                (member, port, lookup.map_err(classify))
            });
        }
        let Some(done) = in_flight.join_next().await else {
            break;
        };
        match done {
            Ok((member, port, Ok(lookup))) => {
                let ttls = [resolved.ttl, ttl(lookup.as_lookup())];
                resolved.ttl = ttls.into_iter().flatten().min();
                let mut ips: Vec<IpAddr> = lookup.iter().collect();
                ips.sort_unstable();
                let addresses = ips.into_iter().map(|ip| SocketAddr::new(ip, port));
                // It is there already, without an address.
                if let Some(listed) = resolved.answer.get_mut(&member) {
                    listed.otlp = addresses.collect();
                }
            }
            Ok((_, _, Err(failure))) => failed = Some(failure),
            Err(panic) => failed = Some(Failure::Other(panic.to_string())),
        }
    }
    let without = resolved.answer.values();
    let without = without.filter(|it| it.otlp.is_empty()).count();
    resolved.without_address = without;
    match failed {
        Some(failure) if without == resolved.answer.len() => Err(failure),
        _ => Ok(()),
    }
}

fn ttl(lookup: &Lookup) -> Option<Duration> {
    let records = lookup.answers().iter();
    let seconds = records.map(|record| record.ttl).min()?;
    Some(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_beyond_the_bound_is_refused() {
        assert_eq!(check_count(0), Err(Failure::Empty));
        assert_eq!(check_count(1), Ok(()));
        assert_eq!(check_count(4096), Ok(()));
        assert_eq!(check_count(4097), Err(Failure::TooMany(4097)));
    }

    #[test]
    fn the_peer_service_stands_beside_the_other() {
        assert_eq!(
            peer_service("_otlp-grpc._tcp.workers.obs.svc.cluster.local.").as_deref(),
            Some("_tailring-peer._tcp.workers.obs.svc.cluster.local.")
        );
        assert_eq!(peer_service("_otlp-grpc._udp.workers."), None);
    }

    #[tokio::test]
    async fn a_list_of_addresses_needs_no_resolver() {
        let mut resolver = Resolver::new("static://a=10.0.0.1:1".parse().unwrap());
        assert_eq!(resolver.ask().await.unwrap().answer.len(), 1);
        assert!(resolver.dns.is_none());
    }
}
