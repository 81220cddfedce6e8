//! Against an engine that knows what it is told to know.

use std::sync::Mutex;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::broadcast;

use super::*;

/// An engine that knows what it is told to know.
#[derive(Clone)]
struct Fake {
    containers: Arc<Mutex<HashMap<String, serde_json::Value>>>,
    /// Paths asked for, in order.
    asked: Arc<Mutex<Vec<String>>>,
    /// `None` ends all event streams.
    events: broadcast::Sender<Option<String>>,
    /// Sent at the start of each event stream, as after a `since` in the past.
    missed: Arc<Mutex<Vec<String>>>,
    data_root: PathBuf,
}

fn event(action: &str, id: &str, time_ns: i64) -> String {
    json!({"Type": "container", "Action": action, "timeNano": time_ns, "time": time_ns / 1_000_000_000,
        "Actor": {"ID": id, "Attributes": {"image": "i", "name": id, "aliyun.logs.x": "stdout"}}})
    .to_string()
        + "\n"
}

async fn answer(State(fake): State<Fake>, request: Request) -> Response {
    let path = request.uri().path();
    let path = path.strip_prefix("/v1.41").unwrap_or(path).to_owned();
    fake.asked
        .lock()
        .expect("not poisoned")
        .push(request.uri().to_string());
    match path.as_str() {
        "/version" => axum::Json(json!({"ApiVersion": "1.41", "Components": [
            {"Name": "Engine", "Version": "20.10"}]}))
        .into_response(),
        "/info" => axum::Json(
            json!({"DockerRootDir": fake.data_root, "Driver": "overlay2",
            "LoggingDriver": "json-file", "SystemTime": "2026-11-24T02:46:36.5Z"}),
        )
        .into_response(),
        "/containers/json" => {
            let containers = fake.containers.lock().expect("not poisoned");
            let list: Vec<_> = containers
                .iter()
                .map(|(id, inspect)| {
                    let running = inspect["State"]["Running"] == true;
                    json!({"Id": id, "State": if running {"running"} else {"created"}})
                })
                .collect();
            axum::Json(list).into_response()
        }
        "/events" => {
            let missed = std::mem::take(&mut *fake.missed.lock().expect("not poisoned"));
            let receiver = fake.events.subscribe();
            let live = futures_util::stream::unfold(receiver, |mut receiver| async move {
                let event = receiver.recv().await.ok()??;
                Some((Ok::<_, std::io::Error>(Bytes::from(event)), receiver))
            });
            let missed = missed.into_iter().map(|event| Ok(Bytes::from(event)));
            Body::from_stream(futures_util::stream::iter(missed).chain(live)).into_response()
        }
        path => {
            let id = path
                .trim_start_matches("/containers/")
                .trim_end_matches("/json");
            match fake.containers.lock().expect("not poisoned").get(id) {
                Some(inspect) => axum::Json(inspect.clone()).into_response(),
                None => (
                    StatusCode::NOT_FOUND,
                    axum::Json(json!({"message": "No such container"})),
                )
                    .into_response(),
            }
        }
    }
}

struct Engine {
    fake: Fake,
    socket: PathBuf,
    folder: tempfile::TempDir,
    server: Option<tokio::task::JoinHandle<()>>,
}

impl Engine {
    fn new() -> Engine {
        let folder = tempfile::tempdir().expect("a folder");
        let data_root = folder.path().join("data");
        std::fs::create_dir_all(data_root.join("containers")).expect("made");
        Engine {
            fake: Fake {
                containers: Arc::default(),
                asked: Arc::default(),
                events: broadcast::channel(64).0,
                missed: Arc::default(),
                data_root,
            },
            socket: folder.path().join("docker.sock"),
            folder,
            server: None,
        }
    }

    fn start(&mut self) {
        let listener = UnixListener::bind(&self.socket).expect("bound");
        let app = Router::new().fallback(answer).with_state(self.fake.clone());
        self.server = Some(tokio::spawn(async move {
            axum::serve(listener, app).await.expect("served");
        }));
    }

    fn stop(&mut self) {
        std::fs::remove_file(&self.socket).expect("removed");
        if let Some(server) = self.server.take() {
            server.abort();
        }
        // Nobody may be connected.
        drop(self.fake.events.send(None));
    }

    fn run(&self, id: &str, is_running: bool) {
        self.fake.containers.lock().expect("not poisoned").insert(
            id.to_owned(),
            json!({"Id": id, "Name": format!("/{id}"), "Created": "2026-11-24T02:46:36Z",
                "State": {"Running": is_running, "Pid": 0, "StartedAt":
                    if is_running {"2026-11-24T02:46:37Z"} else {"0001-01-01T00:00:00Z"}},
                "HostConfig": {"LogConfig": {"Type": "json-file"}},
                "Config": {"Env": ["aliyun_logs_x=stdout"], "Labels": {}}}),
        );
    }

