//! The admin pages of a service, read as anybody would.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For one page, from the connection to its last byte.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// /metrics has some 50 KB.
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// What `/metrics` said at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrape(String);

#[derive(Deserialize)]
struct Ring {
    members: Vec<serde_json::Value>,
}

/// Status and body of `GET path`.
async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no HTTP/1.1 answer");
    let conversation = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream
            .take(PAGE_BYTES_MAX)
            .read_to_string(&mut answer)
            .await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.ok_or_else(wrong)?, body.to_owned()))
    };
    timeout(PAGE_TIMEOUT, conversation)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether the process says that it may get traffic.
pub(super) async fn says_ready(address: SocketAddr) -> bool {
    let ready = get(address, "/readyz").await;
    ready.is_ok_and(|(status, _)| status == 200)
}

/// Whether the process says that it may get traffic and knows so many workers.
pub(super) async fn is_ready(address: SocketAddr, members: usize) -> bool {
    let ready = says_ready(address).await;
    let ring = get(address, "/ring").await;
    let known = ring
        .ok()
        .and_then(|(_, body)| serde_json::from_str::<Ring>(&body).ok());
    ready && known.is_some_and(|ring| ring.members.len() == members)
}

impl Scrape {
    pub(super) async fn of(address: SocketAddr) -> io::Result<Self> {
        Ok(Self(get(address, "/metrics").await?.1))
    }

    /// The sum of all series of that name with these labels (`verdict="keep"`).
    pub(super) fn sum(&self, name: &str, label: &str) -> u64 {
        let series = self.series(name);
        series
            .filter(|(labels, _)| labels.contains(label))
            .map(|(_, value)| value)
            .sum()
    }

    /// The values of one label and the numbers beside them.
    pub(super) fn by_label(&self, name: &str, label: &str) -> Vec<(&str, u64)> {
        let value_of = |labels: &'_ str| -> Option<(usize, usize)> {
            let start = labels.find(&format!("{label}=\""))? + label.len() + 2;
            Some((start, start + labels[start..].find('"')?))
        };
        self.series(name)
            .filter_map(|(labels, value)| {
                let (start, end) = value_of(labels)?;
                Some((&labels[start..end], value))
            })
            .collect()
    }

    /// Labels as written, and the number.
    fn series<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, u64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            if !(labels.is_empty() || labels.starts_with('{')) {
                return None;
            }
            Some((labels, value.parse::<f64>().ok()? as u64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_told_apart_by_name_and_label() {
        let text = "# TYPE a counter\n\
                    a_total{policy=\"x\",verdict=\"keep\"} 3\n\
                    a_total{policy=\"y\",verdict=\"keep\"} 4\n\
                    a_total{policy=\"y\",verdict=\"drop\"} 5\n\
                    a_total_more 7\nb 2\n# EOF\n";
        let scrape = Scrape(text.into());
        assert_eq!(scrape.sum("a_total", ""), 12);
        assert_eq!(scrape.sum("a_total", "verdict=\"keep\""), 7);
        assert_eq!(scrape.sum("b", ""), 2);
        assert_eq!(scrape.sum("c", ""), 0);
        assert_eq!(
            scrape.by_label("a_total", "policy"),
            [("x", 3), ("y", 4), ("y", 5)]
        );
    }
}
