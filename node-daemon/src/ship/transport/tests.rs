//! The way over the network, before servers that do what a test says.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::header::HeaderMap;
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::scripted::load;
use super::*;

#[test]
fn what_is_shown_of_a_server_holds_no_password() {
    let url = Url::parse("https://user:hunter2@es.local:9200/prefix?a=b").expect("a URL");
    assert_eq!(shown(&url), "https://es.local:9200");
    let url = Url::parse("http://[::1]/").expect("a URL");
    assert_eq!(shown(&url), "http://[::1]");
}

#[test]
fn a_text_from_outside_is_cut_between_characters_and_has_no_controls() {
    assert_eq!(foreign("aä", 2), "a");
    assert_eq!(foreign("a\u{1b}\nä", 9), "a  ä");
}

/// A server that treats each connection so.
async fn serve<F>(each: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    });
    address
}

/// Reads one request, head and body.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let head = read_head(stream).await?;
    let length = head.split("content-length: ").nth(1)?.lines().next()?;
    let mut body = vec![0; length.parse().ok()?];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).to_ascii_lowercase())
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    // The other end may have gone, as the test wants it.
    stream.write_all(text.as_bytes()).await.ok();
    stream.flush().await.ok();
}

fn web(tls: TlsSettings, compression: Compression) -> Web {
    Web::new(tls, compression, Duration::from_secs(5), 4).expect("a client")
}

fn plain() -> Web {
    web(TlsSettings::default(), Compression::None)
}

fn post(url: String, body: Body) -> Request {
    Request {
        method: Method::POST,
        url: Url::parse(&url).expect("a URL"),
        headers: HeaderMap::new(),
        body,
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_batch_of_several_chunks_arrives_whole_with_its_length_packed_or_not() {
    let records: Vec<String> = (0..1_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let whole = load("web", &records);
    let some = crate::ship::Load {
        records: Some((0..1_000).filter(|n| n % 3 != 1).collect()),
        ..whole.clone()
    };
    for load in [whole, some] {
        for compression in [Compression::None, Compression::Gzip] {
            let (heard, mut hears) = tokio::sync::mpsc::channel(1);
            let address = serve(move |mut stream| {
                let heard = heard.clone();
                async move {
                    let request = read_request(&mut stream).await.expect("a request");
                    write(&mut stream, OK).await;
                    heard.send(request).await.expect("the test waits");
                }
            });
            let url = format!("http://{}/", address.await);
            let web = web(TlsSettings::default(), compression);
            let answer = web.exchange(post(url, Body::Records(load.clone()))).await;
            let answer = answer.expect("an answer");
            assert_eq!((answer.status, &*answer.body), (200, &b"ok"[..]));
            let (head, mut body) = hears.recv().await.expect("a request");
            assert!(!head.contains("transfer-encoding"), "{head}");
            assert!(head.contains("user-agent: ringpilot/"), "{head}");
            let packed = compression == Compression::Gzip;
            assert_eq!(head.contains("content-encoding: gzip"), packed, "{head}");
            assert_eq!(head.contains("accept-encoding: gzip"), packed, "{head}");
            if packed {
                let mut plain = Vec::new();
                let mut gzip = flate2::read::GzDecoder::new(&*body);
                gzip.read_to_end(&mut plain).expect("gzip");
                body = plain;
            }
            let sent: Vec<u8> = Pieces::of(&load).flatten().collect();
            assert!(body == sent);
        }
    }
}

#[tokio::test]
async fn nothing_has_a_length_too() {
    let address = serve(|mut stream| async move {
        let (head, _) = read_request(&mut stream).await.expect("a length");
        assert!(head.contains("content-length: 0"));
        write(&mut stream, OK).await;
    });
    let url = format!("http://{}/", address.await);
    for body in [Body::Empty, Body::Whole(Bytes::new())] {
        let answer = plain().exchange(post(url.clone(), body)).await;
        assert_eq!(answer.map(|answer| answer.status), Ok(200));
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        let location = "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
        write(&mut stream, location).await;
        assert_eq!(read_request(&mut stream).await, None);
    });
    let url = format!("http://{}/", address.await);
    let answer = plain().exchange(post(url, Body::Empty)).await;
    assert_eq!(answer.map(|answer| answer.status), Ok(302));
}

#[tokio::test]
async fn an_answer_is_read_no_further_than_its_bound() {
    let address = serve(|mut stream| async move {
        read_request(&mut stream).await;
        write(
            &mut stream,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await;
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x1_0000));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    });
    let url = format!("http://{}/", address.await);
    let answer = plain().exchange(post(url, Body::Empty)).await;
    assert!(
        matches!(answer, Err(Failure::AnswerTooLong { .. })),
        "{answer:?}"
    );
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_is_sent_counts() {
    // As servers and proxies refuse what is too large by its announced length.
    let address = serve(|mut stream| async move {
        let head = read_head(&mut stream).await.expect("a head");
        assert!(head.contains("content-length: 16000000"), "{head}");
        write(
            &mut stream,
            "HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .ok();
    });
    let url = format!("http://{}/", address.await);
    let records = vec!["x".repeat(1_000_000); 16];
    let answer = plain()
        .exchange(post(url, Body::Records(load("web", &records))))
        .await;
    assert_eq!(answer.map(|answer| answer.status), Ok(413));
}

#[tokio::test]
async fn each_way_to_fail_is_told_apart() {
    let closed = serve(|_| async {}).await;
    let cut = serve(|mut stream| async move {
        read_request(&mut stream).await;
        write(
            &mut stream,
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{",
        )
        .await;
    });
    let silent = serve(|mut stream| async move {
        read_request(&mut stream).await;
        std::future::pending().await
    });
    let (cut, silent) = (cut.await, silent.await);
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = free.local_addr().expect("an address");
    drop(free);
    let impatient = Web::new(
        TlsSettings::default(),
        Compression::None,
        Duration::from_millis(50),
        4,
    );
    let impatient = impatient.expect("a client");
    let ask = async |address: SocketAddr| {
        let request = post(format!("http://{address}/"), Body::Empty);
        let failure = impatient.exchange(request).await.expect_err("a failure");
        (
            failure.clone(),
            failure.to_string().replace(&address.to_string(), "HOST"),
        )
    };
    let (failure, words) = ask(nobody).await;
    assert!(matches!(failure, Failure::Unreachable { .. }));
    assert!(
        words.starts_with("http://HOST cannot be reached: Connection refused"),
        "{words}"
    );
    for address in [closed, cut] {
        let (failure, words) = ask(address).await;
        assert!(matches!(failure, Failure::Cut { .. }), "{failure:?}");
        assert!(
            words.starts_with("http://HOST ended the connection"),
            "{words}"
        );
    }
    let (failure, words) = ask(silent).await;
    assert!(matches!(failure, Failure::TimedOut { .. }), "{failure:?}");
    assert_eq!(words, "http://HOST did not answer within 0.05 s");
}

/// An authority, made for a test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// A certificate and its key for this name, in PEM.
    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.0).expect("a certificate"), key)
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a certificate");
        Arc::new(roots)
    }
}

