//! Serve the status: metrics, probes, the API and the page, on loopback, on the pod's address, and on a socket in
//! `data_dir` for the commands.
//! Place: `run` starts it beside the daemon; it only reads.
//! Invariants: a port that is taken or a socket that cannot be made is a problem and is tried again, never a reason not
//! to collect; one answer is made at a time, so that many who ask cost no memory; on TCP a foreign `Host` or `Origin`
//! is refused, so that no web page elsewhere can read this one through a browser (DNS rebinding).

use std::fs::DirBuilder;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, body::Body};
use base64::Engine as _;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limit::Limited;
use super::{Status, metrics};
use crate::control::serve::Control;
use crate::control::{self, SOCKET};
use crate::daemon::Daemon;
use crate::problem::{Problem, Problems, of_operator};

/// The folder in which the socket is made, before others could reach it.
const NURSERY: &str = "control.tmp";
/// A port that is taken is tried again this much later.
const AGAIN: Duration = Duration::from_secs(5);
/// What one source comes to in `/api/status`, roughly.
const SOURCE_BYTES: usize = 700;

const PAGE: &str = include_str!("page.html");

/// What is served, for as long as this lives; then the control socket goes.
#[derive(Debug)]
pub struct Served {
    socket: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may never have been made.
        drop(std::fs::remove_file(&self.socket));
    }
}

/// Serves a daemon's status where its settings say, on the daemon's own runtime.
#[must_use]
pub fn serve(daemon: &Daemon, control: Arc<Control>) -> Served {
    let (settings, handle) = (&daemon.settings, daemon.handle());
    let status = Status::of(daemon);
    let gate = Arc::new(Semaphore::new(1));
    let shared = Shared { status, gate };
    if let Some(address) = &settings.http {
        let router = guarded(all(shared.clone()), address);
        handle.spawn(listen(
            "http",
            address.clone(),
            router,
            Arc::clone(&daemon.problems),
        ));
    }
    if let Some(address) = &settings.metrics_listen {
        let router = probes(shared.clone());
        handle.spawn(listen(
            "metrics_listen",
            address.clone(),
            router,
            Arc::clone(&daemon.problems),
        ));
    }
    let socket = settings.data_dir.join(SOCKET);
    handle.spawn(on_socket(
        settings.data_dir.clone(),
        all(shared).merge(control::serve::router(control)),
        Arc::clone(&daemon.problems),
    ));
    Served { socket }
}

/// Everything, for who may see it: to be guarded where a browser could come from elsewhere.
pub fn router(status: Arc<Status>) -> Router {
    let gate = Arc::new(Semaphore::new(1));
    all(Shared { status, gate })
}

#[derive(Debug, Clone)]
struct Shared {
    status: Arc<Status>,
    gate: Arc<Semaphore>,
}

fn all(shared: Shared) -> Router {
    let more = Router::new()
        .route("/", get(page))
        .route("/api/status", get(api))
        .with_state(shared.clone());
    probes(shared).merge(more)
}

fn probes(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
        .layer(middleware::map_response(harden))
}

/// Refuses requests that were meant for another host, or come from another's page. `address` is what is listened on.
pub fn guarded(router: Router, address: &str) -> Router {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host: Arc<str> = host.to_ascii_lowercase().into();
    router.layer(middleware::from_fn_with_state(host, guard))
}

async fn guard(State(bound): State<Arc<str>>, request: Request, next: Next) -> Response {
    if let Err(why) = is_ours(request.headers(), &bound) {
        return (StatusCode::FORBIDDEN, harden_headers(), format!("{why}\n")).into_response();
    }
    harden(next.run(request).await).await
}

/// Whether `Host` names this machine and `Origin`, if any, the same.
fn is_ours(headers: &HeaderMap, bound: &str) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err("exactly one Host header is wanted");
    };
    let foreign = "this Host is not served here; use the address that is listened on, or localhost";
    let host = host.to_str().map_err(|_| foreign)?;
    let authority: Authority = host.parse().map_err(|_| foreign)?;
    if host.contains('@') || !may_name_us(authority.host(), bound) {
        return Err(foreign);
    }
    for origin in headers.get_all(header::ORIGIN) {
        let of = origin.to_str().ok().and_then(|origin| {
            origin
                .strip_prefix("http://")
                .or_else(|| origin.strip_prefix("https://"))
        });
        if !of.is_some_and(|of| of.eq_ignore_ascii_case(host)) {
            return Err("a page of another origin may not read this");
        }
    }
    Ok(())
}

/// A name that somebody else's DNS could point here is refused; numbers cannot be pointed elsewhere.
fn may_name_us(host: &str, bound: &str) -> bool {
    let ip = |text: &str| {
        let text = text.trim_start_matches('[').trim_end_matches(']');
        text.parse::<IpAddr>().ok()
    };
    let is_open = ip(bound).is_some_and(|bound| !bound.is_loopback());
    match ip(host) {
        Some(ip) => ip.is_loopback() || is_open || host.eq_ignore_ascii_case(bound),
        None => host.eq_ignore_ascii_case("localhost") || host.eq_ignore_ascii_case(bound),
    }
}

