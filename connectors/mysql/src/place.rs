//! A position in a server's binlog, and in the binlogs of those that take over from it.
//!
//! [`Position::at`] is the order of all places: the file's number above the place in it. Each server numbers its files in its
//! own way, so that behind a failover a number is added to those of the new one, which lifts them above all that was. It is
//! not written down: it is what `at` has more than the file's name says. [`Position::history`] stays that of the first
//! server: the order goes on.

use bytes::Bytes;
use causeway_core::Position;

use crate::gtid::Executed;
use crate::snapshot::Progress;

/// Bits of [`Position::at`] that are the place in a file; the file's number stands above.
const PLACE_BITS: u32 = 40;

/// A place in the binlog of a server. In a position's context it is `FILE`, then `~SERVER` where that is another one than the
/// history is named after, then `:` and the GTID, of MySQL with `@` and where the GTID stands if that is in the same file;
/// `+` where more of a transaction was told than up to that; and `!` and which transactions the server had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// What the order is named after.
    pub(crate) history: Bytes,
    /// Whose binlog it is.
    pub(crate) server: Bytes,
    /// Empty: only its GTID says where it is.
    pub(crate) file: String,
    /// In the file.
    pub(crate) at: u64,
    /// What the files' numbers are lifted by.
    pub(crate) lift: i64,
    /// Of the last whole transaction, where it has one.
    pub(crate) gtid: String,
    /// A part of the transaction behind it was told.
    pub(crate) is_within: bool,
}

/// A file's number.
pub(crate) fn number(file: &str) -> Option<i64> {
    let number: i64 = file.rsplit_once('.')?.1.parse().ok()?;
    (number < 1 << (64 - PLACE_BITS)).then_some(number)
}

/// The number of a place's file, lifted.
pub(crate) fn lifted(at: u64) -> i64 {
    (at >> PLACE_BITS) as i64
}

impl Place {
    /// Reads a position; `None`: it is of another kind of store.
    pub(crate) fn of(position: &Position) -> Option<Place> {
        let context = std::str::from_utf8(&position.context).ok()?;
        let context = context.split(';').next().unwrap_or_default();
        let context = context.split('!').next().unwrap_or_default();
        let (file, gtid) = context.split_once(':').unwrap_or((context, ""));
        let (file, server) = file.split_once('~').unwrap_or((file, ""));
        let server = if server.is_empty() {
            position.history.clone()
        } else {
            Bytes::copy_from_slice(server.as_bytes())
        };
        let (gtid, is_within) = gtid.strip_suffix('+').map_or((gtid, false), |gtid| (gtid, true));
        let history = position.history.clone();
        let gtid = gtid.to_owned();
        if file.is_empty() {
            return (!gtid.is_empty()).then(|| Place { history, gtid, is_within, ..Place::default() });
        }
        let lift = lifted(position.at) - number(file)?;
        let at = position.at & ((1 << PLACE_BITS) - 1);
        Some(Place { history, server, file: file.to_owned(), at, lift, gtid, is_within })
    }

    /// `None`: the file's name has no number, or there are too many.
    pub(crate) fn position(&self) -> Option<Position> {
        self.position_at(self.at, false)
    }

    /// The same, within the transaction that follows: up to `at`.
    pub(crate) fn within(&self, at: u64) -> Option<Position> {
        self.position_at(at, true)
    }

    fn order_at(&self, at: u64) -> Option<u64> {
        let number = number(&self.file)? + self.lift;
        let is_placed = (0..1 << (64 - PLACE_BITS)).contains(&number) && at < 1 << PLACE_BITS;
        is_placed.then_some((number as u64) << PLACE_BITS | at)
    }

    fn position_at(&self, at: u64, is_within: bool) -> Option<Position> {
        let order = self.order_at(at)?;
        let mut context = self.file.clone();
        if self.server != self.history {
            context.push('~');
            context.push_str(&String::from_utf8_lossy(&self.server));
        }
        if !self.gtid.is_empty() || is_within {
            context.push(':');
            context.push_str(&self.gtid);
        }
        if is_within {
            context.push('+');
        }
        Some(Position { history: self.history.clone(), at: order, context: context.into() })
    }

    /// [`Position::at`] of it.
    pub(crate) fn order(&self) -> u64 {
        self.order_at(self.at).unwrap_or(0)
    }

    /// The GTID, without where it stands.
    pub(crate) fn gtid(&self) -> &str {
        self.gtid.split('@').next().unwrap_or_default()
    }

    /// Where the GTID's own event stands in the file.
    pub(crate) fn gtid_starts(&self) -> Option<u64> {
        self.gtid.split_once('@')?.1.parse().ok()
    }
}

/// Whose binlog a position is of; empty: only its GTID says where it is.
pub(crate) fn server_of(position: &Position) -> Bytes {
    let context = &position.context;
    let file = context.split(|byte| matches!(byte, b':' | b';' | b'!')).next().unwrap_or_default().len();
    match context.iter().take(file).position(|byte| *byte == b'~') {
        _ if file == 0 => Bytes::new(),
        Some(at) => context.slice(at + 1..file),
        None => position.history.clone(),
    }
}

