//! The operator's door: `/metrics`, `/livez`, `/readyz` and `/ring` over HTTP/1.
//!
//! Only reads. What is measured, alive, ready and believed is handed in by whoever knows it, and until
//! then the pages say that the process is starting: a worker may read its log for minutes, and a
//! probe that hangs meanwhile would have it killed.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cluster::ViewHandle;
use crate::cluster::roster::RosterMember;

/// An event loop that must go round. Silence beyond [`SILENCE_MAX`] fails `/livez`.
pub struct LiveCheck {
    pub name: String,
    /// Time since the loop last went round.
    pub silent_for: Box<dyn Fn() -> Duration + Send + Sync>,
}

/// Something without which this process must not get traffic.
pub struct ReadyCheck {
    pub name: &'static str,
    /// `Err` says why not, for a person.
    pub check: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// What the pages show of a process that has started.
pub struct Admin {
    pub registry: Registry,
    pub live: Vec<LiveCheck>,
    pub ready: Arc<[ReadyCheck]>,
    /// Of a worker.
    pub roster: Option<RosterPage>,
}

/// What a worker knows of the members beside their place in the ring.
pub type RosterPage = Box<dyn Fn() -> Vec<RosterMember> + Send + Sync>;

/// The pages being served.
#[derive(Debug)]
pub struct AdminPages {
    pages: Arc<Pages>,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct Pages {
    view: ViewHandle,
    started: OnceLock<Admin>,
}

/// A listener that is bound and not yet served: an address in use is found before anything starts.
#[derive(Debug)]
pub struct AdminListener {
    listener: TcpListener,
}

/// A loop goes round many times a second; one that is silent for this long hangs. Longer than any
/// pause that a busy disk or host causes, because the cure is a restart.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A scraper, a kubelet and some people; more is a mistake or an attack, and waits.
const CONNECTIONS_MAX: usize = 64;
/// For a whole connection, which carries one request.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);
const HEADER_TIME_MAX: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const PATHS: [(&str, &str); 4] = [
    ("/metrics", "all counters, as OpenMetrics text"),
    ("/livez", "200 while the event loops go round"),
    (
        "/readyz",
        "200 when this process may get traffic, else 503 and why not",
    ),
    (
        "/ring",
        "the members this process believes in, and the ring's fingerprint",
    ),
];

#[derive(Serialize)]
struct Loop<'a> {
    name: &'a str,
    alive: bool,
    silent_seconds: f64,
}

#[derive(Serialize)]
struct Condition {
    name: &'static str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl AdminListener {
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener })
    }

    /// With the port that was chosen for port 0.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub fn serve(self, view: ViewHandle) -> AdminPages {
        let pages = Arc::new(Pages {
            view,
            started: OnceLock::new(),
        });
        let serving = tokio::spawn(accept(self.listener, routes(Arc::clone(&pages))));
        AdminPages { pages, serving }
    }
}

impl AdminPages {
    /// The process has started. Only the first call counts.
    pub fn started(&self, admin: Admin) {
        self.pages.started.get_or_init(|| admin);
    }
}

/// Served until the end: `/readyz` and `/metrics` matter most while a process stops.
impl Drop for AdminPages {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn routes(pages: Arc<Pages>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/ring", get(ring))
        .fallback(paths)
        .with_state(pages)
}

async fn accept(listener: TcpListener, routes: Router) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    converse(stream, routes).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: they come back when connections end.
                warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, routes: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    match timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "an admin connection failed"),
        Err(_) => debug!("an admin connection took too long"),
    }
}

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    let Some(admin) = pages.started.get() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "starting: nothing is counted yet\n",
        )
            .into_response();
    };
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            warn!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn livez(State(pages): State<Arc<Pages>>) -> Response {
    let Some(admin) = pages.started.get() else {
        let body = serde_json::json!({ "alive": true, "starting": true, "loops": [] });
        return (StatusCode::OK, Json(body)).into_response();
    };
    let loops: Vec<_> = admin
        .live
        .iter()
        .map(|live| {
            let silent_for = (live.silent_for)();
            Loop {
                name: &live.name,
                alive: silent_for <= SILENCE_MAX,
                silent_seconds: silent_for.as_secs_f64(),
            }
        })
        .collect();
    let alive = loops.iter().all(|each| each.alive);
    let body = serde_json::json!({ "alive": alive, "loops": loops });
    (status_of(alive), Json(body)).into_response()
}

async fn readyz(State(pages): State<Arc<Pages>>) -> Response {
    let Some(admin) = pages.started.get() else {
        let why = "still starting; a worker reads its log first".to_owned();
        let conditions = [Condition {
            name: "started",
            ok: false,
            why: Some(why),
        }];
        let body = serde_json::json!({ "ready": false, "conditions": conditions });
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    };
    let conditions: Vec<_> = admin
        .ready
        .iter()
        .map(|ready| {
            let outcome = (ready.check)();
            Condition {
                name: ready.name,
                ok: outcome.is_ok(),
                why: outcome.err(),
            }
        })
        .collect();
    let ready = conditions.iter().all(|condition| condition.ok);
    let body = serde_json::json!({ "ready": ready, "conditions": conditions });
    (status_of(ready), Json(body)).into_response()
}

async fn ring(State(pages): State<Arc<Pages>>) -> Response {
    let view = pages.view.load();
    let roster = pages.started.get().and_then(|admin| admin.roster.as_ref());
    let described = match roster {
        Some(roster) => view.describe_with(&roster()),
        None => view.describe(),
    };
    Json(described).into_response()
}

async fn paths() -> Result<Response, Infallible> {
    let width = PATHS.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
    let text: String = PATHS
        .iter()
        .map(|(path, what)| format!("{path:width$}  {what}\n"))
        .collect();
    let text = format!("There is nothing here. There is:\n\n{text}");
    Ok((StatusCode::NOT_FOUND, text).into_response())
}

fn status_of(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

impl fmt::Debug for LiveCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveCheck").field(&self.name).finish()
    }
}

impl fmt::Debug for ReadyCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadyCheck").field(&self.name).finish()
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("live", &self.live)
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