/// A TLS server for `localhost`, signed by `authority`; clients need a certificate by it if `known_only`.
async fn serve_tls(authority: &Authority, known_only: bool) -> SocketAddr {
    let (certificate, key) = authority.issue("localhost");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match known_only {
        true => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(authority.roots(), provider)
                .build()
                .expect("a verifier"),
        ),
        false => builder.with_no_client_auth(),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = builder.with_single_cert(vec![certificate.der().clone()], key);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.expect("a certificate")));
    serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            while read_request(&mut stream).await.is_some() {
                write(&mut stream, OK).await;
            }
        }
    })
    .await
}

async fn asks(web: &Web, server: SocketAddr) -> Result<u16, String> {
    let url = format!("https://localhost:{}/", server.port());
    let answer = web.exchange(post(url, Body::Empty)).await;
    answer
        .map(|answer| answer.status)
        .map_err(|failure| failure.to_string())
}

#[tokio::test]
async fn a_server_is_believed_by_the_authority_that_is_named_and_knows_us_by_our_certificate() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a write");
        Some(path)
    };
    let authority = Authority::new();
    let ca = file("ca.pem", &authority.0.pem());
    let (certificate, key) = authority.issue("node-1");
    let certificate = file("node.pem", &certificate.pem());
    let key = file("node.key", &key.serialize_pem());
    let open = serve_tls(&authority, false).await;
    let strict = serve_tls(&authority, true).await;

    let stranger = asks(&plain(), open).await.expect_err("not believed");
    assert!(stranger.contains("certificate"), "{stranger}");
    let trusting = TlsSettings {
        verify: false,
        ..TlsSettings::default()
    };
    assert_eq!(asks(&web(trusting, Compression::None), open).await, Ok(200));
    let tls = TlsSettings {
        ca,
        ..TlsSettings::default()
    };
    let unknown = web(tls.clone(), Compression::None);
    assert_eq!(asks(&unknown, open).await, Ok(200));
    assert!(asks(&unknown, strict).await.is_err());
    let tls = TlsSettings {
        certificate,
        key,
        ..tls
    };
    assert_eq!(tls.problems("outputs.es"), []);
    assert_eq!(asks(&web(tls, Compression::None), strict).await, Ok(200));
}

#[tokio::test]
async fn an_authority_that_changes_on_disk_counts_after_a_connection_failed() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ca.pem");
    let (old, new) = (Authority::new(), Authority::new());
    std::fs::write(&path, old.0.pem()).expect("a write");
    let server = serve_tls(&new, false).await;
    let tls = TlsSettings {
        ca: Some(path.clone()),
        ..TlsSettings::default()
    };
    let web = web(tls, Compression::None);
    assert!(asks(&web, server).await.is_err());
    // One byte more: the time alone may be too coarse to show it.
    std::fs::write(&path, new.0.pem() + "\n").expect("a write");
    assert_eq!(asks(&web, server).await, Ok(200));
}
