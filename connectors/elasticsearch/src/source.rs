//! A site's change stream: what [`poll`](crate::poll) reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use causeway_core::time::now_ms;
use causeway_core::{Error, Event, Hlc, Key, Opened, Position, Result, Site, Source, Token, Told};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::apply::marker_at;
use crate::config::Config;
use crate::documents;
use crate::http::{Client, unavailable};
use crate::names;
use crate::place::{Place, Places};
use crate::poll::{Ask, Begin, Chunk, Poller};
use crate::shared::SiteState;

/// Chunks that wait to be taken; each is a page.
const CHUNKS_MAX: usize = 2;
/// Questions that wait.
const ASKS_MAX: usize = 64;
/// Acknowledgements between two looks for what can be pruned.
const PRUNE_EVERY: u32 = 20;

/// The documents of one site.
pub(crate) struct EsSource {
    config: Arc<Config>,
    site: Site,
    state: Arc<SiteState>,
    held: Option<Position>,
    moved: bool,
    /// What was written before came out of `next`; and with what it gave last.
    current: Option<u64>,
    coming: Option<u64>,
    live: Option<Live>,
    acknowledged: u32,
    /// Of our own index, what the last restart point leaves behind, and the one before it, which the log surely holds.
    restarts: [AtomicI64; 2],
}

/// A stream that is open.
struct Live {
    chunks: mpsc::Receiver<Result<Chunk>>,
    asks: mpsc::Sender<Ask>,
    task: JoinHandle<()>,
    state: Arc<SiteState>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
        self.state.close();
    }
}

fn unknown() -> [AtomicI64; 2] {
    [AtomicI64::new(-1), AtomicI64::new(-1)]
}

impl EsSource {
    pub(crate) fn new(config: Arc<Config>, site: Site, state: Arc<SiteState>) -> EsSource {
        EsSource {
            config,
            site,
            state,
            held: None,
            moved: false,
            current: None,
            coming: None,
            live: None,
            acknowledged: 0,
            restarts: unknown(),
        }
    }

    /// Where the stream goes on behind `from`; or why it cannot.
    async fn resume(
        &self,
        client: &Client,
        history: &Bytes,
        from: &Position,
    ) -> Result<std::result::Result<Begin, String>> {
        if from.history != *history {
            return Ok(Err("it is of another cluster".to_owned()));
        }
        let Some(places) = Places::parse(from) else { return Ok(Err("it names no places".to_owned())) };
        // What the log holds is not told again; what our own index tells is, as races with it have to be found again.
        let held = self.held.as_ref().filter(|held| held.history == *history && held.at > from.at);
        let held = held.and_then(|held| Some((held.at, Places::parse(held)?)));
        let (places, held) = match held {
            Some((at, reached)) => (Places { own: places.own, ..reached.clone() }, Some((reached.own, at))),
            None => (places, None),
        };
        for shard in documents::carried(client, &self.config.indices).await? {
            let known = places
                .shards
                .iter()
                .find(|(id, _)| id.index == shard.id.index && id.number == shard.id.number);
            let Some((id, place)) = known else { continue };
            if id.history != shard.id.history {
                return Ok(Err(format!("shard {} of {} has another history now", id.number, shard.index)));
            }
            if shard.checkpoint < place.stream {
                return Ok(Err(format!(
                    "shard {} of {} came back older than it was",
                    id.number, shard.index
                )));
            }
        }
        let history = history.clone();
        Ok(Ok(Begin {
            history,
            at: from.at,
            places,
            held,
            first: Vec::new(),
            anew: false,
            tell_definitions: true,
        }))
    }

    /// A stream that begins now.
    async fn anew(&self, client: &Client, history: Bytes, snapshot: bool) -> Result<Begin> {
        let own = names::own_index(&self.config.link, &self.config.channel);
        let own = documents::shards(client, &own, |index| index == own, |_| false).await?;
        let shards = documents::carried(client, &self.config.indices).await?;
        documents::refresh(client, &shards).await?;
        let place = |checkpoint| Place { stream: checkpoint, snapshot: snapshot.then_some((-1, checkpoint)) };
        let now = now_ms();
        let places = Places {
            own: own.first().map_or(-1, |own| own.checkpoint),
            snapshot_ms: if snapshot { now } else { 0 },
            definitions: 0,
            shards: shards.into_iter().map(|shard| (shard.id, place(shard.checkpoint))).collect(),
        };
        // Above every place that this cluster's stream ever had.
        let at = now << 10;
        let pos = Position { history: history.clone(), at, context: places.context() };
        let first = match snapshot {
            true => Event::SnapshotStarted { total: self.total(client).await?, pos },
            false => Event::Idle { pos },
        };
        Ok(Begin {
            history,
            at,
            places,
            held: None,
            first: vec![first],
            anew: true,
            tell_definitions: snapshot,
        })
    }

