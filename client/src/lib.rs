//! Hands over to Causeway what an application does (docs/INTAKE.md): once, and until Causeway has it durably.
//!
//! ```no_run
//! # async fn example() -> Result<(), causeway_client::Error> {
//! let push = causeway_client::Client::new("http://127.0.0.1:7400", "push").at("dc");
//! push.hand_over(&[serde_json::json!({"index": "push-1", "id": "7", "source": {"app": "a", "n": 1}})]).await?;
//! # Ok(())
//! # }
//! ```

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// One channel's intake at one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    site: Option<String>,
    patience: Duration,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct HandedOver {
    /// Changes of it that Causeway holds durably: all.
    pub accepted: u64,
    /// Those of them that an earlier try had brought there.
    pub repeated: u64,
}

/// What is wrong with one of the changes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Line {
    /// Its number, from 1.
    pub line: u64,
    /// What, and what is allowed.
    pub error: String,
}

/// Nothing was handed over, as far as is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not taken, now and later. Nothing of it was.
    #[error("{status}: {message}{}", lines.iter().map(|l| format!("; {}: {}", l.line, l.error)).collect::<String>())]
    Refused {
        /// The answer's.
        status: StatusCode,
        /// Why.
        message: String,
        /// Which of the changes, where some are wrong.
        lines: Vec<Line>,
    },
    /// Patience is at its end. It is not known whether Causeway has it: hand it over again under the same key.
    #[error("given up after {tries} tries: {last}")]
    GaveUp {
        /// The idempotency key.
        key: String,
        /// How often it was tried.
        tries: u32,
        /// What came of the last one.
        last: String,
    },
    /// A change that has no JSON form.
    #[error("a change is no JSON: {0}")]
    Json(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    lines: Vec<Line>,
}

/// The first pause before another try; each later one is twice as long.
const AGAIN_MIN: Duration = Duration::from_millis(50);
/// And the longest.
const AGAIN_MAX: Duration = Duration::from_secs(2);
/// An answer takes as long as the log takes: longer than this it is lost.
const ANSWER_AT_MOST: Duration = Duration::from_secs(15);

impl Client {
    /// For `channel`, at the daemon whose interface is at `daemon`, such as `http://127.0.0.1:7400`. Connects to nothing.
    pub fn new(daemon: &str, channel: &str) -> Client {
        Client {
            http: reqwest::Client::new(),
            url: format!("{}/v1/channels/{channel}/changes", daemon.trim_end_matches('/')),
            site: None,
            patience: Duration::from_secs(60),
        }
    }

    /// The application is at this site: needed where one daemon serves both.
    pub fn at(self, site: &str) -> Client {
        Client { site: Some(site.to_owned()), ..self }
    }

    /// Tries for so long before it gives up; a minute, unless that is said.
    pub fn patient_for(self, patience: Duration) -> Client {
        Client { patience, ..self }
    }

    /// Hands over `changes`, all or none, under a key of its own, until they are taken.
    ///
    /// # Errors
    ///
    /// As [`Error`].
    pub async fn hand_over<C: Serialize>(&self, changes: &[C]) -> Result<HandedOver, Error> {
        self.hand_over_as(&unique(), changes).await
    }

