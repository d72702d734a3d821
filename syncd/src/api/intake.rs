//! `POST /v1/channels/{name}/changes`: what applications hand over (docs/INTAKE.md).

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{Asked, error};
use crate::status::{Control, HandOver, NotHandedOver};

/// Seconds to wait before another try.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// What the handler gets: the bytes of bodies that may be held at once bound what they take of memory.
#[derive(Clone)]
pub(super) struct Intake {
    control: Arc<dyn Control>,
    bodies: Arc<Semaphore>,
    body_max: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    site: Option<String>,
}

impl Intake {
    /// Holds at most `bytes` of bodies.
    pub(super) fn new(control: Arc<dyn Control>, bytes: usize) -> Intake {
        let bytes = bytes.min(Semaphore::MAX_PERMITS >> 1);
        Intake { control, bodies: Arc::new(Semaphore::new(bytes)), body_max: bytes.min(HandOver::BODY_MAX) }
    }
}

pub(super) async fn hand_over(
    State(intake): State<Intake>,
    Path(name): Path<String>,
    asked: Asked<At>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let At { site } = match asked {
        Ok(Query(at)) => at,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong.body_text()),
    };
    let key = match headers.get("idempotency-key").map(HeaderValue::to_str).transpose() {
        Ok(key) => key.map(str::to_owned),
        Err(_) => return error(StatusCode::BAD_REQUEST, "an idempotency key is ASCII text"),
    };
    let told = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let length: usize = told.unwrap_or(intake.body_max);
    if length > intake.body_max {
        return too_large(intake.body_max);
    }
    // As many permits as there are bytes, which fit.
    let Ok(_held) = intake.bodies.try_acquire_many(u32::try_from(length).unwrap_or(u32::MAX)) else {
        return NotHandedOver::Full("the bodies of other requests fill the memory".to_owned())
            .into_response();
    };
    let Ok(body) = axum::body::to_bytes(body, length).await else {
        return match told {
            Some(_) => error(StatusCode::BAD_REQUEST, "the body ends before its end"),
            None => too_large(intake.body_max),
        };
    };
    match intake.control.hand_over(&name, HandOver { site, key, body }).await {
        Ok(handed) => (StatusCode::ACCEPTED, Json(handed)).into_response(),
        Err(not) => not.into_response(),
    }
}

fn too_large(max: usize) -> Response {
    let message = format!("the body is too large: at most {max} bytes; send fewer lines in a request");
    error(StatusCode::PAYLOAD_TOO_LARGE, message)
}

impl IntoResponse for NotHandedOver {
    fn into_response(self) -> Response {
        let message = self.to_string();
        let again = |code| {
            let mut response = error(code, message.clone());
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
            response
        };
        match self {
            NotHandedOver::Control(failed) => failed.into_response(),
            NotHandedOver::Wrong(_) => error(StatusCode::BAD_REQUEST, message),
            NotHandedOver::Lines(lines) => {
                let body = serde_json::json!({ "error": message, "lines": lines });
                (StatusCode::BAD_REQUEST, Json(body)).into_response()
            }
            NotHandedOver::OtherBody(_) => error(StatusCode::UNPROCESSABLE_ENTITY, message),
            NotHandedOver::Full(_) => again(StatusCode::TOO_MANY_REQUESTS),
            NotHandedOver::NotNow(_) => again(StatusCode::SERVICE_UNAVAILABLE),
        }
    }
}
