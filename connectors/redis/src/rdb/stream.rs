//! Streams as commands: entries by `XADD`, the counters by `XSETID`, groups by `XGROUP`, pending entries
//! by `XCLAIM … FORCE JUSTID`.
//!
//! What no command can make: a consumer's seen and active times, and a pending entry whose stream entry
//! was deleted, since `XCLAIM` makes none for an id that doesn't exist. For the latter, where the whole
//! value is at hand ([`rewrite`](super::rewrite)), the missing entries are added as placeholders in
//! their places, claimed, and taken out again. When a large value is cut, its groups come after its
//! entries and it is too late for that: such pending entries are left out, as Redis's own AOF rewrite does.
//!
//! Sources: `rewriteStreamObject` (`aof.c`) and `t_stream.c` of Redis 7.0.

use super::packed::{Packed, Packing};
use super::read::{Atom, Parse, Stop, StreamId, push_uint};
use super::walk::StreamMeta;
use super::write::{Writer, bulk};

const DELETED: i64 = 1;
const SAME_FIELDS: i64 = 2;

/// Ids of one `XCLAIM`.
const CLAIM_IDS_MAX: usize = 1000;

/// A pending entry, until its consumer comes.
#[derive(Clone, Copy, Debug)]
struct Pending {
    id: StreamId,
    delivered_ms: u64,
    deliveries: u64,
}

/// What must be remembered while a stream is written.
#[derive(Default)]
pub(super) struct Groups {
    group: Vec<u8>,
    consumer: Vec<u8>,
    /// The group's pending entries, in order of id: 32 bytes each.
    pending: Vec<Pending>,
    /// Ids of the open `XCLAIM`, and their common time and count.
    claim: Vec<StreamId>,
    claimed: (u64, u64),
    /// Ids that pending entries name but the stream no longer has; in order, largest first.
    pub(super) placeholders: Vec<StreamId>,
    /// Those written.
    placed: Vec<StreamId>,
    /// The smallest id that stays.
    first: Option<StreamId>,
    meta: Option<StreamMeta>,
}

impl Groups {
    pub(super) fn bytes(&self) -> usize {
        self.pending.len() * size_of::<Pending>()
            + (self.claim.len() + self.placeholders.len() + self.placed.len()) * size_of::<StreamId>()
            + self.group.len()
            + self.consumer.len()
    }

    pub(super) fn pending(&mut self, id: StreamId, delivered_ms: u64, deliveries: u64) -> Parse<()> {
        if self.pending.last().is_some_and(|before| before.id >= id) {
            return Err(Stop::bad("a group's pending entries are not in order"));
        }
        self.pending.push(Pending { id, delivered_ms, deliveries });
        Ok(())
    }
}

/// Appends an id's text.
fn push_id(id: StreamId, out: &mut Vec<u8>) {
    push_uint(id.ms, out);
    out.push(b'-');
    push_uint(id.seq, out);
}

fn id_text(id: StreamId) -> Vec<u8> {
    let mut text = Vec::with_capacity(20);
    push_id(id, &mut text);
    text
}

fn uint_text(number: u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(20);
    push_uint(number, &mut text);
    text
}

/// Calls `entry(id, fields and values as bulk strings, how many)` for each entry of a node that is not
/// deleted. `base`: the id that those in the node count from.
pub(super) fn each_entry(
    base: StreamId,
    pack: &[u8],
    mut entry: impl FnMut(StreamId, &[u8], usize) -> Parse<()>,
) -> Parse<()> {
    let mut packed = Packed::new(Packing::Listpack, pack)?;
    let count =
        |number: i64| usize::try_from(number).map_err(|_| Stop::bad("a stream's node has a negative count"));
    let (live, deleted) = (count(packed.number()?)?, count(packed.number()?)?);
    let mut names = Vec::new();
    for _ in 0..count(packed.number()?)? {
        names.push(packed.required()?);
    }
    packed.required()?; // the master entry's end
    let mut body = Vec::new();
    // Each round takes elements of the node, so the counts, if they lie, end in an error.
    for _ in 0..live.saturating_add(deleted) {
        let flags = packed.number()?;
        // Differences may be negative as stored; the sum wraps, as in C.
        let ms = base.ms.wrapping_add_signed(packed.number()?);
        let seq = base.seq.wrapping_add_signed(packed.number()?);
        let live = flags & DELETED == 0;
        body.clear();
        let fields = if flags & SAME_FIELDS != 0 {
            for &name in &names {
                let value = packed.required()?;
                if live {
                    bulk(name, &mut body);
                    bulk(value, &mut body);
                }
            }
            names.len()
        } else {
            let fields = count(packed.number()?)?;
            for _ in 0..fields {
                let (name, value) = (packed.required()?, packed.required()?);
                if live {
                    bulk(name, &mut body);
                    bulk(value, &mut body);
                }
            }
            fields
        };
        packed.required()?; // the entry's element count, for reading backwards
        if live {
            entry(StreamId { ms, seq }, &body, fields * 2)?;
        }
    }
    Ok(())
}

impl Writer {
    pub(super) fn entries(&mut self, base: StreamId, pack: &[u8]) -> Parse<()> {
        let ready_before = self.ready_bytes();
        each_entry(base, pack, |id, body, args| {
            self.place(Some(id))?;
            self.groups.first.get_or_insert(id);
            let mut text = Vec::with_capacity(body.len() + 40);
            bulk(Atom::Text(&id_text(id)), &mut text);
            text.extend_from_slice(body);
            self.command_of_body("XADD", args + 1, &text)?;
            self.check_growth(ready_before)
        })
    }

