//! The task that writes what the other site did: one batch after the other, each followed by its marker.
//!
//! **Once, without a transaction.** The documents are written first, each with a version that its change alone has, and
//! then the marker, in our own index. A crash in between repeats the batch: what is there already is refused as equal, what
//! is newer as older, and the rest goes in. So after the marker everything is there, and before it nothing is counted.
//!
//! **Fence.** Whether the marker is the one that this applier left is looked at before each batch, after what its documents hold
//! was read, and again before some of it is sent once more; not where it was left just now and nothing depends on what is
//! there: the marker's own write asks for that, too. A batch of an older applier that is under way at a take-over cannot do
//! harm: its versions are older than what follows.
//!
//! **Writes of the site's own** that did not come out of its stream yet must not be overwritten unseen. So where the site
//! is a source, too, what the documents hold is read first, and one that an application wrote last waits for the next look
//! of that stream. Between that and the write lie milliseconds in which an application's write could still be lost:
//! Elasticsearch takes either a version or a condition, not both.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_core::time::now_ms;
use causeway_core::{Batch, Change, Error, Hlc, Key, Marker, Op, Outcome, Refused, Result, Site, Token};
use tokio::sync::mpsc;

use crate::bulk::{self, Done, Guard, Item};
use crate::config::Config;
use crate::definition::{self, Definition};
use crate::documents::{self, Got};
use crate::http::Client;
use crate::names::{self, BATCH, Doc, MARKER, in_url};
use crate::poll::Own;
use crate::shared::SiteState;
use crate::version;

/// Before the first repetition of what found no room; doubled for each further one.
const BUSY_WAIT_MIN: Duration = Duration::from_millis(100);
const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);
/// For so many milliseconds a marker that was ours is taken for ours. A batch may be under way for longer.
const SURE_FOR_MS: u64 = 250;
/// How often a state whose version is too low is tried with a higher one.
const LIFTS_MAX: usize = 4;

/// What the documents held when they began to be watched.
pub(crate) type Watched = HashMap<Key, Got>;

/// One batch, and what its keys held when the watch began.
pub(crate) struct Job {
    pub(crate) batch: Batch,
    pub(crate) watched: Watched,
}

/// Where our marker's document stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MarkerAt {
    pub(crate) seq_no: i64,
    pub(crate) primary_term: u64,
}

pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    pub(crate) site: Site,
    pub(crate) client: Arc<Client>,
    pub(crate) own: String,
    pub(crate) state: Arc<SiteState>,
    pub(crate) marker_at: MarkerAt,
    /// When the marker was last known to be ours, in milliseconds since 1970: a clock that goes on in a suspend.
    pub(crate) seen_ours: u64,
    /// The highest version that was written.
    pub(crate) top: u64,
}

/// An item of a batch.
struct Planned {
    /// Index into the batch's changes.
    index: usize,
    item: Item,
    lifts: Lifts,
}

/// On top of which versions a change takes effect, though they are not below its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifts {
    Never,
    /// Those that were given to changes of the origin.
    OverOrigin,
    /// All.
    Always,
}

impl Lifts {
    fn over(self, version: u64, origin: Site) -> bool {
        match self {
            Lifts::Never => false,
            Lifts::OverOrigin => version::is_of(version, origin),
            Lifts::Always => true,
        }
    }
}

/// What became of a batch's documents.
enum Wrote {
    All(Vec<Refused>),
    /// A watched document was touched.
    Touched,
    Busy(String),
}

impl Worker {
    /// Works until nobody sends or an error came, which is handed on.
    pub(crate) async fn run(mut self, mut jobs: mpsc::Receiver<Job>, out: mpsc::Sender<Result<Outcome>>) {
        while let Some(job) = jobs.recv().await {
            let outcome = self.apply(job).await;
            let failed = outcome.is_err();
            if out.send(outcome).await.is_err() || failed {
                return;
            }
        }
    }

