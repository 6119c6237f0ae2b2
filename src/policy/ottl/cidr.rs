//! Networks of IP addresses, as Go's `net` package reads them. They are values of attributes here:
//! `core::net` has no sockets.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `192.0.2.0/24`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|c| c.is_ascii_digit());
        let prefix: u32 = prefix.parse().ok().filter(|_| digits)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return None;
        }
        Some(match (address, plain(address)) {
            (IpAddr::V6(_), IpAddr::V4(inner)) if prefix >= 96 => Self {
                address: inner.into(),
                prefix: prefix - 96,
            },
            _ => Self { address, prefix },
        })
    }

    pub(super) fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - self.prefix;
                let cut = |it: Ipv4Addr| u64::from(it.to_bits()) >> shift;
                cut(network) == cut(address)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - self.prefix;
                let cut = |it: Ipv6Addr| it.to_bits().checked_shr(shift).unwrap_or_default();
                cut(network) == cut(address)
            }
            _ => false,
        }
    }
}

/// An address; one of IPv4 that is written as one of IPv6 is one of IPv4.
pub(super) fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    Some(plain(text.parse().ok()?))
}

fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_networks_as_in_go() {
        for (network, ip, expected) in [
            ("192.0.2.0/24", "192.0.2.1", true),
            ("192.0.2.77/24", "192.0.2.1", true),
            ("192.0.24.0/24", "192.0.2.1", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("1.2.3.4/32", "1.2.3.4", true),
            ("1.2.3.4/32", "::ffff:1.2.3.4", true),
            ("::ffff:1.2.3.0/120", "1.2.3.4", true),
            ("2001:db8::/32", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "::1", true),
            ("::/0", "1.2.3.4", false),
        ] {
            let network = Network::parse(network.as_bytes()).unwrap();
            let ip = address(ip.as_bytes()).unwrap();
            assert_eq!(network.contains(ip), expected, "{network:?} {ip}");
        }
        for wrong in [
            "192.0.2/24",
            "1.2.3.4",
            "1.2.3.4/33",
            "1.2.3.4/+1",
            "01.2.3.4/8",
            "a/8",
        ] {
            assert_eq!(Network::parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(address(b"1.2.3.4.5"), None);
    }
}
