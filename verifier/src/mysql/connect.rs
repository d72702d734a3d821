use std::time::{Duration, Instant};

use causeway_core::settings::percent;
use mysql_async::prelude::Queryable;
use mysql_async::{ClientIdentity, Conn, OptsBuilder, Params, Pool, PoolConstraints, PoolOpts, Row, SslOpts};
use tokio::time::timeout;
use url::Url;

use crate::config::Endpoints;
use crate::error::{Error, Result};
use crate::pace::{Pace, Rates};
use crate::site::Site;

/// How long a server may take to answer a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one statement may take: a table without a key is read whole by one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3600);

/// Connections to one server.
const CONNECTIONS_MAX: usize = 5;

/// Text in UTF-8, times in UTC, dates as they are stored; and nothing is written.
const SESSION: &str = "SET NAMES utf8mb4, time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES'";
const READ_ONLY: &str = "SET SESSION TRANSACTION READ ONLY";

/// The same where rows are put back: zeros go in as they are, too. What does not fit is not refused: it is read again and
/// compared, which finds more.
const WRITES: &str = "SET NAMES utf8mb4, time_zone = '+00:00', \
    sql_mode = 'ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION'";

/// A server, and the connections to it.
pub(super) struct Link {
    pub(super) site: Site,
    pool: Pool,
    /// Of connections that may write.
    writers: Pool,
    pub(super) pace: Pace,
    /// Which server it is.
    pub(super) identity: String,
}

impl Link {
    /// How long the server takes to answer a ping.
    pub(super) async fn probe(&self) -> Result<Duration> {
        let action = "ask whether it is there";
        let mut conn = self.at_once(&self.pool, action).await?;
        let begin = Instant::now();
        self.in_time(conn.ping(), action).await?;
        Ok(begin.elapsed())
    }

    /// Rows of a statement, as text.
    pub(super) async fn query(&self, sql: &str, action: &str) -> Result<Vec<Row>> {
        let mut conn = self.conn(action).await?;
        let rows = self.in_time(conn.query(sql), action).await?;
        self.took(&rows).await;
        Ok(rows)
    }

    /// Rows of a statement with parameters, each value in its own form.
    pub(super) async fn exec(
        &self,
        sql: &str,
        params: impl Into<Params> + Send,
        action: &str,
    ) -> Result<Vec<Row>> {
        let mut conn = self.conn(action).await?;
        let rows = self.in_time(conn.exec(sql, params), action).await?;
        self.took(&rows).await;
        Ok(rows)
    }

    /// Hands on rows one by one as they come, each value in its own form.
    pub(super) async fn each(
        &self,
        sql: &str,
        action: &str,
        mut take: impl FnMut(Row) -> Result<()>,
    ) -> Result<()> {
        let mut conn = self.conn(action).await?;
        let mut rows = self.in_time(conn.exec_iter(sql, ()), action).await?;
        let mut bytes = 0;
        while let Some(row) = self.in_time(rows.next(), action).await? {
            bytes += if self.pace.counts_bytes() { row_bytes(&row) } else { 0 };
            take(row)?;
        }
        self.pace.took(bytes).await;
        Ok(())
    }

    async fn took(&self, rows: &[Row]) {
        if self.pace.counts_bytes() {
            self.pace.took(rows.iter().map(row_bytes).sum()).await;
        }
    }

    async fn conn(&self, action: &str) -> Result<Conn> {
        self.of(&self.pool, action).await
    }

    /// A connection that may write.
    pub(super) async fn writer(&self, action: &str) -> Result<Conn> {
        self.of(&self.writers, action).await
    }

    async fn of(&self, pool: &Pool, action: &str) -> Result<Conn> {
        self.pace.take(1).await;
        self.at_once(pool, action).await
    }

    /// Whatever the rate is.
    async fn at_once(&self, pool: &Pool, action: &str) -> Result<Conn> {
        let conn = timeout(CONNECT_TIMEOUT, pool.get_conn()).await;
        conn.map_err(|_| self.site.failed(action, "no answer"))?.map_err(|e| self.failed(action, e))
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = mysql_async::Result<T>>,
        action: &str,
    ) -> Result<T> {
        let answer = timeout(ANSWER_TIMEOUT, answer).await;
        answer.map_err(|_| self.site.failed(action, "no answer"))?.map_err(|e| self.failed(action, e))
    }

