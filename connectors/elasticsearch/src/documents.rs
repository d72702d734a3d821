//! Reading documents and what is known of shards.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use causeway_core::{Error, Result};
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::Indices;
use crate::http::{ANSWER_BYTES_MAX, Client, Read, unavailable};
use crate::names::{Doc, in_url};
use crate::place::ShardId;

/// Bytes of a page that is read at once; a document that is larger comes alone.
pub(crate) const PAGE_BYTES_MAX: usize = 8 << 20;
/// Documents of a page, where they are small.
pub(crate) const PAGE_MAX: usize = 5_000;
/// Of the first one: nobody knows yet how large they are.
pub(crate) const PAGE_FIRST: usize = 500;
/// A page may hold so many times as many as the one before.
const PAGE_GROWTH: usize = 4;
/// A page is looked for among so many times as many numbers first: most are a document's last.
const NEAR: i64 = 4;
/// Documents asked for by their ids at once.
const MGET_MAX: usize = 500;

/// One shard as its primary tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    pub(crate) index: String,
    /// Up to here every copy has all operations; −1: there is none.
    pub(crate) checkpoint: i64,
    /// The primary has operations up to here.
    pub(crate) last: i64,
}

#[derive(Deserialize)]
struct Stats {
    #[serde(default)]
    indices: HashMap<String, IndexStats>,
}

#[derive(Deserialize)]
struct IndexStats {
    uuid: String,
    #[serde(default)]
    shards: HashMap<String, Vec<ShardStats>>,
}

#[derive(Deserialize)]
struct ShardStats {
    routing: Routing,
    commit: Commit,
    seq_no: SeqNo,
}

#[derive(Deserialize)]
struct Routing {
    primary: bool,
    state: String,
}

#[derive(Deserialize)]
struct Commit {
    user_data: UserData,
}

#[derive(Deserialize)]
struct UserData {
    history_uuid: String,
}

#[derive(Deserialize)]
struct SeqNo {
    max_seq_no: i64,
    global_checkpoint: i64,
}

/// The primaries of all shards of the indices that `expression` names and `carries` takes, and how far each has come. An
/// index that is being made, or opened, has shards without one for a moment: it is left out, unless it `is_known`, by the
/// beginning of its id.
///
/// # Errors
///
/// As [`Client::send`]. `Retry`, too, where a shard of one that is known has no primary just now.
pub(crate) async fn shards(
    client: &Client,
    expression: &str,
    carries: impl Fn(&str) -> bool,
    is_known: impl Fn(&str) -> bool,
) -> Result<Vec<Shard>> {
    const ACTION: &str = "ask how far the shards have come";
    let path = format!(
        "/{}/_stats/docs?level=shards&ignore_unavailable=true&allow_no_indices=true&\
         filter_path=indices.*.uuid,indices.*.shards.*.routing,indices.*.shards.*.seq_no,\
         indices.*.shards.*.commit.user_data.history_uuid",
        in_path(expression)
    );
    let Some(stats) = client.find::<Stats>(ACTION, &path).await? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for (index, stats) in stats.indices {
        if !carries(&index) {
            continue;
        }
        let of_index = all.len();
        for (number, copies) in &stats.shards {
            let primary = copies.iter().find(|copy| copy.routing.primary && copy.routing.state == "STARTED");
            let (Some(primary), Ok(number)) = (primary, number.parse()) else {
                if !is_known(&ShardId::new(&stats.uuid, 0, "").index) {
                    all.truncate(of_index);
                    break;
                }
                let reason = format!("shard {number} of {index} has no primary just now");
                return Err(unavailable(ACTION, &client.label(), reason));
            };
            let id = ShardId::new(&stats.uuid, number, &primary.commit.user_data.history_uuid);
            let SeqNo { max_seq_no: last, global_checkpoint: checkpoint } = primary.seq_no;
            all.push(Shard { id, index: index.clone(), checkpoint, last });
        }
    }
    all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    Ok(all)
}

/// Patterns stay as they are.
pub(crate) fn in_path(expression: &str) -> String {
    expression
        .split(',')
        .map(|part| part.split('*').map(in_url).collect::<Vec<_>>().join("*"))
        .collect::<Vec<_>>()
        .join(",")
}

/// The shards of all indices that `indices` carries, as [`shards`] tells of those that are known.
///
/// # Errors
///
/// As [`shards`].
pub(crate) async fn carried(client: &Client, indices: &Indices) -> Result<Vec<Shard>> {
    shards(client, &indices.expression(), |index| indices.carries(index), |_| true).await
}

