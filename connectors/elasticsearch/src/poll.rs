//! The task that reads a site's documents: one look at the store after the other, and in between pages of the snapshot
//! and of the listing that finds deletes.
//!
//! **A look** asks how far our own index has come, and after that how far each shard has; makes visible what was written up
//! to then; tells the markers of our own index, then every shard's documents up to that number, then tokens. So a token
//! comes behind all that was written before it. And a marker comes before every write on top of what it counts: such a
//! write is the document's last one, and its version tells on top of what it was made. Where that marker is not there yet,
//! the shard waits for it.
//!
//! Of several writes to a document between two looks the last one is told: changes are whole documents.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use causeway_core::time::now_ms;
use causeway_core::{Change, Error, ErrorKind, Event, Hlc, Key, Marker, Op, Position, Result, Site, Token};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use crate::config::Config;
use crate::current::Current;
use crate::definition::{self, Versions};
use crate::documents::{self, Hit, PAGE_FIRST, PAGE_MAX, Range, Shard};
use crate::http::{Client, unavailable};
use crate::known::Known;
use crate::names::{self, BATCH, MARKER, TOKEN, in_url};
use crate::place::{Place, Places, ShardId};
use crate::shared::SiteState;
use crate::version;

/// Deletes that are told at once.
const DELETES_MAX: usize = 1_000;
/// How long a shard waits for the marker of what a document was written on top of.
const MARKER_MAX: Duration = Duration::from_secs(10);
/// How long an index of ours that was just made may have no primary, and how often that is looked at.
const PRIMARY_WAIT: Duration = Duration::from_secs(5);
const PRIMARY_LOOK: Duration = Duration::from_millis(100);
/// How often an idle stream says where it is.
const IDLE_EVERY: Duration = Duration::from_millis(500);
/// How long a batch's marker is kept: a restart reads again what it had not settled.
const KEEP_MARKERS_MS: u64 = 3_600_000;
/// How long states wait for the markers of what their documents hold.
const STATE_WAIT: Duration = Duration::from_secs(5);
/// Reasons why something was left out that are kept.
const LEFT_OUT_MAX: usize = 1_000;

/// What a document of our own index holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Own {
    /// As text.
    #[serde(default)]
    pub(crate) marker: Option<String>,
    /// When it was written, milliseconds since 1970.
    #[serde(default)]
    pub(crate) time: u64,
    /// The applier's reign.
    #[serde(default)]
    pub(crate) term: u64,
    /// The highest version that was written: of what has to take effect it may be above the change's.
    #[serde(default)]
    pub(crate) top: u64,
    /// Index and name of each document that the batch deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) deleted: Vec<(String, String)>,
}

impl Own {
    /// The marker that it holds.
    ///
    /// # Errors
    ///
    /// It is none of this version's; `own` is the index's name.
    pub(crate) fn parsed(&self, client: &Client, own: &str) -> Result<Option<Marker>> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|_| client.garbled("marker", format!("{own} holds one of another version of syncd")))
        };
        self.marker.as_ref().map(parse).transpose()
    }
}

/// What a document of the index with ids holds: a bucket, or how far our own index had been read when all were kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Ids {
    #[serde(default)]
    index: String,
    #[serde(default)]
    bucket: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own: Option<i64>,
}

/// The id of the document that says how far our own index had been read.
const IDS_PLACE: &str = "place";
/// Buckets that are written at once.
const BUCKETS_MAX: usize = 64;

/// What the source is handed.
pub(crate) struct Chunk {
    pub(crate) events: Vec<Event>,
    /// The look that ends with it.
    pub(crate) taken: Option<Taken>,
}

/// A look that came to its end.
pub(crate) struct Taken {
    pub(crate) look: u64,
    /// How far each index was read.
    pub(crate) places: HashMap<String, i64>,
    /// Before which time all that was written is told, in milliseconds since 1970; `None`: that is not known.
    pub(crate) current: Option<u64>,
}

/// What the source wants.
pub(crate) enum Ask {
    /// States of these, and this token behind them.
    States(Vec<Key>, Token),
    /// Nothing of our own index up to this number is read again.
    Prune(i64),
}

