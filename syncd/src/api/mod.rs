//! The HTTP interface (DESIGN.md §10) over a [`Control`]: JSON under `/v1/`, metrics, probes, the page.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`](crate::status::Status) |
//! | `POST /v1/channels/{name}/pause`, `…/resume`, `…/snapshot` | the status afterwards |
//! | `POST /v1/channels/{name}/changes` | [`HandedOver`](crate::status::HandedOver), 202: what an application hands over, docs/INTAKE.md |
//! | `POST /v1/channels/{name}/repair` | [`Repaired`]: what the keys of a [`RepairQuery`] hold at one site goes to the other |
//! | `GET /v1/channels/{name}/written` | [`WrittenLine`](crate::status::WrittenLine)s, one a line: what the logs name that was written in a window |
//! | `POST /v1/channels/{name}/whose` | [`Whose`](crate::status::Whose): which site is right about each key of a [`WhoseQuery`] |
//! | `POST /v1/pause`, `/v1/resume` | the same, of all channels |
//! | `GET /v1/dead-letters` | a [`DeadLetterPage`](crate::status::DeadLetterPage), newest first |
//! | `POST /v1/dead-letters/{id}/ack`, `/v1/dead-letters/ack` | [`Acknowledged`]: that one, or all |
//! | `GET /v1/conflicts` | a [`ConflictPage`](crate::status::ConflictPage), newest first |
//! | `GET /v1/conflicts/{id}` | a [`ConflictEntry`](crate::status::ConflictEntry) |
//! | `GET /metrics` | Prometheus's text |
//! | `GET /healthz`, `/readyz` | 200, or 503 as long as a store was not reached |
//! | `GET /` | the page |
//!
//! `resume` takes `?held=apply` or `?held=drop`, `dead-letters` takes `?channel=&limit=`, `dead-letters/ack`
//! takes `?channel=`, `written` takes `?from=&to=`, `conflicts` takes `?channel=&key=&since=&limit=`; both lists take `before=` the `next` of
//! the page before. An error is `{"error": "…"}`: 400 what was asked makes no sense, 404 no such channel,
//! conflict or dead letter, 409 not in this state.

mod guard;
mod intake;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use causeway_core::{Key, time};
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::status::{
    Acknowledged, ConflictQuery, Control, ControlError, DeadLetterQuery, HeldAnswer, KeyAt, RepairQuery,
    Repaired, WhoseQuery, parse_rfc3339,
};

/// The page: one file, without anything from elsewhere.
const PAGE: &str = include_str!("../../assets/page.html");

/// What every handler gets.
type Shared = State<Arc<dyn Control>>;

/// The interface's routes. `loopback_only`: refuse requests that name another host than this machine, so
/// that a web page somewhere cannot reach in through the browser of the one who operates it.
pub fn router(control: Arc<dyn Control>, loopback_only: bool) -> Router {
    let taking = intake::Intake::new(Arc::clone(&control), control.intake_bytes());
    let router = Router::new()
        .route("/", get(|| async { ([(header::CACHE_CONTROL, "no-cache")], Html(PAGE)) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/dead-letters", get(dead_letters))
        .route("/v1/dead-letters/ack", post(acknowledge_all))
        .route("/v1/dead-letters/{id}/ack", post(acknowledge))
        .route("/v1/conflicts", get(conflicts))
        .route("/v1/conflicts/{id}", get(conflict))
        .route("/v1/pause", post(pause_all))
        .route("/v1/resume", post(resume_all))
        .route("/v1/channels/{name}/pause", post(pause))
        .route("/v1/channels/{name}/resume", post(resume))
        .route("/v1/channels/{name}/snapshot", post(snapshot))
        .route("/v1/channels/{name}/changes", post(intake::hand_over).with_state(taking))
        .route("/v1/channels/{name}/repair", post(repair))
        .route("/v1/channels/{name}/written", get(written))
        .route("/v1/channels/{name}/whose", post(whose).layer(DefaultBodyLimit::max(WhoseQuery::BODY_MAX)))
        .fallback(|| async { error(StatusCode::NOT_FOUND, "no such path; see /v1/status") })
        .method_not_allowed_fallback(|| async { error(StatusCode::METHOD_NOT_ALLOWED, "not by this method") })
        .with_state(control);
    router.layer(middleware::from_fn_with_state(loopback_only, guard::same_origin))
}

/// Takes the port; port 0 takes a free one.
///
/// # Errors
///
/// It is taken or not this machine's; says what to do.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(listen).await.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program has it, perhaps another syncd",
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need a right that this user lacks",
            _ => "the interface cannot be served there",
        };
        format!("cannot listen on {listen}: {error}; {advice}: choose another with api.listen or --listen")
    })
}