/// Makes what was written before into the indices of `shards` visible to searches.
///
/// # Errors
///
/// As [`Client::send`]. `Retry`, too, where a shard does not answer.
pub(crate) async fn refresh<'a>(client: &Client, shards: impl IntoIterator<Item = &'a Shard>) -> Result<()> {
    #[derive(Deserialize)]
    struct Refreshed {
        _shards: Shards,
    }
    const ACTION: &str = "refresh what changed";
    let indices: BTreeSet<&str> = shards.into_iter().map(|shard| shard.index.as_str()).collect();
    for names in Vec::from_iter(indices).chunks(50) {
        let names = names.iter().map(|name| in_url(name)).collect::<Vec<_>>().join(",");
        let path = format!("/{names}/_refresh?ignore_unavailable=true");
        let done: Refreshed = client.json(ACTION, Method::POST, &path, None).await?;
        if done._shards.failed > 0 {
            return Err(unavailable(ACTION, &client.label(), "a shard did not answer"));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Shards {
    #[serde(default)]
    failed: u64,
    #[serde(default)]
    total: u64,
}

/// A document that a search found.
#[derive(Debug, Deserialize)]
pub(crate) struct Hit {
    #[serde(rename = "_id")]
    pub(crate) id: String,
    #[serde(rename = "_routing")]
    pub(crate) routing: Option<String>,
    #[serde(rename = "_version", default)]
    pub(crate) version: u64,
    #[serde(rename = "_seq_no")]
    pub(crate) seq_no: i64,
    #[serde(rename = "_source", default, deserialize_with = "raw")]
    pub(crate) source: Option<Bytes>,
}

/// Byte for byte, as the store has it.
fn raw<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Bytes>, D::Error> {
    let raw: Option<Box<RawValue>> = Option::deserialize(deserializer)?;
    Ok(raw.map(|raw| Bytes::copy_from_slice(raw.get().as_bytes())))
}

#[derive(Deserialize)]
struct Found {
    timed_out: bool,
    _shards: Shards,
    hits: Hits,
}

#[derive(Deserialize)]
struct Hits {
    hits: Vec<Hit>,
}

/// What a page is to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// Numbers above this.
    pub(crate) after: i64,
    /// And up to this.
    pub(crate) to: i64,
}

/// A page of a shard in the order of its numbers, and whether more may follow.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) hits: Vec<Hit>,
    pub(crate) more: bool,
}

/// Reads the documents of `shard` whose last operation has a number in `range`, the lowest first, about `count` of them:
/// fewer where they are large or their numbers far apart, and `count` is set to what a next page holds well. A document
/// that is written meanwhile gets a higher number, so that nothing is missed and nothing comes twice, however long the
/// reading takes: no point in time has to be kept, and none expires (FF34). With `source` off documents come without their
/// content.
///
/// # Errors
///
/// As [`Client::send`]. `Retry`, too, where not all of the shard was searched.
pub(crate) async fn page(
    client: &Client,
    shard: &Shard,
    range: Range,
    count: &mut usize,
    source: bool,
) -> Result<Page> {
    const ACTION: &str = "read documents in the order of their numbers";
    let path = format!(
        "/{}/_search?preference=_shards:{}&allow_partial_search_results=false&request_cache=false",
        in_url(&shard.index),
        shard.id.number
    );
    let mut to = range.after.saturating_add(NEAR.saturating_mul(*count as i64)).min(range.to);
    loop {
        let body = serde_json::json!({
            "size": *count, "track_total_hits": false, "version": true, "seq_no_primary_term": true,
            "_source": source, "stored_fields": ["_routing"], "sort": [{"_seq_no": "asc"}],
            "query": {"range": {"_seq_no": {"gt": range.after, "lte": to}}},
        });
        let bytes_max = if *count == 1 { ANSWER_BYTES_MAX } else { PAGE_BYTES_MAX };
        let body = Bytes::from(body.to_string());
        let answer = match client.send_at_most(ACTION, Method::POST, &path, Some(body), bytes_max).await? {
            Read::TooLarge if *count > 1 => {
                *count = (*count / 4).max(1);
                continue;
            }
            Read::TooLarge => {
                return Err(client.garbled("document", format!("is larger than {ANSWER_BYTES_MAX} bytes")));
            }
            Read::Whole(answer) => answer.ok(ACTION)?,
        };
        let found: Found = answer.parse(ACTION)?;
        if found.timed_out || found._shards.failed > 0 || found._shards.total == 0 {
            return Err(unavailable(
                ACTION,
                &client.label(),
                format!("{} was not searched whole", shard.index),
            ));
        }
        let hits = found.hits.hits;
        let more = hits.len() == *count || to < range.to;
        if hits.is_empty() && more {
            to = range.to;
            continue;
        }
        if !hits.is_empty() {
            let fits = hits.len() * (PAGE_BYTES_MAX / 2) / answer.body.len();
            *count = fits.clamp(1, PAGE_MAX.min(*count * PAGE_GROWTH));
        }
        return Ok(Page { hits, more });
    }
}

/// A document asked for by its id.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Got {
    #[serde(default)]
    pub(crate) found: bool,
    #[serde(rename = "_version", default)]
    pub(crate) version: u64,
    #[serde(rename = "_seq_no", default)]
    pub(crate) seq_no: i64,
    #[serde(rename = "_primary_term", default)]
    pub(crate) primary_term: u64,
    #[serde(rename = "_source", default, deserialize_with = "raw")]
    pub(crate) source: Option<Bytes>,
    #[serde(default)]
    pub(crate) error: Option<serde_json::Value>,
}

