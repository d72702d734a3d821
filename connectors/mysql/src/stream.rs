//! What the binlog says, as events in its order: transactions, our own ones told from the application's by the row of
//! `causeway_applied` in them, tokens, and what cannot be carried. No I/O.
//!
//! The binlog's own metadata (`binlog_row_metadata=FULL`) names and types each table's columns as they were when the
//! rows were written, so that a reader that lags behind a change of the table reads them right (FF05).

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use causeway_core::time::now_ms;
use causeway_core::{Change, Event, Group, Key, Marker, Op, Position, Space, Token};
use mysql_async::binlog::events::{
    Event as BinlogEvent, EventData, GtidEvent, OptionalMetaExtractor, OptionalMetadataField, RowsEventData,
    TableMapEvent,
};
use mysql_async::binlog::row::BinlogRow;
use mysql_async::consts::ColumnType;
use tracing::warn;

use crate::config::Tables;
use crate::content;
use crate::ddl::{Announced, Ddl, Words};
use crate::gtid::{Executed, Told};
use crate::names;
use crate::place::Place;
use crate::row::{Cell, Charsets, Kind, from_binlog, key_name, kind_of, write_json};
use crate::schema::{keyless_json, left_out};

/// Why the stream cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// What stands there cannot be carried: what lies between has to be compared.
    Lost(String),
    /// The bytes make no sense.
    Garbled(String),
}

/// A table as the binlog describes it.
#[derive(Debug)]
struct StreamTable {
    space: Space,
    ours: Option<Ours>,
    columns: Vec<(String, Kind)>,
    /// Of the primary key, in its order; empty: it has none, and a row is what all of its columns hold.
    key: Vec<usize>,
    /// Of the columns that a row's JSON has, in the order in which they stand in a key without a primary key.
    order: Vec<usize>,
    /// Why its rows are left out.
    left_out: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    Applied,
    Watermark,
}

#[derive(Debug, Default)]
struct Transaction {
    /// Up to here it was told already, in pieces.
    told_to: Option<u64>,
    /// It ends with a commit or a rollback, and not with any other statement.
    begun: bool,
    /// Names of savepoints, and how many changes stand before each.
    savepoints: Vec<(String, usize)>,
    marker: Option<Marker>,
    changes: Vec<Change>,
    announced: Option<Option<Announced>>,
    tokens: Vec<Token>,
    left_out: Vec<(Key, String)>,
}

/// What our applier wrote into its row.
#[derive(Default)]
struct Said {
    marker: Option<Marker>,
    /// What it is about to run; `Some(None)`: nothing any more.
    announced: Option<Option<Announced>>,
}

/// Reads one server's binlog from a place on.
#[derive(Debug)]
pub(crate) struct Decoder {
    tables: Tables,
    charsets: Charsets,
    /// Of our rows, those of this channel.
    name: String,
    /// Behind the last whole transaction.
    place: Place,
    /// What was told so far comes again, up to a place of another server.
    stretch: Option<Stretch>,
    /// Which transactions were told up to each place.
    told_gtids: Told,
    /// Of what follows.
    next_gtid: String,
    /// The events that say how the file is written have come.
    described: bool,
    /// The end of what came compressed as one event.
    payload_end: u64,
    by_id: HashMap<u64, Option<StreamTable>>,
    open: Option<Transaction>,
    groups: u64,
    /// Tables that were said to be left out.
    told: HashSet<Space>,
    /// Rows that changed since each of these began, whoever changed them.
    windows: HashMap<Token, Window>,
    /// The newest time of an event, in seconds since 1970: what follows was committed no earlier, unless a session set
    /// its TIMESTAMP ahead.
    pub(crate) newest: u32,
    /// Statements that changed tables, ours too.
    pub(crate) definitions: u64,
    /// One of them gave rows other names.
    pub(crate) moved: bool,
    /// Those of the application, until they are taken.
    pub(crate) defined: Vec<Ddl>,
    /// The connection that runs what our applier has announced, and the number of its server: a replica has both from its
    /// primary.
    announced: Option<(u32, u32)>,
    /// Where a restart must not begin: in transactions that were told in pieces, and between what is announced and its end.
    /// From where to where, if they have ended.
    cut: VecDeque<(Position, Option<u64>)>,
}

