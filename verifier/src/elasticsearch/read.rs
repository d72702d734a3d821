use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::{Space, document};
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::canonical::digest;
use super::connect::{Answer, Link};
use super::open::Indices;
use crate::compare::{Page, Place, Reader, State};
use crate::digest::never_equal;
use crate::error::Result;
use crate::window::Window;

/// Ids of a page.
const PAGE: u64 = 1_000;
/// Documents asked for at once, and the bytes of an answer; a larger document comes alone.
const DOCS_AT_ONCE: usize = 200;
const BYTES_AT_ONCE: usize = 16 << 20;
/// How long a point in time is kept from one page to the next.
const KEEP_ALIVE: &str = "5m";

const INDICES: &str = "ask for the indices";
const LIST: &str = "list ids";

/// One site's cluster. A document's name is its id, and its routing behind a zero byte where it has one, as the log has it.
pub(crate) struct EsReader {
    pub(super) link: Link,
    pub(super) indices: Indices,
    /// The open indices of the channel, as they were when it was opened.
    pub(super) there: Vec<String>,
    /// Where pages go on.
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    last: u64,
    open: HashMap<u64, GoesOn>,
    /// Of the listing by time: one at a time.
    by_time: Option<GoesOn>,
}

/// A point in time, and the last document's place in it.
type GoesOn = (String, Box<RawValue>);

#[derive(Deserialize)]
struct Searched {
    pit_id: String,
    timed_out: bool,
    _shards: Shards,
    hits: Hits,
}

#[derive(Deserialize)]
struct Shards {
    #[serde(default)]
    failed: u64,
}

#[derive(Deserialize)]
struct Hits {
    hits: Vec<Hit>,
}

#[derive(Deserialize)]
struct Hit {
    _id: String,
    _routing: Option<String>,
    sort: Box<RawValue>,
}

/// A document as the store tells it when it is asked for its id.
#[derive(Deserialize)]
pub(super) struct Got<'a> {
    #[serde(default)]
    pub(super) found: bool,
    #[serde(rename = "_seq_no", default)]
    pub(super) seq_no: i64,
    #[serde(rename = "_primary_term", default)]
    pub(super) primary_term: u64,
    #[serde(rename = "_source", borrow, default)]
    pub(super) source: Option<&'a RawValue>,
    pub(super) error: Option<GotError>,
}

#[derive(Deserialize)]
pub(super) struct GotError {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

impl Got<'_> {
    /// What is there. A document without `_source` equals no other.
    pub(super) fn state(&self) -> Option<State> {
        let digest = || self.source.and_then(|source| digest(source.get())).unwrap_or_else(never_equal);
        self.found.then(|| State { what: "document", digest: digest(), expire_at: None })
    }
}

#[derive(Deserialize)]
struct AllGot<'a> {
    #[serde(borrow)]
    docs: Vec<Got<'a>>,
}

