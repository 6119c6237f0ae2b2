//! Where members are looked up: `srv://`, `dns://`, `static://`. Only reads the setting; the
//! resolver beside it asks.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::model::{Member, MemberError};
use crate::ring::Table;

/// A parsed `--workers` URL. DNS names in it are absolute and end with a dot: with a relative one
/// the search list would answer for other names (an NXDOMAIN of a wrong suffix reads as "gone").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// SRV records: names and ports from DNS. What Kubernetes' headless Services publish.
    Srv {
        service: String,
        nameserver: Option<SocketAddr>,
    },
    /// Address records; the address with the port is the member's name. Of a host that has A and
    /// AAAA records only A counts, or one worker would stand in the ring twice.
    Dns {
        host: String,
        port: u16,
        /// Where workers call each other.
        peer_port: u16,
        nameserver: Option<SocketAddr>,
    },
    /// A list given by hand. Names are fixed, host names among the addresses are looked up.
    Static {
        members: Vec<StaticMember>,
        nameserver: Option<SocketAddr>,
    },
}

/// One `name=host:port/peer port` of a `static://` list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticMember {
    pub name: Member,
    pub host: Host,
    pub port: u16,
    /// Where workers call each other.
    pub peer_port: u16,
}

/// Where workers call each other unless something says otherwise.
pub const PEER_PORT: u16 = 4319;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Address(IpAddr),
    /// Absolute, with the dot at the end.
    Name(String),
}

/// What is wrong with a `--workers` URL, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error(
        "{0:?} names no way to find workers; write srv://_otlp-grpc._tcp.workers.obs.svc.cluster.local, dns://workers.obs.svc.cluster.local:4317 or static://worker-0=10.0.0.1:4317,worker-1=10.0.0.2:4317"
    )]
    Scheme(String),
    #[error(
        "{0:?} is not the name of an SRV record; write srv://_port-name._tcp.service, for example srv://_otlp-grpc._tcp.workers.obs.svc.cluster.local"
    )]
    SrvName(String),
    #[error(
        "srv:// takes the port from the SRV records; write it without :{port}, or dns://HOST:{port} to look up addresses"
    )]
    SrvPort { port: String },
    #[error("{0:?} has no port; write dns://{0}:4317")]
    PortMissing(String),
    #[error("{text:?} is not a port; write a number from 1 to 65535, for example :4317")]
    Port { text: String },
    #[error("{0:?} is not a DNS name; write one like workers.obs.svc.cluster.local")]
    HostName(String),
    #[error(
        "{0} is an address and needs no looking up; write static://NAME={0} with the worker's stable name"
    )]
    DnsOfAddress(String),
    #[error("static:// lists no workers; write static://worker-0=10.0.0.1:4317")]
    StaticEmpty,
    #[error(
        "{0:?} is not name=host:port; write for example worker-0=10.0.0.1:4317, an IPv6 address in brackets"
    )]
    StaticEntry(String),
    #[error("the name in {entry:?} cannot be used: {reason}")]
    StaticName { entry: String, reason: MemberError },
    #[error("{0} is listed twice; a name stands for one worker")]
    StaticDuplicate(Member),
    #[error("{0} workers are listed; at most 4096 are supported")]
    StaticTooMany(usize),
    #[error("{0:?} is not a name server; write ?nameserver=10.96.0.10:53")]
    Nameserver(String),
    #[error(
        "unknown parameter {0:?}; there are ?nameserver=IP:PORT and, for dns://, &peer-port=4319"
    )]
    Parameter(String),
    #[error(
        "peer-port is for dns://; srv:// asks for the records of _tailring-peer._tcp beside its own, and static:// has name=host:port/peer-port"
    )]
    PeerPort,
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (scheme, rest) = text
            .trim()
            .split_once("://")
            .ok_or_else(|| SourceError::Scheme(text.into()))?;
        let (body, query) = rest.split_once('?').unwrap_or((rest, ""));
        let body = body.strip_suffix('/').unwrap_or(body);
        let (nameserver, peer_port) = parse_query(query)?;
        if peer_port.is_some() && scheme != "dns" {
            return Err(SourceError::PeerPort);
        }
        match scheme {
            "srv" => Ok(Self::Srv {
                service: parse_service(body)?,
                nameserver,
            }),
            "dns" => {
                let (host, port) = parse_dns(body)?;
                Ok(Self::Dns {
                    host,
                    port,
                    peer_port: peer_port.unwrap_or(PEER_PORT),
                    nameserver,
                })
            }
            "static" => Ok(Self::Static {
                members: parse_static(body)?,
                nameserver,
            }),
            _ => Err(SourceError::Scheme(text.into())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = '?';
        let nameserver = match self {
            Self::Srv {
                service,
                nameserver,
            } => {
                write!(f, "srv://{service}")?;
                nameserver
            }
            Self::Dns {
                host,
                port,
                peer_port,
                nameserver,
            } => {
                write!(f, "dns://{host}:{port}")?;
                if *peer_port != PEER_PORT {
                    write!(f, "?peer-port={peer_port}")?;
                    separator = '&';
                }
                nameserver
            }
            Self::Static {
                members,
                nameserver,
            } => {
                write!(f, "static://")?;
                for (position, member) in members.iter().enumerate() {
                    let comma = if position > 0 { "," } else { "" };
                    write!(f, "{comma}{}={}", member.name, member.host)?;
                    write!(f, ":{}", member.port)?;
                    if member.peer_port != PEER_PORT {
                        write!(f, "/{}", member.peer_port)?;
                    }
                }
                nameserver
            }
        };
        match nameserver {
            Some(address) => write!(f, "{separator}nameserver={address}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn parse_query(query: &str) -> Result<(Option<SocketAddr>, Option<u16>), SourceError> {
    let (mut nameserver, mut peer_port) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("nameserver", value)) => {
                let with_port = value.parse::<SocketAddr>();
                let address =
                    with_port.or_else(|_| value.parse().map(|ip: IpAddr| (ip, 53).into()));
                nameserver = Some(address.map_err(|_| SourceError::Nameserver(value.into()))?);
            }
            Some(("peer-port", value)) => peer_port = Some(parse_port(value)?),
            _ => return Err(SourceError::Parameter(pair.into())),
        }
    }
    Ok((nameserver, peer_port))
}