/// What the documents hold now, whether or not it is visible to searches yet; of an index that is not there, none is.
///
/// # Errors
///
/// As [`Client::send`]. `Retry`, too, where a shard does not answer.
pub(crate) async fn get(client: &Client, docs: &[Doc], source: bool) -> Result<Vec<Got>> {
    let mut all = Vec::with_capacity(docs.len());
    let mut count = MGET_MAX;
    let mut rest = docs;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(count.min(rest.len()));
        match get_some(client, now, source).await? {
            Some(got) => {
                all.extend(got);
                rest = later;
            }
            None => count = (count / 4).max(1),
        }
    }
    Ok(all)
}

/// `None`: they are too large together.
async fn get_some(client: &Client, docs: &[Doc], source: bool) -> Result<Option<Vec<Got>>> {
    #[derive(Deserialize)]
    struct All {
        docs: Vec<Got>,
    }
    const ACTION: &str = "read documents by their ids";
    let asked: Vec<_> = docs
        .iter()
        .map(|doc| {
            let mut asked = serde_json::json!({"_index": doc.index, "_id": doc.id, "_source": source});
            if let (Some(routing), Some(asked)) = (&doc.routing, asked.as_object_mut()) {
                asked.insert("routing".to_owned(), routing.clone().into());
            }
            asked
        })
        .collect();
    let body = Bytes::from(serde_json::json!({ "docs": asked }).to_string());
    let bytes_max = if docs.len() == 1 { ANSWER_BYTES_MAX } else { PAGE_BYTES_MAX };
    let answer = match client.send_at_most(ACTION, Method::POST, "/_mget", Some(body), bytes_max).await? {
        Read::TooLarge if docs.len() > 1 => return Ok(None),
        Read::TooLarge => {
            return Err(client.garbled("document", format!("is larger than {ANSWER_BYTES_MAX} bytes")));
        }
        Read::Whole(answer) => answer.ok(ACTION)?,
    };
    let all: All = answer.parse(ACTION)?;
    if all.docs.len() != docs.len() {
        return Err(client
            .garbled("answer", format!("{ACTION}: {} came, {} were asked for", all.docs.len(), docs.len())));
    }
    for got in &all.docs {
        let Some(error) = &got.error else { continue };
        let kind = error.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
        if kind != "index_not_found_exception" {
            return Err(unavailable(ACTION, &client.label(), crate::http::reason(error)));
        }
    }
    Ok(Some(all.docs))
}

/// The cluster's id: what numbers a site's stream.
///
/// # Errors
///
/// As [`Client::send`].
pub(crate) async fn cluster_uuid(client: &Client) -> Result<String> {
    #[derive(Deserialize)]
    struct State {
        cluster_uuid: String,
    }
    let path = "/_cluster/state/version?filter_path=cluster_uuid";
    let state: State = client.json("ask for the cluster's id", Method::GET, path, None).await?;
    if state.cluster_uuid.is_empty() || state.cluster_uuid == "_na_" {
        return Err(Error::Unavailable {
            action: "ask for the cluster's id".into(),
            endpoint: client.label(),
            source: "the cluster has no master yet".into(),
        });
    }
    Ok(state.cluster_uuid)
}
