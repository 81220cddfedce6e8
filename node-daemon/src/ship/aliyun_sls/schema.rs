//! The published schema of a group of logs, to read one back.

/// A group.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LogGroup {
    #[prost(message, repeated, tag = "1")]
    pub(crate) logs: Vec<Log>,
    #[prost(string, optional, tag = "3")]
    pub(crate) topic: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub(crate) source: Option<String>,
}

/// A log.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Log {
    #[prost(uint32, required, tag = "1")]
    pub(crate) time: u32,
    #[prost(message, repeated, tag = "2")]
    pub(crate) contents: Vec<Content>,
    #[prost(fixed32, optional, tag = "4")]
    pub(crate) time_ns: Option<u32>,
}

/// A key and its value.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Content {
    #[prost(string, required, tag = "1")]
    pub(crate) key: String,
    #[prost(string, required, tag = "2")]
    pub(crate) value: String,
}
