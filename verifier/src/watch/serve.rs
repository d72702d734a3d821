use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;

use super::state::{State, metrics};
use crate::error::{Error, Result};

/// Serves the metrics of `channels` at `listen`, if that is given; what this gives resolves to an error only.
///
/// # Errors
///
/// [`Error::Local`] if the port cannot be had.
pub(super) async fn serve(
    listen: Option<SocketAddr>,
    channels: Vec<Arc<State>>,
) -> Result<impl Future<Output = Error>> {
    let failed = move |error: std::io::Error| {
        let listen = listen.map_or_else(String::new, |listen| listen.to_string());
        Error::Local(format!("--listen {listen}: {error}"))
    };
    let listener = match listen {
        Some(listen) => Some(tokio::net::TcpListener::bind(listen).await.map_err(failed)?),
        None => None,
    };
    Ok(async move {
        let Some(listener) = listener else { return std::future::pending().await };
        let text = async move || ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics(&channels));
        let router = Router::new().route("/metrics", get(text)).route("/healthz", get(async || "ok\n"));
        match axum::serve(listener, router).await {
            Ok(()) => std::future::pending().await,
            Err(error) => failed(error),
        }
    })
}
