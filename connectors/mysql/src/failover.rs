//! Whether a stream goes on in a server's binlog: in that of the server it was read from by its place, and in that of one
//! which took over by GTIDs.
//!
//! A replica that writes what it replicates into its own binlog has there every transaction of its primary, with the GTID
//! that it got at the primary. So the last transaction that the log holds is looked for there, and the stream goes on
//! behind it. That is right only if the binlog holds, up to that place, exactly the transactions that the primary had: one
//! that it lacks is lost, one that it has too many would never be carried, and one that comes later though the primary had
//! it before (several applier threads without `replica_preserve_commit_order`) would be carried twice. Which ones the
//! primary had stands in the restart point. Whatever does not fit is a gap.

use causeway_core::{Position, Result};
use futures_util::StreamExt;
use mysql_async::binlog::EventType;
use mysql_async::binlog::events::EventData;
use mysql_async::prelude::Queryable;
use mysql_async::{BinlogStreamRequest, Conn, Row};
use tokio::time::timeout;

use crate::config::Server;
use crate::conn::{connect, failed, in_time, run, unavailable};
use crate::gtid::{Executed, Gtid};
use crate::place::{Place, by_gtid, executed_of, lifted, number};
use crate::source::{Found, HEARTBEAT, SILENCE_MAX, replica_id};
use crate::stream::{MARIADB_GTID, Stretch, gtid_of_mariadb, gtid_of_mysql};

/// Where a stream goes on.
#[derive(Debug)]
pub(crate) struct Resume {
    pub(crate) place: Place,
    /// What comes again before it is new.
    pub(crate) stretch: Option<Stretch>,
    /// The transactions that the server had at the place.
    pub(crate) executed: Option<Executed>,
    /// The server took over from another one.
    pub(crate) moved: bool,
}

/// Where a stream may go on, or why not.
type Answer<T> = Result<std::result::Result<T, String>>;

/// `ER_ERROR_WHEN_EXECUTING_COMMAND`: of SHOW BINLOG EVENTS, that none begins at the place.
const NO_SUCH_EVENT: u16 = 1220;
const LOOK: &str = "look for a GTID";

/// Lets the server speak each second, and tell GTIDs.
pub(crate) async fn prepare(conn: &mut Conn, label: &str, is_mariadb: bool) -> Result<()> {
    let nanos = HEARTBEAT.as_nanos();
    let mut settings = format!("SET @master_heartbeat_period = {nanos}, @source_heartbeat_period = {nanos}");
    if is_mariadb {
        // Or it sends no GTIDs.
        settings.push_str(", @mariadb_slave_capability = 4");
    }
    run(conn, label, "read the binlog", settings).await
}

/// The server's binlogs, the oldest one first, with their lengths.
async fn binlogs(conn: &mut Conn, label: &str) -> Result<Vec<(String, u64)>> {
    let logs: Vec<Row> = in_time("list the binlogs", label, conn.query("SHOW BINARY LOGS")).await?;
    Ok(logs.iter().filter_map(|row| Some((row.get_opt(0)?.ok()?, row.get_opt(1)?.ok()?))).collect())
}

/// Whether the server that `place` is of still has it: `Err` says why not.
pub(crate) async fn stands(conn: &mut Conn, label: &str, place: &Place, found: &Found) -> Answer<()> {
    let logs = binlogs(conn, label).await?;
    match logs.iter().find(|(name, _)| *name == place.file) {
        None => return Ok(Err(format!("{} is purged", place.file))),
        Some((_, size)) if *size < place.at => {
            return Ok(Err(format!("{} ends before it: the server lost its end", place.file)));
        }
        Some(_) => {}
    }
    let gtid = place.gtid();
    if gtid.is_empty() {
        return Ok(Ok(()));
    }
    let held: Option<Option<bool>> = if found.is_mariadb {
        let sql = "SELECT BINLOG_GTID_POS(?, ?)";
        let there: Option<Option<String>> =
            in_time(LOOK, label, conn.exec_first(sql, (&place.file, place.at))).await?;
        Some(there.flatten().map(|there| there.split(',').any(|one| one == gtid)))
    } else {
        match place.gtid_starts() {
            Some(start) => Some(Some(stands_at(conn, label, gtid, (&place.file, start)).await?)),
            None => {
                let sql = "SELECT GTID_SUBSET(?, @@GLOBAL.gtid_executed)";
                in_time(LOOK, label, conn.exec_first(sql, (gtid,))).await?
            }
        }
    };
    match held.flatten() {
        Some(true) => Ok(Ok(())),
        _ => Ok(Err(format!("the server does not know {gtid} there: its binlog was reset"))),
    }
}

