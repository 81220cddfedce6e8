//! `ringpilot csi`: the node's CSI driver `csi.ringpilot.dev`, which gives each pod a folder of its own with the node's
//! socket in it.
//! Place: a container of its own beside the daemon, the only privileged one, without any log; the daemon makes the socket
//! in each folder that appears.
//! Invariants: a folder is called as the kubelet says whose it is (`NAMESPACE_POD_UID`, and `_CONTAINER` where the
//! volume's attribute `container` says for which container it is), never as a process in the pod says; what is mounted
//! is that one folder, for reading only; asked twice it is done once; the names in a request are judged before any path
//! is made of them.
//! Sources: CSI 1.x `csi.proto` (Identity, Node; inline ephemeral volumes with `podInfoOnMount`), the kubelet's
//! `pluginregistration/v1`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::response::Response as HttpResponse;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use crate::say::Fault;

/// The driver's name.
pub const DRIVER: &str = "csi.ringpilot.dev";
/// The volume's attribute by which a pod's manifest says which container's logs come this way.
pub const CONTAINER: &str = "container";

/// Give each pod its folder: the node's CSI driver.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ringpilot csi --node worker-1 --rings /rings")]
pub struct Args {
    /// The node's name
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Where each pod's folder is made
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ringpilot/rings")]
    rings: PathBuf,
    /// The kubelet's folder
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet: PathBuf,
    /// The daemon's user
    #[arg(long, value_name = "UID", default_value_t = 65_532)]
    owner: u32,
}

