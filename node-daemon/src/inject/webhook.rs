//! `ringpilot webhook`: the same injection as a mutating admission webhook.
//! Place: a command, one small Deployment of its own; all knowledge of pods is in [`super::pod`].
//! Invariants: it never refuses a pod: what cannot be understood is let through, and said in a warning; its certificate
//! is its own, lives in memory, and is renewed long before it ends. A new one is believed by the API server (through the
//! `caBundle` of the webhook's configuration) before it is shown, and the old one is believed as long as it is valid.
//! Source: Kubernetes `admission.k8s.io/v1` AdmissionReview, RFC 6902 (JSON Patch).

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::RwLock;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::command::How;
use super::{Options, pod};
use crate::problem::{Escaped, Problem};
use crate::say::Fault;

/// How long a certificate is good.
const VALID_DAYS: i64 = 90;
/// When the next one is made.
const RENEW_AFTER: Duration = Duration::from_secs(60 * 24 * 3600);
/// A clock that goes behind ours must not refuse it.
const BACKDATED_DAYS: i64 = 1;
/// How long before a failed renewal is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long the API server is given for a handshake: it gives us ten seconds for all.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A pod is at most 1.5 MiB in the API server; the review has it twice.
const MOST_BYTES: usize = 8 << 20;
/// A warning is cut at 256 characters, and all of a review at 4096.
const MOST_WARNINGS: usize = 8;

/// Add the shim to pods as they are made: a mutating admission webhook.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  ringpilot webhook --name ringpilot.logging.svc --configuration ringpilot"
)]
pub struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9443")]
    listen: SocketAddr,
    /// The name by which the API server calls
    #[arg(long, value_name = "HOST")]
    name: Vec<String>,
    /// The MutatingWebhookConfiguration to keep current
    #[arg(long, value_name = "NAME")]
    configuration: String,
    #[command(flatten)]
    how: How,
}

