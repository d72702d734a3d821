//! A site as the target of its peer's changes.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use causeway_core::time::now_ms;
use causeway_core::{Batch, Change, Key, Keys, Marker, Outcome, Result, Seq, Site, Target, Term, Token};
use reqwest::Method;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::apply::{Job, MarkerAt, Watched, Worker, marker_at};
use crate::config::Config;
use crate::documents::{self, Range, Shard};
use crate::http::{Client, unavailable};
use crate::names::{self, MARKER, TOKEN, in_url};
use crate::poll::Own;
use crate::shared::SiteState;

/// Batches under way.
const JOBS_MAX: usize = 64;
/// Ids of a page.
const IDS_MAX: usize = 1_000;
/// How often a take-over is tried where another one comes in between.
const TAKE_OVERS_MAX: usize = 20;

/// One site's documents, to be written.
pub(crate) struct EsTarget {
    config: Arc<Config>,
    site: Site,
    state: Arc<SiteState>,
    live: Option<Live>,
    watched: Watched,
    /// Of the batches without an outcome, what their markers count.
    sent: std::collections::VecDeque<Seq>,
    settled: Seq,
    listing: Option<Listing>,
}

struct Live {
    client: Arc<Client>,
    own: String,
    jobs: mpsc::Sender<Job>,
    outcomes: mpsc::Receiver<Result<Outcome>>,
    task: JoinHandle<()>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a listing of keys has come to.
struct Listing {
    cursor: u64,
    todo: Vec<(Shard, i64)>,
}

impl EsTarget {
    pub(crate) fn new(config: Arc<Config>, site: Site, state: Arc<SiteState>) -> EsTarget {
        EsTarget {
            config,
            site,
            state,
            live: None,
            watched: HashMap::new(),
            sent: std::collections::VecDeque::new(),
            settled: Seq(0),
            listing: None,
        }
    }

    fn live(&mut self) -> Result<&mut Live> {
        self.live.as_mut().ok_or_else(|| unavailable("apply", "", "nobody took over"))
    }
}

/// Makes our own index where it is not there.
///
/// # Errors
///
/// As [`Client::send`].
pub(crate) async fn make_own(client: &Client, own: &str) -> Result<()> {
    const ACTION: &str = "make our own index";
    // Nothing in it is searched for but by number; a copy more where there is a node for it.
    let body = serde_json::json!({
        "settings": {"index.hidden": true, "index.number_of_shards": 1, "index.auto_expand_replicas": "0-1"},
        "mappings": {"dynamic": false},
    });
    let body = Some(Bytes::from(body.to_string()));
    let answer = client.send(ACTION, Method::PUT, &format!("/{}", in_url(own)), body).await?;
    if answer.status == 400 && answer.reason().contains("resource_already_exists") {
        return Ok(());
    }
    answer.ok(ACTION).map(drop)
}

/// Takes the marker's document over: what an older applier still does fails from here on. Where it stands, the marker, and the
/// highest version that was written.
async fn take_over(client: &Client, own: &str, term: Term) -> Result<(MarkerAt, Option<Marker>, u64)> {
    const ACTION: &str = "take over";
    #[derive(serde::Deserialize)]
    struct Written {
        _seq_no: i64,
        _primary_term: u64,
    }
    make_own(client, own).await?;
    for _ in 0..TAKE_OVERS_MAX {
        let found = marker_at(client, own).await?;
        let guard = match &found {
            Some((at, _)) => format!("if_seq_no={}&if_primary_term={}", at.seq_no, at.primary_term),
            None => "op_type=create".to_owned(),
        };
        let last = found.map(|(_, last)| last).unwrap_or_default();
        let parsed = last.parsed(client, own)?;
        let mine = Own { marker: last.marker, time: now_ms(), term: term.0, top: last.top, ..Own::default() };
        let body = Some(Bytes::from(serde_json::to_vec(&mine).unwrap_or_default()));
        let path = format!("/{}/_doc/{MARKER}?{guard}", in_url(own));
        let answer = client.send(ACTION, Method::PUT, &path, body).await?;
        if answer.status == 409 {
            continue;
        }
        let written: Written = answer.ok(ACTION)?.parse(ACTION)?;
        let at = MarkerAt { seq_no: written._seq_no, primary_term: written._primary_term };
        return Ok((at, parsed, last.top));
    }
    Err(unavailable(ACTION, &client.label(), "another applier takes over all the time"))
}

#[async_trait]
impl Target for EsTarget {
    async fn take_over(&mut self, term: Term) -> Result<Option<Marker>> {
        self.live = None;
        self.sent.clear();
        self.watched.clear();
        self.listing = None;
        let client = Arc::new(Client::new(self.config.server(self.site))?);
        let own = names::own_index(&self.config.link, &self.config.channel);
        let seen_ours = now_ms();
        let (marker_at, marker, top) = take_over(&client, &own, term).await?;
        self.state.has_ended();
        let worker = Worker {
            config: Arc::clone(&self.config),
            site: self.site,
            client: Arc::clone(&client),
            own: own.clone(),
            state: Arc::clone(&self.state),
            marker_at,
            seen_ours,
            top,
        };
        let (jobs, todo) = mpsc::channel(JOBS_MAX);
        let (out, outcomes) = mpsc::channel(JOBS_MAX);
        let task = tokio::spawn(worker.run(todo, out));
        self.live = Some(Live { client, own, jobs, outcomes, task });
        Ok(marker)
    }

