use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use ringpilot_shared::host::RealHost;
use tower::ServiceExt;

use super::*;
use crate::ledger::Lost;
use crate::run;
use crate::settings::Settings;

/// A node with everything an operator may see: one log that is well, one behind, one that cannot be read, one that has
/// no file, one that was declared wrong.
fn by_hand() -> Snapshot {
    let tally = |bytes, lines, records| Tally {
        bytes,
        lines,
        records,
    };
    let account = Account {
        read: tally(10_000, 100, 98),
        delivered: tally(8_000, 80, 78),
        dead_lettered: tally(200, 2, 2),
        filtered: tally(300, 3, 3),
        lost: tally(500, 5, 5),
        lost_by_reason: [(Lost::Truncated, tally(500, 5, 5))].into(),
        in_flight: tally(1_000, 10, 10),
        replayed: Replayed { bytes: 64 },
        duplicate_records: 4,
        open_bytes: 12,
        closes: true,
    };
    let web = Container {
        runtime: "cri".into(),
        id: "6f1a".into(),
        name: "nginx".into(),
        pod: "web-7d4f".into(),
        namespace: "shop".into(),
        who: "shop/web-7d4f (nginx)".into(),
    };
    let flow = |output: &str, acked_bytes, lag_bytes, last_error: Option<&str>| FlowState {
        output: output.into(),
        acked_bytes,
        lag_bytes,
        lag_seconds: if lag_bytes > 0 { 42.4 } else { 0.0 },
        last_error: last_error.map(str::to_owned),
    };
    let source = |name: &str, container: &Container, path: &str, flows| Source {
        id: format!("00000000000000aa-0-{name}"),
        name: name.into(),
        target: name.into(),
        format: "nginx".into(),
        container: container.clone(),
        via: "file".into(),
        way: String::new(),
        path: path.into(),
        inode: 77,
        size_bytes: 5_000,
        read_bytes: 4_000,
        state: State::Following,
        trouble: None,
        flows,
    };
    let refused = "connection refused by 10.0.0.9:9200\u{1b}[31m";
    let problem = |container: &str, key: &str, value: &str, reason: &str, cure: &str| Problem {
        container: container.into(),
        key: key.into(),
        value: value.into(),
        reason: reason.into(),
        cure: cure.into(),
    };
    let output = |name: &str, kind: &str, guarantee: &str, trouble: Option<&str>| Output {
        name: name.into(),
        kind: kind.into(),
        guarantee: guarantee.into(),
        up: trouble.is_none(),
        lag_bytes: 1_000,
        held_bytes: 2_048,
        share_bytes: 4_096,
        requests: [("ok".to_owned(), 7), ("failed".to_owned(), 2)].into(),
        retries: 2,
        dead_letters: [("mapper \"parsing\"\n".to_owned(), 2)].into(),
        trouble: trouble.map(str::to_owned),
        last_trouble: trouble.map(str::to_owned),
    };
    let mut stdout = source(
        "orders",
        &web,
        "/var/log/pods/x/nginx/0.log",
        vec![flow("archive", 0, 5_000, Some("Input/output error"))],
    );
    stdout.via = "stdout".into();
    stdout.state = State::Unreadable;
    stdout.trouble = Some("Input/output error".into());
    Snapshot {
        node: "node-1".into(),
        version: "0.1.0".into(),
        uptime_seconds: 61.5,
        ready: true,
        not_ready_because: String::new(),
        ledger: [
            ("archive".to_owned(), account.clone()),
            ("es".to_owned(), account),
        ]
        .into(),
        sources_by_state: [(State::Following, 2), (State::Unreadable, 1)].into(),
        sources: vec![
            source(
                "access",
                &web,
                "/logs/access.log",
                vec![
                    flow("archive", 5_000, 0, None),
                    flow("es", 4_000, 1_000, Some(refused)),
                ],
            ),
            stdout,
            source(
                "syslog",
                &Container {
                    runtime: "static".into(),
                    ..Container::default()
                },
                "/var/log/syslog",
                vec![flow("archive", 5_000, 0, None)],
            ),
        ],
        waiting: vec![Waiting {
            name: "audit".into(),
            target: "audit".into(),
            container: web,
            via: "file".into(),
            way: String::new(),
        }],
        outputs: vec![
            output("archive", "file", "effectively-once", None),
            output("es", "elasticsearch", "effectively-once", Some(refused)),
        ],
        rings: Vec::new(),
        ring_frames: 0,
        problems: vec![
            problem(
                "shop/web-7d4f (nginx), log `errors`",
                "aliyun_logs_errors_format",
                "ngnix",
                "no format is called `ngnix`",
                "use `nginx`; known: none, json, csv",
            ),
            problem(
                "",
                "http",
                "127.0.0.1:9210",
                "the status cannot be served there: Address already in use (os error 98)",
                "free the port, or choose another; it is tried again by itself",
            ),
        ],
        checkpoint: CheckpointState {
            age_seconds: 0.5,
            failing: None,
        },
        read: Read {
            bytes: 20_000,
            lines: 200,
        },
        held_bytes: 4_096,
    }
}