/// Runs the command.
///
/// # Errors
/// When it cannot listen, or is not in a cluster.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    drop(
        tracing_subscriber::fmt()
            .json()
            .with_writer(std::io::stderr)
            .try_init(),
    );
    let failed = |cause: String| Fault::new(cause, "run it in a pod, as the chart does");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format!("no thread can be had: {error}")))?;
    runtime.block_on(async {
        let api = Api::in_cluster(&args.configuration).map_err(failed)?;
        let listener = TcpListener::bind(args.listen).await.map_err(|error| {
            Fault::new(
                format!("{} cannot be listened at: {error}", args.listen),
                "name another with `--listen`",
            )
        })?;
        let first = Certificate::new(&args.name).map_err(failed)?;
        let shown = Arc::new(Shown(RwLock::new(Arc::clone(&first.key))));
        let keeping = keep(api, args.name.clone(), first, Arc::clone(&shown));
        tokio::spawn(keeping);
        tracing::info!("listening at {}", args.listen);
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|error| failed(error.to_string()))?;
        let end = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        axum::serve(Tls::new(listener, shown), router(args.how.options()))
            .with_graceful_shutdown(end)
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn router(options: Options) -> Router {
    let options = Arc::new(options);
    let mutate = move |Json(asked): Json<Value>| {
        let options = Arc::clone(&options);
        async move { Json(review(&asked, &options)) }
    };
    Router::new()
        .route("/mutate", post(mutate))
        .route("/healthz", get(async || "alive\n"))
        .layer(axum::extract::DefaultBodyLimit::max(MOST_BYTES))
}

/// The answer to one AdmissionReview.
#[must_use]
pub fn review(asked: &Value, options: &Options) -> Value {
    let request = asked.get("request").unwrap_or(&Value::Null);
    let mut response = json!({"uid": request.get("uid").unwrap_or(&Value::Null), "allowed": true});
    let object = request.get("object").unwrap_or(&Value::Null);
    let is_pod = request
        .pointer("/kind/kind")
        .is_none_or(|kind| kind == "Pod");
    if is_pod && object.is_object() {
        let (patch, problems) = patch(request, object, options);
        if !problems.is_empty() {
            let warnings = problems.iter().take(MOST_WARNINGS).map(|problem| {
                let text = format!("ringpilot: {}", Escaped(&problem.to_string()));
                text.chars().take(256).collect::<String>()
            });
            response["warnings"] = warnings.collect();
        }
        if let Some(patch) = patch {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(patch.to_string()).into();
        }
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

/// What is added, each list whole: `add` replaces a member that is there.
fn patch(request: &Value, object: &Value, options: &Options) -> (Option<Value>, Vec<Problem>) {
    // Any JSON is YAML, and what was JSON is JSON again.
    let Ok(mut changed) = serde_yaml_ng::to_value(object) else {
        return (None, Vec::new());
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let namespace = text(request.get("namespace")).unwrap_or_default();
    let name = text(object.pointer("/metadata/name"))
        .or_else(|| text(object.pointer("/metadata/generateName")));
    let who = format!("{namespace}/{}", name.unwrap_or_default());
    let (is_changed, problems) = pod(&mut changed, &who, options);
    let changed = match serde_json::to_value(&changed) {
        Ok(changed) if is_changed => changed,
        _ => return (None, problems),
    };
    let operations = [
        "/metadata/annotations",
        "/spec/initContainers",
        "/spec/volumes",
    ]
    .into_iter()
    .filter_map(|path| {
        let value = changed.pointer(path)?;
        (object.pointer(path) != Some(value))
            .then(|| json!({"op": "add", "path": path, "value": value}))
    });
    (Some(operations.collect()), problems)
}

/// A certificate that we made for ourselves; whoever believes it believes us.
struct Certificate {
    pem: String,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    fn new(names: &[String]) -> Result<Self, String> {
        let told = |error: rcgen::Error| format!("no certificate can be made: {error}");
        let mut asked = rcgen::CertificateParams::new(names).map_err(told)?;
        let (year, month, date) = day(-BACKDATED_DAYS);
        asked.not_before = rcgen::date_time_ymd(year, month, date);
        let (year, month, date) = day(VALID_DAYS);
        asked.not_after = rcgen::date_time_ymd(year, month, date);
        asked
            .distinguished_name
            .push(rcgen::DnType::CommonName, "ringpilot webhook");
        let pair = rcgen::KeyPair::generate().map_err(told)?;
        let signed = asked.self_signed(&pair).map_err(told)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let key = rustls::crypto::ring::sign::any_supported_type(&key)
            .map_err(|error| format!("no certificate can be made: {error}"))?;
        let chain: Vec<CertificateDer<'static>> = vec![signed.der().clone()];
        Ok(Self {
            pem: signed.pem(),
            key: Arc::new(CertifiedKey::new(chain, key)),
        })
    }
}

/// Year, month and day, so many days from now.
fn day(days: i64) -> (i32, u8, u8) {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
    let date = jiff::tz::Offset::UTC.to_datetime(at).date();
    let part = |number: i8| u8::try_from(number).unwrap_or(1);
    (date.year().into(), part(date.month()), part(date.day()))
}

/// Tells the API server whom to believe, and makes the next certificate in time.
async fn keep(api: Api, names: Vec<String>, mut current: Certificate, shown: Arc<Shown>) {
    let mut before = String::new();
    loop {
        let bundle = format!("{before}{}", current.pem);
        while let Err(cause) = api.believe(&bundle).await {
            tracing::error!(
                "the webhook's configuration cannot be written: {cause}; it is tried again in 30 s"
            );
            tokio::time::sleep(AGAIN).await;
        }
        *shown.0.write() = Arc::clone(&current.key);
        // A chart that is applied again empties the bundle: it is written again now and then.
        let until = tokio::time::Instant::now() + RENEW_AFTER;
        while tokio::time::Instant::now() < until {
            tokio::time::sleep(AGAIN * 10).await;
            if let Err(cause) = api.believe(&bundle).await {
                tracing::warn!("the webhook's configuration cannot be written: {cause}");
            }
        }
        match Certificate::new(&names) {
            Ok(next) => {
                before = std::mem::replace(&mut current, next).pem;
            }
            Err(cause) => tracing::error!("{cause}"),
        }
    }
}

/// The certificate that is shown now.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

/// Connections whose handshake is done; one that is slow holds up no other.
struct Tls {
    done: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: std::io::Result<SocketAddr>,
}

impl Tls {
    fn new(listener: TcpListener, shown: Arc<Shown>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let address = listener.local_addr();
        let (sender, done) = mpsc::channel(16);
        // ring's provider has every version that is asked for.
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions();
        let Ok(config) = config else {
            return Self { done, address };
        };
        let mut config = config.with_no_client_auth().with_cert_resolver(shown);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let (acceptor, sender) = (acceptor.clone(), sender.clone());
                        tokio::spawn(async move {
                            let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
                            if let Ok(Ok(stream)) = shaken.await {
                                // No receiver: it ends.
                                drop(sender.send((stream, from)).await);
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!("a connection was not taken: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Self { done, address }
    }
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.done.recv().await {
            Some(one) => one,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        match &self.address {
            Ok(address) => Ok(*address),
            Err(error) => Err(error.kind().into()),
        }
    }
}

/// The one thing that is asked of the API server: whom it believes when it calls us.
struct Api {
    client: reqwest::Client,
    url: String,
    token: std::path::PathBuf,
}

impl Api {
    fn in_cluster(configuration: &str) -> Result<Self, String> {
        const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        if configuration.is_empty() || !configuration.chars().all(is_plain) {
            return Err(format!(
                "`{}` is no name of a configuration",
                Escaped(configuration)
            ));
        }
        let variable = |name: &str| std::env::var(name).map_err(|_| format!("${name} is not set"));
        let (host, port) = (
            variable("KUBERNETES_SERVICE_HOST")?,
            variable("KUBERNETES_SERVICE_PORT")?,
        );
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host,
        };
        let authority = format!("{ACCOUNT}/ca.crt");
        let pem = std::fs::read(&authority).map_err(|error| format!("{authority}: {error}"))?;
        let told = |error: reqwest::Error| format!("{authority}: {error}");
        let authority = reqwest::Certificate::from_pem(&pem).map_err(told)?;
        let client = reqwest::Client::builder()
            .add_root_certificate(authority)
            .tls_built_in_root_certs(false)
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(told)?;
        Ok(Self {
            client,
            url: format!(
                "https://{host}:{port}/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{configuration}"
            ),
            token: format!("{ACCOUNT}/token").into(),
        })
    }

    async fn believe(&self, pem: &str) -> Result<(), String> {
        // The kubelet writes a new token before the old one ends.
        let token = std::fs::read_to_string(&self.token).map_err(|error| error.to_string())?;
        let patch = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": STANDARD.encode(pem)}]);
        let answer = self
            .client
            .patch(&self.url)
            .bearer_auth(token.trim())
            .header("Content-Type", "application/json-patch+json")
            .body(patch.to_string())
            .send()
            .await
            .map_err(|error| error.to_string())?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("the API server says {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pod: &Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "namespace": "shop", "operation": "CREATE", "object": pod}})
    }

    fn declaring(path: &str) -> Value {
        json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{
            "name": "web", "env": [{"name": "aliyun_logs_app", "value": path}],
            "volumeMounts": [{"name": "logs", "mountPath": "/logs"}]}]}})
    }

    fn operations(answer: &Value) -> Vec<Value> {
        let patch = answer.pointer("/response/patch").and_then(Value::as_str);
        let patch = STANDARD.decode(patch.expect("a patch")).expect("base64");
        serde_json::from_slice(&patch).expect("operations")
    }

    #[test]
    fn a_declaring_pod_is_patched_and_any_other_is_let_through() {
        let options = Options::default();
        let answer = review(&asked(&declaring("/logs/app.log")), &options);
        assert_eq!(answer.pointer("/response/uid"), Some(&json!("u-1")));
        assert_eq!(answer.pointer("/response/allowed"), Some(&json!(true)));
        let operations = operations(&answer);
        let paths: Vec<_> = operations.iter().map(|o| o["path"].as_str()).collect();
        assert_eq!(
            paths,
            [
                Some("/metadata/annotations"),
                Some("/spec/initContainers"),
                Some("/spec/volumes")
            ]
        );
        assert_eq!(operations[1]["value"][0]["name"], "ringpilot-shim");
        assert_eq!(operations[0]["value"]["ringpilot.dev/shim"], "app");
        for other in [
            json!({}),
            json!(7),
            json!({"request": {"uid": 1, "object": []}}),
            asked(&json!({"spec": {"containers": 7}})),
        ] {
            let answer = review(&other, &options);
            assert_eq!(answer.pointer("/response/allowed"), Some(&json!(true)));
            assert_eq!(answer.pointer("/response/patch"), None);
        }
    }

    #[test]
    fn what_is_wrong_is_a_warning_to_who_makes_the_pod() {
        let answer = review(
            &asked(&declaring("/elsewhere/app.log")),
            &Options::default(),
        );
        let warning = answer
            .pointer("/response/warnings/0")
            .and_then(Value::as_str);
        let warning = warning.expect("a warning");
        assert!(warning.contains("shop/web- (web), log `app`"), "{warning}");
        assert!(
            warning.contains("mount an emptyDir at /elsewhere"),
            "{warning}"
        );
    }

    #[tokio::test]
    async fn it_answers_by_tls_to_who_believes_its_own_certificate() {
        let certificate = Certificate::new(&["localhost".to_owned()]).expect("made");
        let authority = reqwest::Certificate::from_pem(certificate.pem.as_bytes()).expect("pem");
        let shown = Arc::new(Shown(RwLock::new(Arc::clone(&certificate.key))));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = axum::serve(
            Tls::new(listener, Arc::clone(&shown)),
            router(Options::default()),
        );
        tokio::spawn(serving.into_future());
        let client = |authority| {
            reqwest::Client::builder()
                .add_root_certificate(authority)
                .tls_built_in_root_certs(false)
                .build()
                .expect("a client")
        };
        let ask = async |client: reqwest::Client| {
            let url = format!("https://localhost:{port}/mutate");
            let body = asked(&declaring("/logs/a.log")).to_string();
            let asked = client
                .post(url)
                .header("Content-Type", "application/json")
                .body(body);
            asked.send().await?.text().await
        };
        let answer = ask(client(authority.clone())).await.expect("an answer");
        assert!(answer.contains("JSONPatch"), "{answer}");
        // Renewed: the new one is shown at once, and the old one is not believed for it.
        let next = Certificate::new(&["localhost".to_owned()]).expect("made");
        *shown.0.write() = Arc::clone(&next.key);
        assert!(ask(client(authority)).await.is_err());
        let authority = reqwest::Certificate::from_pem(next.pem.as_bytes()).expect("pem");
        assert!(ask(client(authority)).await.is_ok());
    }
}