/// Whether the event at a place of MySQL's binlog is that of `gtid`: numbers begin anew after a reset.
async fn stands_at(conn: &mut Conn, label: &str, gtid: &str, (file, start): (&str, u64)) -> Result<bool> {
    let sql = format!("SHOW BINLOG EVENTS IN '{file}' FROM {start} LIMIT 1");
    let row: Option<Row> = match conn.query_first(sql).await {
        // There is no event.
        Err(mysql_async::Error::Server(error)) if error.code == NO_SUCH_EVENT => return Ok(false),
        found => found.map_err(|error| failed(LOOK, label, error))?,
    };
    let info: Option<String> = row.and_then(|row| row.get_opt(5)?.ok());
    Ok(info.is_some_and(|info| info.contains(&format!("'{gtid}'"))))
}

/// Which transactions stand before a file of the binlog, as its beginning says.
async fn before(conn: &mut Conn, label: &str, file: &str, is_mariadb: bool) -> Result<Option<Executed>> {
    let sql = format!("SHOW BINLOG EVENTS IN '{file}' LIMIT 4");
    let rows: Vec<Row> = in_time(LOOK, label, conn.query(sql)).await?;
    let (wanted, read): (&str, fn(&str) -> Option<Executed>) =
        if is_mariadb { ("Gtid_list", Executed::of_last) } else { ("Previous_gtids", Executed::parse) };
    let text = |row: &Row, index: usize| row.get_opt::<String, _>(index)?.ok();
    let list = rows.iter().find(|row| text(row, 2).as_deref() == Some(wanted));
    Ok(list.and_then(|row| read(&text(row, 5)?)))
}

/// All transactions that the server's binlog, and of MySQL the server itself, has now.
pub(crate) async fn all(conn: &mut Conn, label: &str, is_mariadb: bool) -> Result<Option<Executed>> {
    let variable = if is_mariadb { "@@GLOBAL.gtid_binlog_state" } else { "@@GLOBAL.gtid_executed" };
    let text: Option<String> = in_time(LOOK, label, conn.query_first(format!("SELECT {variable}"))).await?;
    let text = text.unwrap_or_default();
    Ok(if is_mariadb { Executed::of_last(&text) } else { Executed::parse(&text) })
}

/// Which transactions the server had at a place of its own binlog; `None`: nobody can tell, as several servers write it.
pub(crate) async fn learn(
    conn: &mut Conn,
    label: &str,
    place: &Place,
    found: &Found,
) -> Result<Option<Executed>> {
    let Some(mut known) = before(conn, label, &place.file, found.is_mariadb).await? else { return Ok(None) };
    let there = if found.is_mariadb {
        let sql = "SELECT BINLOG_GTID_POS(?, ?)";
        let there: Option<Option<String>> =
            in_time(LOOK, label, conn.exec_first(sql, (&place.file, place.at))).await?;
        there.flatten().and_then(|there| Executed::of_last(&there))
    } else {
        let mut there = Executed::default();
        Gtid::parse(place.gtid()).into_iter().for_each(|gtid| there.set_to(gtid));
        Some(there)
    };
    let (Some(there), Some(later)) = (there, all(conn, label, found.is_mariadb).await?) else {
        return Ok(None);
    };
    // What one alone wrote in this file is known by its last one.
    let moved = known.moved(&later);
    for origin in &moved {
        let is_alone = if found.is_mariadb {
            let domain = |origin: &str| origin.split('-').next().map(str::to_owned);
            moved.iter().filter(|other| domain(other) == domain(origin)).count() == 1
        } else {
            moved.len() == 1
        };
        match there.last_of_domain(origin) {
            _ if !is_alone => return Ok(None),
            Some((last, n)) if last == *origin => known.set_to(Gtid { origin, n }),
            Some(_) => {}
            None if found.is_mariadb => {}
            None => return Ok(None),
        }
    }
    Ok(Some(known))
}