#[test]
fn the_api_has_the_shape_that_the_interface_promises() {
    insta::assert_json_snapshot!(by_hand());
}

#[test]
fn every_metric_has_name_unit_and_help() {
    let process = metrics::Process {
        cpu_seconds: 1.25,
        resident_bytes: 8 << 20,
        open_fds: 12,
    };
    let container = ContainerLag {
        namespace: "shop".into(),
        pod: "web-7d4f".into(),
        container: "nginx".into(),
        output: "es".into(),
        lag_bytes: 1_000,
        delivered_lines: 80,
    };
    let text = metrics::text(&by_hand(), &[container], Some(&process)).expect("text");
    insta::assert_snapshot!(text);
}

/// Names as dashboards and alerts have them; a counter's sample ends in `_total`.
#[test]
fn no_metric_of_the_interface_is_missing_and_none_stands_twice() {
    let text = metrics::text(&by_hand(), &[], metrics::Process::now().as_ref()).expect("text");
    for name in [
        "ringpilot_read_bytes_total ",
        "ringpilot_read_lines_total ",
        "ringpilot_delivered_records_total{output=",
        "ringpilot_duplicate_records_total{output=",
        "ringpilot_dead_letter_records_total{output=\"es\",reason=\"mapper \\\"parsing\\\"\\n\"} 2",
        "ringpilot_filtered_records_total{output=",
        "ringpilot_lost_bytes_total{output=\"es\",reason=\"truncated\"} 500",
        "ringpilot_lost_records_total{output=\"es\",reason=\"quota\"} 0",
        "ringpilot_replayed_bytes_total{output=",
        "ringpilot_lag_bytes{output=",
        "ringpilot_in_flight_bytes 2000",
        "ringpilot_sources{state=\"draining\"} 0",
        "ringpilot_declaration_problems 2",
        "ringpilot_output_up{output=\"es\"} 0",
        "ringpilot_output_requests_total{output=\"es\",code=\"failed\"} 2",
        "ringpilot_output_retries_total{output=",
        "ringpilot_ring_frames_total 0",
        "ringpilot_rings{state=",
        "ringpilot_checkpoint_age_seconds 0.5",
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
        "process_open_fds ",
    ] {
        let there = text.lines().filter(|line| line.starts_with(name)).count();
        assert!(there >= 1, "{name}\n{text}");
    }
    let mut series: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.rsplit_once(' ')?.0))
        .collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all);
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn explain_says_of_each_log_whether_it_is_collected_how_far_and_why_not() {
    let snapshot = by_hand();
    let shown: BTreeMap<&str, String> = [
        "*",
        "shop/web",
        "WEB-7D4F",
        "/logs/*",
        "syslog",
        "errors",
        "9210",
        "nothing of that name",
    ]
    .iter()
    .map(|pattern| (*pattern, explain::find(&snapshot, pattern).to_string()))
    .collect();
    let shown: String = shown
        .iter()
        .map(|(pattern, text)| format!("$ ringpilot explain '{pattern}'\n{text}\n"))
        .collect();
    assert!(!shown.contains('\u{1b}'));
    insta::assert_snapshot!(shown);
}