    async fn apply(&mut self, job: Job) -> Result<Outcome> {
        let Job { batch, watched } = job;
        if let Some(change) = batch.changes.iter().find(|change| change.op == Op::Ddl) {
            self.is_ours_still().await?;
            if let (Some(index), Some(wanted)) = (names::index(&change.key), Definition::of(change)) {
                definition::bring(&self.client, index, &wanted).await?;
            }
            self.leave(&batch.marker, Vec::new()).await?;
            return Ok(Outcome::Committed { refused: Vec::new(), existing: Vec::new() });
        }
        let docs: Vec<Option<Doc>> = batch.changes.iter().map(|change| names::doc(&change.key)).collect();
        let both = self.config.is_source(self.site);
        let depends =
            |change: &Change| change.op == Op::State || (change.op == Op::Read && batch.keep_existing);
        let looks = both || batch.watched || batch.decided || batch.changes.iter().any(depends);
        let mut held = if looks { self.look(&docs).await? } else { HashMap::new() };
        if batch.watched {
            let touched = |(key, then): (&Key, &Got)| {
                let now = names::doc(key).and_then(|doc| held.get(&doc)).cloned().unwrap_or_default();
                // Of what is not there nothing else is told.
                now.found != then.found
                    || now.found && (now.seq_no, now.primary_term) != (then.seq_no, then.primary_term)
            };
            let of_batch = |(key, _): &(&Key, &Got)| batch.changes.iter().any(|change| change.key == **key);
            if watched.iter().filter(of_batch).any(touched) {
                return Ok(Outcome::Touched);
            }
        } else if both {
            let unseen = |(doc, got): (&Doc, &Got)| {
                got.found && !version::is_ours(got.version) && !self.state.has_taken(&doc.index, got.seq_no)
            };
            if held.iter().any(unseen) {
                if !self.state.until_taken().await {
                    let reason = "what was written here last has not come out of this site's own stream yet"
                        .to_owned();
                    return Ok(Outcome::Rejected { transient: true, reason });
                }
                held = self.look(&docs).await?;
            }
        }
        if looks || now_ms().abs_diff(self.seen_ours) > SURE_FOR_MS {
            self.is_ours_still().await?;
        }
        let (planned, mut refused, existing) = self.plan(&batch, docs, held);
        if both {
            self.state.writes(batch.changes.iter().map(|change| change.key.clone()));
        }
        let deleted: Vec<(String, String)> = planned
            .iter()
            .filter(|planned| planned.item.source.is_none())
            .map(|planned| {
                let Doc { index, id, routing } = &planned.item.doc;
                (index.clone(), String::from_utf8_lossy(&names::name(id, routing.as_deref())).into_owned())
            })
            .collect();
        match self.write(planned).await? {
            Wrote::All(more) => refused.extend(more),
            Wrote::Touched => return Ok(Outcome::Touched),
            Wrote::Busy(reason) => return Ok(Outcome::Rejected { transient: true, reason }),
        }
        refused.sort_unstable_by_key(|refused| refused.index);
        self.leave(&batch.marker, deleted).await?;
        self.state.has_marked();
        Ok(Outcome::Committed { refused, existing })
    }

    /// What the documents hold now.
    async fn look(&self, docs: &[Option<Doc>]) -> Result<HashMap<Doc, Got>> {
        let mut docs: Vec<Doc> = docs.iter().flatten().cloned().collect();
        docs.sort_unstable_by(|a, b| (&a.index, &a.id, &a.routing).cmp(&(&b.index, &b.id, &b.routing)));
        docs.dedup();
        let got = documents::get(&self.client, &docs, false).await?;
        Ok(docs.into_iter().zip(got).collect())
    }