/// Of a part of a URL's path.
pub(super) fn in_url(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

impl EsReader {
    /// # Errors
    ///
    /// The site's.
    pub(super) async fn new(link: Link, indices: Indices) -> Result<EsReader> {
        let mut reader = EsReader { link, indices, there: Vec::new(), pages: Mutex::default() };
        reader.there = reader.open_indices().await?;
        Ok(reader)
    }

    /// The open indices that the channel carries, sorted.
    async fn open_indices(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Resolved {
            #[serde(default)]
            indices: Vec<Named>,
        }
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        let globs: Vec<String> = self
            .indices
            .globs
            .iter()
            .map(|glob| glob.split('*').map(in_url).collect::<Vec<_>>().join("*"))
            .collect();
        let path = format!("/_resolve/index/{}?expand_wildcards=open", globs.join(","));
        let found: Option<Resolved> = self.link.json(INDICES, Method::GET, &path, None).await?;
        let mut names: Vec<String> =
            found.map_or(Vec::new(), |found| found.indices.into_iter().map(|index| index.name).collect());
        names.retain(|name| self.indices.carries(name));
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn index<'a>(&self, space: &'a Space) -> Result<&'a str> {
        match space {
            Space::Index(name) => std::str::from_utf8(name).ok(),
            _ => None,
        }
        .ok_or_else(|| self.link.site.failed("read documents", format!("{space:?} is no index")))
    }

    /// Hands `each` what the store says of each of `names`, by its place.
    pub(super) async fn get(
        &self,
        index: &str,
        names: &[Bytes],
        source: bool,
        mut each: impl FnMut(usize, &Got<'_>) -> Result<()>,
    ) -> Result<()> {
        const ACTION: &str = "read documents by their ids";
        let (mut from, mut count) = (0, DOCS_AT_ONCE);
        while let Some(rest) = names.get(from..).filter(|rest| !rest.is_empty()) {
            let now = rest.get(..count).unwrap_or(rest);
            let docs: Vec<_> = now
                .iter()
                .map(|name| {
                    // What is no name is that of no document.
                    let (id, routing) = document::parts(name).unwrap_or(("\0", None));
                    let mut doc = serde_json::json!({"_index": index, "_id": id, "_source": source});
                    if let (Some(routing), Some(doc)) = (routing, doc.as_object_mut()) {
                        doc.insert("routing".to_owned(), routing.into());
                    }
                    doc
                })
                .collect();
            let body = serde_json::json!({ "docs": docs }).to_string();
            let bytes_max = if now.len() == 1 { usize::MAX } else { BYTES_AT_ONCE };
            let body = match self.link.ask(ACTION, Method::POST, "/_mget", Some(body), bytes_max).await? {
                Answer::Whole(_, body) => body,
                Answer::TooLarge(_) => {
                    count = (count / 4).max(1);
                    continue;
                }
            };
            let all: AllGot<'_> = self.link.parse(ACTION, &body)?;
            if all.docs.len() != now.len() {
                return Err(self.link.site.failed(ACTION, "it answers other documents than were asked for"));
            }
            for (n, got) in all.docs.iter().enumerate() {
                if let Some(error) =
                    got.error.as_ref().filter(|error| error.kind != "index_not_found_exception")
                {
                    return Err(self.link.site.failed(ACTION, &error.kind));
                }
                each(from + n, got)?;
            }
            from += now.len();
        }
        Ok(())
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `field` of `index` holds dates.
    async fn is_date(&self, index: &str, field: &str) -> Result<bool> {
        let path = format!("/{}/_mapping/field/{}", in_url(index), in_url(field));
        let found: Option<serde_json::Value> = self.link.json(INDICES, Method::GET, &path, None).await?;
        let of_field =
            found.as_ref().and_then(|found| found.get(index)?.get("mappings")?.get(field)?.get("mapping"));
        let kinds = of_field.and_then(|mapping| mapping.as_object()).into_iter().flatten();
        let mut kinds = kinds.filter_map(|(_, one)| one.get("type")?.as_str());
        Ok(kinds.any(|kind| kind == "date" || kind == "date_nanos"))
    }

    /// A page of the names in `index` of which `query` holds; and from where the next one goes on.
    async fn list(
        &self,
        index: &str,
        open: Option<GoesOn>,
        query: Option<serde_json::Value>,
    ) -> Result<(Vec<Bytes>, Option<GoesOn>)> {
        let (pit, after) = match open {
            Some((pit, after)) => (pit, Some(after)),
            None => {
                #[derive(Deserialize)]
                struct Pit {
                    id: String,
                }
                let path = format!("/{}/_pit?keep_alive={KEEP_ALIVE}", in_url(index));
                // The other site has the index alone.
                let Some(pit) = self.link.json::<Pit>(LIST, Method::POST, &path, None).await? else {
                    return Ok((Vec::new(), None));
                };
                (pit.id, None)
            }
        };
        let mut body = BTreeMap::from([
            ("size", serde_json::json!(PAGE)),
            ("_source", serde_json::json!(false)),
            ("stored_fields", serde_json::json!(["_routing"])),
            ("track_total_hits", serde_json::json!(false)),
            ("pit", serde_json::json!({"id": pit, "keep_alive": KEEP_ALIVE})),
            ("sort", serde_json::json!([{"_shard_doc": "asc"}])),
        ]);
        body.extend(query.map(|query| ("query", query)));
        if let Some(after) = &after {
            body.insert("search_after", serde_json::to_value(after).unwrap_or_default());
        }
        let body = serde_json::to_string(&body).unwrap_or_default();
        let path = "/_search?allow_partial_search_results=false";
        let found: Option<Searched> = self.link.json(LIST, Method::POST, path, Some(body)).await?;
        let Some(found) = found.filter(|found| !found.timed_out && found._shards.failed == 0) else {
            let reason = "the point in time is over, or not all shards answered: run it again";
            return Err(self.link.site.failed(LIST, reason));
        };
        let names: Vec<Bytes> =
            found.hits.hits.iter().map(|hit| document::name(&hit._id, hit._routing.as_deref())).collect();
        let last = found.hits.hits.into_iter().next_back().filter(|_| names.len() as u64 == PAGE);
        if let Some(hit) = last {
            return Ok((names, Some((found.pit_id, hit.sort))));
        }
        let body = serde_json::json!({ "id": found.pit_id }).to_string();
        // Where it fails the point in time ends by itself.
        let _ =
            self.link.ask("close the point in time", Method::DELETE, "/_pit", Some(body), usize::MAX).await;
        Ok((names, None))
    }
}

impl Reader for EsReader {
    type Hint = ();

    async fn spaces(&self) -> Result<Vec<(Space, u64)>> {
        #[derive(Deserialize)]
        struct Count {
            count: u64,
        }
        let mut spaces = Vec::new();
        for name in self.open_indices().await? {
            // What was written and is not visible yet is neither counted nor listed.
            let path = format!("/{}/_refresh", in_url(&name));
            self.link.ask("refresh", Method::POST, &path, None, usize::MAX).await?;
            let path = format!("/{}/_count", in_url(&name));
            if let Some(count) = self.link.json::<Count>(INDICES, Method::GET, &path, None).await? {
                spaces.push((Space::Index(name.into()), count.count));
            }
        }
        Ok(spaces)
    }

    async fn page(&self, space: &Space, cursor: u64) -> Result<Page> {
        let open = match self.pages().open.remove(&cursor) {
            None if cursor != 0 => return Err(self.link.site.failed(LIST, "it goes on nowhere")),
            open => open,
        };
        let (names, goes_on) = self.list(self.index(space)?, open, None).await?;
        let next = goes_on.map(|goes_on| {
            let pages = &mut *self.pages();
            pages.last += 1;
            pages.open.insert(pages.last, goes_on);
            pages.last
        });
        Ok(Page { scanned: names.len() as u64, names, next })
    }

    async fn page_by_time(
        &self,
        space: &Space,
        (field, window): (&str, Window),
        after: Option<&Bytes>,
    ) -> Result<Option<Vec<Bytes>>> {
        let index = self.index(space)?;
        let open = match after {
            None if !self.is_date(index, field).await? => return Ok(None),
            None => None,
            // The page before was the last one, or this goes on behind it.
            Some(_) => match self.pages().by_time.take() {
                None => return Ok(Some(Vec::new())),
                open => open,
            },
        };
        let of_window = serde_json::json!({
            "range": {field: {"gte": window.from, "lt": window.to, "format": "epoch_millis"}},
        });
        let (names, goes_on) = self.list(index, open, Some(of_window)).await?;
        self.pages().by_time = goes_on;
        Ok(Some(names))
    }

    async fn look(&self, _: &Space, names: &[Bytes]) -> Result<Vec<()>> {
        Ok(vec![(); names.len()])
    }

    async fn read(&self, space: &Space, names: &[Bytes], _: &[()]) -> Result<Vec<Option<State>>> {
        let mut states = vec![None; names.len()];
        self.get(self.index(space)?, names, true, |at, got| {
            if let Some(state) = states.get_mut(at) {
                *state = got.state();
            }
            Ok(())
        })
        .await?;
        Ok(states)
    }

    async fn probe(&self) -> Result<Duration> {
        self.link.probe().await
    }

    fn hold(&self, is_held: bool) {
        self.link.pace.hold(is_held);
    }

    async fn absent(&self, space: &Space, names: &[Bytes]) -> Result<Vec<usize>> {
        let mut absent = Vec::new();
        self.get(self.index(space)?, names, false, |at, got| {
            if !got.found {
                absent.push(at);
            }
            Ok(())
        })
        .await?;
        Ok(absent)
    }

    fn place(&self, space: &Space, name: &[u8]) -> Place {
        match self.index(space) {
            Ok(index) if self.indices.carries(index) && document::parts(name).is_some() => Place::Key,
            _ => Place::Outside,
        }
    }
}
