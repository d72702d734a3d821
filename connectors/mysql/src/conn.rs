//! A connection to a server, as every part of this connector needs it, and whose fault an error is.

use std::time::Duration;

use causeway_core::{BoxError, Error, Result};
use futures_util::future::join_all;
use mysql_async::prelude::Queryable;
use mysql_async::{ClientIdentity, Conn, OptsBuilder, SslOpts};
use tokio::time::timeout;

use crate::config::Server;
use crate::names;

/// How long a connect may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take: longer than any lock is waited for.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(60);
/// The same where a whole table is looked through.
pub(crate) const SCAN_MAX: Duration = Duration::from_secs(600);
/// The longest text of a server's error that is passed on.
const ERROR_TEXT_MAX: usize = 300;

/// Values come and go as they are stored: times in UTC, text in its column's charset, zero dates and zeros as they
/// are, and what does not fit is refused. Foreign keys were checked where the rows were written first.
const SESSION: &str = "SET time_zone = '+00:00', \
    sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,NO_ENGINE_SUBSTITUTION', \
    foreign_key_checks = 0, character_set_client = utf8mb4, character_set_connection = utf8mb4, \
    character_set_results = NULL, innodb_lock_wait_timeout = 10, autocommit = 1, \
    transaction_isolation = 'REPEATABLE-READ'";
/// As MariaDB before 11.1 has it.
const SESSION_MARIADB: &str = "SET time_zone = '+00:00', \
    sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,NO_ENGINE_SUBSTITUTION', \
    foreign_key_checks = 0, character_set_client = utf8mb4, character_set_connection = utf8mb4, \
    character_set_results = NULL, innodb_lock_wait_timeout = 10, autocommit = 1, \
    tx_isolation = 'REPEATABLE-READ'";

/// Connects, and makes the session the same on any server. Of several servers the one that takes writes is taken; of
/// several that do, none: one of them would be an old primary, or a replica that only its operator knows for one.
///
/// # Errors
///
/// `Retry`: it cannot be reached, or of several none takes writes. `Setup`: it does not let us in, or of several more than
/// one takes writes.
pub(crate) async fn connect(server: &Server) -> Result<Conn> {
    if server.addresses.len() == 1 {
        return connect_to(server, 0).await;
    }
    // A daemon stays with the one it has, as long as that takes writes.
    if let Some(index) = server.chosen.get()
        && let Ok((conn, false)) = with_role(server, index).await
    {
        return Ok(conn);
    }
    let all = join_all((0..server.addresses.len()).map(|index| with_role(server, index))).await;
    let (mut primaries, mut last) = (Vec::new(), None);
    for (index, found) in all.into_iter().enumerate() {
        match found {
            Ok((conn, false)) => primaries.push((index, conn)),
            Ok((_, true)) => {
                last =
                    Some(unavailable("connect", &server.label_of(index), "it is read-only, as a replica is"));
            }
            Err(error) => last = last.or(Some(error)),
        }
    }
    let action = "find the primary among several servers";
    let every =
        || (0..server.addresses.len()).map(|index| server.label_of(index)).collect::<Vec<_>>().join(", ");
    let several = primaries.len() > 1;
    match primaries.pop() {
        Some((_, _)) if several => Err(Error::Setup {
            action: action.into(),
            endpoint: every(),
            reason: "more than one of them takes writes".into(),
            advice: "set read_only=ON (MySQL: super_read_only=ON) at all but the primary, and in their configuration: an \
                     old primary must come back with it"
                .into(),
        }),
        Some((index, conn)) => {
            server.chosen.set(index);
            Ok(conn)
        }
        None => match last {
            Some(error @ Error::Setup { .. }) => Err(error),
            Some(error) => Err(unavailable(action, &every(), error)),
            None => Err(unavailable(action, &every(), "no address is configured")),
        },
    }
}

/// Connects to one of several, whoever it is; whether it is read-only.
pub(crate) async fn with_role(server: &Server, index: usize) -> Result<(Conn, bool)> {
    let mut conn = connect_to(server, index).await?;
    let is_replica = is_read_only(&mut conn, &server.label_of(index)).await?;
    Ok((conn, is_replica))
}

/// Whether the server takes no writes but those of its replication.
pub(crate) async fn is_read_only(conn: &mut Conn, label: &str) -> Result<bool> {
    let ask = "SELECT CONCAT(@@GLOBAL.read_only)";
    let is: Option<String> = in_time("ask whether it takes writes", label, conn.query_first(ask)).await?;
    Ok(is.is_some_and(|is| !matches!(is.as_str(), "0" | "OFF")))
}

/// Fails where the server is read-only, also where the account may write all the same: what it wrote would be the replica's
/// alone.
pub(crate) async fn refuse_read_only(conn: &mut Conn, label: &str, action: &str) -> Result<()> {
    if !is_read_only(conn, label).await? {
        return Ok(());
    }
    Err(Error::Setup {
        action: action.into(),
        endpoint: label.into(),
        reason: "read_only is ON: it is a replica, or not promoted yet".into(),
        advice: "name its primary, or both in `urls`; or set read_only=OFF where it is the primary".into(),
    })
}