/// Runs the command.
///
/// # Errors
/// When the kubelet's folders cannot be used.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    drop(
        tracing_subscriber::fmt()
            .json()
            .with_writer(io::stderr)
            .try_init(),
    );
    let failed = |at: &Path, error: &dyn std::fmt::Display| {
        Fault::new(
            format!("{}: {error}", at.display()),
            "run it as the chart does: privileged, with the kubelet's folder",
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&args.kubelet, &error))?;
    runtime.block_on(async {
        let folder = args.kubelet.join("plugins").join(DRIVER);
        fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
        let own = folder.join("csi.sock");
        let registration = args
            .kubelet
            .join("plugins_registry")
            .join(format!("{DRIVER}-reg.sock"));
        let driver = Driver {
            node: args.node.clone(),
            endpoint: own.display().to_string(),
            rings: args.rings.clone(),
            pods: args.kubelet.join("pods"),
            owner: args.owner,
        };
        let router = router(driver);
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|error| failed(&own, &error))?;
        let plugin = listen(&own).map_err(|error| failed(&own, &error))?;
        // Last: once it is there the kubelet calls.
        let registry = listen(&registration).map_err(|error| failed(&registration, &error))?;
        tracing::info!("{DRIVER} answers at {}", own.display());
        let ended = tokio::select! {
            ended = serve(plugin, router.clone()) => ended,
            ended = serve(registry, router) => ended,
            _ = term.recv() => Ok(()),
        };
        // The kubelet forgets the driver at once.
        drop(fs::remove_file(&registration));
        ended.map_err(|error| failed(&own, &error))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn listen(at: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(at)
}

async fn serve(listener: UnixListener, router: Router) -> Result<(), tonic::transport::Error> {
    let incoming = futures_util::stream::unfold(listener, async |listener| {
        let stream = listener.accept().await;
        let stream: io::Result<_> = stream.map(|(stream, _)| super::authority::plain(stream));
        Some((stream, listener))
    });
    tonic::transport::Server::builder()
        .add_routes(tonic::service::Routes::from(router))
        .serve_with_incoming(incoming)
        .await
}

/// What the driver knows.
#[derive(Debug)]
struct Driver {
    node: String,
    endpoint: String,
    rings: PathBuf,
    /// The only place that anything is mounted to.
    pods: PathBuf,
    owner: u32,
}

fn router(driver: Driver) -> Router {
    let driver = Arc::new(driver);
    Router::new().fallback(move |request: HttpRequest| {
        let driver = Arc::clone(&driver);
        async move { dispatch(&driver, request).await }
    })
}

async fn dispatch(driver: &Arc<Driver>, request: HttpRequest) -> HttpResponse {
    let path = request.uri().path().to_owned();
    let driver = Arc::clone(driver);
    match path.as_str() {
        "/pluginregistration.Registration/GetInfo" => {
            answer(request, move |_: Nothing| Ok(driver.registration())).await
        }
        "/pluginregistration.Registration/NotifyRegistrationStatus" => {
            answer(request, |status: Registered| {
                if !status.registered {
                    tracing::error!("the kubelet does not take the driver: {}", status.error);
                }
                Ok(Nothing {})
            })
            .await
        }
        "/csi.v1.Identity/GetPluginInfo" => {
            answer(request, |_: Nothing| {
                Ok(PluginInfo {
                    name: DRIVER.to_owned(),
                    vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
                })
            })
            .await
        }
        // No capabilities beyond the least, and ready as soon as it answers.
        "/csi.v1.Identity/GetPluginCapabilities"
        | "/csi.v1.Identity/Probe"
        | "/csi.v1.Node/NodeGetCapabilities" => answer(request, |_: Nothing| Ok(Nothing {})).await,
        "/csi.v1.Node/NodeGetInfo" => {
            answer(request, move |_: Nothing| {
                Ok(NodeInfo {
                    node_id: driver.node.clone(),
                })
            })
            .await
        }
        "/csi.v1.Node/NodePublishVolume" => {
            answer(request, move |asked: Publish| {
                driver.publish(&asked).map(|()| Nothing {})
            })
            .await
        }
        "/csi.v1.Node/NodeUnpublishVolume" => {
            answer(request, move |asked: Unpublish| {
                driver.unpublish(&asked).map(|()| Nothing {})
            })
            .await
        }
        _ => {
            answer(request, |_: Nothing| {
                Err::<Nothing, _>(Status::unimplemented("this driver only publishes volumes"))
            })
            .await
        }
    }
}

/// Decodes one question, and encodes its answer.
async fn answer<Q, A>(
    request: HttpRequest,
    know: impl FnOnce(Q) -> Result<A, Status> + Clone + Send + 'static,
) -> HttpResponse
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
{
    let codec = tonic_prost::ProstCodec::<A, Q>::default();
    let service = tower::service_fn(move |request: Request<Q>| {
        let know = know.clone();
        async move { know(request.into_inner()).map(Response::new) }
    });
    let mut grpc = tonic::server::Grpc::new(codec);
    let answered: Result<_, Infallible> = Ok(grpc.unary(service, request).await);
    match answered {
        Ok(response) => response.map(axum::body::Body::new),
    }
}

impl Driver {
    fn registration(&self) -> RegistrationInfo {
        RegistrationInfo {
            kind: "CSIPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.clone(),
            versions: vec!["1.0.0".to_owned()],
        }
    }

    fn publish(&self, asked: &Publish) -> Result<(), Status> {
        let target = self.target(&asked.target_path)?;
        let context = |key: &str| {
            let value = asked
                .volume_context
                .get(&format!("csi.storage.k8s.io/{key}"));
            let value = value.filter(|value| is_name(value));
            value.map(String::as_str).ok_or_else(|| {
                Status::invalid_argument(format!("no {key}: the CSIDriver needs podInfoOnMount"))
            })
        };
        let (namespace, pod, uid) = (
            context("pod.namespace")?,
            context("pod.name")?,
            context("pod.uid")?,
        );
        if uid_of(&target, &self.pods) != Some(uid) {
            return Err(Status::invalid_argument("the target is another pod's"));
        }
        // Of the pod's own containers, one may be called as another: the pod is whose it is all the same.
        let container = match asked.volume_context.get(CONTAINER) {
            None => String::new(),
            Some(name) if is_name(name) => format!("_{name}"),
            Some(_) => return Err(Status::invalid_argument("the container's name is none")),
        };
        let folder = self
            .rings
            .join(format!("{namespace}_{pod}_{uid}{container}"));
        let told = |at: &Path| {
            let at = at.display().to_string();
            move |error: io::Error| Status::internal(format!("{at}: {error}"))
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&folder)
            .map_err(told(&folder))?;
        chown(&folder, Some(self.owner), None).map_err(told(&folder))?;
        fs::create_dir_all(&target).map_err(told(&target))?;
        if !mounted(&target).map_err(told(&target))?.is_empty() {
            return Ok(());
        }
        let none = None::<&str>;
        let bound = mount(Some(&folder), &target, none, MsFlags::MS_BIND, none).and_then(|()| {
            let flags = MsFlags::MS_BIND
                | MsFlags::MS_REMOUNT
                | MsFlags::MS_RDONLY
                | MsFlags::MS_NOSUID
                | MsFlags::MS_NODEV
                | MsFlags::MS_NOEXEC;
            mount(none, &target, none, flags, none).inspect_err(|_| {
                if let Err(error) = umount2(&target, MntFlags::MNT_DETACH) {
                    tracing::warn!("{} stays mounted: {error}", target.display());
                }
            })
        });
        bound.map_err(|errno| told(&target)(errno.into()))
    }

    fn unpublish(&self, asked: &Unpublish) -> Result<(), Status> {
        let target = self.target(&asked.target_path)?;
        let told = |error: io::Error| Status::internal(format!("{}: {error}", target.display()));
        if !mounted(&target).map_err(told)?.is_empty() {
            umount2(&target, MntFlags::MNT_DETACH).map_err(|errno| told(errno.into()))?;
        }
        match fs::remove_dir(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(told(error)),
            _ => {}
        }
        let Some(uid) = uid_of(&target, &self.pods) else {
            return Ok(());
        };
        // A pod has one for each container that has a shim: which are still in use, its mounts say.
        let used = mounted(&self.pods.join(uid)).map_err(told)?;
        for entry in fs::read_dir(&self.rings).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_its = name
                .to_str()
                .is_some_and(|name| name.split('_').nth(2) == Some(uid));
            if is_its && !used.iter().any(|used| used.as_os_str() == name) {
                // The socket is the daemon's; what is in flight it holds open.
                drop(fs::remove_file(entry.path().join("s")));
                fs::remove_dir(entry.path()).map_err(told)?;
            }
        }
        Ok(())
    }

    /// A place to mount to: beneath the kubelet's folder of pods, and by no detour.
    fn target(&self, path: &str) -> Result<PathBuf, Status> {
        let path = PathBuf::from(path);
        let is_straight = path
            .components()
            .all(|part| !matches!(part, std::path::Component::ParentDir));
        match is_straight && uid_of(&path, &self.pods).is_some() {
            true => Ok(path),
            false => Err(Status::invalid_argument(format!(
                "{} is not in a pod's folder",
                path.display()
            ))),
        }
    }
}

