//! Streams: entries in order, the last id and the counters, and the groups with what is pending and whose.
//! Left out, as no content: idle times and the times a consumer was seen (they change by reading); a
//! consumer with nothing pending (reading makes one, and since Redis 7.2 a server's own replica isn't told);
//! a group's entries-read (a guess that only serves `lag`; Redis's own replication did not keep it the same
//! before 7.2).

use bytes::Bytes;
use redis::{Pipeline, Value, cmd};

use super::link::Lane;
use super::read::{ELEMENTS_PAGE, RedisReader};
use super::reply;
use crate::digest::{Ordered, Tag, Unordered, never_equal};
use crate::error::Result;

const ACTION: &str = "read a stream";

/// Entries and pending entries asked for at once after the first page.
const PAGE: usize = 256;

/// An entry's id: milliseconds, sequence.
type Id = (u64, u64);

/// A stream while it is put together.
pub(super) struct StreamDraft {
    entries: Ordered,
    /// From where to read on, if the first page was full.
    next: Option<Id>,
    /// Last id and counters, in canonical form.
    head: Vec<u8>,
    groups: Vec<Group>,
}

struct Group {
    name: Vec<u8>,
    last_delivered: Vec<u8>,
    pending: Ordered,
    next: Option<Id>,
}

fn id(text: &[u8]) -> Option<Id> {
    let (ms, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}

/// The smallest id above `(ms, seq)`; `None` above the largest.
fn after((ms, seq): Id) -> Option<Id> {
    match seq.checked_add(1) {
        Some(seq) => Some((ms, seq)),
        None => ms.checked_add(1).map(|ms| (ms, 0)),
    }
}

fn text((ms, seq): Id) -> String {
    format!("{ms}-{seq}")
}

/// Adds a page of entries; returns the last one's id.
fn add_entries(all: &mut Ordered, entries: Vec<Value>) -> Option<Id> {
    let mut last = None;
    for entry in entries {
        let Some([at, fields]) = reply::list(entry).and_then(|e| <[Value; 2]>::try_from(e).ok()) else {
            continue;
        };
        let at = reply::bytes(&at).unwrap_or_default();
        last = id(at).or(last);
        let fields = reply::list(fields).unwrap_or_default();
        all.add(at);
        all.add(&(fields.len() as u64).to_le_bytes());
        fields.iter().filter_map(reply::bytes).for_each(|part| all.add(part));
    }
    last
}

/// Adds a page of a group's pending entries: id, owner, how often delivered. Returns the last one's id.
fn add_pending(all: &mut Ordered, entries: Vec<Value>) -> Option<Id> {
    let mut last = None;
    for entry in entries {
        let entry = reply::list(entry).unwrap_or_default();
        let [at, owner, _idle, deliveries] = entry.as_slice() else { continue };
        let at = reply::bytes(at).unwrap_or_default();
        last = id(at).or(last);
        all.add(at);
        all.add(reply::bytes(owner).unwrap_or_default());
        all.add(&reply::number(deliveries).unwrap_or(-1).to_le_bytes());
    }
    last
}

impl StreamDraft {
    /// From the replies to XRANGE, XINFO STREAM and XINFO GROUPS; `None` if one of them found no stream.
    pub(super) fn new(
        entries: Option<Value>,
        info: Option<Value>,
        groups: Option<Value>,
        counters: bool,
    ) -> Option<StreamDraft> {
        let (entries, info) = (reply::list(entries?)?, reply::list(info?)?);
        let mut all = Ordered::new();
        let full = entries.len() >= ELEMENTS_PAGE;
        let last = add_entries(&mut all, entries);
        let mut head = Vec::new();
        let names: &[&str] = if counters {
            &["last-generated-id", "entries-added", "max-deleted-entry-id"]
        } else {
            &["last-generated-id"]
        };
        for name in names {
            let value = reply::named(&info, name);
            head.extend_from_slice(value.and_then(reply::bytes).unwrap_or_default());
            head.push(b' ');
            head.extend_from_slice(&value.and_then(reply::number).unwrap_or(-1).to_le_bytes());
        }
        let groups = reply::list(groups?)?.into_iter().filter_map(reply::list).map(|group| {
            let text = |name| reply::named(&group, name).and_then(reply::bytes).unwrap_or_default().to_vec();
            Group {
                name: text("name"),
                last_delivered: text("last-delivered-id"),
                pending: Ordered::new(),
                next: None,
            }
        });
        let next = if full { last.and_then(after) } else { None };
        Some(StreamDraft { entries: all, next, head, groups: groups.collect() })
    }
}

impl RedisReader {
    /// Reads the first pending entries of all groups of `streams`, in one round.
    pub(super) async fn read_groups(
        &self,
        db: u32,
        streams: &mut [(&Bytes, &mut StreamDraft)],
    ) -> Result<()> {
        let mut commands = Pipeline::new();
        for (name, draft) in streams.iter() {
            for group in &draft.groups {
                let (name, group) = (name.as_ref(), group.name.as_slice());
                let pending = cmd("XPENDING").arg(name).arg(group).arg("-").arg("+").arg(PAGE).take();
                commands.add_command(pending);
            }
        }
        let mut replies = self.link.send(db, Lane::Values, commands, ACTION).await?.into_iter();
        for group in streams.iter_mut().flat_map(|(_, draft)| &mut draft.groups) {
            let pending = self.link.accept(replies.next().unwrap_or(Value::Nil), ACTION)?;
            let Some(pending) = pending.and_then(reply::list) else {
                // The group was there a moment ago: nothing read of it now may pass for the whole.
                group.pending.add(&never_equal().to_le_bytes());
                continue;
            };
            let full = pending.len() >= PAGE;
            let last = add_pending(&mut group.pending, pending);
            group.next = if full { last.and_then(after) } else { None };
        }
        Ok(())
    }

    /// Reads on where a first page was full, and digests all of it.
    pub(super) async fn rest_of_stream(
        &self,
        db: u32,
        name: &[u8],
        mut draft: StreamDraft,
    ) -> Result<Option<u128>> {
        while let Some(from) = draft.next.take() {
            let page = cmd("XRANGE").arg(name).arg(text(from)).arg("+").arg("COUNT").arg(PAGE).take();
            let Some(page) = self.link.list(db, Lane::Values, page, ACTION).await? else { return Ok(None) };
            let full = page.len() >= PAGE;
            let last = add_entries(&mut draft.entries, page);
            draft.next = if full { last.and_then(after) } else { None };
        }
        let mut groups = Unordered::default();
        for mut group in draft.groups {
            while let Some(from) = group.next.take() {
                let page =
                    cmd("XPENDING").arg(name).arg(&group.name).arg(text(from)).arg("+").arg(PAGE).take();
                let page = self.link.list(db, Lane::Values, page, ACTION).await?;
                let Some(page) = page else { return Ok(None) };
                let full = page.len() >= PAGE;
                let last = add_pending(&mut group.pending, page);
                group.next = if full { last.and_then(after) } else { None };
            }
            let mut form = Ordered::new();
            form.add(&group.name);
            form.add(&group.last_delivered);
            form.add(&group.pending.digest(Tag::Stream, &Unordered::default()).to_le_bytes());
            groups.add(&form.digest(Tag::Stream, &Unordered::default()).to_le_bytes());
        }
        draft.entries.add(&draft.head);
        Ok(Some(draft.entries.digest(Tag::Stream, &groups)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_id_carries_and_ends() {
        assert_eq!(id(b"5-7").and_then(after), Some((5, 8)));
        assert_eq!(after((5, u64::MAX)), Some((6, 0)));
        assert_eq!(after((u64::MAX, u64::MAX)), None);
        assert_eq!(id(b"5"), None);
    }
}
