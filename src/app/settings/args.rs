//! Settings as they were written: only text, nothing looked up, nothing judged.

#![allow(
    rustdoc::bare_urls,
    reason = "these comments are the help, and <> would show in it"
)]

/// What router and worker have in common.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Both tiers")]
pub struct SharedArgs {
    /// Where the workers are found: srv://, dns:// or static://
    ///
    /// srv://_otlp-grpc._tcp.workers.obs.svc.cluster.local   SRV records of the workers' headless
    /// Service: names and ports from DNS, the way to run on Kubernetes.
    ///
    /// dns://workers.obs.svc.cluster.local:4317   A or AAAA records; addresses serve as names.
    ///
    /// static://worker-0=10.0.0.1:4317,worker-1=10.0.0.2:4317   A fixed list.
    ///
    /// All processes of a cluster must be given the same members; /ring shows what each believes.
    #[arg(long, env = "TAILRING_WORKERS", value_name = "URL")]
    pub workers: Option<String>,

    /// Name of the cluster; rings of different clusters never mix [default: default]
    #[arg(long, env = "TAILRING_CLUSTER", value_name = "NAME")]
    pub cluster: Option<String>,

    /// File with a secret of at least 16 bytes that seeds the ring
    ///
    /// Keeps outsiders from choosing trace IDs that all land on one worker. Must be the same for
    /// every router and worker of a cluster; without it the ring is the same for everyone.
    #[arg(long, env = "TAILRING_RING_SEED_FILE", value_name = "FILE")]
    pub ring_seed_file: Option<String>,

    /// Memory this process may use [default: 80 % of the cgroup's limit or of the machine's memory]
    ///
    /// Sizes are written 64MiB, 1GB, 64Mi or in plain bytes. A worker pays from it for requests in
    /// flight, its index of traces, remembered decisions and export; a router for requests, which may
    /// hold half of it. Beyond it clients get UNAVAILABLE and try again.
    #[arg(long, env = "TAILRING_MEMORY_LIMIT", value_name = "SIZE")]
    pub memory_limit: Option<String>,

    /// Longest request, before and after decompression [default: 64MiB]
    #[arg(long, env = "TAILRING_MAX_REQUEST_BYTES", value_name = "SIZE")]
    pub max_request_bytes: Option<String>,

    /// Most spans in one request [default: 100000]
    #[arg(long, env = "TAILRING_MAX_SPANS_PER_REQUEST", value_name = "COUNT")]
    pub max_spans_per_request: Option<String>,

    /// Address for OTLP over gRPC; :4317 is all interfaces [default: 127.0.0.1:4317]
    #[arg(long, env = "TAILRING_LISTEN_GRPC", value_name = "ADDRESS")]
    pub listen_grpc: Option<String>,

    /// Address for OTLP over HTTP; :4318 is all interfaces [default: 127.0.0.1:4318]
    #[arg(long, env = "TAILRING_LISTEN_HTTP", value_name = "ADDRESS")]
    pub listen_http: Option<String>,

    /// Address for /metrics, /livez, /readyz and /ring; :9464 is all interfaces
    /// [default: 127.0.0.1:9464]
    #[arg(long, env = "TAILRING_LISTEN_ADMIN", value_name = "ADDRESS")]
    pub listen_admin: Option<String>,

    /// What is logged: error, warn, info, debug or trace [default: info]
    ///
    /// Also by part: info,tailring::cluster=debug. Logs go to stderr, for people on a terminal and
    /// as JSON lines otherwise; a place in the code that logs too often is cut to 10 lines a second.
    #[arg(long, env = "TAILRING_LOG", value_name = "LEVEL")]
    pub log: Option<String>,
}

/// Takes OTLP from anyone and brings each span to the worker that owns its trace
///
/// A router keeps nothing: it acknowledges spans when the workers that own their traces have. Run
/// as many as you like behind one address.
#[derive(clap::Parser, Debug, Clone, Default)]
#[command(
    name = "tailring-router",
    version,
    after_long_help = "\
Every flag has a twin in the environment: --listen-grpc is TAILRING_LISTEN_GRPC. A flag wins.

Examples:
  Two workers on this machine:
    tailring-router --workers static://a=127.0.0.1:5317,b=127.0.0.1:6317
  On Kubernetes:
    tailring-router --workers srv://_otlp-grpc._tcp.workers.obs.svc.cluster.local \\
                    --listen-grpc :4317 --listen-http :4318 --listen-admin :9464

Exit codes: 0 after a clean stop, 64 when settings or usage are wrong, 1 for everything else."
)]
pub struct RouterArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// Owns whole traces: holds their spans, judges each trace when it is complete, exports what is kept
///
/// Run workers with stable names and a disk each (on Kubernetes a StatefulSet). A single worker
/// without routers is a small installation: it takes OTLP from clients itself.
#[derive(clap::Parser, Debug, Clone, Default)]
#[command(
    name = "tailring-worker",
    version,
    after_long_help = "\
Every flag has a twin in the environment: --data-dir is TAILRING_DATA_DIR. A flag wins.

