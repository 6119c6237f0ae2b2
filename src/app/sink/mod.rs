//! `tailring sink`: an OTLP backend that only counts, keeps books, or misbehaves on request.

mod receive;
mod traces;

use std::future::Future;
use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::app::interrupt::interrupted;
use crate::app::ledger::{LedgerError, LedgerKind, LedgerWriter};
use crate::net::admission::Budget;
use crate::net::server::{BindError, Protocol, Server, ServerConfig, ServerMetrics, Stopped};

pub use receive::SinkReport;
use receive::{Behaviour, Receiver};
use traces::TraceFile;

/// Bytes of requests in flight; beyond it exporters are told to come back later.
const IN_FLIGHT_BYTES_MAX: u64 = 1 << 30;
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Receives OTLP traces like a backend, and counts them.
///
/// With --ledger every span is written down with the member that exported it and the verdict it
/// was exported under, before the answer is given; `tailring verify` compares that with what
/// `tailring load` sent. Ends on SIGINT or SIGTERM, after the requests in flight.
#[derive(Debug, Clone, clap::Args)]
pub struct SinkArgs {
    /// Where to listen for OTLP/gRPC: IP:port, or :port for all addresses.
    #[arg(long, default_value = "127.0.0.1:4317", value_name = "ADDRESS", value_parser = listen_address)]
    pub listen: SocketAddr,
    /// Where to listen for OTLP/HTTP as well.
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub listen_http: Option<SocketAddr>,
    /// Writes down every span. A sink that is started again goes on with the same file.
    #[arg(long, value_name = "FILE", conflicts_with = "null")]
    pub ledger: Option<PathBuf>,
    /// Appends what it takes to a file as OTLP/JSON, a request a line.
    #[arg(long, value_name = "FILE", conflicts_with = "null")]
    pub traces: Option<PathBuf>,
    /// Does not look into messages: counts requests and bytes only, as cheaply as can be.
    #[arg(long)]
    pub null: bool,
    /// How to answer; anything but `ok` takes nothing.
    #[arg(long, value_enum, default_value_t = SinkAnswer::Ok)]
    pub answer: SinkAnswer,
    /// Waits so many milliseconds before each answer.
    #[arg(long, default_value_t = 0, value_name = "MILLISECONDS")]
    pub slow_ms: u64,
    /// How to print: a line each second on a terminal and a summary, or one JSON object at the end.
    #[arg(long, value_enum, default_value_t = SinkOutput::Text)]
    pub output: SinkOutput,
}

/// How a sink answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SinkAnswer {
    /// Takes everything.
    Ok,
    /// UNAVAILABLE (gRPC) or 503 (HTTP): come back later.
    Unavailable,
    /// No answer at all until the exporter gives up.
    Hang,
    /// INVALID_ARGUMENT or 400: never send this again.
    Invalid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SinkOutput {
    Text,
    Json,
}