/// The hash that lets the page's own script run and no other.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let script = PAGE
        .split_once("<script>")
        .and_then(|(_, rest)| rest.split_once("</script>"))
        .map_or("", |(script, _)| script);
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(script));
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    // Base64 and our own words are visible ASCII.
    HeaderValue::from_str(&policy)
        .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

fn harden_headers() -> [(HeaderName, HeaderValue); 5] {
    [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ]
}

async fn harden(mut response: Response) -> Response {
    response.headers_mut().extend(harden_headers());
    response
}

async fn page() -> Response {
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    (kind, PAGE).into_response()
}

async fn api(State(shared): State<Shared>) -> Response {
    make(shared, |status| {
        let snapshot = status.snapshot(true);
        let mut body = Vec::with_capacity(4096 + snapshot.sources.len() * SOURCE_BYTES);
        match serde_json::to_writer(&mut body, &snapshot) {
            Ok(()) => {
                let kind = [(header::CONTENT_TYPE, "application/json")];
                (kind, Body::from(body)).into_response()
            }
            Err(error) => broken(&error),
        }
    })
    .await
}

async fn metrics_text(State(shared): State<Shared>) -> Response {
    make(shared, |status| match status.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => broken(&error),
    })
    .await
}

/// Alive: the pipeline lets itself be looked at.
async fn healthz(State(shared): State<Shared>) -> Response {
    make(shared, |status| {
        match status.pipeline.look(|view| view.save_failing().cloned()) {
            // Delivery goes on without a checkpoint: a restart would not help.
            Some(why) => format!("ok; the checkpoint cannot be saved: {why}\n").into_response(),
            None => "ok\n".into_response(),
        }
    })
    .await
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let status = &shared.status;
    if status.is_ready() {
        return "ready\n".into_response();
    }
    let why = super::not_ready(&status.problems.all());
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

/// Makes an answer away from the network's threads, one at a time.
async fn make(
    shared: Shared,
    answer: impl FnOnce(&Status) -> Response + Send + 'static,
) -> Response {
    let Ok(permit) = shared.gate.acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let made = tokio::task::spawn_blocking(move || {
        let answer = answer(&shared.status);
        drop::<OwnedSemaphorePermit>(permit);
        answer
    });
    made.await.unwrap_or_else(|error| broken(&error))
}

fn broken(error: &dyn std::fmt::Display) -> Response {
    let why = format!("the status could not be told: {error}\n");
    (StatusCode::INTERNAL_SERVER_ERROR, why).into_response()
}

/// Listens and serves; while the address cannot be had, that is a problem and is tried again.
async fn listen(key: &'static str, address: String, router: Router, problems: Arc<Problems>) {
    let owner = format!("listen:{key}");
    loop {
        match TcpListener::bind(&address).await {
            Ok(listener) => {
                problems.clear(&owner);
                tracing::info!("{key}: status at http://{address}/");
                let served = axum::serve(Limited::new(listener), router.clone()).await;
                if let Err(error) = served {
                    tracing::warn!("{key}: {error}");
                }
            }
            Err(error) => problems.set(&owner, vec![taken(key, &address, &error)]),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn taken(key: &str, address: &str, error: &io::Error) -> Problem {
    let cure = match error.kind() {
        io::ErrorKind::AddrInUse => "free the port, or choose another; it is tried again by itself",
        io::ErrorKind::PermissionDenied => "choose a port above 1023",
        _ => "write an address of this machine, such as `127.0.0.1:9210`, or `none`",
    };
    of_operator(
        key,
        address,
        format!("the status cannot be served there: {error}"),
        cure,
    )
}

/// The same on the control socket, which only its owner may use.
async fn on_socket(data_dir: PathBuf, router: Router, problems: Arc<Problems>) {
    loop {
        match bind(&data_dir) {
            Ok(listener) => {
                problems.clear("control");
                if let Err(error) = axum::serve(Limited::lasting(listener), router.clone()).await {
                    tracing::warn!("the control socket: {error}");
                }
            }
            Err(error) => {
                let problem = of_operator(
                    "data_dir",
                    data_dir.join(SOCKET).display().to_string(),
                    format!("the control socket cannot be made: {error}"),
                    "let data_dir be a writable folder with a path of at most 90 bytes; until then `explain` and \
                     other commands do not reach the daemon",
                );
                problems.set("control", vec![problem]);
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Makes the socket with its rights before anybody can reach it, in place of one that a killed daemon left.
fn bind(data_dir: &Path) -> io::Result<UnixListener> {
    let socket = data_dir.join(SOCKET);
    // Two daemons on one folder are possible only where nothing can be locked.
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        let why = "another daemon answers there";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    }
    let nursery = data_dir.join(NURSERY);
    drop(std::fs::remove_dir_all(&nursery));
    DirBuilder::new().mode(0o700).create(&nursery)?;
    let made = nursery.join("s");
    let bound = UnixListener::bind(&made).and_then(|listener| {
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&made, &socket)?;
        Ok(listener)
    });
    drop(std::fs::remove_dir_all(&nursery));
    bound
}
