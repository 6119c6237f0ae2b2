//! Where a client goes, and how it gets there: name, TCP, TLS.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::tls::Tls;

/// An address, or a name that is resolved at every connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    Socket(SocketAddr),
    Name { host: String, port: u16 },
}

/// Why a text is not an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} has no port; write host:port, for example collector.obs.svc:4317")]
    Port(String),
    #[error("{0:?} has no host; write host:port, for example collector.obs.svc:4317")]
    Host(String),
    #[error("{0:?} cannot stand in a URL; write host:port, for example collector.obs.svc:4317")]
    Authority(String),
}

/// Whom a client talks to.
#[derive(Debug, Clone)]
pub struct Target {
    pub address: Address,
    /// `:authority` or `Host`.
    pub authority: Authority,
    /// `None`: plain text.
    pub tls: Option<Tls>,
}

impl Target {
    /// Without TLS; the authority is the address itself.
    pub fn plain(address: impl Into<Address>) -> Result<Self, AddressError> {
        let address = address.into();
        let text = address.to_string();
        let authority = Authority::from_str(&text).map_err(|_| AddressError::Authority(text))?;
        Ok(Self {
            address,
            authority,
            tls: None,
        })
    }

    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whether a connection to `self` serves for `other`.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.address == other.address
            && self.authority == other.authority
            && match (&self.tls, &other.tls) {
                (None, None) => true,
                (Some(a), Some(b)) => a.same_as(b),
                _ => false,
            }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Socket(address)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Socket(address));
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| AddressError::Port(text.to_owned()))?;
        let port = port
            .parse()
            .map_err(|_| AddressError::Port(text.to_owned()))?;
        if host.is_empty() {
            return Err(AddressError::Host(text.to_owned()));
        }
        Ok(Self::Name {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// A connection, plain or TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) type Stream = Pin<Box<dyn Duplex>>;

/// Connects within `wait`, or says at which address what failed.
///
/// A name with several addresses is tried address by address, each with its share of the time,
/// beginning with another one at each call: one dead replica of a backend does not hold us up for
/// ever.
pub(super) async fn connect(target: &Target, wait: Duration) -> io::Result<Stream> {
    static TURN: AtomicUsize = AtomicUsize::new(0);

    let deadline = Instant::now() + wait;
    let mut addresses = match &target.address {
        Address::Socket(address) => vec![*address],
        Address::Name { host, port } => {
            let resolving = tokio::net::lookup_host((host.as_str(), *port));
            let found = within(deadline, wait, resolving)
                .await
                .map_err(|e| told(&e, format_args!("resolving {host}")))?;
            found.collect()
        }
    };
    if addresses.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} has no address", target.address),
        ));
    }
    let turn = TURN.fetch_add(1, Ordering::Relaxed) % addresses.len();
    addresses.rotate_left(turn);

    let mut left = addresses.len();
    let mut failure = io::Error::other("no address");
    for address in addresses {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / u32::try_from(left).unwrap_or(1);
        left -= 1;
        match within(now + share, share, open(target, address)).await {
            Ok(stream) => return Ok(stream),
            Err(e) => failure = told(&e, format_args!("connecting to {address}")),
        }
    }
    Err(failure)
}

async fn open(target: &Target, address: SocketAddr) -> io::Result<Stream> {
    let tcp = TcpStream::connect(address).await?;
    // A request is written as a whole; waiting for more would only delay its end.
    tcp.set_nodelay(true)?;
    match &target.tls {
        None => Ok(Box::pin(tcp)),
        Some(tls) => {
            let connector = tokio_rustls::TlsConnector::from(tls.config.clone());
            let stream = connector.connect(tls.server_name.clone(), tcp).await?;
            Ok(Box::pin(stream))
        }
    }
}

async fn within<T>(
    deadline: Instant,
    wait: Duration,
    future: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    timeout_at(deadline, future).await.unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("not within {wait:?}"),
        ))
    })
}

fn told(error: &io::Error, doing: fmt::Arguments<'_>) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_socket_or_a_name_with_a_port() {
        assert_eq!(
            "127.0.0.1:4317".parse::<Address>().unwrap(),
            Address::Socket(([127, 0, 0, 1], 4317).into())
        );
        assert!(matches!(
            "[::1]:4317".parse::<Address>().unwrap(),
            Address::Socket(a) if a.is_ipv6()
        ));
        assert_eq!(
            "collector.obs:4317".parse::<Address>().unwrap().to_string(),
            "collector.obs:4317"
        );
        assert!(matches!(
            "collector".parse::<Address>(),
            Err(AddressError::Port(_))
        ));
        assert!(matches!(
            "collector:99999".parse::<Address>(),
            Err(AddressError::Port(_))
        ));
        assert!(matches!(
            ":1".parse::<Address>(),
            Err(AddressError::Host(_))
        ));
    }
}