    async fn send(&mut self, batch: Batch) -> Result<()> {
        let applied = batch.marker.applied;
        let watched = if batch.watched { std::mem::take(&mut self.watched) } else { HashMap::new() };
        let live = self.live()?;
        let job = Job { batch, watched };
        if live.jobs.send(job).await.is_err() {
            // It ended with an error, unless that was taken already.
            let error = match live.outcomes.try_recv() {
                Ok(Err(error)) => error,
                _ => unavailable("apply", "", "the writing task ended"),
            };
            self.live = None;
            return Err(error);
        }
        self.sent.push_back(applied);
        Ok(())
    }

    async fn outcome(&mut self) -> Result<Outcome> {
        if self.sent.is_empty() {
            return std::future::pending().await;
        }
        let outcome = match self.live()?.outcomes.recv().await {
            Some(Ok(outcome)) => outcome,
            failed => {
                self.live = None;
                let ended = || unavailable("apply", "", "the writing task ended");
                return Err(failed.and_then(Result::err).unwrap_or_else(ended));
            }
        };
        if let Some(applied) = self.sent.pop_front()
            && matches!(outcome, Outcome::Committed { .. })
        {
            self.settled = applied;
        }
        Ok(outcome)
    }

    async fn watch(&mut self, keys: &[Key]) -> Result<Token> {
        let (docs, keys): (Vec<_>, Vec<_>) =
            keys.iter().filter_map(|key| Some((names::doc(key)?, key.clone()))).unzip();
        let live = self.live()?;
        let got = documents::get(&live.client, &docs, false).await?;
        let token = Token::unique();
        let body = serde_json::to_vec(&Own { time: now_ms(), ..Own::default() }).unwrap_or_default();
        let path = format!("/{}/_doc/{}", in_url(&live.own), in_url(&format!("{TOKEN}{}", token.text())));
        let answer = live.client.send("write a token", Method::PUT, &path, Some(body.into())).await?;
        answer.ok("write a token")?;
        self.watched = keys.into_iter().zip(got).collect();
        self.state.hurry.notify_one();
        Ok(token)
    }

    async fn holds(&mut self, changes: &[Change]) -> Result<Vec<bool>> {
        let docs: Vec<_> = changes.iter().filter_map(|change| names::doc(&change.key)).collect();
        if docs.len() < changes.len() {
            return Ok(vec![false; changes.len()]);
        }
        let got = documents::get(&self.live()?.client, &docs, true).await?;
        let holds = |(change, got): (&Change, documents::Got)| match &change.value {
            Some(value) => got.found && got.source.as_ref() == Some(value),
            None => !got.found,
        };
        Ok(changes.iter().zip(got).map(holds).collect())
    }

    async fn keys(&mut self, cursor: u64) -> Result<Keys> {
        let listing = self.listing.take().filter(|listing| cursor != 0 && listing.cursor == cursor);
        let client = Arc::clone(&self.live()?.client);
        let mut listing = match listing {
            Some(listing) => listing,
            // From the beginning, also where it is not known any more how far one had come.
            None => {
                let all = documents::carried(&client, &self.config.indices).await?;
                documents::refresh(&client, &all).await?;
                Listing { cursor: 0, todo: all.into_iter().map(|shard| (shard, -1)).collect() }
            }
        };
        let Some((shard, after)) = listing.todo.last_mut() else { return Ok((Vec::new(), None)) };
        let mut count = IDS_MAX;
        let page =
            documents::page(&client, shard, Range { after: *after, to: i64::MAX }, &mut count, false).await?;
        let keys =
            page.hits.iter().map(|hit| names::key(&shard.index, &hit.id, hit.routing.as_deref())).collect();
        if let Some(last) = page.hits.last() {
            *after = last.seq_no;
        }
        if !page.more {
            listing.todo.pop();
        }
        if listing.todo.is_empty() {
            return Ok((keys, None));
        }
        listing.cursor += 1;
        let next = listing.cursor;
        self.listing = Some(listing);
        Ok((keys, Some(next)))
    }

    fn settled(&self) -> Seq {
        self.settled
    }
}

/// Takes out our own index; how many documents it held.
///
/// # Errors
///
/// As [`Client::send`].
pub(crate) async fn cleanup(client: &Client, own: &str) -> Result<u64> {
    #[derive(serde::Deserialize)]
    struct Count {
        count: u64,
    }
    let name = in_url(own);
    let path = format!("/{name}/_refresh");
    if client.send("refresh what changed", Method::POST, &path, None).await?.status == 404 {
        return Ok(0);
    }
    let count: Option<Count> = client.find("count our own documents", &format!("/{name}/_count")).await?;
    let answer = client.send("delete our own index", Method::DELETE, &format!("/{name}"), None).await?;
    if answer.status == 404 {
        return Ok(0);
    }
    answer.ok("delete our own index")?;
    // The index itself is one more.
    Ok(count.map_or(1, |count| count.count + 1))
}