    fn remove(&self, id: &str) {
        self.fake
            .containers
            .lock()
            .expect("not poisoned")
            .remove(id);
    }

    async fn say(&self, action: &str, id: &str, time_ns: i64) {
        // Until the watcher has subscribed.
        while self.fake.events.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        self.fake
            .events
            .send(Some(event(action, id, time_ns)))
            .expect("a listener");
    }

    fn watch(&self) -> mpsc::Receiver<Heard> {
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(watch(
            DockerSocket::At(self.socket.clone()),
            PathBuf::from("/"),
            sender,
        ));
        receiver
    }
}

/// What is heard, in a form that reads well; without what concerns other tests.
async fn next(heard: &mut mpsc::Receiver<Heard>) -> String {
    let next = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await;
    match next
        .expect("something is heard")
        .expect("the watcher lives")
    {
        Heard::Here(workload) => format!("here {} {:?}", workload.id, workload.state),
        Heard::Gone { id, .. } => format!("gone {id}"),
        Heard::Listed(_) => "listed".to_owned(),
        Heard::Unreachable(..) => "unreachable".to_owned(),
    }
}

#[tokio::test]
async fn what_happened_while_the_socket_was_dead_is_found_by_the_list() {
    let mut engine = Engine::new();
    engine.run("a", true);
    engine.run("b", true);
    engine.start();
    let mut heard = engine.watch();
    let mut first = [next(&mut heard).await, next(&mut heard).await];
    first.sort();
    assert_eq!(first, ["here a Running", "here b Running"]);
    assert_eq!(next(&mut heard).await, "listed");

    engine.stop();
    assert_eq!(next(&mut heard).await, "unreachable");
    engine.remove("a");
    engine.run("c", true);
    engine.start();
    let mut then = [next(&mut heard).await, next(&mut heard).await];
    then.sort();
    assert_eq!(then, ["gone a", "here c Running"]);
    assert_eq!(next(&mut heard).await, "listed");
}

#[tokio::test]
async fn a_container_that_came_and_went_while_the_socket_was_dead_is_told_by_its_events() {
    let mut engine = Engine::new();
    engine.start();
    let mut heard = engine.watch();
    assert_eq!(next(&mut heard).await, "listed");
    engine.stop();
    assert_eq!(next(&mut heard).await, "unreachable");
    *engine.fake.missed.lock().expect("not poisoned") =
        vec![event("create", "short", 7), event("destroy", "short", 8)];
    engine.start();
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(next(&mut heard).await);
    }
    told.retain(|line| line != "listed");
    assert_eq!(told, ["here short Ended", "gone short"]);
    let asked = engine.fake.asked.lock().expect("not poisoned");
    // Since the engine's own time at the first connect, and a little before it after that.
    assert!(
        asked.iter().any(|uri| uri.contains("since=1795488396.5"))
            && asked.iter().any(|uri| uri.contains("since=1795488394.5")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_container_is_told_at_create_start_end_and_removal_and_not_again_by_a_repeated_event() {
    let mut engine = Engine::new();
    engine.start();
    let mut heard = engine.watch();
    assert_eq!(next(&mut heard).await, "listed");
    engine.run("w", false);
    engine.say("create", "w", 1).await;
    assert_eq!(next(&mut heard).await, "here w Created");
    engine.run("w", true);
    engine.say("start", "w", 2).await;
    assert_eq!(next(&mut heard).await, "here w Running");
    engine.remove("w");
    engine.say("destroy", "w", 3).await;
    assert_eq!(next(&mut heard).await, "gone w");
    engine.say("destroy", "w", 3).await;
    engine.run("v", false);
    engine.say("create", "v", 4).await;
    assert_eq!(next(&mut heard).await, "here v Created");
}

#[tokio::test]
async fn a_folder_in_the_data_root_is_enough_when_the_engine_says_nothing() {
    let mut engine = Engine::new();
    engine.start();
    let mut heard = engine.watch();
    assert_eq!(next(&mut heard).await, "listed");
    let folder = engine.folder.path().join("data/containers/abc123");
    std::fs::create_dir(&folder).expect("made");
    std::fs::write(
        folder.join("config.v2.json"),
        r#"{"ID":"abc123","Name":"/x","Config":{"Labels":{}},"State":{}}"#,
    )
    .expect("written");
    assert_eq!(next(&mut heard).await, "here abc123 Created");
    // The engine does not know it yet, which is not the same as gone: its own word comes a moment later.
    engine.run("abc123", true);
    engine.say("create", "abc123", 2_000_000_000).await;
    assert_eq!(next(&mut heard).await, "here abc123 Running");
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_once() {
    let mut engine = Engine::new();
    let mut heard = engine.watch();
    assert_eq!(next(&mut heard).await, "unreachable");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(heard.try_recv().is_err());
    engine.start();
    assert_eq!(next(&mut heard).await, "listed");
}