/// Where two transactions stand in a binlog.
struct Spot {
    /// Behind the first one.
    file: String,
    at: u64,
    /// All up to the second one.
    executed: Executed,
}

/// Finds where the stream goes on in the binlog of the server `found`, which took over: behind `from`, and the log holds all
/// up to `last`. `Err` says why it cannot.
pub(crate) async fn find(
    server: &Server,
    conn: &mut Conn,
    (from, from_place): (&Position, &Place),
    (last, last_place): (&Position, &Place),
    found: &Found,
) -> Answer<Resume> {
    let label = server.label();
    let lost = |reason: String| Ok(Err(format!("it is another server's, and {reason}")));
    let (Some(first), Some(end)) = (Gtid::parse(from_place.gtid()), Gtid::parse(last_place.gtid())) else {
        return lost(
            "the old one wrote no GTIDs, by which the stream would have gone on: set gtid_mode=ON".into(),
        );
    };
    let (first_text, end_text) = (from_place.gtid(), last_place.gtid());
    // It took over before, and the log holds its transactions already.
    let is_known = last_place.server == found.server;
    if is_known && let Err(reason) = stands(conn, &label, last_place, found).await? {
        return Ok(Err(reason));
    }
    let expected = match executed_of(from) {
        None if !is_known => {
            let reason = "which transactions the old one had is not known: several servers wrote its binlog, or an \
                          older syncd read it";
            return lost(reason.into());
        }
        expected => expected.unwrap_or_default(),
    };
    if last_place.is_within {
        return lost(
            "the old one was lost within a transaction of more than 4 MiB, which was carried in part".into(),
        );
    }
    let has = all(conn, &label, found.is_mariadb).await?.unwrap_or_default();
    if !has.contains(end) {
        return lost(format!(
            "it lacks {end_text}, which the log holds: it took over before it had all, and what it lacks is lost to it \
             unless the peer has it"
        ));
    }
    let logs = binlogs(conn, &label).await?;
    // The first one that begins behind `from`.
    let (mut low, mut high) = (0, logs.len());
    while low < high {
        let middle = low.midpoint(high);
        let Some((file, _)) = logs.get(middle) else { break };
        let Some(before) = before(conn, &label, file, found.is_mariadb).await? else {
            return lost(format!("its binlog {file} does not say which transactions it begins behind"));
        };
        if before.contains(first) { high = middle } else { low = middle + 1 }
    }
    let Some((file, _)) = low.checked_sub(1).and_then(|index| logs.get(index)) else {
        return lost(format!(
            "its binlog no longer reaches back to {first_text}, or it writes none of what it replicates: set \
             log_replica_updates (MariaDB: log_slave_updates) to ON, and keep its binlogs for longer"
        ));
    };
    let Some(executed) = before(conn, &label, file, found.is_mariadb).await? else {
        return lost(format!("its binlog {file} does not say which transactions it begins behind"));
    };
    let known = match found.is_mariadb {
        true => in_time(LOOK, &label, conn.query_first("SELECT @@GLOBAL.gtid_current_pos")).await?,
        false => None,
    };
    let known = known.and_then(|text: String| Executed::of_last(&text));
    let spot = match scan(server, file, executed, (first, end), found.is_mariadb).await? {
        Ok(spot) => spot,
        Err(reason) => return lost(reason),
    };
    let mut wanted = expected.clone();
    wanted.set_to(end);
    if !is_known && let Some(differs) = spot.executed.differs_from(&wanted, end, known.as_ref()) {
        return lost(format!(
            "up to {end_text} it has other transactions in its binlog: {differs}. Nothing but the replication may write \
             at a replica, and one with several applier threads needs replica_preserve_commit_order=ON"
        ));
    }
    let Some(number) = number(&spot.file) else {
        return lost(format!("its binlog {} has no number", spot.file));
    };
    let lift = if is_known { last_place.lift } else { lifted(last.at) + 1 - number };
    let place = Place {
        history: from.history.clone(),
        server: found.server.clone(),
        file: spot.file,
        at: spot.at,
        lift,
        gtid: first_text.to_owned(),
        is_within: false,
    };
    let comes_again = !is_known && first != end;
    let stretch = comes_again.then(|| Stretch {
        position: by_gtid(&from.history, from.at, first_text, &expected),
        until: end_text.to_owned(),
        last: last.clone(),
    });
    Ok(Ok(Resume {
        place,
        stretch,
        executed: Some(expected).filter(|_| executed_of(from).is_some()),
        moved: true,
    }))
}

