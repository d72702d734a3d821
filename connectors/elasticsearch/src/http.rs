//! Requests to a site's nodes: any of them will do, and the next one is taken where one is not there.
//!
//! By reqwest, as the rest of the workspace. The vendor's crate has alpha releases only, and what it adds are builders
//! of paths; it decodes bodies into values, where documents have to stay the bytes that they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_core::{Error, Result};
use reqwest::Method;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::DeserializeOwned;
use url::Url;

use crate::config::{Auth, Server};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// An answer's next bytes have to come within that.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Of an answer that is no page of documents.
pub(crate) const ANSWER_BYTES_MAX: usize = 256 << 20;

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
    endpoint: String,
}

/// A body that is larger than was allowed.
#[derive(Debug)]
pub(crate) enum Read {
    Whole(Answer),
    TooLarge,
}

/// A site's nodes.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    urls: Vec<Url>,
    /// Which answered last.
    chosen: AtomicUsize,
    authorization: Option<String>,
}

fn setup(action: &str, endpoint: &str, reason: String, advice: &str) -> Error {
    Error::Setup { action: action.into(), endpoint: endpoint.into(), reason, advice: advice.into() }
}

/// `host:port`.
fn label(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

impl Client {
    /// Reads the files that it needs; connects to nothing.
    ///
    /// # Errors
    ///
    /// `Setup`: a file is missing or holds nothing of its kind; names it.
    pub(crate) fn new(server: &Server) -> Result<Client> {
        let all = server.urls.iter().map(label).collect::<Vec<_>>().join(",");
        let secret = |secret: &causeway_core::settings::Secret, key: &str| {
            secret.read().map_err(|e| {
                setup(
                    "connect",
                    &all,
                    format!("{key}: {e}"),
                    "make it readable for syncd, with the secret alone in it",
                )
            })
        };
        let authorization = match &server.auth {
            Auth::None => None,
            Auth::Basic(user, password) => {
                use base64::Engine as _;
                let text = format!("{user}:{}", secret(password, "password_file")?);
                Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text)))
            }
            Auth::ApiKey(key) => Some(format!("ApiKey {}", secret(key, "api_key_file")?.trim())),
        };
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .read_timeout(ANSWER_MAX)
            .pool_idle_timeout(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if server.urls.iter().any(|url| url.scheme() == "https") {
            builder = builder.use_preconfigured_tls(tls(server, &all)?);
        }
        let http = builder
            .build()
            .map_err(|e| setup("connect", &all, e.to_string(), "see the keys of the site's table"))?;
        Ok(Client { http, urls: server.urls.clone(), chosen: AtomicUsize::new(0), authorization })
    }

    /// `host:port` of the node that answered last.
    pub(crate) fn label(&self) -> String {
        let chosen = self.chosen.load(Ordering::Relaxed);
        self.urls.get(chosen % self.urls.len().max(1)).map(label).unwrap_or_default()
    }

    /// Sends a request. `action`: a verb phrase for messages. An answer of the server's is no error here, but for the
    /// ones that no caller can do anything about: 401, 403, 429, 502, 503, 504.
    ///
    /// # Errors
    ///
    /// `Retry`: no node answers, or none has room. It may have been carried out. `Setup`: we may not.
    pub(crate) async fn send(
        &self,
        action: &str,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer> {
        match self.send_at_most(action, method, path, body, ANSWER_BYTES_MAX).await? {
            Read::Whole(answer) => Ok(answer),
            Read::TooLarge => Err(self.garbled("answer", format!("is larger than {ANSWER_BYTES_MAX} bytes"))),
        }
    }

    /// The same, and reads at most `bytes_max` of the answer.
    pub(crate) async fn send_at_most(
        &self,
        action: &str,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        bytes_max: usize,
    ) -> Result<Read> {
        let mut failed = None;
        for _ in 0..self.urls.len() {
            let chosen = self.chosen.load(Ordering::Relaxed) % self.urls.len();
            let Some(url) = self.urls.get(chosen) else { break };
            match self.ask(action, url, method.clone(), path, body.clone(), bytes_max).await {
                Err(error @ Error::Unavailable { .. }) => {
                    // Another one may have taken the next turn already: at worst one node is tried twice.
                    self.chosen.store((chosen + 1) % self.urls.len(), Ordering::Relaxed);
                    failed = Some(error);
                }
                answered => return answered,
            }
        }
        Err(failed.unwrap_or_else(|| unavailable(action, "no address", "there is none")))
    }

    async fn ask(
        &self,
        action: &str,
        url: &Url,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        bytes_max: usize,
    ) -> Result<Read> {
        let endpoint = label(url);
        let address = format!("{}{path}", url.as_str().trim_end_matches('/'));
        let mut request = self.http.request(method, address);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        if let Some(body) = body {
            // NDJSON is taken under this name, too.
            request = request.header("Content-Type", "application/json").body(body);
        }
        // The error's URL has no secret: user and password were taken out of it. Its path can name a document.
        let failed = |e: reqwest::Error| unavailable(action, &endpoint, chain(&e.without_url()));
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > bytes_max {
                return Ok(Read::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        let answer = Answer { status, body: body.freeze(), endpoint };
        match status {
            401 => Err(answer.setup(action, "see `user`, `password_file` or `api_key_file` of the site")),
            403 if !answer.reason().contains("cluster_block") => {
                Err(answer
                    .setup(action, "give the account this right: README.md of the connector lists them"))
            }
            403 | 429 | 502..=504 => Err(answer.unavailable(action)),
            _ => Ok(Read::Whole(answer)),
        }
    }

    /// The JSON that a request is answered with, which has to succeed.
    ///
    /// # Errors
    ///
    /// As [`send`](Client::send), and where it does not succeed or the answer is something else.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        action: &str,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<T> {
        self.send(action, method, path, body).await?.ok(action)?.parse(action)
    }

    /// The same for a GET, where 404 is an answer, too.
    pub(crate) async fn find<T: DeserializeOwned>(&self, action: &str, path: &str) -> Result<Option<T>> {
        let answer = self.send(action, Method::GET, path, None).await?;
        if answer.status == 404 { Ok(None) } else { answer.ok(action)?.parse(action).map(Some) }
    }

    pub(crate) fn garbled(&self, what: &'static str, reason: String) -> Error {
        Error::Garbled { endpoint: self.label(), what, at: 0, reason }
    }
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(crate) fn unavailable(action: &str, endpoint: &str, reason: impl Into<String>) -> Error {
    Error::Unavailable { action: action.into(), endpoint: endpoint.into(), source: reason.into().into() }
}

impl Answer {
    /// Itself, if the status is a success.
    pub(crate) fn ok(self, action: &str) -> Result<Answer> {
        match self.status {
            200..=299 => Ok(self),
            // What the server cannot do just now; all else somebody has to look at.
            500..=599 => Err(self.unavailable(action)),
            _ => Err(self.setup(action, "see the server's log")),
        }
    }

    /// Its JSON.
    pub(crate) fn parse<T: DeserializeOwned>(&self, action: &str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|e| Error::Garbled {
            endpoint: self.endpoint.clone(),
            what: "answer",
            at: 0,
            // Of the place alone: the text around it may be a document's.
            reason: format!(
                "{action}: it is not what was asked for (line {}, column {})",
                e.line(),
                e.column()
            ),
        })
    }

    /// The type and the reason of the server's error, without what may be a value.
    pub(crate) fn reason(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Said {
            error: serde_json::Value,
        }
        match serde_json::from_slice::<Said>(&self.body) {
            Ok(said) => format!("{} {}", self.status, reason(&said.error)),
            Err(_) => format!("{}", self.status),
        }
    }

    fn setup(&self, action: &str, advice: &str) -> Error {
        setup(action, &self.endpoint, self.reason(), advice)
    }

    pub(crate) fn unavailable(&self, action: &str) -> Error {
        unavailable(action, &self.endpoint, self.reason())
    }
}

/// Type and reason of an error as Elasticsearch tells it. Values are left out: a reason may show one behind `Preview`, a
/// cause in quotes.
pub(crate) fn reason(error: &serde_json::Value) -> String {
    let text = |key: &str| error.get(key).and_then(serde_json::Value::as_str);
    let (Some(kind), Some(reason)) = (text("type"), text("reason")) else {
        return error.as_str().unwrap_or("an error").to_owned();
    };
    let reason = reason.split("Preview of field's value").next().unwrap_or_default();
    format!("{kind}: {}", reason.trim_end().trim_end_matches('.'))
}

fn pem<T>(endpoint: &str, key: &str, path: &std::path::Path, read: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
    let wrong = |why: String| {
        setup("connect", endpoint, format!("{key} {}: {why}", path.display()), "name a PEM file")
    };
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    read(&bytes).ok_or_else(|| wrong("it holds none".to_owned()))
}

fn tls(server: &Server, endpoint: &str) -> Result<rustls::ClientConfig> {
    let certificates = |bytes: &[u8]| {
        let all: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        all.ok().filter(|all| !all.is_empty())
    };
    let mut roots = rustls::RootCertStore::empty();
    match &server.ca {
        Some(path) => {
            for certificate in pem(endpoint, "ca_file", path, certificates)? {
                roots.add(certificate).map_err(|e| {
                    setup(
                        "connect",
                        endpoint,
                        format!("ca_file {}: {e}", path.display()),
                        "name an X.509 certificate",
                    )
                })?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        let reason = "the system has no certificate authorities".to_owned();
        return Err(setup("connect", endpoint, reason, "install ca-certificates, or name a `ca_file`"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let cannot =
        |e: rustls::Error| setup("connect", endpoint, e.to_string(), "see `cert_file` and `key_file`");
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(cannot)?
        .with_root_certificates(roots);
    let Some((cert, key)) = &server.client else { return Ok(builder.with_no_client_auth()) };
    let chain = pem(endpoint, "cert_file", cert, certificates)?;
    let key = pem(endpoint, "key_file", key, |bytes| PrivateKeyDer::from_pem_slice(bytes).ok())?;
    builder.with_client_auth_cert(chain, key).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_reason_is_told_without_a_document_s_value() {
        let error = serde_json::json!({"type": "document_parsing_exception",
            "reason": "[1:6] failed to parse field [n] of type [long] in document with id 'c'. Preview of field's value: 's3cret'",
            "caused_by": {"type": "illegal_argument_exception", "reason": "For input string: \"s3cret\""}});
        let told = reason(&error);
        assert!(
            told.contains("failed to parse field [n] of type [long]") && !told.contains("s3cret"),
            "{told}"
        );
    }
}