    /// The same under `key`, 1 to 128 bytes of ASCII, by which Causeway knows it again: also after the application has died
    /// and begun anew.
    ///
    /// # Errors
    ///
    /// As [`Error`].
    pub async fn hand_over_as<C: Serialize>(&self, key: &str, changes: &[C]) -> Result<HandedOver, Error> {
        let mut body = Vec::new();
        for change in changes {
            serde_json::to_writer(&mut body, change)?;
            body.push(b'\n');
        }
        let until = Instant::now() + self.patience;
        let (mut tries, mut pause) = (0, AGAIN_MIN);
        loop {
            tries += 1;
            let last = match self.send(key, body.clone()).await {
                Ok((StatusCode::ACCEPTED, _, text)) => match serde_json::from_str(&text) {
                    Ok(handed) => return Ok(handed),
                    Err(error) => format!("an answer that cannot be read: {error}"),
                },
                Ok((status, headers, text)) if is_for_later(status) => {
                    let after = headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
                    pause = pause.max(Duration::from_secs(after.unwrap_or(0)).min(AGAIN_MAX));
                    format!("{status}: {text}")
                }
                Ok((status, _, text)) => {
                    let Refusal { error: message, lines } =
                        serde_json::from_str(&text).unwrap_or(Refusal { error: text, lines: Vec::new() });
                    return Err(Error::Refused { status, message, lines });
                }
                Err(error) => error.to_string(),
            };
            if Instant::now() + pause >= until {
                return Err(Error::GaveUp { key: key.to_owned(), tries, last });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    async fn send(&self, key: &str, body: Vec<u8>) -> reqwest::Result<(StatusCode, HeaderMap, String)> {
        let site = self.site.iter().map(|site| ("site", site));
        let request = self.http.post(&self.url).query(&site.collect::<Vec<_>>()).timeout(ANSWER_AT_MOST);
        let answer = request.header("idempotency-key", key).body(body).send().await?;
        Ok((answer.status(), answer.headers().clone(), answer.text().await?))
    }
}

/// Another try may be taken: nothing is wrong with the request.
fn is_for_later(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || status.is_server_error()
}

/// A key that nobody else has: random, by what seeds the process's hash maps.
fn unique() -> String {
    let word = || std::hash::RandomState::new().build_hasher().finish();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let seed = [word().to_le_bytes(), word().to_le_bytes()].concat();
    format!("{now:x}-{:032x}", xxhash_rust::xxh3::xxh3_128(&seed))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::post;

    use super::*;

    /// Answers as told, one after the other, and keeps what it was sent.
    async fn server(answers: Vec<(u16, &'static str)>) -> (String, Arc<Mutex<Vec<(String, String)>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, answers) = (Arc::clone(&asked), Arc::new(Mutex::new(answers.into_iter())));
        let handler = move |headers: HeaderMap, body: String| async move {
            let key = headers["idempotency-key"].to_str().unwrap().to_owned();
            kept.lock().unwrap().push((key, body));
            let (status, text) = answers.lock().unwrap().next().unwrap_or((503, "no more"));
            (axum::http::StatusCode::from_u16(status).unwrap(), text)
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/channels/push/changes", post(handler));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, asked)
    }

    #[tokio::test]
    async fn what_may_be_taken_later_is_sent_again_under_the_same_key() {
        let taken = r#"{"accepted":2,"repeated":0}"#;
        let (url, asked) = server(vec![(503, "not yet"), (429, "full"), (500, "?"), (202, taken)]).await;
        let handed = Client::new(&url, "push").at("dc").hand_over(&[1, 2]).await.unwrap();
        assert_eq!(handed, HandedOver { accepted: 2, repeated: 0 });
        let asked = asked.lock().unwrap();
        assert!(asked.len() == 4 && asked.iter().all(|ask| *ask == asked[0]), "{asked:?}");
        assert_eq!(asked[0].1, "1\n2\n");
        assert_ne!(unique(), unique());
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_at_once_and_patience_has_an_end() {
        let wrong = r#"{"error":"no","lines":[{"line":2,"error":"no id"}]}"#;
        let (url, asked) = server(vec![(400, wrong), (404, "plain")]).await;
        let client = Client::new(&url, "push").patient_for(Duration::from_millis(200));
        let error = client.hand_over(&["x"]).await.unwrap_err().to_string();
        assert_eq!(error, "400 Bad Request: no; 2: no id");
        assert!(client.hand_over(&["x"]).await.unwrap_err().to_string().contains("plain"));
        assert_eq!(asked.lock().unwrap().len(), 2);
        let Error::GaveUp { key, tries, .. } = client.hand_over_as("mine", &["x"]).await.unwrap_err() else {
            panic!()
        };
        assert!(key == "mine" && tries > 1);
        let nobody = Client::new("http://127.0.0.1:9", "push").patient_for(Duration::from_millis(1));
        assert!(matches!(nobody.hand_over(&["x"]).await, Err(Error::GaveUp { tries: 1, .. })));
    }
}
