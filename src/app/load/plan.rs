//! What `tailring load` is asked to do: the flags as written, then as meant.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::uri::PathAndQuery;

use super::generator::{GeneratorPlan, Shape};
use crate::model::parse_go_duration;
use crate::net::client::tls::{Alpn, Tls};
use crate::net::client::{Address, Compression, Target};

/// Sends realistic traffic to any OTLP endpoint and measures how it is answered.
///
/// Batches are due by a schedule that does not wait for answers (open loop), and latency is
/// counted from when a batch was due, not from when it could at last be sent: a receiver that
/// stalls for a second is seen to stall for everybody. `--rate max` has no schedule: it keeps
/// --in-flight batches under way on each connection (closed loop).
///
/// Failures that OTLP calls retryable are retried like an SDK does, with back-off, jitter and
/// RetryInfo, and counted. At the end the traces under way are finished, so that every trace is
/// whole. Exit status: 0 when every batch was acknowledged, 1 when one was not.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    /// Where to send: host:port, or a URL. The port of a URL is 4317 for gRPC and 4318 for HTTP
    /// unless given; https:// uses TLS.
    #[arg(long, default_value = "127.0.0.1:4317", value_name = "HOST:PORT")]
    pub to: String,
    /// What the traffic looks like.
    #[arg(long, value_enum, default_value_t = Shape::Fleet)]
    pub shape: Shape,
    /// Spans a second (20000, 20k, 1.5M), or `max` for as many as are answered.
    #[arg(long, default_value = "1000", value_name = "N|max")]
    pub rate: Rate,
    /// How long to begin traces; finishing those under way takes a little longer.
    #[arg(long = "for", default_value = "30s", value_name = "DURATION", value_parser = parse_go_duration)]
    pub duration: Duration,
    /// Connections to spread the batches over.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Batches under way on each connection, at most. Default: 4 with --rate max, else 256; beyond
    /// it the schedule falls behind, and batches that never had their turn are counted.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub in_flight: Option<u16>,
    /// Spans of a batch (one export request).
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub batch: u32,
    /// Compression of requests.
    #[arg(long, value_enum, default_value_t = LoadEncoding::None)]
    pub encoding: LoadEncoding,
    /// OTLP over gRPC, over HTTP in protobuf, or over HTTP in JSON.
    #[arg(long, value_enum, default_value_t = LoadProtocol::Grpc)]
    pub protocol: LoadProtocol,
    /// The same seed makes the same traces. Default: a fresh one, which is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Writes down every span sent and every one acknowledged, for `tailring verify`. An older
    /// ledger of that name is overwritten.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Sends every acknowledged request once more, byte for byte, as a client does whose answer
    /// got lost: nothing may be doubled by it.
    #[arg(long)]
    pub repeat_requests: bool,
    /// Longest wait for one answer.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = parse_go_duration)]
    pub timeout: Duration,
    /// How long to retry a batch before it is given up. 0s never retries.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = parse_go_duration)]
    pub give_up_after: Duration,
    /// How to print: a table with progress each second on a terminal, or one JSON object.
    #[arg(long, value_enum, default_value_t = LoadOutput::Text)]
    pub output: LoadOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LoadEncoding {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LoadProtocol {
    Grpc,
    Http,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LoadOutput {
    Text,
    Json,
}

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Open loop.
    SpansPerSecond(f64),
    /// Closed loop.
    Max,
}

/// Everything a run needs, legal and with defaults filled in.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    pub generator: GeneratorPlan,
    pub target: Target,
    /// Only over HTTP.
    pub path: PathAndQuery,
    pub protocol: LoadProtocol,
    pub compression: Compression,
    pub rate: Rate,
    pub duration: Duration,
    pub connections: usize,
    pub in_flight_per_connection: usize,
    pub timeout: Duration,
    pub give_up_after: Duration,
    pub repeats: bool,
    pub ledger: Option<PathBuf>,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let (digits, unit) = match text.as_bytes().last() {
            Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
            Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
            _ => (text, 1.0),
        };
        let number: f64 = digits
            .parse()
            .map_err(|_| "write spans a second, for example 20000, 20k or 1.5M, or max")?;
        let rate = number * unit;
        if (1.0..=1e9).contains(&rate) {
            Ok(Self::SpansPerSecond(rate))
        } else {
            Err("a rate is from 1 span a second to 1000M".into())
        }
    }
}

impl LoadPlan {
    pub fn new(args: &LoadArgs, fresh_seed: u64) -> anyhow::Result<Self> {
        let (target, path) =
            target(&args.to, args.protocol).with_context(|| format!("--to {}", args.to))?;
        let default_in_flight = match args.rate {
            Rate::Max => 4,
            Rate::SpansPerSecond(_) => 256,
        };
        Ok(Self {
            generator: GeneratorPlan {
                shape: args.shape,
                seed: args.seed.unwrap_or(fresh_seed),
                batch_spans: args.batch as usize,
                cells: cells(args.rate),
            },
            target,
            path,
            protocol: args.protocol,
            compression: match args.encoding {
                LoadEncoding::None => Compression::None,
                LoadEncoding::Gzip => Compression::Gzip,
                LoadEncoding::Zstd => Compression::Zstd,
            },
            rate: args.rate,
            duration: args.duration,
            connections: usize::from(args.connections),
            in_flight_per_connection: usize::from(args.in_flight.unwrap_or(default_in_flight)),
            timeout: args.timeout,
            give_up_after: args.give_up_after,
            repeats: args.repeat_requests,
            ledger: args.ledger.clone(),
        })
    }
}

/// A cell of agents has some 1400 spans under way: at 4000 spans/s a cell its traces arrive within
/// a second or so, faster than any tier would wait for them.
fn cells(rate: Rate) -> usize {
    match rate {
        Rate::Max => 8,
        Rate::SpansPerSecond(rate) => ((rate / 4000.0) as usize).clamp(1, 8),
    }
}

fn target(to: &str, protocol: LoadProtocol) -> anyhow::Result<(Target, PathAndQuery)> {
    let traces = PathAndQuery::from_static("/v1/traces");
    if !to.contains("://") {
        let address: Address = to.parse()?;
        return Ok((Target::plain(address)?, traces));
    }
    let url = url::Url::parse(to)?;
    let port = match protocol {
        LoadProtocol::Grpc => 4317,
        LoadProtocol::Http | LoadProtocol::Json => 4318,
    };
    // Url::port hides the scheme's own port, which is then meant.
    let written = to.split_once("://").map_or("", |(_, rest)| rest);
    let authority = written.split(['/', '?']).next().unwrap_or("");
    let port = match url.port() {
        Some(port) => port,
        None if authority.ends_with(":443") => 443,
        None if authority.ends_with(":80") => 80,
        None => port,
    };
    let host = url.host_str().context("has no host")?;
    let address: Address = format!("{host}:{port}").parse()?;
    let target = Target::plain(address)?;
    let target = match url.scheme() {
        "http" => target,
        "https" => {
            let alpn = match protocol {
                LoadProtocol::Grpc => Alpn::H2,
                LoadProtocol::Http | LoadProtocol::Json => Alpn::Http1,
            };
            target.with_tls(Tls::new(host, alpn, None)?)
        }
        other => bail!("has the scheme {other}; write http:// or https://"),
    };
    let path = match url.path() {
        "" | "/" => traces,
        path => path.parse()?,
    };
    Ok((target, path))
}
