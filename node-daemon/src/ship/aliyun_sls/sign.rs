//! Signatures of requests to Simple Log Service, version 1 (HMAC-SHA1) and 4 (HMAC-SHA256).
//! Place: a request of `aliyun_sls`, whole but for this -> **sign** -> transport.
//! Source: the vendor's documentation and Python client; the tests compare with what that client signs.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use md5::Md5;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue,
};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// How requests are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signature {
    /// `LOG ID:SIGNATURE`.
    V1,
    /// `SLS4-HMAC-SHA256 Credential=…`; each region has keys of its own.
    V4 {
        /// For example `cn-hangzhou`.
        region: String,
    },
}

/// Who signs.
pub(super) struct Key<'a> {
    pub(super) id: &'a str,
    pub(super) secret: &'a str,
}

/// What is signed, with the headers.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// The path of the URL, for example `/logstores/web/shards/lb`.
    pub(super) path: &'a str,
    /// The query's parameter, if there is one; plain letters and digits.
    pub(super) parameter: Option<(&'a str, &'a str)>,
    pub(super) body: &'a [u8],
}

const METHOD: HeaderName = HeaderName::from_static("x-log-signaturemethod");
const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-log-content-sha256");
const LOG_DATE: HeaderName = HeaderName::from_static("x-log-date");

/// Adds the signature, and the headers it needs; `headers` are all others, the host among them.
///
/// # Errors
/// The key holds what no header may hold.
pub(super) fn sign(
    signature: &Signature,
    key: &Key<'_>,
    signed: &Signed<'_>,
    at: Timestamp,
    headers: &mut HeaderMap,
) -> Result<(), InvalidHeaderValue> {
    let text = match signature {
        Signature::V1 => v1(key, signed, at, headers)?,
        Signature::V4 { region } => v4(region, key, signed, at, headers)?,
    };
    let mut value = HeaderValue::try_from(text)?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    Ok(())
}

fn v1(
    key: &Key<'_>,
    signed: &Signed<'_>,
    at: Timestamp,
    headers: &mut HeaderMap,
) -> Result<String, InvalidHeaderValue> {
    let md5 = match signed.body {
        [] => String::new(),
        body => hex::encode_upper(Md5::digest(body)),
    };
    if !md5.is_empty() {
        headers.insert(CONTENT_MD5, HeaderValue::try_from(&md5)?);
    }
    // It is written for every time from year 0 on.
    let date = rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&at)
        .unwrap_or_default();
    headers.insert(DATE, HeaderValue::try_from(&date)?);
    headers.insert(METHOD, HeaderValue::from_static("hmac-sha1"));

    let kind = text(headers.get(CONTENT_TYPE));
    let mut words = format!("{}\n{md5}\n{kind}\n{date}\n", signed.method);
    for (name, value) in chosen(headers, is_own) {
        write_line(&mut words, name, value);
    }
    words.push_str(signed.path);
    if let Some((name, value)) = signed.parameter {
        words.push_str(&format!("?{name}={value}"));
    }
    let mac = mac::<Hmac<Sha1>>(key.secret.as_bytes(), words.as_bytes());
    Ok(format!("LOG {}:{}", key.id, STANDARD.encode(mac)))
}

