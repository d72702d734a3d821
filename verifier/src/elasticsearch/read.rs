use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway_core::Space;
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::canonical::digest;
use super::connect::{Answer, Link};
use super::open::Indices;
use crate::compare::{Page, Place, Reader, State};
use crate::digest::never_equal;
use crate::error::{Error, Result};
use crate::undo::{Held, PutBack, Undoable, Value};

/// Ids of a page.
const PAGE: u64 = 1_000;
/// Documents asked for at once, and the bytes of an answer; a larger document comes alone.
const DOCS_AT_ONCE: usize = 200;
const BYTES_AT_ONCE: usize = 16 << 20;
/// How long a point in time is kept from one page to the next.
const KEEP_ALIVE: &str = "5m";

/// One site's cluster. A document's name is its id, and its routing behind a zero byte where it has one, as the log has it.
pub(crate) struct EsReader {
    link: Link,
    indices: Indices,
    /// Where pages go on: the point in time and the last document's place in it.
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    last: u64,
    open: HashMap<u64, (String, Box<RawValue>)>,
}

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

#[derive(Deserialize)]
struct Got<'a> {
    #[serde(default)]
    found: bool,
    #[serde(borrow, default)]
    _source: Option<&'a RawValue>,
    error: Option<GotError>,
}

#[derive(Deserialize)]
struct GotError {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct AllGot<'a> {
    #[serde(borrow)]
    docs: Vec<Got<'a>>,
}

fn name(id: &str, routing: Option<&str>) -> Bytes {
    match routing {
        Some(routing) => format!("{id}\0{routing}").into(),
        None if id.contains('\0') => format!("{id}\0").into(),
        None => Bytes::copy_from_slice(id.as_bytes()),
    }
}

/// Of a part of a URL's path.
fn in_url(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

impl EsReader {
    pub(super) fn new(link: Link, indices: Indices) -> EsReader {
        EsReader { link, indices, pages: Mutex::default() }
    }

    fn index<'a>(&self, space: &'a Space) -> Result<&'a str> {
        match space {
            Space::Index(name) => std::str::from_utf8(name).ok(),
            _ => None,
        }
        .ok_or_else(|| self.link.site.failed("read documents", format!("{space:?} is no index")))
    }

    /// Hands `each` what the store says of each of `names`, by its place.
    async fn get(
        &self,
        index: &str,
        names: &[Bytes],
        source: bool,
        mut each: impl FnMut(usize, Option<&RawValue>, bool),
    ) -> Result<()> {
        const ACTION: &str = "read documents by their ids";
        let (mut from, mut count) = (0, DOCS_AT_ONCE);
        while let Some(rest) = names.get(from..).filter(|rest| !rest.is_empty()) {
            let now = rest.get(..count).unwrap_or(rest);
            let docs: Vec<_> = now
                .iter()
                .map(|name| {
                    let name = String::from_utf8_lossy(name);
                    let (id, routing) = name.rsplit_once('\0').unwrap_or((&name, ""));
                    let mut doc = serde_json::json!({"_index": index, "_id": id, "_source": source});
                    if let (false, Some(doc)) = (routing.is_empty(), doc.as_object_mut()) {
                        doc.insert("routing".to_owned(), routing.into());
                    }
                    doc
                })
                .collect();
            let body = serde_json::json!({ "docs": docs }).to_string();
            let bytes_max = if now.len() == 1 { usize::MAX } else { BYTES_AT_ONCE };
            let body = match self.link.ask(ACTION, Method::POST, "/_mget", Some(body), bytes_max).await? {
                Answer::Whole(_, body) => body,
                Answer::TooLarge => {
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
                each(from + n, got._source, got.found);
            }
            from += now.len();
        }
        Ok(())
    }

    fn not_built(&self) -> Error {
        self.link.site.failed("repair", "`repair` and `undo` are not built for Elasticsearch yet: `check` is")
    }
}

impl Reader for EsReader {
    type Hint = ();

    async fn spaces(&self) -> Result<Vec<(Space, u64)>> {
        const ACTION: &str = "ask for the indices";
        #[derive(Deserialize)]
        struct Resolved {
            #[serde(default)]
            indices: Vec<Named>,
        }
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        #[derive(Deserialize)]
        struct Count {
            count: u64,
        }
        let globs: Vec<String> = self
            .indices
            .globs
            .iter()
            .map(|glob| glob.split('*').map(in_url).collect::<Vec<_>>().join("*"))
            .collect();
        let path = format!("/_resolve/index/{}?expand_wildcards=open", globs.join(","));
        let found: Option<Resolved> = self.link.json(ACTION, Method::GET, &path, None).await?;
        let mut names: Vec<String> =
            found.map_or(Vec::new(), |found| found.indices.into_iter().map(|index| index.name).collect());
        names.retain(|name| self.indices.carries(name));
        names.sort_unstable();
        let mut spaces = Vec::new();
        for name in names {
            // What was written and is not visible yet is neither counted nor listed.
            let path = format!("/{}/_refresh", in_url(&name));
            self.link.ask("refresh", Method::POST, &path, None, usize::MAX).await?;
            let path = format!("/{}/_count", in_url(&name));
            if let Some(count) = self.link.json::<Count>(ACTION, Method::GET, &path, None).await? {
                spaces.push((Space::Index(name.into()), count.count));
            }
        }
        Ok(spaces)
    }