/// From where the stream goes on.
pub(crate) struct Begin {
    pub(crate) history: Bytes,
    pub(crate) at: u64,
    pub(crate) places: Places,
    /// What our own index tells up to this number came already, with places up to this.
    pub(crate) held: Option<(i64, u64)>,
    /// What comes first.
    pub(crate) first: Vec<Event>,
    /// It begins anew.
    pub(crate) anew: bool,
    /// All definitions are told.
    pub(crate) tell_definitions: bool,
}

pub(crate) struct Poller {
    config: Arc<Config>,
    site: Site,
    client: Arc<Client>,
    own: String,
    state: Arc<SiteState>,
    out: mpsc::Sender<Result<Chunk>>,
    asks: mpsc::Receiver<Ask>,
    history: Bytes,
    at: u64,
    places: Places,
    held: Option<(i64, u64)>,
    anew: bool,
    tell_definitions: bool,
    versions: Option<Versions>,
    /// The shards that the last look found.
    data: Vec<Shard>,
    /// The highest of what markers that passed count.
    marked: Hlc,
    held_since: Option<Instant>,
    known: Known,
    /// When the read began of which the documents are being told.
    moment: u64,
    /// Where the last delete stands that was told.
    deleted_at: u64,
    listing: Option<Listing>,
    list_due: Instant,
    current: Current,
    /// Tokens of looks that did not come to their end.
    tokens: Vec<Token>,
    /// Since when they wait.
    states: VecDeque<(Vec<Key>, Token, Instant)>,
    /// Of our own index: number, id, time.
    prunable: VecDeque<(i64, String, u64)>,
    said: (Places, Instant),
    documents: usize,
    left_out: (u64, Vec<(Key, String)>),
    paced_until: Instant,
}

/// A listing of ids under way.
struct Listing {
    /// Milliseconds since 1970.
    began: u64,
    todo: VecDeque<(Shard, i64)>,
    count: usize,
}

