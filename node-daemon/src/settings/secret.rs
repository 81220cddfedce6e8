//! Secrets: where one is kept, never what it is.
//! Invariant: nothing prints a secret: `Debug`, `Display` and `Serialize` write `***`.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

/// A secret: written plainly, or `{file: PATH}`, or `{env: VARIABLE}`.
///
/// A file is read each time, so that a changed one counts; `part: user` takes what stands before its first `:`,
/// `part: password` what stands after (log-pilot's `/run/secrets/es_credential` holds both).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Kept);

#[derive(Clone, PartialEq, Eq)]
enum Kept {
    Plain(String),
    File(PathBuf, Option<Part>),
    Env(String),
}

/// Which part of a file of the form `user:password`.
#[derive(Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    User,
    Password,
}

impl Secret {
    /// A secret that is known already.
    pub fn plain(text: impl Into<String>) -> Self {
        Self(Kept::Plain(text.into()))
    }

    /// The secret as it is now; a file's trailing line end is not part of it.
    ///
    /// # Errors
    /// Why it cannot be read, naming the file or variable.
    pub fn read(&self) -> Result<String, String> {
        match &self.0 {
            Kept::Plain(text) => Ok(text.clone()),
            Kept::Env(name) => std::env::var(name)
                .map_err(|_| format!("the environment variable {name} is not set")),
            Kept::File(path, part) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                let text = text.trim_end_matches(['\r', '\n']);
                let Some(part) = part else {
                    return Ok(text.to_owned());
                };
                let (user, password) = text
                    .split_once(':')
                    .ok_or_else(|| format!("{} does not hold `user:password`", path.display()))?;
                Ok(match part {
                    Part::User => user,
                    Part::Password => password,
                }
                .to_owned())
            }
        }
    }

    /// Whether it may change while we run, so that reading it again is worth it.
    pub fn can_change(&self) -> bool {
        matches!(self.0, Kept::File(..))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

struct SecretVisitor;

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = Secret;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, `{file: PATH}` or `{env: VARIABLE}`")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::plain(text))
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Secret, E> {
        Ok(Secret::plain(number.to_string()))
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Secret, E> {
        Ok(Secret::plain(number.to_string()))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Secret, A::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Place {
            file: Option<PathBuf>,
            env: Option<String>,
            part: Option<Part>,
        }
        let place = Place::deserialize(de::value::MapAccessDeserializer::new(map))?;
        match (place.file, place.env) {
            (Some(path), None) => Ok(Secret(Kept::File(path, place.part))),
            (None, Some(name)) if place.part.is_none() => Ok(Secret(Kept::Env(name))),
            _ => Err(de::Error::custom(
                "a secret is kept in one place; do: write `{file: PATH}`, `{file: PATH, part: user}` or `{env: VARIABLE}`",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(yaml: &str) -> Secret {
        serde_yaml_ng::from_str(yaml).expect("the test's own YAML")
    }

    #[test]
    fn a_secret_is_never_printed() {
        for kept in [
            secret("hunter2"),
            secret("{env: hunter2}"),
            secret("{file: /hunter2}"),
        ] {
            assert_eq!(format!("{kept:?} {kept}"), "*** ***");
            assert_eq!(serde_json::to_string(&kept).expect("a string"), "\"***\"");
        }
        assert_eq!(secret("hunter2").read(), Ok("hunter2".to_owned()));
        assert_eq!(secret("1234").read(), Ok("1234".to_owned()));
    }

    #[test]
    fn a_secret_file_that_changes_counts_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("es_credential");
        let whole = secret(&format!("{{file: {}}}", path.display()));
        let user = secret(&format!("{{file: {}, part: user}}", path.display()));
        let password = secret(&format!("{{file: {}, part: password}}", path.display()));
        assert!(whole.read().is_err_and(|why| why.contains("es_credential")));
        for text in ["elastic:first", "elastic:sec:ond\n"] {
            std::fs::write(&path, text).expect("a write");
            assert_eq!(whole.read().as_deref(), Ok(text.trim_end()));
            assert_eq!(user.read().as_deref(), Ok("elastic"));
            assert_eq!(password.read().as_deref(), Ok(&text.trim_end()[8..]));
        }
    }
}