/// A place that only the order and a GTID know, on whatever server: what comes again is read from that GTID on.
pub(crate) fn by_gtid(history: &Bytes, at: u64, gtid: &str, executed: &Executed) -> Position {
    Position { history: history.clone(), at, context: format!(":{gtid}!{executed}").into() }
}

/// Which transactions the server had at a position, where that is told.
pub(crate) fn executed_of(position: &Position) -> Option<Executed> {
    let context = std::str::from_utf8(&position.context).ok()?;
    Executed::parse(context.split(';').next()?.split_once('!')?.1)
}

/// The same place, with which transactions the server had.
pub(crate) fn with_executed(position: Position, executed: &Executed) -> Position {
    let context = String::from_utf8_lossy(&position.context);
    let (place, progress) = context.split_once(';').unwrap_or((&context, ""));
    let place = place.split('!').next().unwrap_or_default();
    let separator = if progress.is_empty() { "" } else { ";" };
    Position { context: format!("{place}!{executed}{separator}{progress}").into(), ..position }
}

/// How far a snapshot was at a position, if one was read: behind a `;`.
pub(crate) fn progress_of(position: &Position) -> Option<Progress> {
    Progress::parse(std::str::from_utf8(&position.context).ok()?.split_once(';')?.1)
}

/// The same place, with how far a snapshot is there, whatever it told before.
pub(crate) fn with_progress(position: Position, progress: Option<&Progress>) -> Position {
    let context = String::from_utf8_lossy(&position.context);
    let place = context.split(';').next().unwrap_or_default();
    let context =
        progress.map_or_else(|| place.to_owned(), |progress| format!("{place};{}", progress.text()));
    Position { context: context.into(), ..position }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: &str, at: u64, gtid: &str) -> Place {
        let uuid = Bytes::from_static(b"uuid");
        let (history, server, gtid) = (uuid.clone(), uuid, gtid.to_owned());
        Place { history, server, file: file.into(), at, gtid, ..Place::default() }
    }

    #[test]
    fn a_position_reads_back() {
        let found = place("binlog.000012", 4711, "1-2-3");
        let position = found.position().unwrap();
        assert_eq!(position.context, "binlog.000012:1-2-3");
        assert_eq!(Place::of(&position), Some(found));
        let later = place("binlog.000013", 4, "");
        let after = later.position().unwrap();
        assert!(after.at > position.at && after.context == "binlog.000013");
        assert_eq!(Place::of(&after), Some(later));
        let within = place("binlog.000013", 4, "uuid:5@7").within(99).unwrap();
        assert_eq!(within.context, "binlog.000013:uuid:5@7+");
        let read = Place::of(&within).unwrap();
        assert!(read.is_within && read.at == 99 && read.gtid() == "uuid:5" && read.gtid_starts() == Some(7));
        assert_eq!(Place::of(&Position { context: Bytes::from_static(b"0"), ..position }), None);
        assert_eq!(place("binlog", 4, "").position(), None);
        // A snapshot's progress, also where the place told an earlier one, and what the server had.
        let progress = |key: &str| Progress { table: "shop.t".into(), key: Some(key.into()) };
        let executed = Executed::of_last("1-2-3").unwrap();
        let told = with_progress(with_progress(after.clone(), Some(&progress("1"))), Some(&progress("2")));
        let told = with_executed(with_executed(told, &Executed::default()), &executed);
        assert_eq!(progress_of(&told), Some(progress("2")));
        assert_eq!(executed_of(&told), Some(executed));
        assert_eq!(Place::of(&told), Place::of(&after));
        assert_eq!(Place::of(&with_progress(told, None)), Place::of(&after));
    }

    /// To another server and back: the order goes on, whatever the files' numbers are, and each place is its server's.
    #[test]
    fn the_order_goes_on_back_and_forth() {
        let (first, other) = (Bytes::from_static(b"first"), Bytes::from_static(b"other"));
        let mut last = 0;
        for (server, file, at) in [
            (&first, "binlog.000900", 1_000_000_u64),
            (&other, "mysql-bin.000002", 4),
            (&first, "binlog.000901", 4),
            (&other, "mysql-bin.000002", 999),
        ] {
            let lift = if last == 0 { 0 } else { lifted(last) + 1 - number(file).unwrap() };
            let (history, server) = (first.clone(), server.clone());
            let place = Place { history, server, lift, ..place(file, at, "0-1-7") };
            let position = place.position().unwrap();
            assert!(position.at > last && position.history == first, "{position}");
            assert_eq!(server_of(&position), place.server);
            assert_eq!(Place::of(&position.to_string().parse().unwrap()), Some(place));
            last = position.at;
        }
        let read = by_gtid(&first, 17, "0-1-7", &Executed::of_last("0-1-7").unwrap());
        assert_eq!(read.context, ":0-1-7!0-1:1-7");
        assert_eq!(server_of(&read), "");
        let place = Place::of(&read).unwrap();
        assert!(place.file.is_empty() && place.server.is_empty() && place.gtid() == "0-1-7");
    }
}
