//! A byte stream to a server, plain or by TLS: what every output stands on that speaks neither HTTP nor Kafka.
//! Place: an output's codec -> **connection** -> the server, and back.
//! Invariants: files of certificates that changed count with the next connection; nothing is tried twice.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::problem::{Problem, of_operator};

/// The key `tls` of an output.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// Whether the server's certificate is verified.
    pub verify: bool,
    /// A PEM file of the authorities that are believed, in place of the built-in ones.
    pub ca: Option<PathBuf>,
    /// A PEM file of our own certificate and what it is signed by.
    pub certificate: Option<PathBuf>,
    /// A PEM file of its key; may be the same file.
    pub key: Option<PathBuf>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            verify: true,
            ca: None,
            certificate: None,
            key: None,
        }
    }
}

impl TlsSettings {
    /// What is wrong with the files as they are now; keys stand below `path`, for example `outputs.logstash`.
    pub fn problems(&self, path: &str) -> Vec<Problem> {
        let missing = match (&self.certificate, &self.key) {
            (Some(_), None) => Some("key"),
            (None, Some(_)) => Some("certificate"),
            _ => None,
        };
        if let Some(missing) = missing {
            return vec![of_operator(
                format!("{path}.tls.{missing}"),
                "",
                "a certificate of our own is given by two files and only one is named",
                "name both `certificate` and `key`; they may be the same file",
            )];
        }
        [
            ("ca", self.roots().map(drop)),
            ("certificate", self.identity().map(drop)),
        ]
        .into_iter()
        .filter_map(|(key, read)| {
            let cure = "name a readable file in PEM form";
            read.err()
                .map(|why| of_operator(format!("{path}.tls.{key}"), "", why, cure))
        })
        .collect()
    }

    /// The files as they are now, without reading them: other stamps mean that they changed.
    pub(super) fn stamps(&self) -> Stamps {
        [&self.ca, &self.certificate, &self.key]
            .into_iter()
            .flatten()
            .map(|path| {
                let meta = std::fs::metadata(path).ok()?;
                Some((meta.modified().ok()?, meta.len()))
            })
            .collect()
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let Some(path) = &self.ca else {
            return Ok(RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.into(),
            });
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            // One of another kind among good ones is no reason to believe none.
            if let Err(error) = roots.add(certificate) {
                tracing::debug!("{}: {error}", path.display());
            }
        }
        match roots.is_empty() {
            true => Err(format!("{} holds no authority", path.display())),
            false => Ok(roots),
        }
    }

    fn identity(&self) -> Result<Option<Identity>, String> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else {
            return Ok(None);
        };
        let pem = read(key)?;
        let private = rustls_pemfile::private_key(&mut pem.as_slice())
            .ok()
            .flatten()
            .ok_or_else(|| format!("{} holds no private key", key.display()))?;
        Ok(Some((certificates(certificate)?, private)))
    }

    fn config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match self.verify {
            true => builder.with_root_certificates(self.roots()?),
            false => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(BelieveAnyone(provider))),
        };
        match self.identity()? {
            None => Ok(builder.with_no_client_auth()),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("our own certificate cannot be used: {error}")),
        }
    }
}

/// When each file was changed, and its length.
pub(super) type Stamps = Vec<Option<(SystemTime, u64)>>;

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    match rustls_pemfile::certs(&mut pem.as_slice()).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("{} holds no certificate", path.display())),
    }
}

