//! What librdkafka's codes mean: whose fault it is, and what an operator can do.
//! Source: librdkafka 2.12 (`rdkafka.h`) and the Kafka protocol's error codes.

use rdkafka::error::RDKafkaErrorCode as Code;

/// The reason by which a record is refused for good, if this is its own fault.
pub(super) fn refusal(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::MessageSizeTooLarge => "message_too_large",
        Code::InvalidRecord => "invalid_record",
        Code::InvalidMessage => "invalid_message",
        _ => return None,
    })
}

/// Whether a broker's word on a message set blames a record of it, perhaps another than this one.
pub(super) fn blames_a_record(code: Code) -> bool {
    refusal(code).is_some()
        || matches!(
            code,
            Code::InvalidDifferentRecord | Code::MessageBatchTooLarge
        )
}

/// Whether nothing else for this topic will fare better now.
pub(super) fn blames_the_topic(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed
            | Code::InvalidTopic
    )
}

/// Whether a topic that is not there may be about to be.
pub(super) fn may_be_created(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::LeaderNotAvailable
    )
}

/// The cause in words; `known` is what was said beside the code.
pub(super) fn cause(code: Code, topic: &str, known: Option<&str>) -> String {
    let with = |words: &str| match known {
        Some(known) => known.to_owned(),
        None => words.to_owned(),
    };
    match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition => format!(
            "topic `{topic}` does not exist; do: create it, or let the brokers do so (auto.create.topics.enable)"
        ),
        Code::UnknownPartition => format!("topic `{topic}` has fewer partitions than it had"),
        Code::LeaderNotAvailable => format!("topic `{topic}` has no leader now"),
        Code::TopicAuthorizationFailed => format!(
            "we may not write to topic `{topic}`; do: allow our user to WRITE and DESCRIBE it, and to CREATE it if it is new"
        ),
        Code::ClusterAuthorizationFailed => {
            let cure = "do: allow our user IDEMPOTENT_WRITE on the cluster";
            format!("cluster authorization failed: we may not write there with `acks: all`; {cure}")
        }
        Code::InvalidTopic => format!("the brokers do not accept the name `{topic}` for a topic"),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            format!("too few replicas of topic `{topic}` are in sync (min.insync.replicas)")
        }
        Code::PurgeQueue | Code::PurgeInflight | Code::Fatal => {
            with("the producer was given up before this was confirmed")
        }
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::MessageTimedOut => with("no broker answers"),
        code => named(code),
    }
}

/// librdkafka's own words for a code.
fn named(code: Code) -> String {
    let words = code.to_string();
    let inner = words.split_once('(').map(|(_, inner)| inner);
    inner
        .map_or(words.as_str(), |inner| inner.trim_end_matches(')'))
        .to_owned()
}