    async fn total(&self, client: &Client) -> Result<Option<u64>> {
        #[derive(serde::Deserialize)]
        struct Count {
            count: u64,
        }
        let path = format!(
            "/{}/_count?ignore_unavailable=true&allow_no_indices=true",
            documents::in_path(&self.config.indices.expression())
        );
        let count: Option<Count> = client.find("count the documents", &path).await?;
        Ok(count.map(|count| count.count))
    }
}

#[async_trait]
impl Source for EsSource {
    async fn open(&mut self, from: Option<&Position>, snapshot: bool, _told: Told) -> Result<Opened> {
        self.live = None;
        self.moved = false;
        (self.current, self.coming) = (None, None);
        let client = Arc::new(Client::new(self.config.server(self.site))?);
        let history = Bytes::from(documents::cluster_uuid(&client).await?);
        let own = names::own_index(&self.config.link, &self.config.channel);
        let marked = match marker_at(&client, &own).await? {
            Some((_, last)) => {
                let marker = last.parsed(&client, &own)?.unwrap_or_default();
                marker.hlc.max(Hlc(last.top))
            }
            None => Hlc(0),
        };
        let mut opened = Opened::Anew { lost: None };
        let mut begin = None;
        if let Some(from) = from {
            match self.resume(&client, &history, from).await? {
                Ok(resumed) => {
                    self.moved = resumed.held.is_some();
                    begin = Some(resumed);
                    opened = Opened::Resumed;
                }
                Err(reason) => opened = Opened::Anew { lost: Some(reason) },
            }
        }
        let begin = match begin {
            Some(begin) => begin,
            None => self.anew(&client, history, snapshot).await?,
        };
        self.restarts = unknown();
        let (out, chunks) = mpsc::channel(CHUNKS_MAX);
        let (asks, questions) = mpsc::channel(ASKS_MAX);
        let state = Arc::clone(&self.state);
        let config = Arc::clone(&self.config);
        let (poller, first) =
            Poller::new(config, self.site, client, Arc::clone(&state), out, questions, begin, marked);
        self.live = Some(Live { chunks, asks, task: tokio::spawn(poller.run(first)), state });
        Ok(opened)
    }

    fn held(&mut self, last: &Position) {
        self.held = Some(last.clone());
    }

    /// A shard's checkpoint counts what every copy has synced, unless its index says otherwise.
    fn keeps_what_it_streamed(&self) -> bool {
        true
    }

    fn warning(&self) -> Option<String> {
        Some(match self.config.deletes {
            Some(every) => format!(
                "deletes are found by listing ids: up to {} s and two listings late",
                every.as_secs_f64()
            ),
            None => "deletes are not looked for (`deletes = \"never\"`): what is deleted here stays at the other site"
                .to_owned(),
        })
    }

    fn moved(&self) -> bool {
        self.moved
    }

    /// As late as deletes are found.
    fn current(&self) -> Option<u64> {
        self.current
    }

    async fn next(&mut self, events: &mut Vec<Event>, _bytes_max: usize) -> Result<()> {
        let before = events.len();
        self.current = self.coming;
        while events.len() == before {
            let Some(live) = &mut self.live else {
                return Err(unavailable("read on", "", "the stream is not open"));
            };
            let chunk = match live.chunks.recv().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => {
                    self.live = None;
                    return Err(error);
                }
                None => {
                    self.live = None;
                    return Err(unavailable("read on", "", "the reading task ended"));
                }
            };
            events.extend(chunk.events);
            if let Some(taken) = chunk.taken {
                self.state.take(taken.look, taken.places);
                self.coming = taken.current;
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self, durable: &Position) {
        self.state.is_durable_to(durable.at);
        self.acknowledged = self.acknowledged.wrapping_add(1);
        if self.acknowledged.is_multiple_of(PRUNE_EVERY)
            && let Some(live) = &self.live
        {
            let [_, before] = &self.restarts;
            // Where there is no room it is done the next time.
            let _full = live.asks.try_send(Ask::Prune(before.load(Ordering::SeqCst)));
        }
    }

    fn restart_point(&self, durable: &Position) -> Position {
        if let Some(places) = Places::parse(durable) {
            let [last, before] = &self.restarts;
            before.store(last.swap(places.own, Ordering::SeqCst), Ordering::SeqCst);
        }
        durable.clone()
    }

    async fn refresh(&mut self, keys: Vec<Key>) -> Result<Token> {
        let Some(live) = &self.live else {
            return Err(unavailable("ask for states", "", "the stream is not open"));
        };
        let token = Token::unique();
        let gone = |_| -> Error { unavailable("ask for states", "", "the reading task ended") };
        live.asks.send(Ask::States(keys, token)).await.map_err(gone)?;
        Ok(token)
    }
}