    /// Adds the placeholders below `end`.
    fn place(&mut self, end: Option<StreamId>) -> Parse<()> {
        while let Some(&id) = self.groups.placeholders.last()
            && end.is_none_or(|end| id < end)
        {
            self.groups.placeholders.pop();
            self.command("XADD", &[Atom::Text(&id_text(id)), Atom::Text(b"x"), Atom::Text(b"y")])?;
            self.groups.placed.push(id);
        }
        Ok(())
    }

    pub(super) fn stream_meta(&mut self, meta: StreamMeta) -> Parse<()> {
        self.place(None)?;
        self.groups.meta = Some(meta);
        if self.groups.first.is_none() && self.groups.placed.is_empty() {
            // An empty stream: an entry that is trimmed at once.
            let words = ["MAXLEN", "0", "0-1", "x", "y"].map(|word| Atom::Text(word.as_bytes()));
            self.command("XADD", &words)?;
        }
        self.set_id(meta)
    }

    fn set_id(&mut self, meta: StreamMeta) -> Parse<()> {
        let last = id_text(meta.last);
        // While placeholders stand, there may be more entries than were ever counted.
        let standing = meta.length.saturating_add(self.groups.placed.len() as u64);
        let (added, deleted) = (uint_text(meta.added.max(standing)), id_text(meta.deleted));
        self.command(
            "XSETID",
            &[
                Atom::Text(&last),
                Atom::Text(b"ENTRIESADDED"),
                Atom::Text(&added),
                Atom::Text(b"MAXDELETEDID"),
                Atom::Text(&deleted),
            ],
        )
    }

    pub(super) fn group(&mut self, name: &[u8], last: StreamId, read: Option<u64>) -> Parse<()> {
        self.end_claim()?;
        self.groups.pending.clear();
        self.groups.group = name.to_vec();
        let (last, read) = (id_text(last), read.map(uint_text));
        let mut args = vec![Atom::Text(name), Atom::Text(&last)];
        if let Some(read) = &read {
            args.extend([Atom::Text(b"ENTRIESREAD"), Atom::Text(read)]);
        }
        self.command("XGROUP CREATE", &args)
    }

    pub(super) fn consumer(&mut self, name: &[u8]) -> Parse<()> {
        self.end_claim()?;
        self.groups.consumer = name.to_vec();
        let group = std::mem::take(&mut self.groups.group);
        let result = self.command("XGROUP CREATECONSUMER", &[Atom::Text(&group), Atom::Text(name)]);
        self.groups.group = group;
        result
    }

    pub(super) fn owned(&mut self, id: StreamId) -> Parse<()> {
        let pending = &self.groups.pending;
        let found =
            pending.binary_search_by(|pending| pending.id.cmp(&id)).ok().and_then(|at| pending.get(at));
        let Some(&Pending { delivered_ms, deliveries, .. }) = found else {
            return Err(Stop::bad("a consumer's pending entry is not its group's"));
        };
        if self.groups.claimed != (delivered_ms, deliveries) || self.groups.claim.len() >= CLAIM_IDS_MAX {
            self.end_claim()?;
            self.groups.claimed = (delivered_ms, deliveries);
        }
        self.groups.claim.push(id);
        Ok(())
    }

    /// `XCLAIM key group consumer 0 id… TIME ms RETRYCOUNT n FORCE JUSTID`; changes no counter.
    fn end_claim(&mut self) -> Parse<()> {
        if self.groups.claim.is_empty() {
            return Ok(());
        }
        let mut body = Vec::new();
        bulk(Atom::Text(&self.groups.group), &mut body);
        bulk(Atom::Text(&self.groups.consumer), &mut body);
        bulk(Atom::Int(0), &mut body);
        for &id in &self.groups.claim {
            bulk(Atom::Text(&id_text(id)), &mut body);
        }
        let (delivered_ms, deliveries) = self.groups.claimed;
        bulk(Atom::Text(b"TIME"), &mut body);
        bulk(Atom::Text(&uint_text(delivered_ms)), &mut body);
        bulk(Atom::Text(b"RETRYCOUNT"), &mut body);
        bulk(Atom::Text(&uint_text(deliveries)), &mut body);
        bulk(Atom::Text(b"FORCE"), &mut body);
        bulk(Atom::Text(b"JUSTID"), &mut body);
        let args = self.groups.claim.len() + 9;
        self.groups.claim.clear();
        self.command_of_body("XCLAIM", args, &body)
    }

    /// Takes the placeholders out again and sets the counters right.
    pub(super) fn finish_stream(&mut self) -> Parse<()> {
        self.end_claim()?;
        let placed = std::mem::take(&mut self.groups.placed);
        let (Some(meta), false) = (self.groups.meta, placed.is_empty()) else { return Ok(()) };
        // Those before the first entry go by trimming, which leaves MAXDELETEDID alone, as it did then.
        let (below, between): (Vec<_>, Vec<_>) =
            placed.into_iter().partition(|&id| self.groups.first.is_none_or(|first| id < first));
        if !below.is_empty() {
            match self.groups.first {
                Some(first) => {
                    self.command("XTRIM", &[Atom::Text(b"MINID"), Atom::Text(&id_text(first))])?;
                }
                None => self.command("XTRIM", &[Atom::Text(b"MAXLEN"), Atom::Text(b"0")])?,
            }
        }
        for ids in between.chunks(CLAIM_IDS_MAX) {
            let ids: Vec<_> = ids.iter().map(|&id| id_text(id)).collect();
            let ids: Vec<_> = ids.iter().map(|id| Atom::Text(id)).collect();
            self.command("XDEL", &ids)?;
        }
        self.set_id(meta)
    }
}
