//! Where a listener listens: `127.0.0.1:4317`, `[::1]:4317`, `:4317` for all interfaces.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAddress {
    At(SocketAddr),
    /// IPv6 and IPv4 where the host has both.
    AllInterfaces {
        port: u16,
    },
}

/// Why a text is not an address to listen on. The text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListenAddressError {
    #[error("has no port; write {0}:PORT")]
    NoPort(String),
    #[error("has no host; write 127.0.0.1:{0}, or :{0} for all interfaces")]
    NoHost(u16),
    #[error("has the port {0:?}; a port is a number from 0 to 65535")]
    BadPort(String),
    #[error(
        "has the host {0:?}; write an IP address (127.0.0.1:4317), or :4317 for all interfaces"
    )]
    BadHost(String),
}

impl ListenAddress {
    pub const fn loopback(port: u16) -> Self {
        Self::At(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    }

    pub fn port(self) -> u16 {
        match self {
            Self::At(address) => address.port(),
            Self::AllInterfaces { port } => port,
        }
    }

    /// Whether listening on both must fail. Port 0 is a fresh port each time.
    pub fn collides_with(self, other: Self) -> bool {
        if self.port() != other.port() || self.port() == 0 {
            return false;
        }
        match (self, other) {
            (Self::At(left), Self::At(right)) => {
                left.ip() == right.ip() || left.ip().is_unspecified() || right.ip().is_unspecified()
            }
            _ => true,
        }
    }

    /// What to bind: `[::]` takes IPv4 as well on Linux, and `0.0.0.0` is for hosts whose kernel
    /// has no IPv6.
    pub fn socket_addr(self) -> SocketAddr {
        match self {
            Self::At(address) => address,
            Self::AllInterfaces { port } => {
                let every: IpAddr = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
                    Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
                    Err(_) => Ipv4Addr::UNSPECIFIED.into(),
                };
                SocketAddr::new(every, port)
            }
        }
    }
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        let text = text.trim();
        if let Ok(address) = text.parse() {
            return Ok(Self::At(address));
        }
        let Some((host, port)) = text
            .rsplit_once(':')
            .filter(|_| text.parse::<IpAddr>().is_err())
        else {
            return Err(match text.parse() {
                Ok(port) => ListenAddressError::NoHost(port),
                Err(_) => ListenAddressError::NoPort(text.to_owned()),
            });
        };
        let port: u16 = port
            .parse()
            .map_err(|_| ListenAddressError::BadPort(port.to_owned()))?;
        match host {
            "" | "*" => Ok(Self::AllInterfaces { port }),
            "localhost" => Ok(Self::loopback(port)),
            // Names are not looked up: which of a name's addresses would it be?
            _ => Err(ListenAddressError::BadHost(host.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::AllInterfaces { port } => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        for (text, shown) in [
            ("127.0.0.1:4317", "127.0.0.1:4317"),
            ("localhost:4317", "127.0.0.1:4317"),
            ("[::1]:0", "[::1]:0"),
            ("0.0.0.0:4318", "0.0.0.0:4318"),
            (":9464", ":9464"),
            ("*:9464", ":9464"),
        ] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn everything_else_is_refused_with_what_to_write() {
        use ListenAddressError as E;
        for (text, error) in [
            ("4317", E::NoHost(4317)),
            ("127.0.0.1", E::NoPort("127.0.0.1".into())),
            ("::1", E::NoPort("::1".into())),
            (":http", E::BadPort("http".into())),
            (":65536", E::BadPort("65536".into())),
            ("example.com:4317", E::BadHost("example.com".into())),
            ("http://127.0.0.1:1", E::BadHost("http://127.0.0.1".into())),
        ] {
            assert_eq!(text.parse::<ListenAddress>(), Err(error), "{text}");
        }
    }

    #[test]
    fn all_interfaces_answer_on_loopback() {
        let address = ListenAddress::AllInterfaces { port: 0 }.socket_addr();
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn collisions_are_seen_before_binding() {
        let check = |left: &str, right: &str, collides: bool| {
            let (a, b): (ListenAddress, ListenAddress) =
                (left.parse().unwrap(), right.parse().unwrap());
            assert_eq!(a.collides_with(b), collides, "{left} {right}");
            assert_eq!(b.collides_with(a), collides, "{right} {left}");
        };
        check(":1", "127.0.0.1:1", true);
        check("127.0.0.1:1", "127.0.0.1:1", true);
        check("0.0.0.0:1", "127.0.0.1:1", true);
        check("127.0.0.1:1", "127.0.0.2:1", false);
        check(":1", ":2", false);
        check("127.0.0.1:0", "127.0.0.1:0", false);
    }
}