fn settings(dir: &Path, more: &str) -> Settings {
    let yaml = format!(
        "node_name: node-1\ndata_dir: {0}/data\nhost_root: /\ndiscover: {{docker: false, cri: false, rings: false}}\n\
         outputs: {{one: {{type: \"null\"}}, two: {{type: file, path: \"{0}/out.ndjson\"}}, \
         secret: {{type: http, url: \"http://user:hunter2@127.0.0.1:1/\"}}}}\n{more}",
        dir.display()
    );
    Settings::from_yaml(&yaml, &|_| None).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// A daemon that reads one file and has not started to.
fn opened(dir: &Path, more: &str) -> (run::Opened, Arc<RealHost>) {
    let host = Arc::new(RealHost::new());
    let opened = run::open(settings(dir, more), Arc::clone(&host), false).expect("opened");
    (opened, host)
}

/// A panic prints at most the `Debug` of what it met.
#[test]
fn nothing_that_a_panic_may_print_holds_a_secret() {
    let dir = tempfile::tempdir().expect("a folder");
    let yaml = format!(
        "node_name: node-1\ndata_dir: {}/data\ndiscover: {{docker: false, cri: false, rings: false}}\noutputs:\n  \
         es: {{type: elasticsearch, hosts: ['http://user:hunter2@127.0.0.1:1'], api_key: hunter2}}\n  \
         login: {{type: elasticsearch, hosts: ['http://127.0.0.1:1'], username: a, password: hunter2}}\n  \
         k: {{type: kafka, brokers: ['127.0.0.1:1'], topic: t, username: hunter2, password: hunter2}}\n  \
         s: {{type: aliyun_sls, project: shop, endpoint: '127.0.0.1:1', access_key_id: hunter2, access_key_secret: hunter2, security_token: hunter2}}\n  \
         r: {{type: redis, host: 127.0.0.1, port: 1, username: a, password: hunter2}}\n  \
         h: {{type: http, url: 'http://user:hunter2@127.0.0.1:1/', headers: {{x-key: hunter2}}}}\n  \
         b: {{type: http, url: 'http://127.0.0.1:1/', bearer_token: hunter2}}\n",
        dir.path().display()
    );
    // Half of these are refused, and the refusal must not show them either.
    let mut shown = String::new();
    for only in ["es", "login", "k", "s", "r", "h", "b"] {
        let lines = yaml.lines().filter(|line| {
            !line.starts_with("  ") || line.trim_start().starts_with(&format!("{only}: "))
        });
        let one = lines.collect::<Vec<_>>().join("\n");
        match Settings::from_yaml(&one, &|_| None) {
            Ok(settings) => {
                shown += &format!("{settings:?}{settings:#?}");
                match run::open(settings, Arc::new(RealHost::new()), false) {
                    Ok(opened) => shown += &format!("{only} opened {opened:?}"),
                    Err(fault) => shown += &format!("{fault:?}"),
                }
            }
            Err(problems) => shown += &format!("{problems:?}"),
        }
    }
    let opened = ["login", "k", "s", "r", "b"];
    for only in opened {
        assert!(shown.contains(&format!("{only} opened")), "{only}: {shown}");
    }
    let at = shown.find("hunter2");
    let near = at.map(|at| {
        shown[..at]
            .chars()
            .rev()
            .take(300)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<String>()
    });
    assert_eq!(near, None);
}

async fn get(
    router: &Router,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, String, axum::http::HeaderMap) {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).expect("a request");
    let response = router.clone().oneshot(request).await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    let body = String::from_utf8(body.expect("a body").to_vec()).expect("text");
    (status, body, headers)
}