async fn connect_to(server: &Server, index: usize) -> Result<Conn> {
    let label = server.label_of(index);
    let (host, port) = server.addresses.get(index).cloned().unwrap_or_default();
    let mut options = OptsBuilder::default()
        .ip_or_hostname(host)
        .tcp_port(port)
        .user(Some(server.user.clone()))
        .prefer_socket(Some(false))
        .client_found_rows(true)
        .tcp_keepalive(Some(Duration::from_secs(30)));
    if let Some(secret) = &server.password {
        let text = secret.read().map_err(|e| Error::Setup {
            action: "connect".into(),
            endpoint: label.clone(),
            reason: format!("password_file: {e}"),
            advice: "make it readable for syncd, with the password alone in it".into(),
        })?;
        options = options.pass(Some(text));
    }
    if let Some(tls) = &server.tls {
        let client = tls.client.clone().map(|(cert, key)| ClientIdentity::new(cert.into(), key.into()));
        let ssl = SslOpts::default()
            .with_root_certs(vec![tls.ca.clone().into()])
            .with_disable_built_in_roots(true)
            .with_client_identity(client);
        options = options.ssl_opts(ssl);
    }
    let connecting = timeout(CONNECT_MAX, Conn::new(options)).await;
    let late = |_| unavailable("connect", &label, "no answer");
    let mut conn = connecting.map_err(late)?.map_err(|e| failed("connect", &label, e))?;
    if let Err(error) = conn.query_drop(SESSION).await {
        match &error {
            // Unknown system variable.
            mysql_async::Error::Server(e) if e.code == 1193 => {
                run(&mut conn, &label, "connect", SESSION_MARIADB).await?
            }
            _ => return Err(failed("connect", &label, error)),
        }
    }
    Ok(conn)
}

/// Runs a statement that gives no rows.
pub(crate) async fn run(conn: &mut Conn, label: &str, action: &str, sql: impl AsRef<str>) -> Result<()> {
    in_time(action, label, conn.query_drop(sql.as_ref())).await
}

/// Waits for an answer, not for ever.
pub(crate) async fn in_time<T>(
    action: &str,
    label: &str,
    answer: impl Future<Output = mysql_async::Result<T>>,
) -> Result<T> {
    within(ANSWER_MAX, action, label, answer).await
}

/// The same for what looks through a whole table.
pub(crate) async fn scanned<T>(
    action: &str,
    label: &str,
    answer: impl Future<Output = mysql_async::Result<T>>,
) -> Result<T> {
    within(SCAN_MAX, action, label, answer).await
}

async fn within<T>(
    wait: Duration,
    action: &str,
    label: &str,
    answer: impl Future<Output = mysql_async::Result<T>>,
) -> Result<T> {
    match timeout(wait, answer).await {
        Ok(answer) => answer.map_err(|e| failed(action, label, e)),
        Err(_) => Err(unavailable(action, label, "no answer")),
    }
}

/// Somebody has to change a right or an account before it can go on.
fn is_setup(code: u16) -> bool {
    // Access denied: to a database, to the server, to a table, to a column, for a global right; unknown account plugin.
    // Not read-only: the next connect says that of a server, or finds the one that was promoted.
    matches!(code, 1044 | 1045 | 1142 | 1143 | 1227 | 1524)
}

/// What the server or the line said, without values.
pub(crate) fn failed(action: &str, label: &str, error: mysql_async::Error) -> Error {
    match error {
        mysql_async::Error::Server(e) if is_setup(e.code) => Error::Setup {
            action: action.into(),
            endpoint: label.into(),
            reason: text(e.code, &e.message),
            advice: "grant what the connector's README lists, or mend the account".into(),
        },
        mysql_async::Error::Server(e) => {
            unavailable(action, label, ServerError { code: e.code, text: text(e.code, &e.message) })
        }
        other => unavailable(action, label, other),
    }
}

/// A server's error as it is shown. What it quotes (a duplicate entry's value) is left out.
pub(crate) fn text(code: u16, message: &str) -> String {
    let mut shown = String::new();
    for (n, part) in message.split('\'').enumerate() {
        // Names are quoted, too: those of tables and columns are no secret, values of duplicate entries are.
        let is_value = n == 1 && matches!(code, 1062 | 1366 | 1292 | 1586);
        if n > 0 {
            shown.push('\'');
        }
        shown.push_str(if is_value { "…" } else { part });
    }
    let end = shown.char_indices().nth(ERROR_TEXT_MAX).map_or(shown.len(), |(at, _)| at);
    shown.truncate(end);
    format!("{shown} (error {code})")
}

/// What a server answered.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct ServerError {
    code: u16,
    text: String,
}

/// Whether another transaction was in the way: a deadlock, or a lock waited for too long.
pub(crate) fn is_lock(error: &Error) -> bool {
    let Error::Unavailable { source, .. } = error else { return false };
    source.downcast_ref::<ServerError>().is_some_and(|e| is_lock_code(e.code))
}

/// As [`is_lock`], by the server's number.
pub(crate) fn is_lock_code(code: u16) -> bool {
    matches!(code, 1205 | 1213)
}

/// Makes our tables where they are not.
pub(crate) async fn make_our_tables(conn: &mut Conn, label: &str) -> Result<()> {
    for sql in names::create() {
        run(conn, label, "make our tables", sql).await?;
    }
    Ok(())
}

pub(crate) fn unavailable(action: &str, label: &str, source: impl Into<BoxError>) -> Error {
    Error::Unavailable { action: action.into(), endpoint: label.into(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_tables_and_no_values() {
        let shown = text(1062, "Duplicate entry 'hunter2' for key 'users.email'");
        assert_eq!(shown, "Duplicate entry '…' for key 'users.email' (error 1062)");
        assert_eq!(text(1146, "Table 'a.b' doesn't exist"), "Table 'a.b' doesn't exist (error 1146)");
    }
}
