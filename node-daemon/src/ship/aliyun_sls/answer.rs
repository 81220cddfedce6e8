//! What the service says of a request: `{"errorCode": …, "errorMessage": …}`, or nothing if it is taken.
//! Source: the vendor's documentation of `PutLogs`, `CreateLogstore` and the common error codes.

use serde::Deserialize;

use crate::ship::transport::{Answer, foreign, meaning};

/// The most of the service's words that are kept.
const MOST_WORDS_BYTES: usize = 300;

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// It has the records.
    Taken,
    /// A record of the request is at fault.
    Wrong {
        /// The error code, which is a metric's label.
        class: &'static str,
        /// In its own words.
        detail: String,
    },
    /// The logstore is not there.
    NoLogstore { cause: String },
    /// What should be made is there.
    AlreadyThere,
    /// The target has to wait.
    Later { cause: String },
    /// We are not who we say, or may not do it.
    NotUs { cause: String },
    /// The request failed as a whole.
    Failed { cause: String },
}

impl Word {
    /// Why it did not go well, for an operator.
    pub(super) fn cause(self) -> String {
        match self {
            Self::Taken | Self::AlreadyThere => String::new(),
            Self::Wrong { detail, .. } => detail,
            Self::NoLogstore { cause }
            | Self::Later { cause }
            | Self::NotUs { cause }
            | Self::Failed { cause } => cause,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fault {
    error_code: String,
    #[serde(default)]
    error_message: String,
}

/// Codes that blame the content of the request.
const OF_CONTENT: [&str; 7] = [
    "PostBodyTooLarge",
    "PostBodyInvalid",
    "InvalidTimestamp",
    "InvalidEncoding",
    "InvalidKey",
    "InvalidLogSize",
    "InvalidParameter",
];

/// Reads an answer.
pub(super) fn read(answer: &Answer) -> Word {
    if answer.status == 200 {
        return Word::Taken;
    }
    let fault = serde_json::from_slice(&answer.body).unwrap_or(Fault {
        error_code: String::new(),
        error_message: String::new(),
    });
    let code = foreign(&fault.error_code, 100);
    let words = foreign(&fault.error_message, MOST_WORDS_BYTES);
    let lead = match code.as_str() {
        "WriteQuotaExceed" | "ProjectQuotaExceed" | "ExceedQuota" | "ReadQuotaExceed" => {
            "the project's quota is used up; do: raise it in the console"
        }
        "ShardWriteQuotaExceed" => "the shard's quota is used up; do: split shards",
        "LogStoreNotExist" => {
            "the logstore does not exist; do: make it, or set `create_logstore: true`"
        }
        "ProjectNotExist" => "the project does not exist there; do: check `project` and `endpoint`",
        "RequestTimeTooSkewed" | "RequestTimeExpired" => {
            "this node's clock is wrong by more than 15 minutes; do: set it"
        }
        _ => meaning(answer.status),
    };
    let cause = match (code.as_str(), words.as_str()) {
        ("", _) => format!("{lead} ({})", answer.status),
        (code, "") => format!("{lead} ({} {code})", answer.status),
        (code, words) => format!("{lead} ({} {code}: {words})", answer.status),
    };
    let of_content = match answer.status {
        413 => Some("PostBodyTooLarge"),
        400..=499 => OF_CONTENT.into_iter().find(|known| *known == code),
        _ => None,
    };
    if let Some(class) = of_content {
        return Word::Wrong {
            class,
            detail: cause,
        };
    }
    match (code.as_str(), answer.status) {
        ("LogStoreNotExist", _) => Word::NoLogstore { cause },
        ("LogStoreAlreadyExist", _) => Word::AlreadyThere,
        (
            "WriteQuotaExceed"
            | "ShardWriteQuotaExceed"
            | "ProjectQuotaExceed"
            | "ExceedQuota"
            | "ReadQuotaExceed"
            | "ServerBusy"
            | "InternalServerError"
            | "RequestTimeout",
            _,
        )
        | (_, 429) => Word::Later { cause },
        // Known, but without the right to this logstore: another target may go on.
        ("Unauthorized", _) if words.contains("denied by") => Word::Later { cause },
        (_, 401 | 403) => Word::NotUs { cause },
        _ => Word::Failed { cause },
    }
}