/// Reads a binlog from the beginning of `file`, before which `executed` stand, until both GTIDs have passed.
async fn scan(
    server: &Server,
    file: &str,
    mut executed: Executed,
    (first, end): (Gtid<'_>, Gtid<'_>),
    is_mariadb: bool,
) -> Answer<Spot> {
    let label = server.label();
    let mut conn = connect(server).await?;
    prepare(&mut conn, &label, is_mariadb).await?;
    let request =
        BinlogStreamRequest::new(replica_id()).with_filename(file.as_bytes()).with_pos(4).with_non_blocking();
    let mut stream = in_time(LOOK, &label, conn.get_binlog_stream(request)).await?;
    let mut here = (file.to_owned(), 4);
    let (mut is_described, mut has_first, mut behind_first, mut has_end) = (false, false, None, false);
    while !(has_end && behind_first.is_some()) {
        let event = timeout(SILENCE_MAX, stream.next()).await;
        let event = event.map_err(|_| unavailable(LOOK, &label, "the server says nothing"))?;
        let Some(event) = event else { break };
        let event = event.map_err(|error| failed(LOOK, &label, error))?;
        let header = event.header();
        let garbled = |error: std::io::Error| unavailable(LOOK, &label, error);
        let kind = header.event_type_raw();
        let gtid = match EventType::try_from(kind) {
            Ok(EventType::FORMAT_DESCRIPTION_EVENT) => {
                is_described = true;
                None
            }
            Ok(EventType::ROTATE_EVENT) if is_described => {
                if let Some(EventData::RotateEvent(rotate)) = event.read_data().map_err(garbled)? {
                    here = (rotate.name().trim_end_matches('\0').to_owned(), rotate.position());
                }
                continue;
            }
            Ok(EventType::GTID_EVENT | EventType::GTID_TAGGED_LOG_EVENT) => {
                match event.read_data().map_err(garbled)? {
                    Some(EventData::GtidEvent(gtid)) => Some(gtid_of_mysql(&gtid)),
                    _ => None,
                }
            }
            _ if kind == MARIADB_GTID => gtid_of_mariadb(event.data(), header.server_id()),
            _ => None,
        };
        if let Some(gtid) = gtid.as_deref().and_then(Gtid::parse) {
            if has_first && behind_first.is_none() {
                behind_first = Some(here.clone());
            }
            has_first |= gtid == first;
            // Behind both nothing counts any more.
            if !has_end {
                executed.add(gtid);
                has_end = gtid == end;
                if has_end && !has_first {
                    return Ok(Err("in its binlog its transactions stand in another order".to_owned()));
                }
            }
        }
        // What came compressed, and what the server sends of itself, has no place.
        if header.log_pos() != 0 && !is_artificial(header) {
            here.1 = u64::from(header.log_pos());
        }
    }
    let behind_first = behind_first.or_else(|| has_first.then_some(here));
    match behind_first.filter(|_| has_end) {
        Some((file, at)) => Ok(Ok(Spot { file, at, executed })),
        None => Ok(Err(format!(
            "its binlog lacks {}-{}, which it has: set log_replica_updates (MariaDB: log_slave_updates) to ON there",
            first.origin, first.n
        ))),
    }
}

/// The server made it up for us: it stands nowhere.
fn is_artificial(header: mysql_async::binlog::events::BinlogEventHeader) -> bool {
    header.flags_raw() & mysql_async::binlog::EventFlags::LOG_EVENT_ARTIFICIAL_F.bits() != 0
}