/// What stands in the log with places of the server that was replaced, and is read again in the binlog of the one that took
/// over. Nobody knows the old places any more, so that it gets others: in the same order, and none behind the last one.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    /// Where it is now; a restart reads all of it again.
    pub(crate) position: Position,
    /// The GTID of the last transaction that the log holds.
    pub(crate) until: String,
    /// The place of that.
    pub(crate) last: Position,
}

/// Where a binlog is read from.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) place: Place,
    pub(crate) stretch: Option<Stretch>,
    pub(crate) told: Told,
}

/// What changes in a table while a chunk of it is read.
#[derive(Debug)]
struct Window {
    table: Space,
    /// `None`: there were too many.
    changed: Option<Changed>,
}

/// What changed in a table.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// Each row's last content, by its primary key.
    pub(crate) rows: HashMap<Key, Option<Bytes>>,
    /// Of a table without one, how many rows of a content came, less those that went.
    pub(crate) counts: HashMap<Key, i64>,
}

/// Rows that a window holds.
const WINDOW_ROWS_MAX: usize = 100_000;

/// What of a transaction is held until its end, in bytes of the binlog. A larger one is told in pieces of about this size,
/// which become transactions of their own. Where it is cut follows from the binlog alone, so that one that is read again
/// is cut there again.
const PIECE_BYTES: u64 = 4 << 20;

/// Why a statement is not carried.
const TABLE_WITH_ROWS: &str =
    "a table that is made with rows in it is not carried: make it at the other site";

/// Binlog events of MariaDB that the driver has no form for, and that say nothing of rows: comments, checkpoints, lists
/// of GTIDs, the beginning of encryption.
const MARIADB_QUIET: [u8; 4] = [160, 161, 163, 164];
pub(crate) const MARIADB_GTID: u8 = 162;
/// Of that event's flags: it is followed by one statement and no commit.
const MARIADB_STANDALONE: u8 = 1;

/// `UUID:N`, or `UUID:TAG:N`.
pub(crate) fn gtid_of_mysql(gtid: &GtidEvent) -> String {
    let sid: String = gtid.sid().iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| sid.get(range).unwrap_or_default().to_owned();
    let uuid = [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-");
    let tag = gtid.tag().map(|tag| format!("{tag}:")).unwrap_or_default();
    format!("{uuid}:{tag}{}", gtid.gno())
}

/// `DOMAIN-SERVER-N`; `None`: the event is too short.
pub(crate) fn gtid_of_mariadb(data: &[u8], server_id: u32) -> Option<String> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    let (seq, domain) = (number(data.get(0..8)?), number(data.get(8..12)?));
    Some(format!("{domain}-{server_id}-{seq}"))
}

impl Decoder {
    pub(crate) fn new(tables: Tables, charsets: Charsets, name: String, from: Start) -> Decoder {
        Decoder {
            tables,
            charsets,
            name,
            next_gtid: from.place.gtid.clone(),
            place: from.place,
            stretch: from.stretch,
            told_gtids: from.told,
            described: false,
            payload_end: 0,
            by_id: HashMap::new(),
            open: None,
            groups: 0,
            told: HashSet::new(),
            windows: HashMap::new(),
            definitions: 0,
            newest: 0,
            moved: false,
            defined: Vec::new(),
            announced: None,
            cut: VecDeque::new(),
        }
    }

    /// Behind the last whole transaction.
    pub(crate) fn position(&self) -> Position {
        match &self.stretch {
            Some(stretch) => stretch.position.clone(),
            None => self.place.position().unwrap_or_default(),
        }
    }

    /// Which transactions of the server were told up to `at`, where that is known.
    pub(crate) fn executed(&self, at: &Position) -> Option<Executed> {
        self.told_gtids.at(at.at, Place::of(at)?.gtid())
    }

    /// Whether it is known which transactions were told.
    pub(crate) fn knows_executed(&self) -> bool {
        self.told_gtids.is_known()
    }

    /// The applier of the server `server_id` is about to run a statement that it announced, behind `begin`.
    pub(crate) fn expect(&mut self, announced: Announced, server_id: u32, begin: Position) {
        if self.announced.replace((announced.connection, server_id)).is_none() {
            self.cut.push_back((begin, None));
        }
    }