    /// What is to be written, what cannot be, and the reads whose documents exist.
    fn plan(
        &self,
        batch: &Batch,
        docs: Vec<Option<Doc>>,
        mut held: HashMap<Doc, Got>,
    ) -> (Vec<Planned>, Vec<Refused>, Vec<usize>) {
        let origin = self.site.peer();
        let (mut planned, mut refused, mut existing) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (change, doc)) in batch.changes.iter().zip(docs).enumerate() {
            let carried = doc.filter(|doc| self.config.indices.carries(&doc.index));
            let (Some(doc), false) = (carried, change.op == Op::Command || change.part.is_some()) else {
                let reason = "it is no document of an index that this channel carries".to_owned();
                refused.push(Refused { index, reason });
                continue;
            };
            let now = held.get(&doc).filter(|got| got.found).cloned();
            if change.op == Op::Read && batch.keep_existing && now.is_some() {
                existing.push(index);
                continue;
            }
            let source = change.value.clone().filter(|_| change.op != Op::Delete);
            // What this batch writes itself has its version, and no number yet.
            let is_written_here = now.as_ref().is_some_and(|now| now.primary_term == 0);
            let lifts = match change.op {
                Op::State => Lifts::Always,
                Op::Read => Lifts::Never,
                _ if batch.decided => Lifts::Always,
                // Of one site's changes the order of its log is the right one.
                _ if version::is_of(change.hlc.0, origin) => Lifts::OverOrigin,
                _ => Lifts::Never,
            };
            let guard = match &now {
                // Nobody's write since the watch began is deleted.
                Some(now) if batch.watched && source.is_none() && !is_written_here => {
                    Guard::Unchanged { seq_no: now.seq_no, primary_term: now.primary_term }
                }
                _ => Guard::Version(self.version(change, now.as_ref(), lifts)),
            };
            if let Guard::Version(version) = guard {
                held.insert(doc.clone(), Got { found: source.is_some(), version, ..Got::default() });
            }
            planned.push(Planned { index, item: Item { doc, source, guard }, lifts });
        }
        (planned, refused, existing)
    }

    /// The version that a change's document gets. That of a copy is of before the copy began, so that it never beats what
    /// was written since.
    fn version(&self, change: &Change, now: Option<&Got>, lifts: Lifts) -> u64 {
        let origin = self.site.peer();
        let own = if change.op == Op::Read && change.hlc == Hlc(0) {
            let offset = u64::try_from(self.config.clock_offset.as_millis()).unwrap_or(u64::MAX);
            Hlc::at(change.time.saturating_sub(offset), origin).0
        } else {
            // A state of which nobody knows when it was written has none, and must not pass for an application's.
            change.hlc.0.max(version::lowest(origin))
        };
        match now {
            Some(&Got { version, .. })
                if version >= own
                    && lifts.over(version, origin)
                    && !version::is_beyond(version, now_ms()) =>
            {
                version::above(version, origin)
            }
            _ => own,
        }
    }

    /// Writes the documents, in their order, in requests of `bulk.bytes_max` at the most.
    async fn write(&mut self, mut todo: Vec<Planned>) -> Result<Wrote> {
        let deleted = todo.iter().filter(|planned| planned.item.source.is_none());
        let key = |doc: &Doc| names::key(&doc.index, &doc.id, doc.routing.as_deref());
        let deleted: Vec<Key> = deleted.map(|planned| key(&planned.item.doc)).collect();
        self.state.deletes(&deleted);
        let origin = self.site.peer();
        let mut refused = Vec::new();
        let (mut tries, mut lifts, mut wait) = (0, 0, BUSY_WAIT_MIN);
        while !todo.is_empty() {
            for planned in &todo {
                if let Guard::Version(version) = planned.item.guard
                    && !version::is_beyond(version, now_ms())
                {
                    self.top = self.top.max(version);
                }
            }
            let done = self.write_once(&todo).await?;
            let (mut again, mut busy, mut lifted) = (Vec::new(), None, false);
            // Those of which something later is there, or goes in again: what was before it must not come after it.
            let mut overwritten: HashSet<Doc> = HashSet::new();
            for (mut planned, done) in todo.into_iter().zip(done).rev() {
                match done {
                    Done::Refused(reason) => refused.push(Refused { index: planned.index, reason }),
                    _ if overwritten.contains(&planned.item.doc) => {}
                    Done::Written => _ = overwritten.insert(planned.item.doc),
                    Done::Busy(reason) => {
                        busy = Some(reason);
                        overwritten.insert(planned.item.doc.clone());
                        again.push(planned);
                    }
                    Done::Conflict(current) => match (planned.item.guard, current) {
                        (Guard::Unchanged { .. }, _) => return Ok(Wrote::Touched),
                        (Guard::Version(wanted), Some(current)) if current >= wanted => {
                            if version::is_beyond(current, now_ms()) {
                                let reason = "the document has a version of somebody else's, which is above ours: \
                                    Causeway cannot write documents that get versions from outside";
                                refused.push(Refused { index: planned.index, reason: reason.to_owned() });
                            } else if planned.lifts.over(current, origin) {
                                if lifts >= LIFTS_MAX {
                                    return Ok(Wrote::Busy(
                                        "somebody else writes the document all the time".to_owned(),
                                    ));
                                }
                                lifted = true;
                                planned.item.guard = Guard::Version(version::above(current, origin));
                                overwritten.insert(planned.item.doc.clone());
                                again.push(planned);
                            }
                        }
                        // It is there, or something newer is.
                        _ => {}
                    },
                }
            }
            again.reverse();
            todo = again;
            lifts += usize::from(lifted);
            if let Some(reason) = busy {
                tries += 1;
                if tries >= self.config.bulk_tries_max {
                    return Ok(Wrote::Busy(reason));
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(BUSY_WAIT_MAX);
            }
            if !todo.is_empty() {
                // What is there may be a later applier's.
                self.is_ours_still().await?;
            }
        }
        self.state.has_deleted(&deleted);
        Ok(Wrote::All(refused))
    }

    async fn write_once(&self, todo: &[Planned]) -> Result<Vec<Done>> {
        let mut done = Vec::with_capacity(todo.len());
        let (mut now, mut bytes): (Vec<&Item>, usize) = (Vec::new(), 0);
        for planned in todo {
            let (item, cost) = (&planned.item, planned.item.cost());
            let alone = item.goes_alone();
            if !now.is_empty() && (alone || bytes + cost > self.config.bulk_bytes_max) {
                done.extend(bulk::write(&self.client, &now).await?);
                (now, bytes) = (Vec::new(), 0);
            }
            if alone {
                done.push(bulk::write_alone(&self.client, item).await?);
            } else {
                now.push(item);
                bytes += cost;
            }
        }
        if !now.is_empty() {
            done.extend(bulk::write(&self.client, &now).await?);
        }
        Ok(done)
    }

    fn fenced(&self) -> Error {
        Error::Fenced {
            endpoint: self.client.label(),
            reason: format!("{MARKER} in {} is another one's", self.own),
        }
    }

    /// Looks whether nobody has taken over.
    async fn is_ours_still(&self) -> Result<()> {
        let found = marker_at(&self.client, &self.own).await?.map(|(at, _)| at);
        if found == Some(self.marker_at) { Ok(()) } else { Err(self.fenced()) }
    }

    /// Leaves the marker: for the stream of this site, where there is one, and as what the next applier begins with.
    async fn leave(&mut self, marker: &Marker, deleted: Vec<(String, String)>) -> Result<()> {
        const ACTION: &str = "leave the marker";
        let (time, term, top) = (now_ms(), marker.term.0, self.top);
        let own = Own { marker: Some(marker.to_string()), time, term, top, deleted: Vec::new() };
        let MarkerAt { seq_no, primary_term } = self.marker_at;
        let last = serde_json::json!({"index": {"_id": MARKER, "if_seq_no": seq_no, "if_primary_term": primary_term}});
        let batch = self.config.is_source(self.site).then(|| {
            let id = format!("{BATCH}{}", Token::unique().text());
            (serde_json::json!({"create": {"_id": id}}), Own { deleted, ..own.clone() })
        });
        let documents: Vec<_> = batch.into_iter().chain([(last, own)]).collect();
        let mut body = BytesMut::new();
        for (action, own) in &documents {
            for text in [action.to_string().into_bytes(), serde_json::to_vec(own).unwrap_or_default()] {
                body.extend_from_slice(&text);
                body.extend_from_slice(b"\n");
            }
        }
        let path = format!("/{}/_bulk", in_url(&self.own));
        let said = bulk::send(&self.client, ACTION, &path, body.freeze(), documents.len()).await?;
        let Some(said @ [.., last]) = said.as_deref() else {
            return Err(self.client.garbled("answer", format!("{ACTION}: it was refused as a whole")));
        };
        for said in said {
            match said.done() {
                Done::Written => {}
                Done::Conflict(_) => return Err(self.fenced()),
                Done::Busy(reason) | Done::Refused(reason) => {
                    return Err(crate::http::unavailable(ACTION, &self.client.label(), reason));
                }
            }
        }
        self.marker_at = MarkerAt { seq_no: last.seq_no, primary_term: last.primary_term };
        self.seen_ours = time;
        Ok(())
    }
}

/// Where the marker's document stands, and what it holds.
///
/// # Errors
///
/// As [`Client::send`].
pub(crate) async fn marker_at(client: &Client, own: &str) -> Result<Option<(MarkerAt, Own)>> {
    let doc = Doc { index: own.to_owned(), id: MARKER.to_owned(), routing: None };
    let Some(got) = documents::get(client, std::slice::from_ref(&doc), true).await?.pop() else {
        return Ok(None);
    };
    let source: Option<Bytes> = got.source.filter(|_| got.found);
    let Some(source) = source else { return Ok(None) };
    let own = serde_json::from_slice(&source)
        .map_err(|_| client.garbled("marker", format!("{own} holds what is no marker of ours")))?;
    Ok(Some((MarkerAt { seq_no: got.seq_no, primary_term: got.primary_term }, own)))
}
