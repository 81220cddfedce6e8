//! Who we say we are: secrets from files and variables, and the header made of them.
//! Invariants: a file is read again every [`READ_AGAIN_AFTER`], and at once after a server refused what it held; while it
//! cannot be read, what was read last counts; nothing prints a secret; no network thread waits for a file.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use tokio::time::Instant;

use crate::problem::{Problem, of_operator};
use crate::settings::Secret;

/// How long a secret that was read from a file counts before it is read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Secrets that belong together.
#[derive(Debug)]
pub struct Secrets {
    secrets: Arc<[Secret]>,
    kept: Mutex<Option<Kept>>,
}

/// What was read, and when; `None` when it was refused since.
struct Kept {
    values: Arc<[String]>,
    read: Option<Instant>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Secrets {
    /// These secrets, unread.
    pub fn new(secrets: Vec<Secret>) -> Self {
        Self {
            secrets: secrets.into(),
            kept: Mutex::new(None),
        }
    }

    /// What they are now, in the order given.
    ///
    /// # Errors
    /// Why one cannot be read, naming its file or variable, if it never could.
    pub async fn now(&self) -> Result<Arc<[String]>, String> {
        let last = {
            let kept = self.kept.lock();
            match &*kept {
                Some(kept) if self.counts(kept) => return Ok(Arc::clone(&kept.values)),
                kept => kept.as_ref().map(|kept| Arc::clone(&kept.values)),
            }
        };
        let read = if self.secrets.iter().any(Secret::can_change) {
            let secrets = Arc::clone(&self.secrets);
            tokio::task::spawn_blocking(move || read_all(&secrets))
                .await
                .unwrap_or_else(|_| Err("reading a secret was given up".to_owned()))
        } else {
            read_all(&self.secrets)
        };
        let values = match (read, last) {
            (Ok(values), _) => values,
            (Err(_), Some(last)) => last,
            (Err(why), None) => return Err(why),
        };
        *self.kept.lock() = Some(Kept {
            values: Arc::clone(&values),
            read: Some(Instant::now()),
        });
        Ok(values)
    }

    /// A server refused them: they are read again before they are used.
    pub fn refused(&self) {
        if let Some(kept) = self.kept.lock().as_mut() {
            kept.read = None;
        }
    }

    fn counts(&self, kept: &Kept) -> bool {
        let fresh = |read: Instant| read.elapsed() < READ_AGAIN_AFTER;
        !self.secrets.iter().any(Secret::can_change) || kept.read.is_some_and(fresh)
    }
}

fn read_all(secrets: &[Secret]) -> Result<Arc<[String]>, String> {
    secrets.iter().map(Secret::read).collect()
}

/// How a server is told who we are.
#[derive(Debug)]
pub enum Login {
    /// Not at all.
    None,
    /// User and password.
    Basic(Secrets),
    /// A token.
    Bearer(Secrets),
    /// An Elasticsearch API key: `ID:KEY`, or that in base64.
    ApiKey(Secrets),
}

impl Login {
    /// User and password.
    pub fn basic(user: Secret, password: Secret) -> Self {
        Self::Basic(Secrets::new(vec![user, password]))
    }

    /// What an operator wrote: `username` and `password`, or the other way, `key` with its login; `named` stood in a URL
    /// and counts if nothing else is written. Keys stand below `path`, for example `outputs.es`.
    ///
    /// # Errors
    /// One half is missing, or there are two ways.
    pub fn choose(
        path: &str,
        (user, password): (Option<Secret>, Option<Secret>),
        other: (&str, Option<Self>),
        named: Option<(String, String)>,
    ) -> Result<Self, Problem> {
        let (key, other) = other;
        match (user, password, other, named) {
            (None, None, Some(other), None) => Ok(other),
            (Some(user), Some(password), None, _) => Ok(Self::basic(user, password)),
            (None, None, None, Some((user, password))) => {
                Ok(Self::basic(Secret::plain(user), Secret::plain(password)))
            }
            (None, None, None, None) => Ok(Self::None),
            (_, _, Some(_), _) => Err(of_operator(
                format!("{path}.{key}"),
                "",
                "there is a user or password, too, and only one of both can be sent",
                "remove one of them",
            )),
            (user, _, None, _) => {
                let missing = if user.is_some() {
                    "password"
                } else {
                    "username"
                };
                Err(of_operator(
                    format!("{path}.{missing}"),
                    "",
                    "user and password belong together and it is not there",
                    format!("add `{missing}:` there"),
                ))
            }
        }
    }