/// `verify: false`: whoever answers is believed to be the server, as the operator has it.
#[derive(Debug)]
struct BelieveAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for BelieveAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// A name or an address; of an IPv6 address without its brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Address {
    /// Reads `HOST:PORT`, `[IPV6]:PORT`, or `HOST` alone where a port is usual.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str, usual_port: Option<u16>) -> Result<Self, String> {
        if text.contains("://") {
            return Err("it has a scheme where host and port alone are wanted".to_owned());
        }
        let bare = |host: &str| {
            let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
            inner.unwrap_or(host).to_owned()
        };
        let (host, port) = match text.rsplit_once(':') {
            // The colons of an IPv6 address are not before a port.
            Some((host, _)) if host.contains(':') && !host.starts_with('[') => (text, None),
            Some(_) if text.ends_with(']') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let port = match port {
            None => usual_port.ok_or("its port is missing")?,
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err("its port is no number from 1 to 65535".to_owned()),
            },
        };
        let host = bare(host);
        if host.is_empty() || host.contains(['/', ' ', '[', ']', '@']) {
            return Err("it names no host".to_owned());
        }
        Ok(Self { host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// How servers are reached: plainly, or by TLS.
#[derive(Debug)]
pub struct Way {
    tls: Option<TlsSettings>,
    /// How long a connection may take to come about, TLS included.
    pub timeout: Duration,
    /// What TLS was made of, and TLS: kept, so that a session can be taken up again.
    kept: Mutex<Option<(Stamps, Arc<ClientConfig>)>>,
}

impl Way {
    /// By TLS, if there are settings for it.
    pub fn new(tls: Option<TlsSettings>, timeout: Duration) -> Self {
        Self {
            tls,
            timeout,
            kept: Mutex::default(),
        }
    }

    /// Connects to a server.
    ///
    /// # Errors
    /// Why not, in words that name the server.
    pub async fn connect(&self, to: &Address) -> Result<Connection, String> {
        match tokio::time::timeout(self.timeout, self.open(to)).await {
            Ok(connection) => connection,
            Err(_) => {
                let seconds = self.timeout.as_secs_f64();
                Err(format!(
                    "{to} cannot be reached: no answer within {seconds} s"
                ))
            }
        }
    }

    async fn open(&self, to: &Address) -> Result<Connection, String> {
        let connector = match &self.tls {
            None => None,
            Some(tls) => Some(TlsConnector::from(self.config(tls).await?)),
        };
        let tcp = TcpStream::connect((to.host.as_str(), to.port))
            .await
            .map_err(|error| format!("{to} cannot be reached: {error}"))?;
        // Only costs speed where it cannot be set.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!("{to}: {error}");
        }
        let Some(connector) = connector else {
            return Ok(Connection::Plain(tcp));
        };
        let name = ServerName::try_from(to.host.clone())
            .map_err(|_| format!("{to} cannot be reached by TLS: it is no name"))?;
        match connector.connect(name, tcp).await {
            Ok(tls) => Ok(Connection::Tls(Box::new(tls))),
            Err(error) => Err(format!("{to} cannot be reached by TLS: {error}")),
        }
    }

    /// TLS from the files as they are now.
    async fn config(&self, tls: &TlsSettings) -> Result<Arc<ClientConfig>, String> {
        let kept = self.kept.lock().clone();
        let tls = tls.clone();
        let made = tokio::task::spawn_blocking(move || {
            let stamps = tls.stamps();
            match kept {
                Some((of, config)) if of == stamps => Ok((stamps, config)),
                _ => Ok::<_, String>((stamps, Arc::new(tls.config()?))),
            }
        });
        let made = made
            .await
            .map_err(|_| "reading the certificates was given up".to_owned())??;
        let config = Arc::clone(&made.1);
        *self.kept.lock() = Some(made);
        Ok(config)
    }
}

/// A socket whose datagrams go to one server. That it is there is not known.
///
/// # Errors
/// Why there is no such socket, in words that name the server.
pub async fn datagrams(to: &Address) -> Result<UdpSocket, String> {
    let cannot = |error: io::Error| format!("{to} cannot be reached: {error}");
    let mut servers = tokio::net::lookup_host((to.host.as_str(), to.port))
        .await
        .map_err(cannot)?;
    let server = servers
        .next()
        .ok_or_else(|| format!("{to} cannot be reached: its name has no address"))?;
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from(([0_u8; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    };
    let socket = UdpSocket::bind(any).await.map_err(cannot)?;
    socket.connect(server).await.map_err(cannot)?;
    Ok(socket)
}

/// A connection.
#[derive(Debug)]
pub enum Connection {
    /// TCP alone.
    Plain(TcpStream),
    /// TLS on it.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Whether one that was not used for a while is still open, and its server silent, as it should be.
    pub fn is_idle(&mut self) -> bool {
        let mut byte = [0_u8; 1];
        self.read(&mut byte).now_or_never().is_none()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_people_write_it() {
        let read = |text: &str| Address::parse(text, None).map(|to| (to.host, to.port));
        assert_eq!(read("ls:5044"), Ok(("ls".to_owned(), 5044)));
        assert_eq!(read("[::1]:514"), Ok(("::1".to_owned(), 514)));
        let usual = |text: &str| Address::parse(text, Some(9)).map(|to| to.to_string());
        assert_eq!(usual("::1").as_deref(), Ok("[::1]:9"));
        assert_eq!(usual("[fe80::1]").as_deref(), Ok("[fe80::1]:9"));
        assert_eq!(usual("h").as_deref(), Ok("h:9"));
        for wrong in [
            "",
            ":1",
            "h",
            "h:0",
            "h:x",
            "h:70000",
            "http://h:1",
            "u@h:1",
            "a b:1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_no_pem_is_named_with_its_key() {
        let dir = tempfile::tempdir().expect("a folder");
        let rubbish = dir.path().join("rubbish.pem");
        std::fs::write(&rubbish, "rubbish").expect("a write");
        let missing = dir.path().join("missing");
        let of = |ca: Option<&Path>, certificate: Option<&Path>, key: Option<&Path>| {
            let tls = TlsSettings {
                ca: ca.map(Into::into),
                certificate: certificate.map(Into::into),
                key: key.map(Into::into),
                ..TlsSettings::default()
            };
            let problems = tls.problems("outputs.logstash");
            problems
                .into_iter()
                .map(|problem| problem.key)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(Some(&missing), None, None), ["outputs.logstash.tls.ca"]);
        assert_eq!(of(Some(&rubbish), None, None), ["outputs.logstash.tls.ca"]);
        assert_eq!(of(None, Some(&rubbish), None), ["outputs.logstash.tls.key"]);
        let pair = of(None, Some(&rubbish), Some(&rubbish));
        assert_eq!(pair, ["outputs.logstash.tls.certificate"]);
        assert_eq!(of(None, None, None), [""; 0]);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_the_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let to = Address::parse(&format!("127.0.0.1:{port}"), None).expect("an address");
        let way = Way::new(None, Duration::from_secs(5));
        let mut open = way.connect(&to).await.expect("a connection");
        let (other, _) = listener.accept().expect("its other end");
        assert!(open.is_idle());
        drop((other, listener));
        let why = way.connect(&to).await.expect_err("nobody listens");
        assert!(
            why.starts_with(&format!("{to} cannot be reached: ")),
            "{why}"
        );
        // The end is on its way through loopback.
        while open.is_idle() {
            tokio::task::yield_now().await;
        }
    }
}
