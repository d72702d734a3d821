//! Who may ask: the interface has no passwords, so a browser must not be lent to a stranger's page.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::error;

/// Refuses a change asked for by another origin's page, and, where the interface serves this machine only,
/// any request that calls it by a name that is not this machine's (a name that a stranger made point here).
pub(super) async fn same_origin(State(loopback_only): State<bool>, request: Request, next: Next) -> Response {
    match refusal(loopback_only, request.method(), request.headers()) {
        Some(message) => error(StatusCode::FORBIDDEN, message),
        None => next.run(request).await,
    }
}

fn refusal(loopback_only: bool, method: &Method, headers: &HeaderMap) -> Option<&'static str> {
    let host = value(headers, header::HOST).unwrap_or_default();
    if loopback_only && !host.is_empty() && !is_loopback(host) {
        return Some("this interface serves 127.0.0.1 only; set api.listen to serve others");
    }
    let reads = [Method::GET, Method::HEAD].contains(method);
    let foreign = value(headers, header::ORIGIN).is_some_and(|origin| {
        origin.split_once("://").is_none_or(|(_, server)| !server.eq_ignore_ascii_case(host))
    });
    (foreign && !reads).then_some("asked for by another site's page")
}

fn value(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `host` is the header: a name or an address, with or without port.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_names_are_loopback() {
        for (host, expected) in [
            ("127.0.0.1:7400", true),
            ("localhost", true),
            ("[::1]:7400", true),
            ("[::1]", true),
            ("evil.example:7400", false),
            ("127.0.0.1.evil.example:7400", false),
            ("10.0.0.1:7400", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