#[test]
fn a_foreign_host_or_origin_is_refused_and_the_page_cannot_be_framed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (opened, _host) = opened(dir.path(), "");
    let ready = Arc::new(AtomicBool::new(false));
    let status = Status::new(
        opened.parts.pipeline,
        Arc::clone(&opened.parts.problems),
        Arc::clone(&ready),
        "node-1",
        false,
        None,
    );
    let loopback = http::guarded(http::router(Arc::clone(&status)), "127.0.0.1:9210");
    let open = http::guarded(http::router(Arc::clone(&status)), "0.0.0.0:9210");
    opened.parts.runtime.block_on(async {
        for (router, host, origin, expected) in [
            (&loopback, "127.0.0.1:9210", None, 200),
            (&loopback, "LOCALHOST:8080", None, 200),
            (&loopback, "[::1]:9210", None, 200),
            (&loopback, "localhost:80", Some("http://localhost:80"), 200),
            (&loopback, "localhost:80", Some("http://localhost:81"), 403),
            (&loopback, "localhost:80", Some("http://evil.example"), 403),
            (&loopback, "localhost:80", Some("null"), 403),
            (&loopback, "evil.example:9210", None, 403),
            (&loopback, "localhost.evil.example", None, 403),
            (&loopback, "user@localhost", None, 403),
            (&loopback, "10.0.0.1:9210", None, 403),
            (&loopback, "", None, 403),
            (&open, "10.0.0.1:9210", None, 200),
            (&open, "rebound.example:9210", None, 403),
        ] {
            for path in ["/", "/api/status", "/metrics", "/healthz"] {
                let mut headers = vec![("host", host)];
                headers.extend(origin.map(|origin| ("origin", origin)));
                let (status, body, headers) = get(router, path, &headers).await;
                assert_eq!(
                    status.as_u16(),
                    expected,
                    "{host} {origin:?} {path}: {body}"
                );
                assert_eq!(headers["x-frame-options"], "DENY", "{path}");
                let policy = headers["content-security-policy"].to_str().expect("ASCII");
                assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
                assert!(policy.contains("script-src 'sha256-"), "{policy}");
            }
        }
        let local = [("host", "localhost")];
        let (status, _, _) = get(&loopback, "/healthz", &[]).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        let (status, why, _) = get(&loopback, "/readyz", &local).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(why, "the first list of containers has not come\n");
        ready.store(true, Ordering::Release);
        let (status, _, _) = get(&loopback, "/readyz", &local).await;
        assert_eq!(status, StatusCode::OK);
    });
}

#[test]
fn a_daemon_tells_all_by_its_socket_the_ledger_closes_and_no_secret_is_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("a.log");
    std::fs::write(&log, "one\ntwo\nthree\n").expect("written");
    // The port is another's: that is a problem and no more.
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("its address");
    let more = format!(
        "http: {taken}\nmetrics: {{per_container: true}}\nsources:\n  \
         - {{name: a, path: \"{}\"}}\n  - {{name: none, path: \"{}/none-*.log\"}}\n",
        log.display(),
        dir.path().display()
    );
    let (opened, host) = opened(dir.path(), &more);
    let daemon = Daemon::start(opened.parts).expect("started");
    let served = serve(&daemon, crate::control::serve::Control::of(&daemon, None));
    let socket = dir.path().join("data").join(crate::control::SOCKET);
    let mut told = String::new();
    let mut is_good = false;
    for _ in 0..500 {
        if let Ok(body) = crate::control::ask(&socket, "/api/status") {
            told = String::from_utf8(body).expect("text");
            let snapshot: Snapshot = serde_json::from_str(&told).expect("a snapshot");
            assert!(snapshot.ledger.values().all(|one| one.closes), "{told}");
            let delivered = |output: &str| snapshot.ledger[output].delivered;
            is_good = snapshot.ready
                && delivered("one").lines == 3
                && delivered("two").bytes == 14
                && !snapshot.waiting.is_empty()
                && snapshot.outputs.iter().any(|output| !output.up)
                && snapshot
                    .problems
                    .iter()
                    .any(|problem| problem.key == "http");
            if is_good {
                assert_eq!(snapshot.sources.len(), 1);
                let source = &snapshot.sources[0];
                assert_eq!((source.size_bytes, source.read_bytes), (14, 14));
                let lag = |n: usize| (source.flows[n].acked_bytes, source.flows[n].lag_bytes);
                assert_eq!((lag(0), lag(1), lag(2)), ((14, 0), (14, 0), (0, 14)));
                let secret = &snapshot.ledger["secret"];
                assert_eq!((secret.in_flight.bytes, secret.in_flight.lines), (14, 3));
                assert_eq!((secret.read.lines, secret.read.records), (3, 3));
                break;
            }
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert!(is_good, "{told}");
    let rights = std::fs::metadata(&socket).expect("a socket").permissions();
    assert_eq!(rights.mode() & 0o777, 0o600);
    for path in ["/metrics", "/healthz", "/readyz", "/"] {
        let body =
            crate::control::ask(&socket, path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let body = String::from_utf8(body).expect("text");
        assert!(!body.contains("hunter2"), "{body}");
        if path == "/metrics" {
            let lag = "ringpilot_container_lag_bytes{namespace=\"\",pod=\"\",container=\"\",output=\"secret\"} 14";
            assert!(body.contains(lag), "{body}");
        }
    }
    assert!(!told.contains("hunter2"), "{told}");
    assert!(crate::control::ask(&socket, "/nothing").is_err());
    daemon.stop(Duration::from_millis(50), &*host);
    drop(served);
    assert!(!socket.exists());
}