/// Why a sink does not start or does not end well.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("--traces {}: cannot be written: {source}", path.display())]
    Traces {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// A sink that is listening.
#[derive(Debug)]
pub struct Sink {
    pub grpc_address: SocketAddr,
    pub http_address: Option<SocketAddr>,
    receiver: Arc<Receiver>,
    ledger: Option<LedgerWriter>,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<Stopped>>,
}

impl Sink {
    /// Opens the listeners and the ledger. The output setting is not for it.
    pub async fn start(args: &SinkArgs) -> Result<Self, SinkError> {
        let ledger = match &args.ledger {
            Some(path) => Some(LedgerWriter::append(path, LedgerKind::Got)?),
            None => None,
        };
        let traces = match &args.traces {
            Some(path) => Some(TraceFile::open(path).map_err(|source| SinkError::Traces {
                path: path.clone(),
                source,
            })?),
            None => None,
        };
        let behaviour = Behaviour {
            answer: args.answer,
            delay: Duration::from_millis(args.slow_ms),
            reads_messages: !args.null,
        };
        let queue = ledger.as_ref().map(LedgerWriter::queue);
        let receiver = Arc::new(Receiver::new(behaviour, queue, traces));
        let metrics = ServerMetrics::register(&mut Registry::default());
        let budget = Budget::new(IN_FLIGHT_BYTES_MAX);
        let (stop, _) = watch::channel(false);
        let mut sink = Self {
            grpc_address: args.listen,
            http_address: None,
            receiver,
            ledger,
            stop,
            servers: Vec::new(),
        };
        sink.grpc_address = sink
            .listen(Protocol::Grpc, args.listen, &metrics, &budget)
            .await?;
        if let Some(listen) = args.listen_http {
            let address = sink
                .listen(Protocol::Http, listen, &metrics, &budget)
                .await?;
            sink.http_address = Some(address);
        }
        Ok(sink)
    }

    async fn listen(
        &mut self,
        protocol: Protocol,
        listen: SocketAddr,
        metrics: &ServerMetrics,
        budget: &Arc<Budget>,
    ) -> Result<SocketAddr, BindError> {
        let open = |listen| {
            let mut config = ServerConfig::new(protocol, listen);
            // Whoever stops a sink that hangs on purpose does not want to wait for it.
            config.drain_deadline = Duration::from_secs(2);
            let receiver = self.receiver.clone();
            Server::bind(config, receiver, metrics.clone(), budget.clone())
        };
        let server = match open(listen).await {
            // A machine without IPv6 has no `::`; what was meant is "everywhere".
            Err(error)
                if listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                    && !matches!(error, BindError::InUse { .. }) =>
            {
                open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()))).await?
            }
            opened => opened?,
        };
        let address = server.local_addr();
        server.health().set_serving(true).await;
        let mut stopping = self.stop.subscribe();
        self.servers.push(tokio::spawn(server.serve(async move {
            // An error means that the sink was dropped: also a reason to stop.
            drop(stopping.wait_for(|stop| *stop).await);
        })));
        Ok(address)
    }

    pub fn report(&self) -> SinkReport {
        self.receiver.report()
    }

    /// Whether spans can no longer be written down. [`Sink::stop`] tells why.
    pub fn ledger_is_stopped(&self) -> bool {
        self.receiver.ledger_is_stopped()
    }

    /// Answers what is in flight, closes the ledger, and reports.
    pub async fn stop(self) -> Result<SinkReport, SinkError> {
        self.stop.send_replace(true);
        for server in self.servers {
            // A server's task ends when its connections have; a panic in it was already logged.
            drop(server.await);
        }
        let report = self.receiver.report();
        drop(self.receiver);
        if let Some(ledger) = self.ledger {
            ledger.close().await?;
        }
        Ok(report)
    }
}

/// The subcommand.
pub async fn run(args: SinkArgs) -> anyhow::Result<ExitCode> {
    run_until(args, interrupted()).await
}

#[allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for people answers on stdout, and keeps it clean when that is to be JSON"
)]
async fn run_until(args: SinkArgs, stop: impl Future<Output = ()>) -> anyhow::Result<ExitCode> {
    let sink = Sink::start(&args).await?;
    let is_text = args.output == SinkOutput::Text;
    let mut listening = format!("listening on {} for OTLP/gRPC\n", sink.grpc_address);
    if let Some(address) = sink.http_address {
        listening += &format!("listening on {address} for OTLP/HTTP\n");
    }
    if is_text {
        print!("{listening}");
    } else {
        eprint!("{listening}");
    }
    let shows_progress = is_text && std::io::stdout().is_terminal();
    let began = Instant::now();
    let mut ticker = tokio::time::interval_at(began + PROGRESS_EVERY, PROGRESS_EVERY);
    let mut stop = std::pin::pin!(stop);
    let mut before = sink.report();
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            _ = ticker.tick() => {
                if sink.ledger_is_stopped() {
                    break;
                }
                let now = sink.report();
                if shows_progress {
                    println!("{}", now.progress_line(&before, began.elapsed()));
                }
                before = now;
            }
        }
    }
    let report = sink.stop().await?;
    if is_text {
        print!("{}", report.to_text());
    } else {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let address = match text.strip_prefix(':') {
        Some(port) => port
            .parse()
            .ok()
            .map(|port: u16| (Ipv6Addr::UNSPECIFIED, port).into()),
        None => text.parse().ok(),
    };
    address.ok_or_else(|| {
        "write an IP address and a port, for example 127.0.0.1:4317, or :4317 for all addresses"
            .into()
    })
}