fn parse_service(body: &str) -> Result<String, SourceError> {
    if let Some((_, port)) = body.split_once(':') {
        return Err(SourceError::SrvPort { port: port.into() });
    }
    let mut labels = body.split('.');
    let marked = |label: Option<&str>| label.is_some_and(|l| l.len() > 1 && l.starts_with('_'));
    if !marked(labels.next()) || !marked(labels.next()) || labels.next().is_none_or(str::is_empty) {
        return Err(SourceError::SrvName(body.into()));
    }
    absolute(body).ok_or_else(|| SourceError::SrvName(body.into()))
}

fn parse_dns(body: &str) -> Result<(String, u16), SourceError> {
    if body.parse::<SocketAddr>().is_ok() || body.parse::<IpAddr>().is_ok() {
        return Err(SourceError::DnsOfAddress(body.into()));
    }
    let (host, port) = body
        .rsplit_once(':')
        .ok_or_else(|| SourceError::PortMissing(body.into()))?;
    let host = absolute(host).ok_or_else(|| SourceError::HostName(host.into()))?;
    Ok((host, parse_port(port)?))
}

fn parse_static(body: &str) -> Result<Vec<StaticMember>, SourceError> {
    let mut members = Vec::new();
    let mut names = BTreeSet::new();
    for entry in body.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let member = parse_static_member(entry)?;
        if !names.insert(member.name.clone()) {
            return Err(SourceError::StaticDuplicate(member.name));
        }
        members.push(member);
    }
    match members.len() {
        0 => Err(SourceError::StaticEmpty),
        n if n > Table::MEMBERS_MAX => Err(SourceError::StaticTooMany(n)),
        _ => Ok(members),
    }
}