    /// From here on notes the rows of `table` that change.
    pub(crate) fn open_window(&mut self, token: Token, table: Space) {
        self.windows.insert(token, Window { table, changed: Some(Changed::default()) });
    }

    /// The rows that changed since, as they are now; `None`: they are too many.
    pub(crate) fn close_window(&mut self, token: Token) -> Option<Changed> {
        self.windows.remove(&token)?.changed
    }

    /// What was undone did not change a table.
    fn uncount(&mut self, undone: &[Change]) {
        for change in undone.iter().filter(|change| change.op == Op::Command) {
            let by = if change.value.as_deref() == Some(content::ADDED) { -1 } else { 1 };
            count(&mut self.windows, &change.key, by);
        }
    }

    /// Takes one event of the binlog; `table` tells the table map of its rows. What it ends is appended to `events`.
    ///
    /// # Errors
    ///
    /// What follows cannot be read, or not be carried.
    pub(crate) fn take<'t>(
        &mut self,
        event: &BinlogEvent,
        table: impl Fn(u64) -> Option<&'t TableMapEvent<'static>>,
        events: &mut Vec<Event>,
    ) -> Result<(), Stop> {
        let header = event.header();
        self.newest = self.newest.max(header.timestamp());
        let fell = header.log_pos() != 0 && u64::from(header.log_pos()) < self.place.at && self.described;
        let kind = header.event_type_raw();
        let data = event.read_data().map_err(|e| Stop::Garbled(e.to_string()))?;
        let Some(data) = data else { return self.take_raw(kind, header.server_id(), event.data()) };
        let end = match u64::from(header.log_pos()) {
            0 => self.payload_end,
            end => end,
        };
        match data {
            EventData::FormatDescriptionEvent(begins) => {
                // Set where the server was started: what it ran ended with it.
                let is_its = |(_, server): &(u32, u32)| *server == header.server_id();
                if begins.create_timestamp() != 0
                    && self.described
                    && self.announced.as_ref().is_some_and(is_its)
                {
                    self.announced = None;
                }
                // It may be that of the file's beginning, where the stream begins further on.
                self.described = true;
                // Numbers of tables begin anew with a server's start.
                self.by_id.clear();
            }
            // The first one repeats what was asked for; MariaDB's has a checksum in the name.
            EventData::RotateEvent(_) if !self.described => {}
            EventData::RotateEvent(rotate) => {
                self.place.file = rotate.name().trim_end_matches('\0').to_owned();
                self.place.at = rotate.position();
                // Its place was in the file before.
                for gtid in [&mut self.place.gtid, &mut self.next_gtid] {
                    gtid.truncate(gtid.find('@').unwrap_or(gtid.len()));
                }
                events.push(Event::Idle { pos: self.position() });
            }
            // What follows begins a transaction, or is a statement of its own.
            EventData::GtidEvent(gtid) => {
                self.open = None;
                let start = end.saturating_sub(header.event_size().into());
                self.next_gtid = format!("{}@{start}", gtid_of_mysql(&gtid));
            }
            EventData::AnonymousGtidEvent(_) => {
                self.open = None;
                self.next_gtid.clear();
            }
            EventData::TransactionPayloadEvent(_) => self.payload_end = end,
            EventData::TableMapEvent(map) if !self.by_id.contains_key(&map.table_id()) => {
                let described = self.describe(&map)?;
                self.by_id.insert(map.table_id(), described);
            }
            EventData::XidEvent(_) | EventData::RowsEvent(_) if fell => {
                return Err(Stop::Lost(
                    "a binlog of more than 4 GiB, in which places have no numbers".to_owned(),
                ));
            }
            EventData::RowsEvent(rows) => {
                let map = table(rows.table_id())
                    .ok_or_else(|| Stop::Garbled("rows of a table that was not described".to_owned()))?;
                self.rows(&rows, map, header.timestamp())?;
                self.cut(u64::from(header.log_pos()), events);
            }
            EventData::XidEvent(_) => self.end(end, header.server_id(), events),
            EventData::QueryEvent(query) => {
                let at = (header.timestamp(), end, (query.thread_id(), header.server_id()));
                self.query(&query.query(), &query.schema(), at, events)?;
            }
            EventData::XaPrepareLogEvent(_) => {
                return Err(Stop::Lost("an XA transaction, which is not carried".into()));
            }
            EventData::IncidentEvent(_) => {
                return Err(Stop::Lost(
                    "the server says that its binlog lacks something (an incident)".into(),
                ));
            }
            EventData::ExecuteLoadQueryEvent(_) | EventData::BeginLoadQueryEvent(_) => {
                return Err(Stop::Lost(
                    "LOAD DATA as a statement: binlog_format has to be ROW in every session".into(),
                ));
            }
            EventData::HeartbeatEvent if self.open.is_none() => {
                self.newest = self.newest.max(u32::try_from(now_ms() / 1000).unwrap_or(0));
                events.push(Event::Idle { pos: self.position() });
            }
            _ => {}
        }
        Ok(())
    }

    /// An event that the driver has no form for.
    fn take_raw(&mut self, kind: u8, server_id: u32, data: &[u8]) -> Result<(), Stop> {
        match kind {
            MARIADB_GTID => {
                let short = || Stop::Garbled("a GTID that is too short".to_owned());
                let flags = *data.get(12).ok_or_else(short)?;
                self.next_gtid = gtid_of_mariadb(data, server_id).ok_or_else(short)?;
                if flags & MARIADB_STANDALONE == 0 {
                    self.begin();
                }
                Ok(())
            }
            kind if MARIADB_QUIET.contains(&kind) => Ok(()),
            165..=171 => {
                Err(Stop::Lost("compressed events of MariaDB: log_bin_compress has to be OFF".to_owned()))
            }
            kind => Err(Stop::Lost(format!("an event of an unknown kind, {kind}"))),
        }
    }

    fn begin(&mut self) {
        self.open = Some(Transaction { begun: true, ..Transaction::default() });
    }

    /// Tells what came of a transaction up to `end`, if that is much.
    fn cut(&mut self, end: u64, events: &mut Vec<Event>) {
        let begin = self.position();
        let Some(open) = self.open.as_mut().filter(|open| open.marker.is_none()) else { return };
        // What came compressed has no places.
        if end < open.told_to.unwrap_or(self.place.at) + PIECE_BYTES {
            return;
        }
        let pos = if self.stretch.is_some() { Some(begin.clone()) } else { self.place.within(end) };
        let Some(pos) = pos else { return };
        if open.told_to.replace(end).is_none() {
            warn!(position = %begin, "a transaction is too large to be carried whole: it arrives in pieces");
            self.cut.push_back((begin, None));
        }
        let changes = std::mem::take(&mut open.changes);
        self.tell(changes, &pos, events);
    }

    /// From where a restart has to read again, given that the log holds everything before `durable`: never from within a
    /// transaction.
    pub(crate) fn restart_point(&self, durable: &Position) -> Position {
        let within = |(begin, end): &&(Position, Option<u64>)| {
            begin.at < durable.at && end.is_none_or(|end| durable.at < end)
        };
        self.cut.iter().find(within).map_or(durable, |(begin, _)| begin).clone()
    }

    /// No restart point is asked for before `at` any more.
    pub(crate) fn forget_below(&mut self, at: u64) {
        self.told_gtids.forget_below(at);
        while self.cut.front().is_some_and(|(_, end)| end.is_some_and(|end| end <= at)) {
            self.cut.pop_front();
        }
    }

    /// Changes of one transaction.
    fn tell(&mut self, changes: Vec<Change>, pos: &Position, events: &mut Vec<Event>) {
        let count = changes.len();
        self.groups += u64::from(count > 1);
        for (n, change) in changes.into_iter().enumerate() {
            let group = Group { id: self.groups, n: n as u32, last: n + 1 == count };
            let group = (count > 1).then_some(group);
            events.push(Event::Change(Change { pos: pos.clone(), group, ..change }));
        }
    }

    /// The last transaction is whole, and ends at `end`: its place.
    fn arrive(&mut self, end: u64) -> Position {
        let begin = self.stretch.as_ref().map_or_else(|| self.place.order(), |stretch| stretch.position.at);
        let next = self.next_gtid.split('@').next().unwrap_or_default();
        self.told_gtids.follows(begin, self.place.gtid(), next);
        self.place.at = end;
        self.place.gtid.clone_from(&self.next_gtid);
        match &mut self.stretch {
            Some(stretch) if stretch.until == self.place.gtid() => {
                let last = stretch.last.clone();
                self.stretch = None;
                last
            }
            Some(stretch) => {
                // At the old server each took far more than one.
                stretch.position.at = (stretch.position.at + 1).min(stretch.last.at.saturating_sub(1));
                stretch.position.clone()
            }
            None => self.position(),
        }
    }

    /// A transaction is whole.
    fn end(&mut self, end: u64, server_id: u32, events: &mut Vec<Event>) {
        let announces = self.open.as_ref().is_some_and(|open| open.announced.flatten().is_some());
        let begin = announces.then(|| self.position());
        let pos = self.arrive(end);
        let done = self.open.take().unwrap_or_default();
        if let (Some(_), Some((_, open))) = (done.told_to, self.cut.back_mut()) {
            *open = Some(pos.at);
        }
        match (done.announced, begin) {
            (Some(Some(announced)), Some(begin)) => self.expect(announced, server_id, begin),
            (Some(None), _) => {
                self.announced = None;
                let open = self.cut.iter_mut().filter(|(_, end)| end.is_none());
                open.for_each(|(_, end)| *end = Some(pos.at));
            }
            _ => {}
        }
        match done.marker {
            Some(marker) => events.push(Event::Marker { marker, pos: pos.clone() }),
            None => self.tell(done.changes, &pos, events),
        }
        let left_out = |(key, reason)| Event::LeftOut { key, reason, pos: pos.clone() };
        events.extend(done.left_out.into_iter().map(left_out));
        events.extend(done.tokens.into_iter().map(Event::Token));
        events.push(Event::Idle { pos });
    }

    fn query(
        &mut self,
        text: &str,
        schema: &str,
        (seconds, end, connection): (u32, u64, (u32, u32)),
        events: &mut Vec<Event>,
    ) -> Result<(), Stop> {
        let is_ours = self.announced == Some(connection);
        let server_id = connection.1;
        let mut words = Words(text);
        match words.next().as_str() {
            "BEGIN" => self.begin(),
            "COMMIT" => self.end(end, server_id, events),
            "SAVEPOINT" => {
                let open = self.open.get_or_insert_default();
                open.savepoints.push((words.raw(), open.changes.len()));
            }
            // With a table in it that cannot roll back, what was undone stands in the binlog, too.
            "ROLLBACK" => {
                let open = self.open.get_or_insert_default();
                let to = (words.next() == "TO").then(|| match words.raw() {
                    word if word.eq_ignore_ascii_case("SAVEPOINT") => words.raw(),
                    name => name,
                });
                if open.told_to.is_some() {
                    return Err(Stop::Lost(
                        "a large transaction was rolled back after a part of it was told".into(),
                    ));
                }
                let Some(name) = to else {
                    let undone = std::mem::take(open).changes;
                    self.uncount(&undone);
                    self.end(end, server_id, events);
                    return Ok(());
                };
                let kept = open
                    .savepoints
                    .iter()
                    .rev()
                    .find(|(known, _)| *known == name)
                    .map_or(0, |(_, kept)| *kept);
                let undone = open.changes.split_off(kept);
                self.uncount(&undone);
            }
            "RELEASE" => {}
            "XA" => return Err(Stop::Lost("an XA transaction, which is not carried".to_owned())),
            word @ ("INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" | "WITH") => {
                return Err(Stop::Lost(format!(
                    "{word} as a statement: binlog_format has to be ROW in every session"
                )));
            }
            _ => {
                // What MySQL writes of CREATE TABLE … SELECT, whose rows follow.
                let has_rows = self.open.as_ref().is_some_and(|open| open.begun)
                    || text.trim_end().ends_with("START TRANSACTION");
                let ddl = Ddl { schema: schema.to_owned(), sql: text.to_owned(), made: None };
                let definition = ddl.definition();
                let time = u64::from(seconds) * 1000;
                let change = definition.as_ref().and_then(|d| ddl.change(d, &self.tables, time));
                if let (Some(_), Some(definition)) = (&change, &definition) {
                    self.definitions += 1;
                    self.moved |= definition.moves;
                    // A chunk that is read just now may be of the table before it or behind it.
                    for window in self.windows.values_mut() {
                        let is_its = |(schema, name): &(String, String)| match &window.table {
                            Space::Table(full) => format!("{schema}.{name}").as_bytes() == full.as_ref(),
                            _ => false,
                        };
                        if definition.tables.iter().any(is_its) {
                            window.changed = None;
                        }
                    }
                }
                if let Some(change) = change.filter(|_| !is_ours) {
                    self.defined.push(ddl);
                    let open = self.open.get_or_insert_default();
                    match has_rows {
                        false => open.changes.push(change),
                        true => open.left_out.push((change.key, TABLE_WITH_ROWS.to_owned())),
                    }
                }
                if has_rows {
                    self.open.get_or_insert_default().begun = true;
                }
                if !self.open.as_ref().is_some_and(|open| open.begun) {
                    self.end(end, server_id, events);
                }
            }
        }
        Ok(())
    }

    fn describe(&self, map: &TableMapEvent<'_>) -> Result<Option<StreamTable>, Stop> {
        let garbled = |e: std::io::Error| Stop::Garbled(format!("a table's description: {e}"));
        let (schema, name) = (map.database_name(), map.table_name());
        let ours = match (schema.as_ref(), name.as_ref()) {
            (names::SCHEMA, names::APPLIED) => Some(Ours::Applied),
            (names::SCHEMA, names::WATERMARK) => Some(Ours::Watermark),
            _ if self.tables.carries(&schema, &name) => None,
            _ => return Ok(None),
        };
        let full = format!("{schema}.{name}");
        let meta = OptionalMetaExtractor::new(map.iter_optional_meta()).map_err(garbled)?;
        let (mut charsets, mut label_charsets) = (meta.iter_charset(), meta.iter_enum_and_set_charset());
        let (mut names, mut signs) = (meta.iter_column_name(), meta.iter_signedness());
        let (mut enums, mut sets) = (Vec::new(), Vec::new());
        // In the order of the key; a part of a column's text in it still is that column.
        let mut key = Vec::new();
        for field in map.iter_optional_meta() {
            match field.map_err(garbled)? {
                OptionalMetadataField::EnumStrValue(all) => {
                    for one in all.iter_values() {
                        let one = one.map_err(garbled)?;
                        enums.push(one.values().iter().map(|label| label.value_raw().to_vec()).collect());
                    }
                }
                OptionalMetadataField::SetStrValue(all) => {
                    for one in all.iter_values() {
                        let one = one.map_err(garbled)?;
                        sets.push(one.values().iter().map(|label| label.value_raw().to_vec()).collect());
                    }
                }
                OptionalMetadataField::SimplePrimaryKey(all) => {
                    for index in all.iter_indexes() {
                        key.push(index.map_err(garbled)? as usize);
                    }
                }
                OptionalMetadataField::PrimaryKeyWithPrefix(all) => {
                    for part in all.iter_keys() {
                        key.push(part.map_err(garbled)?.column_index() as usize);
                    }
                }
                _ => {}
            }
        }
        let (mut enums, mut sets) = (enums.into_iter(), sets.into_iter());
        let mut columns = Vec::new();
        for index in 0..map.columns_count() as usize {
            let kind = match map.get_column_type(index) {
                Ok(Some(kind)) => kind,
                _ => return Err(Stop::Lost(format!("column {} of {full} is of an unknown type", index + 1))),
            };
            let Some(name) = names.next() else {
                return Err(Stop::Lost(format!(
                    "the binlog does not name the columns of {full}: binlog_row_metadata has to be FULL"
                )));
            };
            let (collation, labels): (u16, Vec<Vec<u8>>) = match kind {
                ColumnType::MYSQL_TYPE_ENUM => {
                    (charset(label_charsets.next())?, enums.next().unwrap_or_default())
                }
                ColumnType::MYSQL_TYPE_SET => {
                    (charset(label_charsets.next())?, sets.next().unwrap_or_default())
                }
                kind if kind.is_character_type() => (charset(charsets.next())?, Vec::new()),
                _ => (0, Vec::new()),
            };
            let meta = map.get_column_metadata(index).unwrap_or_default();
            let unsigned = kind.is_numeric_type() && signs.next().unwrap_or_default();
            let kind = kind_of(kind, meta, unsigned, collation, labels, &self.charsets)
                .map_err(|reason| Stop::Lost(format!("{full}: {reason}")))?;
            columns.push((name.map_err(garbled)?.name().into_owned(), kind));
        }
        let is_json =
            |index: &usize| matches!(map.get_column_type(*index), Ok(Some(ColumnType::MYSQL_TYPE_JSON)));
        let json = (0..columns.len()).find(is_json).filter(|_| key.is_empty());
        let json = json.and_then(|index| columns.get(index)).map(|(name, _)| keyless_json(name));
        let mut order = content::order(columns.iter().map(|(name, _)| name.as_str()));
        order.retain(|index| columns.get(*index).is_some_and(|(name, _)| !is_hidden(name)));
        Ok(Some(StreamTable { space: Space::Table(full.into()), ours, columns, key, order, left_out: json }))
    }

    fn rows(&mut self, event: &RowsEventData<'_>, map: &TableMapEvent<'_>, seconds: u32) -> Result<(), Stop> {
        let Some(Some(table)) = self.by_id.get(&event.table_id()) else { return Ok(()) };
        let open = self.open.get_or_insert_default();
        for row in event.rows(map) {
            let (before, after) = row.map_err(|e| Stop::Garbled(format!("a row: {e}")))?;
            let before = before.map(|row| table.cells(row)).transpose()?;
            let after = after.map(|row| table.cells(row)).transpose()?;
            match table.ours {
                Some(Ours::Applied) => {
                    let said = table.applied(&self.name, before.as_deref(), after.as_deref())?;
                    open.marker = said.marker.or(open.marker.take());
                    open.announced = said.announced.or(open.announced);
                    continue;
                }
                Some(Ours::Watermark) => {
                    open.tokens.extend(table.token(&self.name, after.as_deref()));
                    continue;
                }
                None => {}
            }
            let time = u64::from(seconds) * 1000;
            let change = |op, key: Key, value| Change::captured(op, key, value, Position::default(), time);
            if let Some(reason) = &table.left_out {
                if self.told.insert(table.space.clone()) {
                    open.left_out.push(left_out(table.space.clone(), reason));
                }
                continue;
            }
            if table.key.is_empty() {
                let [old, new] = [before, after].map(|row| row.map(|row| table.content(&row)));
                if old == new {
                    continue;
                }
                let gone = old.map(|key| (key, -1, content::REMOVED));
                let came = new.map(|key| (key, 1, content::ADDED));
                for (key, by, value) in gone.into_iter().chain(came) {
                    count(&mut self.windows, &key, by);
                    if open.marker.is_none() {
                        open.changes.push(change(Op::Command, key, Some(Bytes::from_static(value))));
                    }
                }
                continue;
            }
            let [old, new] = [&before, &after].map(|row| row.as_ref().map(|row| table.key(row)));
            let value = after.as_ref().map(|row| table.json(row));
            for window in self.windows.values_mut().filter(|window| window.table == table.space) {
                let Some(Changed { rows, .. }) = &mut window.changed else { continue };
                rows.extend(old.iter().map(|key| (key.clone(), None)));
                rows.extend(new.iter().map(|key| (key.clone(), value.clone())));
                if rows.len() > WINDOW_ROWS_MAX {
                    window.changed = None;
                }
            }
            if open.marker.is_some() {
                continue;
            }
            let mut before = before.map(|row| table.json(&row));
            // What got another key is another row.
            if let Some(old) = old.filter(|old| new.as_ref() != Some(old)) {
                open.changes.push(Change { before: before.take(), ..change(Op::Delete, old, None) });
            }
            if let Some(new) = new {
                open.changes.push(Change { before, ..change(Op::Put, new, value) });
            }
        }
        Ok(())
    }
}

