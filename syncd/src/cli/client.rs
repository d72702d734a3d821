//! Asks a running daemon over its HTTP interface.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Failure;

/// Longest wait for an answer; `pause` waits for what is under way.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time for an answer that comes bit by bit.
const STREAM_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// A line of one is no longer.
const LINE_MAX: usize = 8 << 20;

/// Longest wait for a connection; the daemon is on this machine or near it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// For the daemon that listens at `listen`; the unspecified address is taken as this machine.
    pub(super) fn new(listen: SocketAddr) -> Result<Client, Failure> {
        let address = match listen {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
            other => other,
        };
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|error| Failure::Failed(format!("cannot ask the daemon: {error}")))?;
        Ok(Client { http, base: format!("http://{address}") })
    }

    /// Whether a daemon answers.
    pub(super) async fn answers(&self) -> bool {
        self.http.get(format!("{}/healthz", self.base)).send().await.is_ok()
    }

    /// `GET path` with the query `query`.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        self.ask(Method::GET, path, query).await
    }

    /// `POST path` with the query `query`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, query).await
    }

    /// `POST path` with `body` as JSON.
    pub(super) async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.read(path, self.request(Method::POST, path).json(body)).await
    }

    /// `GET path` with the query `query`, of which the answer comes bit by bit, for as long as it does.
    pub(super) async fn stream(&self, path: &str, query: &[(&str, &str)]) -> Result<Response, Failure> {
        self.send(self.request(Method::GET, path).query(query).timeout(STREAM_TIMEOUT)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        self.read(path, self.request(method, path).query(query)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    async fn read<T: DeserializeOwned>(&self, path: &str, request: RequestBuilder) -> Result<T, Failure> {
        let body = self.send(request).await?.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::Failed(format!("{}{path} answered what is no answer of syncd: {error}", self.base))
        })
    }

    /// The answer, if it is none of an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let told = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let told = told.as_ref().and_then(|body| body.get("error")?.as_str()).unwrap_or("no reason given");
        Err(match code {
            StatusCode::CONFLICT => Failure::No(Some(told.to_owned())),
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => Failure::Usage(told.to_owned()),
            _ => Failure::Failed(format!("{} answered {}: {told}", self.base, code.as_u16())),
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let what = match (error.is_connect(), error.is_timeout()) {
            (true, _) => "no daemon answers",
            (_, true) => "the daemon did not answer in time",
            _ => "the daemon hung up",
        };
        Failure::Failed(format!(
            "{what} at {} ({cause}); start one with `syncd run`, or say where it listens with --listen",
            self.base
        ))
    }
}

/// The lines of an answer, each of them JSON.
pub(super) struct Lines {
    answer: Response,
    /// What came and was not handed out.
    buffer: Vec<u8>,
    at: usize,
}

impl Lines {
    pub(super) fn new(answer: Response) -> Lines {
        Lines { answer, buffer: Vec::new(), at: 0 }
    }

    /// The next one; `None`: the answer ended.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::Failed(format!("the daemon's answer: {why}"));
        loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = serde_json::from_slice(rest.get(..end).unwrap_or_default());
                self.at += end + 1;
                return line.map(Some).map_err(|error| failed(&error));
            }
            if rest.len() > LINE_MAX {
                return Err(failed(&"a line without an end"));
            }
            self.buffer.drain(..std::mem::take(&mut self.at));
            match self.answer.chunk().await {
                Ok(Some(some)) => self.buffer.extend_from_slice(&some),
                Ok(None) => return Ok(None),
                Err(error) => return Err(failed(&error.without_url())),
            }
        }
    }
}