    /// The `Authorization` header, if there is one to send.
    ///
    /// # Errors
    /// Why there should be one and is not.
    pub async fn header(&self) -> Result<Option<HeaderValue>, String> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Basic(secrets) => match &*secrets.now().await? {
                [user, password] => {
                    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
                }
                _ => return Ok(None),
            },
            Self::Bearer(secrets) => format!("Bearer {}", first(&secrets.now().await?)),
            Self::ApiKey(secrets) => {
                let values = secrets.now().await?;
                let key = first(&values);
                // Base64 has no colon.
                match key.contains(':') {
                    true => format!("ApiKey {}", STANDARD.encode(key)),
                    false => format!("ApiKey {key}"),
                }
            }
        };
        let mut header = HeaderValue::try_from(text)
            .map_err(|_| "a secret holds characters that no header may have".to_owned())?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    /// A server refused it: files are read again before the next request.
    pub fn refused(&self) {
        match self {
            Self::None => {}
            Self::Basic(secrets) | Self::Bearer(secrets) | Self::ApiKey(secrets) => {
                secrets.refused();
            }
        }
    }
}

fn first(values: &[String]) -> &str {
    values.first().map_or("", |value| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file(path: &std::path::Path, part: &str) -> Secret {
        let yaml = format!("{{file: {}, part: {part}}}", path.display());
        serde_yaml_ng::from_str(&yaml).expect("the test's own YAML")
    }

    async fn text(login: &Login) -> Option<String> {
        let header = login.header().await.expect("a header")?;
        assert!(header.is_sensitive());
        Some(header.to_str().expect("text").to_owned())
    }

    #[tokio::test]
    async fn each_way_of_logging_in_has_its_header() {
        let secret = |text: &str| Secrets::new(vec![Secret::plain(text)]);
        let basic = Login::basic(Secret::plain("elastic"), Secret::plain("hunter2"));
        assert_eq!(
            text(&basic).await.as_deref(),
            Some("Basic ZWxhc3RpYzpodW50ZXIy")
        );
        let bearer = Login::Bearer(secret("abc\n"));
        assert_eq!(text(&bearer).await.as_deref(), Some("Bearer abc"));
        for key in ["id:key", "aWQ6a2V5"] {
            let key = Login::ApiKey(secret(key));
            assert_eq!(text(&key).await.as_deref(), Some("ApiKey aWQ6a2V5"));
        }
        assert_eq!(text(&Login::None).await, None);
        assert!(!format!("{basic:?}").contains("hunter2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_file_is_read_again_when_it_is_refused_or_old() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("es_credential");
        let login = Login::basic(in_file(&path, "user"), in_file(&path, "password"));
        assert!(
            login
                .header()
                .await
                .is_err_and(|why| why.contains("es_credential"))
        );

        let write = |text: &str| std::fs::write(&path, text).expect("a write");
        write("a:1");
        let first = text(&login).await;
        write("a:2");
        assert_eq!(text(&login).await, first);
        login.refused();
        let second = text(&login).await;
        assert_ne!(second, first);
        write("a:3");
        tokio::time::advance(READ_AGAIN_AFTER).await;
        let third = text(&login).await;
        assert_ne!(third, second);
        // Kubernetes replaces a file by taking it away.
        std::fs::remove_file(&path).expect("a removal");
        login.refused();
        assert_eq!(text(&login).await, third);
    }
}