Examples:
  One worker on this machine that keeps everything and prints it:
    tailring-worker --name a --workers static://a=127.0.0.1:4317 --data-dir ./data --export stdout
  On Kubernetes, in a StatefulSet with the Service \"workers\":
    tailring-worker --workers srv://_otlp-grpc._tcp.workers.obs.svc.cluster.local \\
                    --policies /etc/tailring/policies.yaml --export grpcs://otlp.example.com:443 \\
                    --export-header-file /etc/tailring/secret/headers \\
                    --listen-grpc :4317 --listen-http :4318 --listen-peers :4319 \\
                    --listen-admin :9464

Exit codes: 0 after a clean stop, 64 when settings or usage are wrong, 1 for everything else."
)]
pub struct WorkerArgs {
    /// This worker's name in the ring [default: this machine's full name]
    ///
    /// Must be one of the names that --workers finds, and stay the same over restarts: the ring is
    /// keyed on it. Lower case, without a dot at the end. The default is the kernel's host name,
    /// completed from /etc/hosts as `hostname -f` does; for a pod of a StatefulSet that is
    /// POD.SERVICE.NAMESPACE.svc.CLUSTER-DOMAIN.
    #[arg(long, env = "TAILRING_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// Policy file: an OpenTelemetry Collector's tail_sampling block
    ///
    /// Bare, or inside a whole Collector configuration. Without one every trace is kept.
    #[arg(long, env = "TAILRING_POLICIES", value_name = "FILE")]
    pub policies: Option<String>,

    /// Directory of the log, on a disk that survives a restart [default: /var/lib/tailring]
    ///
    /// On tmpfs the log is memory: --log-max-bytes is taken from --memory-limit then.
    #[arg(long, env = "TAILRING_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<String>,

    /// Most bytes that the log may take [default: 80 % of the volume of --data-dir]
    ///
    /// On tmpfs at most half of --memory-limit by default.
    ///
    /// Beyond it clients get UNAVAILABLE and try again; see --on-pressure.
    #[arg(long, env = "TAILRING_LOG_MAX_BYTES", value_name = "SIZE")]
    pub log_max_bytes: Option<String>,

    /// How long dropped traces stay readable, should evidence come late [default: 120s]
    #[arg(long, env = "TAILRING_DROP_RETAIN", value_name = "DURATION")]
    pub drop_retain: Option<String>,

    /// Memory for decisions that outlive their traces [default: 12 % of --memory-limit, at most 64MiB]
    ///
    /// Late spans obey a remembered decision; a forgotten one makes them a trace of their own.
    #[arg(long, env = "TAILRING_DECISION_MEMORY_MAX_BYTES", value_name = "SIZE")]
    pub decision_memory_max_bytes: Option<String>,

    /// Where kept traces go: an OTLP backend, file:PATH or stdout
    ///
    /// grpcs://otlp.example.com:443 and grpc://collector.obs.svc:4317   OTLP over gRPC, with TLS and
    /// without.
    ///
    /// https://otlp.example.com and http://collector.obs.svc:4318   OTLP over HTTP; without a path it
    /// is /v1/traces.
    ///
    /// file:/path/traces.jsonl and stdout   OTLP/JSON, a message a line.
    #[arg(long, env = "TAILRING_EXPORT", value_name = "URL")]
    pub export: Option<String>,

    /// File with headers for the export, one `name: value` a line
    ///
    /// For credentials, which so are neither in the process list nor in the environment. Lines that
    /// begin with # are comments.
    #[arg(long, env = "TAILRING_EXPORT_HEADER_FILE", value_name = "FILE")]
    pub export_header_file: Option<String>,

    /// When a client gets OK: written or synced [default: written]
    ///
    /// written: the operating system has the bytes; survives the end of this process. synced: the
    /// disk has them; survives the end of the host, and costs a group commit.
    #[arg(long, env = "TAILRING_ACK", value_name = "WHEN")]
    pub ack: Option<String>,

    /// A trace with this many spans is judged at once [default: 32000]
    #[arg(long, env = "TAILRING_MAX_TRACE_SPANS", value_name = "COUNT")]
    pub max_trace_spans: Option<String>,

    /// A trace of this size is judged at once [default: 256MiB]
    #[arg(long, env = "TAILRING_MAX_TRACE_BYTES", value_name = "SIZE")]
    pub max_trace_bytes: Option<String>,

    /// When memory or the log is full: refuse or decide [default: refuse]
    ///
    /// refuse: clients get UNAVAILABLE and try again. decide: that, and dropped traces are let go of
    /// before --drop-retain, then the traces that are due next are judged before their time.
    #[arg(long, env = "TAILRING_ON_PRESSURE", value_name = "WHAT")]
    pub on_pressure: Option<String>,

    /// Address for other workers; :4319 is all interfaces [default: 127.0.0.1:4319]
    ///
    /// Workers tell each other here who is there, and what they hold; routers ask who is there. The others find the port
    /// by the SRV records of _tailring-peer._tcp beside those of --workers, by static://NAME=HOST:PORT/PEER-PORT, or by
    /// dns://HOST:PORT?peer-port=PORT; without any of these it is 4319.
    #[arg(long, env = "TAILRING_LISTEN_PEERS", value_name = "ADDRESS")]
    pub listen_peers: Option<String>,

    #[command(flatten)]
    pub shared: SharedArgs,
}