    async fn page(&self, space: &Space, cursor: u64) -> Result<Page> {
        const ACTION: &str = "list ids";
        let index = self.index(space)?;
        let open = self.pages.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&cursor);
        let (pit, after) = match open {
            Some((pit, after)) => (pit, Some(after)),
            None if cursor != 0 => return Err(self.link.site.failed(ACTION, "it goes on nowhere")),
            None => {
                #[derive(Deserialize)]
                struct Pit {
                    id: String,
                }
                let path = format!("/{}/_pit?keep_alive={KEEP_ALIVE}", in_url(index));
                // The other site has the index alone.
                let Some(pit) = self.link.json::<Pit>(ACTION, Method::POST, &path, None).await? else {
                    return Ok(Page::default());
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
        if let Some(after) = &after {
            body.insert("search_after", serde_json::to_value(after).unwrap_or_default());
        }
        let body = serde_json::to_string(&body).unwrap_or_default();
        let path = "/_search?allow_partial_search_results=false";
        let found: Option<Searched> = self.link.json(ACTION, Method::POST, path, Some(body)).await?;
        let Some(found) = found.filter(|found| !found.timed_out && found._shards.failed == 0) else {
            let reason = "the point in time is over, or not all shards answered: run it again";
            return Err(self.link.site.failed(ACTION, reason));
        };
        let names: Vec<Bytes> =
            found.hits.hits.iter().map(|hit| name(&hit._id, hit._routing.as_deref())).collect();
        let scanned = names.len() as u64;
        let last = found.hits.hits.into_iter().next_back().filter(|_| scanned == PAGE);
        let next = match last {
            Some(hit) => {
                let pages = &mut *self.pages.lock().unwrap_or_else(PoisonError::into_inner);
                pages.last += 1;
                pages.open.insert(pages.last, (found.pit_id, hit.sort));
                Some(pages.last)
            }
            None => {
                let body = serde_json::json!({ "id": found.pit_id }).to_string();
                // Where it fails the point in time ends by itself.
                let _ = self
                    .link
                    .ask("close the point in time", Method::DELETE, "/_pit", Some(body), usize::MAX)
                    .await;
                None
            }
        };
        Ok(Page { names, scanned, next })
    }

    async fn look(&self, _: &Space, names: &[Bytes]) -> Result<Vec<()>> {
        Ok(vec![(); names.len()])
    }

    async fn read(&self, space: &Space, names: &[Bytes], _: &[()]) -> Result<Vec<Option<State>>> {
        let mut states = vec![None; names.len()];
        let one = |digest| State { what: "document", digest, expire_at: None };
        self.get(self.index(space)?, names, true, |at, source, found| {
            if let Some(state) = states.get_mut(at).filter(|_| found) {
                // One without _source equals no other.
                let digest = source.and_then(|source| digest(source.get())).unwrap_or_else(never_equal);
                *state = Some(one(digest));
            }
        })
        .await?;
        Ok(states)
    }

    async fn probe(&self) -> Result<Duration> {
        let began = Instant::now();
        self.link
            .ask("ask whether it is there", Method::GET, "/_cluster/health?filter_path=status", None, 1 << 20)
            .await?;
        Ok(began.elapsed())
    }

    fn hold(&self, is_held: bool) {
        self.link.pace.hold(is_held);
    }

    async fn absent(&self, space: &Space, names: &[Bytes]) -> Result<Vec<usize>> {
        let mut absent = Vec::new();
        self.get(self.index(space)?, names, false, |at, _, found| {
            if !found {
                absent.push(at);
            }
        })
        .await?;
        Ok(absent)
    }

    fn place(&self, _: &Space, _: &[u8]) -> Place {
        Place::Key
    }
}

impl Undoable for EsReader {
    async fn keep(
        &self,
        _: &Space,
        _: &[Bytes],
        _: u64,
        _: &mut (dyn FnMut(usize, Held) -> Result<()> + Send),
    ) -> Result<()> {
        Err(self.not_built())
    }

    fn obstacle(&self, _: &Space, _: Option<&Value>) -> Option<String> {
        Some("`undo` is not built for Elasticsearch yet".to_owned())
    }

    async fn put_back(
        &self,
        _: &Space,
        _: &Bytes,
        _: Option<&Value>,
        _: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> Result<PutBack> {
        Err(self.not_built())
    }
}