impl Poller {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        config: Arc<Config>,
        site: Site,
        client: Arc<Client>,
        state: Arc<SiteState>,
        out: mpsc::Sender<Result<Chunk>>,
        asks: mpsc::Receiver<Ask>,
        begin: Begin,
        marked: Hlc,
    ) -> (Poller, Vec<Event>) {
        let own = names::own_index(&config.link, &config.channel);
        let known = Known::new(if config.deletes.is_some() { config.ids_max } else { 0 });
        let said = (begin.places.clone(), Instant::now());
        let poller = Poller {
            config,
            site,
            client,
            own,
            state,
            out,
            asks,
            history: begin.history,
            at: begin.at,
            places: begin.places,
            held: begin.held,
            anew: begin.anew,
            tell_definitions: begin.tell_definitions,
            versions: None,
            data: Vec::new(),
            marked,
            held_since: None,
            known,
            moment: 0,
            deleted_at: 0,
            listing: None,
            list_due: Instant::now(),
            current: Current::default(),
            tokens: Vec::new(),
            states: VecDeque::new(),
            prunable: VecDeque::new(),
            said,
            documents: PAGE_FIRST,
            left_out: (0, Vec::new()),
            paced_until: Instant::now(),
        };
        (poller, begin.first)
    }

    /// Reads until the source is gone or something fails, which the source is handed.
    pub(crate) async fn run(mut self, first: Vec<Event>) {
        let begun = async {
            self.recall_ids().await?;
            self.send(first, None).await?;
            self.work().await
        };
        if let Err(error) = begun.await {
            // Nobody is there any more: nobody wants to know.
            let _gone = self.out.send(Err(error)).await;
        }
    }

    /// Reads which ids an earlier process met. Where the stream begins anew they are known of no more: a snapshot names all.
    async fn recall_ids(&mut self) -> Result<()> {
        if self.config.deletes.is_none() || self.known.gave_up() {
            return Ok(());
        }
        let goes_on = !self.anew;
        let mut own_from = None;
        let ids = names::ids_index(&self.config.link, &self.config.channel);
        for hit in self.all_of(&ids, -1).await? {
            let kept: Ids =
                hit.source.as_deref().and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
            if hit.id == IDS_PLACE {
                own_from = kept.own;
                continue;
            }
            let names: Vec<Bytes> = kept.names.into_iter().map(Bytes::from).collect();
            self.known.kept((kept.index, kept.bucket), &names, goes_on);
        }
        // What our applier deleted since.
        if let Some(from) = own_from.filter(|_| goes_on) {
            for hit in self.all_of(&self.own, from).await? {
                let own: Own = hit
                    .source
                    .as_deref()
                    .and_then(|text| serde_json::from_slice(text).ok())
                    .unwrap_or_default();
                let key = |(index, name): (String, String)| Key {
                    space: causeway_core::Space::Index(index.into()),
                    name: name.into(),
                };
                let keys: Vec<Key> = own.deleted.into_iter().map(key).collect();
                self.state.deletes(&keys);
                self.state.has_deleted(&keys);
            }
        }
        Ok(())
    }

    /// All documents of an index of ours with one shard, behind a number.
    async fn all_of(&self, index: &str, mut after: i64) -> Result<Vec<Hit>> {
        let until = Instant::now() + PRIMARY_WAIT;
        let shard = loop {
            match documents::shards(&self.client, index, |name| name == index, |_| true).await {
                Err(error) if error.kind() == ErrorKind::Retry && Instant::now() < until => {
                    tokio::time::sleep(PRIMARY_LOOK).await;
                }
                shards => break shards?.into_iter().next(),
            }
        };
        let Some(shard) = shard else { return Ok(Vec::new()) };
        documents::refresh(&self.client, [&shard]).await?;
        let (mut all, mut count) = (Vec::new(), PAGE_FIRST);
        loop {
            let range = Range { after, to: i64::MAX };
            let page = documents::page(&self.client, &shard, range, &mut count, true).await?;
            after = page.hits.last().map_or(after, |hit| hit.seq_no);
            all.extend(page.hits);
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// Keeps the ids that are known, once the log holds the deletes that were told.
    async fn keep_ids(&mut self) -> Result<()> {
        if self.known.gave_up() || self.deleted_at > 0 && !self.state.is_durable(self.deleted_at) {
            return Ok(());
        }
        let own = self.places.own;
        let ids = names::ids_index(&self.config.link, &self.config.channel);
        let path = format!("/{}/_bulk", in_url(&ids));
        let changed = self.known.changed();
        if changed.is_empty() {
            return Ok(());
        }
        crate::target::make_own(&self.client, &ids).await?;
        for some in changed.chunks(BUCKETS_MAX) {
            let items = some.iter().map(|((index, bucket), names)| {
                let id = format!("{index}:{bucket}");
                let names: Vec<String> =
                    names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
                let kept = Ids { index: index.clone(), bucket: *bucket, names, own: None };
                (id, (!kept.names.is_empty()).then_some(kept))
            });
            self.keep(&path, items.collect()).await?;
        }
        // Behind all of them.
        self.keep(&path, vec![(IDS_PLACE.to_owned(), Some(Ids { own: Some(own), ..Ids::default() }))]).await
    }

    /// Writes these documents with ids; those without are removed.
    async fn keep(&self, path: &str, items: Vec<(String, Option<Ids>)>) -> Result<()> {
        const ACTION: &str = "keep ids";
        let mut body = String::new();
        for (id, kept) in &items {
            let op = if kept.is_some() { "index" } else { "delete" };
            body.push_str(&serde_json::json!({ op: { "_id": id } }).to_string());
            body.push('\n');
            if let Some(kept) = kept {
                body.push_str(&serde_json::to_string(kept).unwrap_or_default());
                body.push('\n');
            }
        }
        let said = crate::bulk::send(&self.client, ACTION, path, body.into(), items.len()).await?;
        let failed =
            said.is_none_or(|said| said.iter().any(|said| said.done() != crate::bulk::Done::Written));
        match failed {
            true => Err(unavailable(ACTION, &self.client.label(), "not all of them were taken")),
            false => Ok(()),
        }
    }

    async fn work(&mut self) -> Result<()> {
        let mut look_due = Instant::now();
        loop {
            if self.out.is_closed() {
                return Ok(());
            }
            if look_due <= Instant::now() {
                look_due = Instant::now() + self.config.poll;
                self.look().await?;
                self.answer_states().await?;
            }
            let reads = self.places.snapshot_ms != 0;
            if reads && self.paced_until <= Instant::now() {
                self.read_on().await?;
            } else if !reads {
                self.list_on().await?;
            }
            let more = self.listing.is_some() || reads && self.paced_until <= Instant::now();
            let until = if more { Instant::now() } else { look_due.min(self.next_due(reads)) };
            tokio::select! {
                biased;
                ask = self.asks.recv() => match ask {
                    Some(ask) => {
                        self.take(ask).await?;
                        look_due = Instant::now();
                    }
                    None => return Ok(()),
                },
                () = self.state.hurry.notified() => look_due = Instant::now(),
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    fn next_due(&self, reads: bool) -> Instant {
        let far = Instant::now() + Duration::from_secs(3_600);
        match (reads, self.config.deletes) {
            (true, _) => self.paced_until,
            (false, Some(_)) if !self.known.gave_up() => self.list_due,
            _ => far,
        }
    }

    async fn take(&mut self, ask: Ask) -> Result<()> {
        match ask {
            Ask::States(keys, token) => self.states.push_back((keys, token, Instant::now())),
            Ask::Prune(place) => self.prune(place).await?,
        }
        Ok(())
    }

    async fn send(&mut self, events: Vec<Event>, taken: Option<Taken>) -> Result<()> {
        // Nobody is there any more: `work` ends.
        let _gone = self.out.send(Ok(Chunk { events, taken })).await;
        Ok(())
    }

    /// The place that was reached now.
    fn position(&mut self) -> Position {
        self.at += 1;
        Position { history: self.history.clone(), at: self.at, context: self.places.context() }
    }

    fn lost(&self, reason: String) -> Error {
        let position = Position { history: self.history.clone(), at: self.at, context: Bytes::new() };
        Error::PositionLost { position: position.to_string(), reason }
    }

    async fn data_shards(&self) -> Result<Vec<Shard>> {
        let indices = &self.config.indices;
        let is_known = |id: &str| self.places.shards.keys().any(|shard| shard.index == id);
        documents::shards(&self.client, &indices.expression(), |index| indices.carries(index), is_known).await
    }

    /// One look at the store.
    async fn look(&mut self) -> Result<()> {
        let (look, began) = (self.state.begin(), now_ms());
        let own = documents::shards(&self.client, &self.own, |index| index == self.own, |_| false)
            .await?
            .into_iter()
            .next();
        // After that of our own index: what was written before a token is below these.
        let data = self.data_shards().await?;
        self.adopt(&data)?;
        self.current.look(began, &data);
        self.data.clone_from(&data);
        if own.as_ref().is_some_and(|own| own.checkpoint < self.places.own) {
            // Somebody took it away: what it told has been told.
            self.places.own = -1;
            self.held = None;
        }
        let stream = |id: &ShardId| self.places.shards.get(id).map_or(-1, |place| place.stream);
        let mut todo: Vec<Shard> =
            data.iter().filter(|shard| shard.checkpoint > stream(&shard.id)).cloned().collect();
        let own = own.filter(|own| own.checkpoint > self.places.own);
        documents::refresh(&self.client, todo.iter().chain(&own)).await?;
        if let Some(own) = own {
            self.read_own(&own).await?;
        }
        let mut whole = true;
        let pages = self.config.shards_at_once;
        while !todo.is_empty() {
            let now: Vec<Shard> = todo.iter().take(pages).cloned().collect();
            self.moment = self.state.moment();
            let (client, places, count) = (&self.client, &self.places, self.documents);
            let read = now.iter().map(|shard| async move {
                let after = places.shards.get(&shard.id).map_or(-1, |place| place.stream);
                let mut count = count;
                let range = Range { after, to: shard.checkpoint };
                let page = documents::page(client, shard, range, &mut count, true).await?;
                Ok::<_, Error>((page, count))
            });
            let read = try_join_all(read).await?;
            self.documents = read.iter().map(|(_, count)| *count).min().unwrap_or(self.documents);
            if read.iter().any(|(page, _)| !page.hits.is_empty()) {
                // After the documents, as a document can bring a field.
                self.tell_definitions().await?;
            }
            let mut done = Vec::new();
            for (shard, (page, _)) in now.iter().zip(read) {
                let mut events = Vec::new();
                let last = page.hits.last().map(|hit| hit.seq_no);
                let held = self.tell(shard, page.hits, &mut events);
                if held {
                    whole = false;
                    done.push(shard.id.clone());
                } else {
                    let to = if page.more { last } else { None }.unwrap_or(shard.checkpoint);
                    if let Some(place) = self.places.shards.get_mut(&shard.id) {
                        place.stream = to;
                    }
                    if !page.more {
                        done.push(shard.id.clone());
                    }
                }
                self.send(events, None).await?;
            }
            todo.retain(|shard| !done.contains(&shard.id));
        }
        self.end_look(look, whole, &data).await
    }

    async fn end_look(&mut self, look: u64, whole: bool, data: &[Shard]) -> Result<()> {
        if !whole {
            return Ok(());
        }
        self.held_since = None;
        self.current.told(|id| self.places.shards.get(id).map(|place| place.stream));
        let mut events: Vec<Event> = std::mem::take(&mut self.tokens).into_iter().map(Event::Token).collect();
        let (said, when) = &self.said;
        if *said != self.places || when.elapsed() >= IDLE_EVERY || self.held.is_some() {
            // What the log held when the stream went on is behind us.
            self.pass_held();
            let pos = self.position();
            events.push(Event::Idle { pos });
            self.said = (self.places.clone(), Instant::now());
        }
        let mut indices: HashMap<String, i64> = HashMap::new();
        for shard in data {
            let place = indices.entry(shard.index.clone()).or_insert(i64::MAX);
            *place = (*place).min(shard.checkpoint);
        }
        let taken = Taken { look, places: indices, current: self.current.time() };
        self.send(events, Some(taken)).await
    }

    fn pass_held(&mut self) {
        if let Some((_, at)) = self.held.take() {
            self.at = self.at.max(at);
        }
    }

    /// Takes note of what shards there are.
    fn adopt(&mut self, data: &[Shard]) -> Result<()> {
        for shard in data {
            if let Some(place) = self.places.shards.get(&shard.id) {
                if shard.checkpoint < place.stream {
                    let reason =
                        format!("shard {} of {} came back older than it was", shard.id.number, shard.index);
                    return Err(self.lost(reason));
                }
                continue;
            }
            let same = |id: &&ShardId| id.index == shard.id.index && id.number == shard.id.number;
            if self.places.shards.keys().any(|id| same(&id)) {
                let reason = format!("shard {} of {} has another history now", shard.id.number, shard.index);
                return Err(self.lost(reason));
            }
            // A new index: all of it is news.
            self.places.shards.insert(shard.id.clone(), Place::START);
        }
        let there = |id: &ShardId| data.iter().any(|shard| shard.id.index == id.index);
        let before = self.places.shards.len();
        self.places.shards.retain(|id, _| there(id));
        if self.places.shards.len() < before {
            warn!(
                channel = self.config.channel,
                site = self.config.site(self.site),
                "an index is gone: what it held stays at the other site until it is deleted there by hand"
            );
            self.known.keep(|index| data.iter().any(|shard| shard.index == index));
        }
        Ok(())
    }

    /// Tells what our own index says: markers at once, tokens later.
    async fn read_own(&mut self, own: &Shard) -> Result<()> {
        let mut count = PAGE_FIRST;
        loop {
            let range = Range { after: self.places.own, to: own.checkpoint };
            let page = documents::page(&self.client, own, range, &mut count, true).await?;
            let mut events = Vec::new();
            let last = page.hits.last().map(|hit| hit.seq_no);
            for hit in page.hits {
                self.own_document(hit, &mut events);
            }
            self.places.own = if page.more { last } else { None }.unwrap_or(own.checkpoint);
            self.send(events, None).await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    fn own_document(&mut self, hit: Hit, events: &mut Vec<Event>) {
        self.places.own = hit.seq_no;
        let own: Own =
            hit.source.as_deref().and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
        if let Some(token) = hit.id.strip_prefix(TOKEN) {
            self.tokens.extend(Token::parse(token.as_bytes()));
        } else if hit.id.starts_with(BATCH)
            && let Some(marker) = own.marker.and_then(|text| text.parse::<Marker>().ok())
        {
            self.marked = self.marked.max(marker.hlc).max(Hlc(own.top));
            let pos = self.own_position(hit.seq_no);
            events.push(Event::Marker { marker, pos });
        }
        if hit.id != MARKER {
            self.prunable.push_back((hit.seq_no, hit.id, own.time));
        }
    }

    /// What the log holds already has a place up to where it ends.
    fn own_position(&mut self, seq_no: i64) -> Position {
        match self.held {
            Some((own, at)) if seq_no <= own => {
                self.at = (self.at + 1).min(at);
                Position { history: self.history.clone(), at: self.at, context: self.places.context() }
            }
            _ => {
                self.pass_held();
                self.position()
            }
        }
    }

    /// Tells documents of a shard's stream. `true`: one waits for a marker, and the rest with it.
    fn tell(&mut self, shard: &Shard, hits: Vec<Hit>, events: &mut Vec<Event>) -> bool {
        let now = now_ms();
        for hit in hits {
            let key = names::key(&shard.index, &hit.id, hit.routing.as_deref());
            self.met(&shard.index, &key);
            let waits = version::base(hit.version)
                .is_some_and(|base| version::is_of(base.0, self.site.peer()) && base > self.marked)
                && self.config.is_source(self.site.peer());
            if waits {
                let since = *self.held_since.get_or_insert_with(Instant::now);
                if since.elapsed() < MARKER_MAX {
                    if let Some(place) = self.places.shards.get_mut(&shard.id) {
                        place.stream = hit.seq_no - 1;
                    }
                    return true;
                }
                warn!(
                    channel = self.config.channel,
                    index = shard.index,
                    "no marker tells of what a document was written on top of: it is told all the same"
                );
            }
            if let Some(place) = self.places.shards.get_mut(&shard.id) {
                place.stream = hit.seq_no;
            }
            if version::is_ours(hit.version) {
                continue;
            }
            self.pass_held();
            let pos = self.position();
            events.push(match hit.source {
                Some(source) => Event::Change(Change::captured(Op::Put, key, Some(source), pos, now)),
                None => Event::LeftOut { key, reason: NO_SOURCE.to_owned(), pos },
            });
        }
        false
    }

    fn met(&mut self, index: &str, key: &Key) {
        self.state.met(key, self.moment);
        if self.known.met(index, &key.name) {
            warn!(
                channel = self.config.channel,
                ids_max = self.config.ids_max,
                "there are more documents than `ids_max`: what is deleted is not found any more"
            );
        }
    }

    /// Tells the definitions of indices that changed since they were told.
    async fn tell_definitions(&mut self) -> Result<()> {
        if !self.config.definitions {
            return Ok(());
        }
        let (config, expression) = (Arc::clone(&self.config), self.config.indices.expression());
        let carries = |index: &str| config.indices.carries(index);
        let versions = definition::versions(&self.client, &expression, carries).await?;
        let digest = definition::digest(&versions);
        let known = match self.versions.take() {
            Some(known) => known,
            // Since the last time, before a restart, nothing changed; or they count as equal.
            None if self.places.definitions == digest || !self.tell_definitions => versions.clone(),
            None => BTreeMap::new(),
        };
        if known != versions {
            let all = definition::read(&self.client, &expression, carries).await?;
            let mut events = Vec::new();
            for (index, definition) in
                all.iter().filter(|(index, _)| known.get(*index) != versions.get(*index))
            {
                self.pass_held();
                let pos = self.position();
                events.push(Event::Change(definition.change(index, pos, now_ms())));
            }
            self.send(events, None).await?;
        }
        self.places.definitions = digest;
        self.versions = Some(versions);
        Ok(())
    }

    /// Reads more of the snapshot: what has not been written since it began, in the order of the shards' numbers.
    async fn read_on(&mut self) -> Result<()> {
        let todo: Vec<(Shard, i64, i64)> = self
            .data
            .iter()
            .filter_map(|shard| {
                let (at, end) = self.places.shards.get(&shard.id).filter(|place| place.reads())?.snapshot?;
                Some((shard.clone(), at, end))
            })
            .take(self.config.shards_at_once)
            .collect();
        if todo.is_empty() {
            self.places.snapshot_ms = 0;
            self.places.shards.values_mut().for_each(|place| place.snapshot = None);
            self.list_due = Instant::now();
            let (left_out, pos) = (std::mem::take(&mut self.left_out), self.position());
            return self.send(vec![Event::SnapshotEnded { pos, left_out }], None).await;
        }
        // What was written before the snapshot began brings no field that is not in a definition since.
        if self.versions.is_none() {
            self.tell_definitions().await?;
        }
        self.moment = self.state.moment();
        let (client, count) = (&self.client, self.documents);
        let read = todo.iter().map(|(shard, at, end)| async move {
            let mut count = count;
            let page =
                documents::page(client, shard, Range { after: *at, to: *end }, &mut count, true).await?;
            Ok::<_, Error>((page, count))
        });
        let read = try_join_all(read).await?;
        self.documents = read.iter().map(|(_, count)| *count).min().unwrap_or(self.documents);
        for ((shard, _, end), (page, _)) in todo.iter().zip(read) {
            let mut events = Vec::new();
            let mut bytes = 0;
            for hit in page.hits {
                let key = names::key(&shard.index, &hit.id, hit.routing.as_deref());
                self.met(&shard.index, &key);
                self.read_to(&shard.id, hit.seq_no);
                let Some(source) = hit.source else {
                    self.left_out.0 += 1;
                    if self.left_out.1.len() < LEFT_OUT_MAX {
                        self.left_out.1.push((key, NO_SOURCE.to_owned()));
                    }
                    continue;
                };
                bytes += source.len() + key.name.len();
                let pos = self.position();
                // Dated when the snapshot began: see `version` of what is applied.
                let time = self.places.snapshot_ms;
                events.push(Event::Change(Change::captured(Op::Read, key, Some(source), pos, time)));
            }
            if !page.more {
                self.read_to(&shard.id, *end);
            }
            if let Some(rate) = self.config.snapshot_bytes_per_second {
                let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
                self.paced_until = self.paced_until.max(Instant::now()) + takes;
            }
            self.send(events, None).await?;
        }
        if let Some(every) = self.config.deletes.filter(|_| self.list_due <= Instant::now()) {
            self.list_due = Instant::now() + every;
            self.keep_ids().await?;
        }
        Ok(())
    }

    fn read_to(&mut self, shard: &ShardId, seq_no: i64) {
        let place = self.places.shards.get_mut(shard).and_then(|place| place.snapshot.as_mut());
        if let Some((at, _)) = place {
            *at = (*at).max(seq_no);
        }
    }

    /// Lists more ids, where it is time to.
    async fn list_on(&mut self) -> Result<()> {
        let Some(every) = self.config.deletes.filter(|_| !self.known.gave_up()) else {
            self.listing = None;
            return Ok(());
        };
        if self.listing.is_none() {
            if self.list_due > Instant::now() {
                return Ok(());
            }
            let began = now_ms();
            let shards = self.data_shards().await?;
            documents::refresh(&self.client, &shards).await?;
            self.known.begin();
            let todo = shards.into_iter().map(|shard| (shard, -1)).collect();
            self.listing = Some(Listing { began, todo, count: PAGE_MAX });
        }
        let Some(listing) = &mut self.listing else { return Ok(()) };
        self.moment = self.state.moment();
        if let Some((shard, after)) = listing.todo.front_mut() {
            // Without an end: what is written meanwhile is met where it goes.
            let range = Range { after: *after, to: i64::MAX };
            let page = documents::page(&self.client, shard, range, &mut listing.count, false).await?;
            let index = shard.index.clone();
            if let Some(last) = page.hits.last() {
                *after = last.seq_no;
            }
            if !page.more {
                listing.todo.pop_front();
            }
            for hit in page.hits {
                let key = names::key(&index, &hit.id, hit.routing.as_deref());
                self.met(&index, &key);
            }
            return Ok(());
        }
        let began = listing.began;
        self.listing = None;
        self.list_due = Instant::now() + every;
        self.tell_deletes().await?;
        if !self.known.is_unsure() {
            self.current.listed(began);
        }
        self.keep_ids().await
    }

    /// Of what a listing did not meet, what is not there and our applier did not delete.
    async fn tell_deletes(&mut self) -> Result<()> {
        let data = self.data_shards().await?;
        let missing = self.known.missing(|index| data.iter().any(|shard| shard.index == index));
        for keys in missing.chunks(DELETES_MAX) {
            let docs: Vec<_> = keys.iter().filter_map(names::doc).collect();
            let got = documents::get(&self.client, &docs, false).await?;
            let mut events = Vec::new();
            for (key, got) in keys.iter().zip(got) {
                if got.found {
                    continue;
                }
                self.known.forget(key);
                if self.state.was_deleted(key) {
                    self.state.noted(key);
                    continue;
                }
                self.pass_held();
                let pos = self.position();
                self.deleted_at = pos.at;
                events.push(Event::Change(Change::captured(Op::Delete, key.clone(), None, pos, now_ms())));
            }
            self.send(events, None).await?;
        }
        Ok(())
    }

    /// Tells the states that were asked for: what the documents hold now, as far as markers tell of it.
    async fn answer_states(&mut self) -> Result<()> {
        while let Some((keys, token, since)) = self.states.pop_front() {
            let (docs, keys): (Vec<_>, Vec<_>) = keys
                .into_iter()
                .filter(|key| names::index(key).is_some_and(|index| self.config.indices.carries(index)))
                .filter_map(|key| Some((names::doc(&key)?, key)))
                .unzip();
            let both = self.config.is_source(self.site.peer());
            let got = documents::get(&self.client, &docs, true).await?;
            let unmarked = |version: u64| {
                let base = version::base(version).map_or(version, |base| base.0);
                version::is_of(base, self.site.peer()) && Hlc(base) > self.marked
            };
            // Of one that is gone nothing but our applier can tell who wrote it last.
            let waits = || {
                got.iter().any(|got| got.found && unmarked(got.version))
                    || keys.iter().any(|key| self.state.is_unmarked(key))
            };
            if both && since.elapsed() < STATE_WAIT && waits() {
                self.states.push_front((keys, token, since));
                return Ok(());
            }
            let mut events = Vec::new();
            self.pass_held();
            for (key, got) in keys.into_iter().zip(got) {
                let pos = self.position();
                let mut state =
                    Change::captured(Op::State, key, got.source.filter(|_| got.found), pos, now_ms());
                state.uncertain = both;
                events.push(Event::Change(state));
            }
            events.push(Event::Token(token));
            self.send(events, None).await?;
        }
        Ok(())
    }

    /// Takes out of our own index what nobody reads again.
    async fn prune(&mut self, place: i64) -> Result<()> {
        let old = now_ms().saturating_sub(KEEP_MARKERS_MS);
        let mut body = String::new();
        let gone =
            |(at, id, time): &mut (i64, String, u64)| *at <= place && (*time < old || id.starts_with(TOKEN));
        while let Some((_, id, _)) = self.prunable.pop_front_if(gone) {
            body.push_str(&serde_json::json!({"delete": {"_id": id}}).to_string());
            body.push('\n');
        }
        if !body.is_empty() {
            let path = format!("/{}/_bulk?filter_path=errors", in_url(&self.own));
            // What stays is pruned by nobody any more until the source is opened again, and does no harm.
            self.client.send("prune our own index", Method::POST, &path, Some(body.into())).await?;
        }
        Ok(())
    }
}

const NO_SOURCE: &str = "the index keeps no _source";
