//! Tokens: marks that are written to find, in the binlog, the moment of a read.

use causeway_core::{Result, Token};
use mysql_async::Conn;

use crate::conn::run;
use crate::names::{SCHEMA, WATERMARK};

/// Writes `token` for the channel `name`; within a transaction it stands where that is committed.
pub(crate) async fn write_token(conn: &mut Conn, label: &str, name: &str, token: Token) -> Result<()> {
    let text = token.text();
    let sql = format!(
        "INSERT INTO {SCHEMA}.{WATERMARK} (name, token) VALUES ('{name}', '{text}') ON DUPLICATE KEY UPDATE token = \
         '{text}'"
    );
    run(conn, label, "write a token", sql).await
}
