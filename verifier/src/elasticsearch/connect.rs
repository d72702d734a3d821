use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::Method;
use serde::de::DeserializeOwned;
use url::Url;

use crate::config::Endpoints;
use crate::error::{Error, Result};
use crate::pace::{Pace, Rates};
use crate::site::Site;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer's next bytes have to come within that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A site's node that answered.
pub(super) struct Link {
    pub(super) site: Site,
    pub(super) pace: Pace,
    client: reqwest::Client,
    url: Url,
    authorization: Option<String>,
    /// The cluster's id: the same one under two addresses has one.
    pub(super) identity: String,
}

/// What a node answered.
pub(super) enum Answer {
    Whole(u16, Bytes),
    /// It is larger than was allowed: so many bytes of it were read.
    TooLarge(usize),
}

impl Link {
    /// Sends a request, and reads at most `bytes_max` of the answer.
    pub(super) async fn ask(
        &self,
        action: &str,
        method: Method,
        path: &str,
        body: Option<String>,
        bytes_max: usize,
    ) -> Result<Answer> {
        let answer = self.paced(self.at_once(action, method, path, body, bytes_max)).await?;
        match &answer {
            Answer::TooLarge(_) | Answer::Whole(200..=299 | 404, _) => Ok(answer),
            Answer::Whole(status @ (401 | 403), _) => Err(self.site.failed(
                action,
                format!("{status}: the account needs `read`, `monitor` and `view_index_metadata`"),
            )),
            // Its text may show values.
            Answer::Whole(status, _) => Err(self.site.failed(action, format!("the node answers {status}"))),
        }
    }

    /// Begins to wait for `answer` when the rates allow that.
    pub(super) async fn paced(&self, answer: impl Future<Output = Result<Answer>>) -> Result<Answer> {
        self.pace.take(1).await;
        let answer = answer.await?;
        let bytes = match &answer {
            Answer::Whole(_, body) => body.len(),
            Answer::TooLarge(read) => *read,
        };
        self.pace.took(bytes).await;
        Ok(answer)
    }

    /// As [`ask`](Link::ask), whatever the rates and the status are.
    pub(super) async fn at_once(
        &self,
        action: &str,
        method: Method,
        path: &str,
        body: Option<String>,
        bytes_max: usize,
    ) -> Result<Answer> {
        let mut request =
            self.client.request(method, format!("{}{path}", self.url.as_str().trim_end_matches('/')));
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        let failed = |error: reqwest::Error| self.site.failed(action, chain(&error.without_url()));
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > bytes_max {
                return Ok(Answer::TooLarge(body.len()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer::Whole(status, body.freeze()))
    }

    /// How long the node takes to answer that it is there, whatever the rates are.
    pub(super) async fn probe(&self) -> Result<Duration> {
        let began = Instant::now();
        let path = "/_cluster/health?filter_path=status";
        self.at_once("ask whether it is there", Method::GET, path, None, 1 << 20).await?;
        Ok(began.elapsed())
    }

    /// The JSON that a request is answered with, and whether that was a 404.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        action: &str,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Option<T>> {
        match self.ask(action, method, path, body, usize::MAX).await? {
            Answer::Whole(404, _) | Answer::TooLarge(_) => Ok(None),
            Answer::Whole(_, body) => self.parse(action, &body).map(Some),
        }
    }

    pub(super) fn parse<'a, T: serde::Deserialize<'a>>(&self, action: &str, body: &'a [u8]) -> Result<T> {
        serde_json::from_slice(body).map_err(|error| {
            self.site.failed(
                action,
                format!(
                    "the answer is not what was asked for (line {}, column {})",
                    error.line(),
                    error.column()
                ),
            )
        })
    }
}

/// Connects to the first of `endpoints` that answers.
///
/// # Errors
///
/// [`Error::Usage`] for an address that is none; [`Error::Store`] otherwise.
pub(super) async fn connect(channel: &str, name: &str, endpoints: &Endpoints, rates: Rates) -> Result<Link> {
    let mut last = None;
    for url in &endpoints.urls {
        match try_one(channel, name, url, endpoints, rates).await {
            Err(error @ Error::Store { .. }) => last = Some(error),
            done => return done,
        }
    }
    Err(last.unwrap_or_else(|| Error::Usage(format!("{channel}: `{name}` has no address"))))
}

async fn try_one(channel: &str, name: &str, text: &str, endpoints: &Endpoints, rates: Rates) -> Result<Link> {
    // The text itself may hold a password.
    let usage = || {
        Error::Usage(format!(
            "{channel}: the address of `{name}` is none that Elasticsearch has; allowed is http://host:9200 or https://host:9200"
        ))
    };
    let mut url = Url::parse(text).map_err(|_| usage())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(usage());
    }
    let decoded = |part: &str| causeway_core::settings::percent(part).ok_or_else(usage);
    let in_url = (decoded(url.username())?, url.password().map(decoded).transpose()?);
    url.set_username("").map_err(|()| usage())?;
    url.set_password(None).map_err(|()| usage())?;
    let address = text.trim_end_matches('/');
    if url.port().is_none() && !address.ends_with(":443") && !address.ends_with(":80") {
        url.set_port(Some(9200)).map_err(|()| usage())?;
    }
    let endpoint =
        format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
    let site = Site { channel: channel.into(), name: name.into(), endpoint };
    let user = endpoints.user.clone().unwrap_or(in_url.0);
    let password = endpoints.password.clone().or(in_url.1);
    let authorization = match (&endpoints.api_key, user.as_str(), password) {
        (Some(key), ..) => Some(format!("ApiKey {key}")),
        (None, "", _) | (None, _, None) => None,
        (None, user, Some(password)) => {
            use base64::Engine as _;
            Some(format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
            ))
        }
    };
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(ANSWER_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    if url.scheme() == "https" {
        let cannot = |error: reqwest::Error| site.failed("set up the connection", error);
        let certificates = match &endpoints.ca {
            Some(pem) => reqwest::Certificate::from_pem_bundle(pem).map_err(cannot)?,
            None => {
                let all = rustls_native_certs::load_native_certs().certs;
                all.iter().filter_map(|der| reqwest::Certificate::from_der(der).ok()).collect()
            }
        };
        for certificate in certificates {
            builder = builder.add_root_certificate(certificate);
        }
        if let Some((cert, key)) = &endpoints.identity {
            builder = builder
                .identity(reqwest::Identity::from_pem(&[cert.as_slice(), key].concat()).map_err(cannot)?);
        }
    }
    let client = builder.build().map_err(|error| site.failed("set up the connection", error))?;
    let mut link = Link { site, pace: Pace::new(rates), client, url, authorization, identity: String::new() };
    #[derive(serde::Deserialize)]
    struct State {
        cluster_uuid: String,
    }
    let path = "/_cluster/state/version?filter_path=cluster_uuid";
    let state: Option<State> = link.json("ask for the cluster's id", Method::GET, path, None).await?;
    link.identity = state.map(|state| state.cluster_uuid).unwrap_or_default();
    Ok(link)
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(|error| error.to_string()).collect::<Vec<_>>().join(": ")
}
