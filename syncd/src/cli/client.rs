//! Asks a running daemon over its HTTP interface.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::Failure;

/// Longest wait for an answer; `pause` waits for what is under way.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

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

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let request = self.http.request(method, format!("{}{path}", self.base)).query(query);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let code = response.status();
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        if code.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                Failure::Failed(format!("{}{path} answered what is no answer of syncd: {error}", self.base))
            });
        }
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