/// Notes that so many rows of a content came, less those that went.
fn count(windows: &mut HashMap<Token, Window>, key: &Key, by: i64) {
    for window in windows.values_mut().filter(|window| window.table == key.space) {
        let Some(Changed { counts, .. }) = &mut window.changed else { continue };
        match counts.get_mut(key) {
            Some(count) => *count += by,
            None => drop(counts.insert(key.clone(), by)),
        }
        if counts.len() > WINDOW_ROWS_MAX {
            window.changed = None;
        }
    }
}

/// MariaDB's own, of a unique index over long text.
fn is_hidden(column: &str) -> bool {
    column.starts_with("DB_ROW_HASH_")
}

fn charset(next: Option<std::io::Result<u16>>) -> Result<u16, Stop> {
    match next {
        Some(collation) => collation.map_err(|e| Stop::Garbled(format!("a column's charset: {e}"))),
        None => Err(Stop::Lost(
            "the binlog does not tell charsets: binlog_row_metadata has to be FULL".to_owned(),
        )),
    }
}

impl StreamTable {
    fn name(&self) -> String {
        match &self.space {
            Space::Table(name) => String::from_utf8_lossy(name).into_owned(),
            _ => String::new(),
        }
    }

    fn cells(&self, mut row: BinlogRow) -> Result<Vec<Cell>, Stop> {
        if row.len() != self.columns.len() {
            return Err(Stop::Lost(format!(
                "{} of {} columns of a row of {} are in the binlog: binlog_row_image has to be FULL in every session",
                row.len(),
                self.columns.len(),
                self.name()
            )));
        }
        let mut cells = Vec::with_capacity(self.columns.len());
        for (index, (name, kind)) in self.columns.iter().enumerate() {
            let value = row.take(index).ok_or_else(|| Stop::Garbled("a value is missing".to_owned()))?;
            let cell = from_binlog(value.into_owned(), kind);
            cells.push(
                cell.map_err(|reason| Stop::Lost(format!("{}, column {name}: {reason}", self.name())))?,
            );
        }
        Ok(cells)
    }