/// Answers requests until `stop` comes; then what is under way is finished.
///
/// # Errors
///
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let loopback_only = listener.local_addr()?.ip().is_loopback();
    axum::serve(listener, router(control, loopback_only)).with_graceful_shutdown(stop).await
}

fn error(code: StatusCode, message: impl Into<String>) -> Response {
    (code, Json(serde_json::json!({ "error": message.into() }))).into_response()
}

impl IntoResponse for ControlError {
    fn into_response(self) -> Response {
        let code = match self {
            ControlError::NoSuchChannel { .. } | ControlError::NoSuchDeadLetter { .. } => {
                StatusCode::NOT_FOUND
            }
            ControlError::Refused(_) => StatusCode::CONFLICT,
            ControlError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        error(code, self.to_string())
    }
}

async fn status(State(control): Shared) -> Response {
    Json(control.status()).into_response()
}

async fn ready(State(control): Shared) -> Response {
    match control.ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "a store was not reached yet\n").into_response(),
    }
}

async fn metrics(State(control): Shared) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], control.metrics()).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resume {
    held: Option<HeldAnswer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadLetters {
    channel: Option<String>,
    before: Option<u64>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledge {
    channel: Option<String>,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

fn after(control: &dyn Control, done: Result<(), ControlError>) -> Response {
    match done {
        Ok(()) => Json(control.status()).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn pause(State(control): Shared, Path(name): Path<String>) -> Response {
    after(&*control, control.pause(Some(&name)).await)
}

async fn pause_all(State(control): Shared) -> Response {
    after(&*control, control.pause(None).await)
}

async fn resume(State(control): Shared, Path(name): Path<String>, asked: Asked<Resume>) -> Response {
    match asked {
        Ok(Query(Resume { held })) => after(&*control, control.resume(Some(&name), held).await),
        Err(wrong) => error(StatusCode::BAD_REQUEST, wrong.body_text()),
    }
}

async fn resume_all(State(control): Shared, asked: Asked<Resume>) -> Response {
    match asked {
        Ok(Query(Resume { held })) => after(&*control, control.resume(None, held).await),
        Err(wrong) => error(StatusCode::BAD_REQUEST, wrong.body_text()),
    }
}

async fn snapshot(State(control): Shared, Path(name): Path<String>) -> Response {
    after(&*control, control.snapshot(&name).await)
}

/// The keys that a request names; what is wrong with them.
fn keys_of(named: &[KeyAt], max: usize) -> Result<Vec<Key>, String> {
    if named.len() > max {
        return Err(format!("{} keys, allowed are {max} in one request", named.len()));
    }
    named.iter().map(KeyAt::key).collect::<Option<_>>().ok_or_else(|| "a key without a name".to_owned())
}

async fn repair(
    State(control): Shared,
    Path(name): Path<String>,
    asked: Result<Json<RepairQuery>, JsonRejection>,
) -> Response {
    let RepairQuery { from, keys } = match asked {
        Ok(Json(query)) => query,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong.body_text()),
    };
    let keys = match keys_of(&keys, RepairQuery::KEYS_MAX) {
        Ok(keys) => keys,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong),
    };
    match control.repair(&name, &from, keys).await {
        Ok(asked) => Json(Repaired { asked }).into_response(),
        Err(error) => error.into_response(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    from: String,
    to: Option<String>,
}

impl Window {
    /// In milliseconds since 1970; what has no end ends now.
    fn range(&self) -> Result<Range<u64>, String> {
        let read = |name: &str, text: &str| time::parse_rfc3339(text).ok_or_else(|| wrong_time(name, text));
        let now = time::now_ms();
        let to = self.to.as_ref().map_or(Ok(now), |to| read("to", to))?.min(now);
        let from = read("from", &self.from)?;
        match from < to {
            true => Ok(from..to),
            false => Err(format!(
                "the window from {} has no time in it: from has to be before to, and before now",
                self.from
            )),
        }
    }
}

fn wrong_time(name: &str, text: &str) -> String {
    format!("{name} is `{text}`, allowed is RFC 3339 such as 2026-03-01T02:00:00Z (a + is written %2B)")
}

async fn written(State(control): Shared, Path(name): Path<String>, asked: Asked<Window>) -> Response {
    let window = match asked.map_err(|wrong| wrong.body_text()).and_then(|Query(asked)| asked.range()) {
        Ok(window) => window,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong),
    };
    let lines = match control.written(&name, window).await {
        Ok(lines) => lines,
        Err(error) => return error.into_response(),
    };
    let text = futures_util::stream::unfold(lines, |mut lines| async {
        let some = lines.recv().await?;
        let mut text = Vec::new();
        for line in some {
            // A struct of texts always has a JSON form.
            text.extend(serde_json::to_vec(&line).unwrap_or_default());
            text.push(b'\n');
        }
        Some((Ok::<_, std::convert::Infallible>(text), lines))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(text)).into_response()
}

async fn whose(
    State(control): Shared,
    Path(name): Path<String>,
    asked: Result<Json<WhoseQuery>, JsonRejection>,
) -> Response {
    let query = match asked {
        Ok(Json(query)) => query,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong.body_text()),
    };
    let keys = match keys_of(&query.keys, WhoseQuery::KEYS_MAX) {
        Ok(keys) => keys,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong),
    };
    match control.whose(&name, query.by, keys).await {
        Ok(whose) => Json(whose).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Refuses a name that no channel has.
fn known(control: &dyn Control, channel: Option<&str>) -> Result<(), ControlError> {
    let known: Vec<String> = control.status().channels.into_iter().map(|channel| channel.name).collect();
    match channel.filter(|channel| known.iter().all(|name| name != channel)) {
        Some(channel) => Err(ControlError::NoSuchChannel { channel: channel.to_owned(), known }),
        None => Ok(()),
    }
}

async fn dead_letters(State(control): Shared, asked: Asked<DeadLetters>) -> Response {
    let asked =
        asked.map_err(|wrong| wrong.body_text()).and_then(|Query(DeadLetters { channel, before, limit })| {
            Ok(DeadLetterQuery { channel, before, limit: within(limit, DeadLetterQuery::LIMIT_MAX)? })
        });
    let query = match asked {
        Ok(query) => query,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong),
    };
    match known(&*control, query.channel.as_deref()) {
        Ok(()) => Json(control.dead_letters(&query)).into_response(),
        Err(unknown) => unknown.into_response(),
    }
}

async fn acknowledge_all(State(control): Shared, asked: Asked<Acknowledge>) -> Response {
    match asked {
        Ok(Query(Acknowledge { channel })) => acknowledged(&*control, channel.as_deref(), None).await,
        Err(wrong) => error(StatusCode::BAD_REQUEST, wrong.body_text()),
    }
}

async fn acknowledge(State(control): Shared, id: Result<Path<u64>, PathRejection>) -> Response {
    match id {
        Ok(Path(id)) => acknowledged(&*control, None, Some(id)).await,
        Err(wrong) => error(StatusCode::BAD_REQUEST, wrong.body_text()),
    }
}

async fn acknowledged(control: &dyn Control, channel: Option<&str>, id: Option<u64>) -> Response {
    match control.acknowledge(channel, id).await {
        Ok(acknowledged) => Json(Acknowledged { acknowledged }).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Entries of one answer, unless `limit` says otherwise.
const LIMIT: usize = 100;

fn within(limit: Option<usize>, max: usize) -> Result<usize, String> {
    let limit = limit.unwrap_or(LIMIT);
    (1..=max)
        .contains(&limit)
        .then_some(limit)
        .ok_or_else(|| format!("limit is {limit}, allowed is 1 to {max}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Conflicts {
    channel: Option<String>,
    key: Option<String>,
    since: Option<String>,
    before: Option<u64>,
    limit: Option<usize>,
}

impl Conflicts {
    fn query(self) -> Result<ConflictQuery, String> {
        let since = self.since.map(|text| parse_rfc3339(&text).ok_or_else(|| wrong_time("since", &text)));
        let limit = within(self.limit, ConflictQuery::LIMIT_MAX)?;
        let Conflicts { channel, key, before, .. } = self;
        Ok(ConflictQuery { channel, key, since: since.transpose()?, before, limit })
    }
}

async fn conflicts(State(control): Shared, asked: Asked<Conflicts>) -> Response {
    let query = match asked.map_err(|wrong| wrong.body_text()).and_then(|Query(asked)| asked.query()) {
        Ok(query) => query,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong),
    };
    if let Err(unknown) = known(&*control, query.channel.as_deref()) {
        return unknown.into_response();
    }
    // They are read from disk.
    match tokio::task::spawn_blocking(move || control.conflicts(&query)).await {
        Ok(Ok(page)) => Json(page).into_response(),
        Ok(Err(failed)) => failed.into_response(),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the conflict log could not be read"),
    }
}

async fn conflict(State(control): Shared, id: Result<Path<u64>, PathRejection>) -> Response {
    let id = match id {
        Ok(Path(id)) => id,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong.body_text()),
    };
    match tokio::task::spawn_blocking(move || control.conflict(id)).await {
        Ok(Ok(Some(entry))) => Json(entry).into_response(),
        Ok(Ok(None)) => {
            error(StatusCode::NOT_FOUND, format!("no conflict {id}: it was never there, or is too old"))
        }
        Ok(Err(failed)) => failed.into_response(),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the conflict log could not be read"),
    }
}
