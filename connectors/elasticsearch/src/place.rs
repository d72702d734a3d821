//! How far each shard was read, and so what a position is.
//!
//! A shard numbers its operations (`_seq_no`), and a document has the number of the last one on it. What every copy of
//! the shard has, up to the global checkpoint, is never numbered anew by a failover, so that a place needs no primary
//! term: the shard's history id says whether its numbers are still those. Shards have no common order. So a position's
//! `at` counts what came out, and its `context` holds the place in each shard.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use causeway_core::Position;

/// A shard, by the beginning of its index's id, its number, and the beginning of its history's id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ShardId {
    pub(crate) index: String,
    pub(crate) number: u32,
    pub(crate) history: String,
}

/// Characters of an id: of those of one cluster no two begin alike.
const ID_LEN: usize = 9;

impl ShardId {
    pub(crate) fn new(index_uuid: &str, number: u32, history_uuid: &str) -> ShardId {
        let short = |id: &str| id.chars().filter(char::is_ascii).take(ID_LEN).collect();
        ShardId { index: short(index_uuid), number, history: short(history_uuid) }
    }
}

/// A shard's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Every number up to it came out of the stream; −1: none did.
    pub(crate) stream: i64,
    /// Of a snapshot that is under way: up to where it was read, and up to where it goes.
    pub(crate) snapshot: Option<(i64, i64)>,
}

impl Place {
    /// From the shard's beginning.
    pub(crate) const START: Place = Place { stream: -1, snapshot: None };

    /// Whether some of the snapshot is still to be read.
    pub(crate) fn reads(&self) -> bool {
        self.snapshot.is_some_and(|(at, end)| at < end)
    }
}

/// How far everything was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// Of our own index.
    pub(crate) own: i64,
    /// When the snapshot began, milliseconds since 1970; 0: none is under way.
    pub(crate) snapshot_ms: u64,
    /// Tells apart what the definitions of the indices are that were told last.
    pub(crate) definitions: u64,
    pub(crate) shards: BTreeMap<ShardId, Place>,
}

impl Places {
    /// `own;snapshot_ms;definitions;index.shard.history=stream[:at:end],…`: printable, without spaces.
    pub(crate) fn context(&self) -> Bytes {
        let mut text = format!("{};{};{:x};", self.own, self.snapshot_ms, self.definitions);
        for (n, (shard, place)) in self.shards.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            // Writing to a text never fails.
            let _ =
                write!(text, "{comma}{}.{}.{}={}", shard.index, shard.number, shard.history, place.stream);
            if let Some((at, end)) = place.snapshot {
                let _ = write!(text, ":{at}:{end}");
            }
        }
        text.into()
    }

    /// Reads what [`context`](Places::context) wrote.
    pub(crate) fn parse(position: &Position) -> Option<Places> {
        let text = std::str::from_utf8(&position.context).ok()?;
        let mut parts = text.splitn(4, ';');
        let own = parts.next()?.parse().ok()?;
        let snapshot_ms = parts.next()?.parse().ok()?;
        let definitions = u64::from_str_radix(parts.next()?, 16).ok()?;
        let mut shards = BTreeMap::new();
        for item in parts.next()?.split(',').filter(|item| !item.is_empty()) {
            let (shard, place) = item.split_once('=')?;
            let mut shard = shard.splitn(3, '.');
            let (index, number) = (shard.next()?.to_owned(), shard.next()?.parse().ok()?);
            let id = ShardId { index, number, history: shard.next()?.to_owned() };
            let mut numbers = place.split(':').map(str::parse::<i64>);
            let stream = numbers.next()?.ok()?;
            let snapshot = match (numbers.next(), numbers.next()) {
                (Some(at), Some(end)) => Some((at.ok()?, end.ok()?)),
                _ => None,
            };
            shards.insert(id, Place { stream, snapshot });
        }
        Some(Places { own, snapshot_ms, definitions, shards })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_back_from_a_position_s_text() {
        let mut places = Places { own: 7, snapshot_ms: 1_790_000_000_000, ..Places::default() };
        let id = |n| ShardId::new("ZH8cq_GHTvOiHq09NuB-kQ", n, "qup8AVFNQB-1FGpXIpP-2w");
        places.shards.insert(id(0), Place { stream: 41, snapshot: Some((-1, 41)) });
        places.shards.insert(id(1), Place::START);
        let position = Position { history: "x".into(), at: 3, context: places.context() };
        let read: Position = position.to_string().parse().unwrap();
        assert_eq!(Places::parse(&read), Some(places));
        assert_eq!(Places::parse(&Position::default()), None);
        assert_eq!(Places::parse(&Position { context: "1;2;3;x".into(), ..position }), None);
    }
}
