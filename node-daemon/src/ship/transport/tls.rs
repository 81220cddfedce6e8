//! TLS as an output's `tls` key says it: whom we believe, and who we are.
//! Place: settings -> **tls** -> `Web`. By rustls; without a CA of the operator's own, the roots of webpki.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use reqwest::{Certificate, ClientBuilder, Identity};

use crate::problem::{Problem, of_operator};

/// The key `tls` of an output.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// Whether the server's certificate is verified.
    pub verify: bool,
    /// A PEM file of the authorities that are believed, in place of the built-in ones.
    pub ca: Option<PathBuf>,
    /// A PEM file of our own certificate and what it is signed by.
    pub certificate: Option<PathBuf>,
    /// A PEM file of its key; may be the same file.
    pub key: Option<PathBuf>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            verify: true,
            ca: None,
            certificate: None,
            key: None,
        }
    }
}

/// What is known of the files without reading them: another means that they changed.
pub(super) type Fingerprint = Vec<Option<(SystemTime, u64)>>;

impl TlsSettings {
    /// What is wrong with the files as they are now; keys stand below `path`, for example `outputs.es`.
    pub fn problems(&self, path: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        let missing = match (&self.certificate, &self.key) {
            (Some(_), None) => Some("key"),
            (None, Some(_)) => Some("certificate"),
            _ => None,
        };
        if let Some(missing) = missing {
            problems.push(of_operator(
                format!("{path}.tls.{missing}"),
                "",
                "a certificate of our own is given by two files and only one is named",
                "name both `certificate` and `key`; they may be the same file",
            ));
            return problems;
        }
        for (key, read) in [
            ("ca", self.roots().map(drop)),
            ("certificate", self.identity().map(drop)),
        ] {
            if let Err(why) = read {
                problems.push(of_operator(
                    format!("{path}.tls.{key}"),
                    "",
                    why,
                    "name a readable file in PEM form",
                ));
            }
        }
        problems
    }

    /// A client's TLS, from the files as they are now.
    ///
    /// # Errors
    /// Which file is at fault, and why.
    pub(super) fn apply(&self, builder: ClientBuilder) -> Result<ClientBuilder, String> {
        let mut builder = builder
            .use_rustls_tls()
            .danger_accept_invalid_certs(!self.verify);
        if let Some(roots) = self.roots()? {
            builder = builder.tls_built_in_root_certs(false);
            for root in roots {
                builder = builder.add_root_certificate(root);
            }
        }
        Ok(match self.identity()? {
            Some(identity) => builder.identity(identity),
            None => builder,
        })
    }

    /// Whether there are files that may change.
    pub(super) fn has_files(&self) -> bool {
        self.files().next().is_some()
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.files()
            .map(|path| {
                let meta = std::fs::metadata(path).ok()?;
                Some((meta.modified().ok()?, meta.len()))
            })
            .collect()
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.ca, &self.certificate, &self.key]
            .into_iter()
            .flatten()
    }

    fn roots(&self) -> Result<Option<Vec<Certificate>>, String> {
        let Some(path) = &self.ca else {
            return Ok(None);
        };
        match Certificate::from_pem_bundle(&read(path)?) {
            Ok(roots) if !roots.is_empty() => Ok(Some(roots)),
            _ => Err(format!("{} holds no certificate", path.display())),
        }
    }

    fn identity(&self) -> Result<Option<Identity>, String> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else {
            return Ok(None);
        };
        let mut pem = read(certificate)?;
        if key != certificate {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        Identity::from_pem(&pem).map(Some).map_err(|_| {
            format!(
                "{} and {} are no certificate and key that fit",
                certificate.display(),
                key.display()
            )
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_or_no_pem_is_named_with_its_key() {
        let dir = tempfile::tempdir().expect("a folder");
        let rubbish = dir.path().join("rubbish.pem");
        std::fs::write(&rubbish, "rubbish").expect("a write");
        let of = |ca: Option<&Path>, certificate: Option<&Path>, key: Option<&Path>| {
            let tls = TlsSettings {
                ca: ca.map(Into::into),
                certificate: certificate.map(Into::into),
                key: key.map(Into::into),
                ..TlsSettings::default()
            };
            let problems = tls.problems("outputs.es");
            let keys = problems.into_iter().map(|problem| problem.key);
            keys.collect::<Vec<_>>()
        };
        let missing = dir.path().join("missing");
        assert_eq!(of(Some(&missing), None, None), ["outputs.es.tls.ca"]);
        assert_eq!(of(Some(&rubbish), None, None), ["outputs.es.tls.ca"]);
        assert_eq!(of(None, Some(&rubbish), None), ["outputs.es.tls.key"]);
        assert_eq!(
            of(None, Some(&rubbish), Some(&rubbish)),
            ["outputs.es.tls.certificate"]
        );
        assert_eq!(of(None, None, None), [""; 0]);
    }
}
