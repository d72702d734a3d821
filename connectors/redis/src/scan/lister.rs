//! Lists a server's keys with SCAN, beginning anywhere and coming round to there.
//!
//! A cursor is a place among the hashes of all keys, read with their bits reversed: SCAN goes through them
//! upwards, and whatever the table's size was or becomes, all keys below a cursor were listed. So a scan from
//! a cursor to the end and one from the beginning up to that cursor list all keys between them. The hashes
//! are seeded at each start of the server: a place means nothing to the next one.
//! Source: the comment above `dictScan` in Redis's `dict.c`, and `hashtableScan` in Valkey's `hashtable.c`.
//! Should a server's cursors not go upwards, they are of another kind, and the second part goes to the end.

use bytes::Bytes;
use causeway_core::{Error, Result};
use tokio::sync::mpsc;

use crate::conn::{Conn, server_error};
use crate::filter::Filter;
use crate::resp::{Reply, decimal};

const ACTION: &str = "list keys";
/// Keys that one SCAN step looks at.
const SCAN_COUNT: u32 = 256;

/// A place in a server's scan: what comes before it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScanPlace {
    /// The server's `run_id`.
    pub(crate) server: Bytes,
    pub(crate) db: u32,
    pub(crate) cursor: u64,
}

impl ScanPlace {
    /// `RUN_ID.DB.CURSOR`: printable, without spaces.
    pub(crate) fn to_context(&self) -> Bytes {
        let server = String::from_utf8_lossy(&self.server);
        format!("{server}.{}.{}", self.db, self.cursor).into()
    }

    /// Reads what [`to_context`](ScanPlace::to_context) wrote.
    pub(crate) fn from_context(context: &[u8]) -> Option<ScanPlace> {
        let mut parts = std::str::from_utf8(context).ok()?.split('.');
        let server = parts.next().filter(|server| !server.is_empty())?;
        let (db, cursor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let server = Bytes::copy_from_slice(server.as_bytes());
        parts.next().is_none().then_some(ScanPlace { server, db, cursor })
    }
}

/// One step of a scan.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) db: u32,
    /// Those that the channel carries.
    pub(crate) keys: Vec<Bytes>,
    /// Database and cursor behind these keys; `None`: behind them there is nothing.
    pub(crate) next: Option<(u32, u64)>,
}

/// A stretch of one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leg {
    db: u32,
    from: u64,
    /// Where it ends; `None`: where the database does.
    until: Option<u64>,
}

/// All of `dbs`, from `from` on and round to there.
fn legs(mut dbs: Vec<u32>, from: Option<(u32, u64)>) -> Vec<Leg> {
    dbs.sort_unstable();
    dbs.dedup();
    let (first, cursor) = from.unwrap_or_default();
    // The place may be in a database that has no keys any more.
    let cursor = if dbs.contains(&first) { cursor } else { 0 };
    let start = dbs.partition_point(|db| *db < first);
    dbs.rotate_left(start);
    let mut legs: Vec<Leg> = dbs.into_iter().map(|db| Leg { db, from: 0, until: None }).collect();
    if cursor > 0
        && let Some(leg) = legs.first_mut()
    {
        leg.from = cursor;
        legs.push(Leg { db: first, from: 0, until: Some(cursor) });
    }
    legs
}

/// Lists the keys of `dbs`, beginning at `from`; each that is there all the time at least once.
pub(crate) async fn list(
    mut conn: Conn,
    dbs: Vec<u32>,
    from: Option<(u32, u64)>,
    filter: Filter,
    pages: mpsc::Sender<Result<Page>>,
) {
    let dbs = dbs.into_iter().filter(|db| filter.carries_db(*db)).collect();
    if let Err(error) = list_all(&mut conn, legs(dbs, from), &filter, &pages).await {
        let _ = pages.send(Err(error)).await;
    }
}

async fn list_all(
    conn: &mut Conn,
    legs: Vec<Leg>,
    filter: &Filter,
    pages: &mpsc::Sender<Result<Page>>,
) -> Result<()> {
    let mut upwards = true;
    let mut legs = legs.into_iter().peekable();
    while let Some(Leg { db, from, until }) = legs.next() {
        select(conn, db).await?;
        let mut cursor = from;
        loop {
            let (next, mut keys) = page(conn, cursor, SCAN_COUNT).await?;
            keys.retain(|key| filter.carries(db, key));
            upwards &= next == 0 || next.reverse_bits() > cursor.reverse_bits();
            let there = until.is_some_and(|until| upwards && next.reverse_bits() >= until.reverse_bits());
            let ended = next == 0 || there;
            let next = if ended { legs.peek().map(|leg| (leg.db, leg.from)) } else { Some((db, next)) };
            if pages.send(Ok(Page { db, keys, next })).await.is_err() {
                return Ok(());
            }
            match next {
                Some((_, at)) if !ended => cursor = at,
                _ => break,
            }
        }
    }
    Ok(())
}

/// Selects a database.
pub(crate) async fn select(conn: &mut Conn, db: u32) -> Result<()> {
    let reply = conn.call(&[b"SELECT", &decimal(db)]).await?;
    match reply.error() {
        Some(text) => Err(server_error(ACTION, conn.endpoint_label(), text)),
        None => Ok(()),
    }
}

/// One step of SCAN in the selected database: the next cursor (0: there is no more), and keys.
pub(crate) async fn page(conn: &mut Conn, cursor: u64, count: u32) -> Result<(u64, Vec<Bytes>)> {
    let reply = conn.call(&[b"SCAN", &decimal(cursor), b"COUNT", &decimal(count)]).await?;
    if let Some(text) = reply.error() {
        return Err(server_error(ACTION, conn.endpoint_label(), text));
    }
    let (next, names) = match reply.items() {
        Some([next, names]) => (next.bytes(), names.items()),
        _ => (None, None),
    };
    let next = next.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let (Some(next), Some(names)) = (next, names) else {
        return Err(Error::Garbled {
            endpoint: conn.endpoint_label().to_owned(),
            what: "reply to SCAN",
            at: 0,
            reason: "a cursor and an array of keys were expected".to_owned(),
        });
    };
    Ok((next, names.iter().filter_map(Reply::bytes).cloned().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_from_its_text() {
        let place = ScanPlace { server: Bytes::from_static(b"f00"), db: 3, cursor: u64::MAX };
        assert_eq!(place.to_context(), "f00.3.18446744073709551615");
        assert_eq!(ScanPlace::from_context(&place.to_context()), Some(place));
        for text in ["", "7", ".1.2", "a.1", "a.1.2.3", "a.-1.2", "a.1.x", "a b"] {
            assert_eq!(ScanPlace::from_context(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_scan_from_anywhere_comes_round_to_there() {
        let leg = |db, from, until| Leg { db, from, until };
        let whole = |db| leg(db, 0, None);
        assert_eq!(legs(vec![3, 0], None), [whole(0), whole(3)]);
        assert_eq!(legs(vec![0, 3, 5], Some((3, 0))), [whole(3), whole(5), whole(0)]);
        assert_eq!(
            legs(vec![0, 3, 5], Some((3, 7))),
            [leg(3, 7, None), whole(5), whole(0), leg(3, 0, Some(7))]
        );
        // The database was emptied meanwhile.
        assert_eq!(legs(vec![0, 5], Some((3, 7))), [whole(5), whole(0)]);
        assert_eq!(legs(vec![0], Some((3, 7))), [whole(0)]);
        assert_eq!(legs(vec![], Some((3, 7))), []);
    }
}