/// `PODS/UID/volumes/...`
fn uid_of<'path>(target: &'path Path, pods: &Path) -> Option<&'path str> {
    let mut parts = target.strip_prefix(pods).ok()?.components();
    let uid = parts.next()?.as_os_str().to_str()?;
    parts.next()?;
    is_name(uid).then_some(uid)
}

/// A namespace's, a pod's or a UID's name: it becomes a part of a path.
fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    !name.is_empty() && name.len() <= 253 && !name.starts_with('.') && name.chars().all(is_plain)
}

/// What is mounted at a place or beneath it: the name of each folder. Source: `proc_pid_mountinfo(5)`.
fn mounted(at: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let folders = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let folder = Path::new(root).file_name().unwrap_or_default();
        Path::new(place).starts_with(at).then(|| folder.into())
    });
    Ok(folders.collect())
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RegistrationInfo {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    endpoint: String,
    #[prost(string, repeated, tag = "4")]
    versions: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Registered {
    #[prost(bool, tag = "1")]
    registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct PluginInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    vendor_version: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct NodeInfo {
    #[prost(string, tag = "1")]
    node_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Publish {
    #[prost(string, tag = "4")]
    target_path: String,
    #[prost(map = "string, string", tag = "8")]
    volume_context: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Unpublish {
    #[prost(string, tag = "2")]
    target_path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(at: &Path) -> Driver {
        Driver {
            node: "n1".into(),
            endpoint: "/csi.sock".into(),
            rings: at.join("rings"),
            pods: at.join("pods"),
            owner: nix::unistd::Uid::current().as_raw(),
        }
    }

    fn publish(target: &Path, uid: &str) -> Publish {
        let pairs = [
            ("pod.namespace", "shop"),
            ("pod.name", "web-0"),
            ("pod.uid", uid),
        ];
        Publish {
            target_path: target.display().to_string(),
            volume_context: pairs
                .map(|(k, v)| (format!("csi.storage.k8s.io/{k}"), v.to_owned()))
                .into(),
        }
    }

    #[test]
    fn what_would_leave_a_pods_folder_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let driver = driver(folder.path());
        let good = folder
            .path()
            .join("pods/u-1/volumes/kubernetes.io~csi/ringpilot/mount");
        for (target, uid) in [
            (folder.path().join("elsewhere/u-1/x"), "u-1"),
            (folder.path().join("pods/u-1/../../etc"), "u-1"),
            (folder.path().join("pods/u-1"), "u-1"),
            (good.clone(), "u-2"),
            (good.clone(), "../u-1"),
            (good.clone(), ""),
        ] {
            let refused = driver.publish(&publish(&target, uid)).expect_err("refused");
            assert_eq!(
                refused.code(),
                tonic::Code::InvalidArgument,
                "{target:?} {uid}"
            );
        }
        assert!(!driver.rings.exists() && !driver.pods.exists());
    }

    /// As Go's gRPC calls a socket that it was given as a path: its name is the request's authority.
    #[tokio::test]
    async fn a_kubelet_that_names_a_path_as_the_host_is_answered() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("reg.sock");
        let router = router(driver(folder.path()));
        tokio::spawn(serve(listen(&socket).expect("a socket"), router));
        let mut stream = tokio::net::UnixStream::connect(&socket)
            .await
            .expect("connected");
        let text = |text: &str| {
            let mut told = vec![u8::try_from(text.len()).expect("short")];
            told.extend(text.as_bytes());
            told
        };
        let headers = [
            vec![0x83, 0x86, 0x44],
            text("/pluginregistration.Registration/GetInfo"),
            vec![0x41],
            text("%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fx-reg.sock"),
            vec![0x5f],
            text("application/grpc"),
        ]
        .concat();
        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
            let length = u8::try_from(payload.len()).expect("short");
            let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
            frame.extend(payload);
            frame
        };
        let asked = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(1, 4, 1, &headers),
            frame(0, 1, 1, &[0; 5]),
        ]
        .concat();
        stream.write_all(&asked).await.expect("asked");
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(DRIVER) {
            let n = stream.read_buf(&mut heard).await.expect("an answer");
            assert!(n > 0, "it hung up: {heard:?}");
        }
    }

    /// Needs root, as the driver does; without it the mount is refused and nothing is left mounted.
    #[tokio::test]
    async fn the_kubelet_registers_it_publishes_a_pods_folder_and_takes_it_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let driver = driver(folder.path());
        let (rings, pods) = (driver.rings.clone(), driver.pods.clone());
        let socket = folder.path().join("csi.sock");
        tokio::spawn(serve(listen(&socket).expect("a socket"), router(driver)));
        let endpoint = format!("unix://{}", socket.display());
        let channel = tonic::transport::Endpoint::from_shared(endpoint).expect("an address");
        let channel = channel.connect().await.expect("connected");
        async fn ask<Q, A>(
            channel: &tonic::transport::Channel,
            path: &'static str,
            question: Q,
        ) -> Result<A, Status>
        where
            Q: prost::Message + Send + Sync + 'static,
            A: prost::Message + Default + Send + Sync + 'static,
        {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            grpc.unary(Request::new(question), path, codec)
                .await
                .map(Response::into_inner)
        }
        let info: RegistrationInfo = ask(
            &channel,
            "/pluginregistration.Registration/GetInfo",
            Nothing {},
        )
        .await
        .expect("told");
        assert_eq!(
            (info.kind.as_str(), info.name.as_str()),
            ("CSIPlugin", DRIVER)
        );
        let node: NodeInfo = ask(&channel, "/csi.v1.Node/NodeGetInfo", Nothing {})
            .await
            .expect("told");
        assert_eq!(node.node_id, "n1");
        let unknown =
            ask::<_, Nothing>(&channel, "/csi.v1.Controller/CreateVolume", Nothing {}).await;
        assert_eq!(
            unknown.expect_err("refused").code(),
            tonic::Code::Unimplemented
        );

        let target = pods.join("u-1/volumes/kubernetes.io~csi/ringpilot/mount");
        let asked = publish(&target, "u-1");
        let published =
            ask::<_, Nothing>(&channel, "/csi.v1.Node/NodePublishVolume", asked.clone()).await;
        let made = rings.join("shop_web-0_u-1");
        if !nix::unistd::Uid::current().is_root() || published.is_err() {
            assert!(mounted(&target).expect("a table").is_empty());
            return;
        }
        ask::<_, Nothing>(&channel, "/csi.v1.Node/NodePublishVolume", asked)
            .await
            .expect("once is twice");
        fs::write(made.join("s"), "").expect("as the daemon makes its socket");
        assert!(target.join("s").exists());
        assert!(
            fs::write(target.join("other"), "").is_err(),
            "for reading only"
        );
        // Another container's has a folder of its own, and keeps it.
        let second = pods.join("u-1/volumes/kubernetes.io~csi/ringpilot-2/mount");
        let mut asked = publish(&second, "u-1");
        let named = |name: &str| (CONTAINER.to_owned(), name.to_owned());
        asked.volume_context.extend([named("../nginx")]);
        ask::<_, Nothing>(&channel, "/csi.v1.Node/NodePublishVolume", asked.clone())
            .await
            .expect_err("it is no name");
        asked.volume_context.extend([named("nginx")]);
        ask::<_, Nothing>(&channel, "/csi.v1.Node/NodePublishVolume", asked)
            .await
            .expect("published");
        let away = || Unpublish {
            target_path: target.display().to_string(),
        };
        ask::<_, Nothing>(&channel, "/csi.v1.Node/NodeUnpublishVolume", away())
            .await
            .expect("taken away");
        ask::<_, Nothing>(&channel, "/csi.v1.Node/NodeUnpublishVolume", away())
            .await
            .expect("once is twice");
        assert!(!made.exists() && !target.exists());
        let other = rings.join("shop_web-0_u-1_nginx");
        assert!(other.exists());
        let away = Unpublish {
            target_path: second.display().to_string(),
        };
        ask::<_, Nothing>(&channel, "/csi.v1.Node/NodeUnpublishVolume", away)
            .await
            .expect("taken away");
        assert!(!other.exists());
    }
}
