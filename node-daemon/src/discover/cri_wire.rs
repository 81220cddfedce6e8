//! What the CRI and containerd say over gRPC: of each message only the fields that are read here; the others are skipped.
//! Place: within **discover**, for `cri`.
//! Sources: `k8s.io/cri-api` `runtime/v1/api.proto` (field numbers are fixed for ever), containerd
//! `api/services/{events,snapshots}/v1` and `api/types/mount.proto` as of 1.6 to 2.1.

use std::collections::HashMap;

/// `runtime.v1.RuntimeService`.
pub(super) const VERSION: &str = "/runtime.v1.RuntimeService/Version";
/// Every sandbox.
pub(super) const LIST_SANDBOXES: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
/// Every container.
pub(super) const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
/// One container.
pub(super) const CONTAINER_STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";
/// A stream of what happens: CRI-O, and containerd from 1.7 on.
pub(super) const CONTAINER_EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
/// containerd's own stream of what happens, in every version.
pub(super) const CONTAINERD_EVENTS: &str = "/containerd.services.events.v1.Events/Subscribe";
/// Where containerd keeps a container's writable layer.
pub(super) const SNAPSHOT_MOUNTS: &str = "/containerd.services.snapshots.v1.Snapshots/Mounts";

/// A question without content, and an event of which only that it came is read.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct VersionAnswer {
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Sandbox {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SandboxMetadata>,
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
    /// The pod's annotations.
    #[prost(map = "string, string", tag = "6")]
    pub annotations: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SandboxMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Containers {
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Container {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub sandbox_id: String,
    #[prost(enumeration = "ContainerState", tag = "6")]
    pub state: i32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum ContainerState {
    Created = 0,
    Running = 1,
    Exited = 2,
    Unknown = 3,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct StatusQuestion {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// With `verbose`; under `info` both containerd and CRI-O put one JSON object.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Status {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(enumeration = "ContainerState", tag = "3")]
    pub state: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "4")]
    pub created_at: i64,
    #[prost(map = "string, string", tag = "12")]
    pub labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "13")]
    pub annotations: HashMap<String, String>,
    #[prost(message, repeated, tag = "14")]
    pub mounts: Vec<StatusMount>,
    /// Absolute, on the host.
    #[prost(string, tag = "15")]
    pub log_path: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct StatusMount {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Subscription {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SnapshotQuestion {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, tag = "2")]
    pub key: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SnapshotMounts {
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<SnapshotMount>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SnapshotMount {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}