fn parse_static_member(entry: &str) -> Result<StaticMember, SourceError> {
    let wrong = || SourceError::StaticEntry(entry.into());
    let (name, address) = entry.split_once('=').ok_or_else(wrong)?;
    let name = Member::parse(name).map_err(|reason| SourceError::StaticName {
        entry: entry.into(),
        reason,
    })?;
    let (host, ports) = address.rsplit_once(':').ok_or_else(wrong)?;
    let (port, peer_port) = match ports.split_once('/') {
        Some((port, peer_port)) => (parse_port(port)?, parse_port(peer_port)?),
        None => (parse_port(ports)?, PEER_PORT),
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match (bare.unwrap_or(host).parse::<IpAddr>(), bare) {
        (Ok(address @ IpAddr::V6(_)), Some(_)) => Host::Address(address),
        (Ok(address @ IpAddr::V4(_)), None) => Host::Address(address),
        (Err(_), None) => Host::Name(absolute(host).ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    Ok(StaticMember {
        name,
        host,
        port,
        peer_port,
    })
}

fn parse_port(text: &str) -> Result<u16, SourceError> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| SourceError::Port { text: text.into() })
}

/// The name in lower case with a dot at the end; `None` when DNS could not carry it.
fn absolute(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let legal = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let fits = name
        .split('.')
        .all(|label| (1..=63).contains(&label.len()) && label.bytes().all(legal));
    (fits && name.len() <= Member::BYTES_MAX).then(|| name + ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        match text.parse::<Source>() {
            Ok(source) => assert_eq!(source.to_string(), expected),
            Err(error) => panic!("{text}: {error}"),
        }
    }

    #[track_caller]
    fn refuse(text: &str, advice: &str) {
        let error = text.parse::<Source>().unwrap_err().to_string();
        assert!(error.contains(advice), "{text}: {error}");
    }

    #[test]
    fn names_are_made_absolute() {
        check(
            "srv://_otlp-grpc._tcp.Workers.obs.svc.cluster.local",
            "srv://_otlp-grpc._tcp.workers.obs.svc.cluster.local.",
        );
        check(
            "dns://workers.obs.svc.cluster.local.:4317/",
            "dns://workers.obs.svc.cluster.local.:4317",
        );
        check(
            "static://a=10.0.0.1:1, B=[::1]:2,c=host:3",
            "static://a=10.0.0.1:1,b=[::1]:2,c=host.:3",
        );
    }

    #[test]
    fn the_peer_port_is_said_for_each_member_or_for_all() {
        check(
            "static://a=10.0.0.1:1/2,b=h:3/4319",
            "static://a=10.0.0.1:1/2,b=h.:3",
        );
        check("dns://w:1?peer-port=7", "dns://w.:1?peer-port=7");
        check(
            "dns://w:1?nameserver=[::1]:5&peer-port=7",
            "dns://w.:1?peer-port=7&nameserver=[::1]:5",
        );
        refuse("static://a=10.0.0.1:1/0", "is not a port");
        refuse("dns://w:1?peer-port=x", "is not a port");
        refuse("srv://_a._tcp.w?peer-port=7", "_tailring-peer._tcp");
        refuse("static://a=h:1?peer-port=7", "name=host:port/peer-port");
    }

    #[test]
    fn a_nameserver_may_be_named() {
        check(
            "dns://w:1?nameserver=10.96.0.10",
            "dns://w.:1?nameserver=10.96.0.10:53",
        );
        check(
            "dns://w:1?nameserver=[::1]:5353",
            "dns://w.:1?nameserver=[::1]:5353",
        );
        refuse(
            "dns://w:1?nameserver=kube-dns",
            "write ?nameserver=10.96.0.10:53",
        );
        refuse("dns://w:1?ns=1.2.3.4", "there are ?nameserver");
    }

    #[test]
    fn a_wrong_url_says_what_to_write() {
        refuse("", "write srv://");
        refuse("workers:4317", "write srv://");
        refuse("http://workers:4317", "write srv://");
        refuse("srv://workers.obs.svc", "write srv://_port-name._tcp");
        refuse("srv://_otlp-grpc._tcp.", "write srv://_port-name._tcp");
        refuse("srv://_otlp-grpc._tcp.w:4317", "write it without :4317");
        refuse("dns://workers", "write dns://workers:4317");
        refuse("dns://workers:0", "is not a port");
        refuse("dns://workers:grpc", "is not a port");
        refuse("dns://wor kers:1", "is not a DNS name");
        refuse("dns://a..b:1", "is not a DNS name");
        refuse("dns://10.0.0.1:4317", "static://NAME=10.0.0.1:4317");
        refuse("static://", "lists no workers");
        refuse("static://10.0.0.1:4317", "is not name=host:port");
        refuse("static://a=::1:4317", "is not name=host:port");
        refuse("static://a=10.0.0.1", "is not name=host:port");
        refuse("static://a b=10.0.0.1:1", "only letters");
        refuse("static://a=h:1,A=h:2", "a is listed twice");
    }

    #[test]
    fn a_list_beyond_the_bound_is_refused() {
        let list: Vec<_> = (0..=Table::MEMBERS_MAX)
            .map(|i| format!("w{i}=h:1"))
            .collect();
        refuse(&format!("static://{}", list.join(",")), "at most 4096");
    }
}