    fn failed(&self, action: &str, error: mysql_async::Error) -> Error {
        let advice = match &error {
            // Access denied to a database, a table, a column.
            mysql_async::Error::Server(e) if matches!(e.code, 1044 | 1142 | 1143) => {
                "; the account needs SELECT on the tables of the channel"
            }
            // Unknown column, table: it was there a moment ago.
            mysql_async::Error::Server(e) if matches!(e.code, 1054 | 1146) => {
                "; it was changed while it was compared: run it again"
            }
            _ => "",
        };
        self.site.failed(action, format!("{error}{advice}"))
    }
}

/// Connects to the first of `endpoints` that answers, and of several takes writes: a replica may be behind.
///
/// # Errors
///
/// [`Error::Usage`] for an address that is none; [`Error::Store`] otherwise.
pub(super) async fn connect(channel: &str, name: &str, endpoints: &Endpoints, rates: Rates) -> Result<Link> {
    let mut last = None;
    for url in &endpoints.urls {
        let link = match try_one(channel, name, url, endpoints, rates).await {
            Err(error @ Error::Store { .. }) => {
                last = Some(error);
                continue;
            }
            done => done?,
        };
        if endpoints.urls.len() == 1 {
            return Ok(link);
        }
        let is =
            first_text(link.query("SELECT CONCAT(@@GLOBAL.read_only)", "ask whether it takes writes").await?);
        if matches!(is.as_str(), "0" | "OFF") {
            return Ok(link);
        }
        last = Some(
            link.site.failed("connect", "it is a replica (read_only is ON); name the primary in `urls`, too"),
        );
    }
    Err(last.unwrap_or_else(|| Error::Usage(format!("{channel}: `{name}` has no address"))))
}

async fn try_one(channel: &str, name: &str, url: &str, endpoints: &Endpoints, rates: Rates) -> Result<Link> {
    // The text itself may hold a password.
    let usage = || {
        Error::Usage(format!(
            "{channel}: the address of `{name}` is none that MySQL has; allowed is mysql://user@host:port"
        ))
    };
    let url = Url::parse(url).map_err(|_| usage())?;
    let host = url.host_str().filter(|host| url.scheme() == "mysql" && !host.is_empty()).ok_or_else(usage)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port().unwrap_or(3306);
    let decoded = |text: &str| percent(text).ok_or_else(usage);
    let user = match (&endpoints.user, url.username()) {
        (Some(user), _) => user.clone(),
        (None, "") => "root".to_owned(),
        (None, user) => decoded(user)?,
    };
    let password = match (&endpoints.password, url.password()) {
        (Some(password), _) => Some(password.clone()),
        (None, password) => password.map(decoded).transpose()?,
    };
    let ssl = endpoints.ca.clone().map(|ca| {
        let identity = endpoints.identity.clone();
        SslOpts::default()
            .with_root_certs(vec![ca.into()])
            .with_disable_built_in_roots(true)
            .with_client_identity(identity.map(|(cert, key)| ClientIdentity::new(cert.into(), key.into())))
    });
    // They stay open: those above the first number are closed at once.
    let constraints = PoolConstraints::new(CONNECTIONS_MAX, CONNECTIONS_MAX).unwrap_or_default();
    let options = OptsBuilder::default()
        .ip_or_hostname(host.clone())
        .tcp_port(port)
        .user(Some(user))
        .pass(password)
        .prefer_socket(Some(false))
        .tcp_keepalive(Some(Duration::from_secs(30)))
        // Each statement is another one.
        .stmt_cache_size(Some(0))
        .pool_opts(PoolOpts::new().with_constraints(constraints).with_reset_connection(false))
        .ssl_opts(ssl);
    let site = Site { channel: channel.into(), name: name.into(), endpoint: format!("{host}:{port}") };
    let pool = |init| Pool::new(options.clone().init(init));
    let mut link = Link {
        site,
        pool: pool(vec![SESSION, READ_ONLY]),
        writers: pool(vec![WRITES]),
        pace: Pace::new(rates),
        identity: String::new(),
    };
    let action = "ask who it is";
    let version = first_text(link.query("SELECT VERSION()", action).await?);
    let uid = if version.contains("MariaDB") { "@@server_uid" } else { "@@server_uuid" };
    // Old ones have none.
    link.identity =
        link.query(&format!("SELECT {uid}"), action).await.map_or_else(|_| String::new(), first_text);
    Ok(link)
}

/// About what it took on the line.
fn row_bytes(row: &Row) -> usize {
    let cells = (0..row.len()).filter_map(|n| row.as_ref(n));
    cells.map(|cell| if let mysql_async::Value::Bytes(bytes) = cell { bytes.len() + 2 } else { 8 }).sum()
}

fn first_text(rows: Vec<Row>) -> String {
    rows.into_iter().next().and_then(|row| row.get_opt::<String, _>(0)?.ok()).unwrap_or_default()
}