fn v4(
    region: &str,
    key: &Key<'_>,
    signed: &Signed<'_>,
    at: Timestamp,
    headers: &mut HeaderMap,
) -> Result<String, InvalidHeaderValue> {
    let time = at.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = &time[..8];
    let content = hex::encode(Sha256::digest(signed.body));
    headers.insert(CONTENT_SHA256, HeaderValue::try_from(&content)?);
    headers.insert(LOG_DATE, HeaderValue::try_from(&time)?);

    let mut words = format!("{}\n{}\n", signed.method, signed.path);
    if let Some((name, value)) = signed.parameter {
        words.push_str(&format!("{name}={value}"));
    }
    words.push('\n');
    let kept = |name: &str| is_own(name) || matches!(name, "content-type" | "host");
    let headers = chosen(headers, kept);
    for (name, value) in &headers {
        write_line(&mut words, name, value.trim());
    }
    words.push('\n');
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    words.push_str(&names.join(";"));
    words.push('\n');
    words.push_str(&content);

    let scope = format!("{day}/{region}/sls/aliyun_v4_request");
    let whole = hex::encode(Sha256::digest(words));
    let whole = format!("SLS4-HMAC-SHA256\n{time}\n{scope}\n{whole}");
    let mut derived = format!("aliyun_v4{}", key.secret).into_bytes();
    for part in [day, region, "sls", "aliyun_v4_request", &whole] {
        derived = mac::<Hmac<Sha256>>(&derived, part.as_bytes());
    }
    Ok(format!(
        "SLS4-HMAC-SHA256 Credential={}/{scope},Signature={}",
        key.id,
        hex::encode(derived)
    ))
}

/// Whether a header is one of the service's own, which are all signed.
fn is_own(name: &str) -> bool {
    name.starts_with("x-acs-") || name.starts_with("x-log-")
}

/// The headers that are signed, by name.
fn chosen(headers: &HeaderMap, kept: impl Fn(&str) -> bool) -> Vec<(&str, &str)> {
    let mut chosen: Vec<(&str, &str)> = headers
        .iter()
        .filter(|(name, _)| kept(name.as_str()))
        .map(|(name, value)| (name.as_str(), text(Some(value))))
        .collect();
    chosen.sort_unstable();
    chosen
}

fn text(value: Option<&HeaderValue>) -> &str {
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn write_line(words: &mut String, name: &str, value: &str) {
    // Memory takes every write.
    writeln!(words, "{name}:{value}").unwrap_or_default();
}

fn mac<M: Mac + KeyInit>(key: &[u8], words: &[u8]) -> Vec<u8> {
    // HMAC takes a key of any length.
    <M as KeyInit>::new_from_slice(key)
        .map(|mut mac| {
            mac.update(words);
            mac.finalize().into_bytes().to_vec()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use reqwest::header::HOST;

    use super::super::tests::{NOW, recorded};
    use super::*;

    #[test]
    fn a_request_is_signed_as_the_vendors_client_signs_it() {
        for request in recorded() {
            let signature = match request.signature.as_str() {
                "v1" => Signature::V1,
                _ => Signature::V4 {
                    region: "cn-hangzhou".to_owned(),
                },
            };
            let parameter = request.params.get("key").map(|key| ("key", key.as_str()));
            let url = reqwest::Url::parse(&request.url).expect("a URL");
            let body = hex::decode(&request.body).expect("hex");
            // Everything but what the signature itself adds, and what is added on the way.
            let mut headers: HeaderMap = request
                .headers
                .iter()
                .filter(|(name, _)| {
                    [HOST.as_str(), CONTENT_TYPE.as_str()].contains(&name.as_str())
                        || name.starts_with("x-acs-")
                        || [
                            "x-log-apiversion",
                            "x-log-bodyrawsize",
                            "x-log-compresstype",
                        ]
                        .contains(&name.as_str())
                })
                .map(|(name, value)| {
                    let name: HeaderName = name.parse().expect("a name");
                    (name, value.parse().expect("a value"))
                })
                .collect();
            let key = Key {
                id: "an-id",
                secret: "a-secret",
            };
            let signed = Signed {
                method: &request.method,
                path: url.path(),
                parameter,
                body: &body,
            };
            sign(&signature, &key, &signed, NOW, &mut headers).expect("plain keys");
            for name in [
                "authorization",
                "content-md5",
                "date",
                "x-log-content-sha256",
                "x-log-signaturemethod",
            ] {
                let ours = headers.get(name).map(|value| value.to_str().expect("text"));
                let theirs = request.headers.get(name).map(String::as_str);
                assert_eq!(
                    ours, theirs,
                    "{name} of {} {}",
                    request.name, request.signature
                );
            }
            assert!(!format!("{headers:?}").contains("Signature="));
        }
    }
}