    fn key(&self, cells: &[Cell]) -> Key {
        let key: Vec<&Cell> = self.key.iter().filter_map(|&index| cells.get(index)).collect();
        Key { space: self.space.clone(), name: key_name(&key).into() }
    }

    fn json(&self, cells: &[Cell]) -> Bytes {
        let mut out = Vec::with_capacity(64 * cells.len());
        let columns = self.columns.iter().map(|(name, _)| name.as_str()).zip(cells);
        write_json(&mut out, columns.filter(|(name, _)| !is_hidden(name)));
        out.into()
    }

    /// The key of a row of a table without a primary key.
    fn content(&self, cells: &[Cell]) -> Key {
        // A SELECT shows it so.
        let no_label = Cell::Text(String::new());
        let column = |index: &usize| {
            let ((name, kind), cell) = (self.columns.get(*index)?, cells.get(*index)?);
            let is_no_label = matches!((kind, cell), (Kind::Enum(_), Cell::UInt(0)));
            Some((name.as_str(), if is_no_label { &no_label } else { cell }))
        };
        let name = content::name(self.order.iter().filter_map(column));
        Key { space: self.space.clone(), name: name.into() }
    }

    fn column<'c>(&self, cells: &'c [Cell], wanted: &str) -> Option<&'c Cell> {
        cells.get(self.columns.iter().position(|(name, _)| name == wanted)?)
    }

    fn text<'c>(&self, cells: &'c [Cell], wanted: &str) -> Option<&'c str> {
        match self.column(cells, wanted)? {
            Cell::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What a row of `causeway_applied` says was written here, if it is of the channel `name`.
    fn applied(&self, name: &str, before: Option<&[Cell]>, after: Option<&[Cell]>) -> Result<Said, Stop> {
        let Some(after) = after.filter(|after| self.text(after, "name") == Some(name)) else {
            return Ok(Said::default());
        };
        let mut said = Said::default();
        let ddl = |row: &[Cell]| self.text(row, "ddl").map(str::to_owned);
        if before.and_then(ddl) != ddl(after) {
            let announced = ddl(after).map(|text| Announced::parse(&text).ok_or(text)).transpose();
            said.announced =
                Some(announced.map_err(|text| Stop::Garbled(format!("`{text}` announces nothing")))?);
        }
        // A take-over leaves it as it is, and so does what is announced.
        let batch = |row: &[Cell]| self.column(row, "batch").cloned();
        if before.map_or(Some(Cell::UInt(0)), batch) != batch(after) {
            let marker = self.text(after, "marker").unwrap_or_default().parse();
            said.marker = Some(marker.map_err(|text| Stop::Garbled(format!("`{text}` is no marker")))?);
        }
        Ok(said)
    }

    fn token(&self, name: &str, after: Option<&[Cell]>) -> Option<Token> {
        let after = after.filter(|after| self.text(after, "name") == Some(name))?;
        Token::parse(self.text(after, "token")?.as_bytes())
    }
}
