//! Stories of two Elasticsearch nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_stories::{Seat, seed, story_seconds};
use causeway_testkit::elasticsearch::{ElasticsearchServer, elasticsearch_home, request};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::Status;

const DRAIN: Duration = Duration::from_secs(120);
/// Documents that only one site writes, of each site; and those that both write.
const OWN: u64 = 200;
const HOT: u64 = 20;
/// Documents that were there before, of which each site deletes its half.
const OLD: u64 = 1_000;

/// Two nodes and a daemon for both, with one channel `push` between them.
struct Pair {
    nodes: [ElasticsearchServer; 2],
    seat: Seat,
}

/// An index's documents by their ids, as text.
type Documents = BTreeMap<String, String>;

impl Pair {
    fn new(more: &str) -> Result<Option<Pair>> {
        if elasticsearch_home().is_none() {
            return Ok(None);
        }
        let nodes = ElasticsearchServer::start_both(&[])?;
        let text = format!(
            "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"push\"\n\
             store = \"elasticsearch\"\ndirection = \"both\"\nsnapshot = \"dc\"\nindices = [\"push-*\"]\npoll = \"100ms\"\n\
             deletes = \"500ms\"\n{more}\ndc = {{ url = \"{}\" }}\ncloud = {{ url = \"{}\" }}\n",
            nodes[0].url(),
            nodes[1].url()
        );
        Ok(Some(Pair { seat: Seat::with(&text)?, nodes }))
    }

    /// What a site's index holds.
    fn documents(&self, site: usize, index: &str) -> Result<Documents> {
        let node = &self.nodes[site];
        node.must("POST", &format!("/{index}/_refresh"), "")?;
        let found =
            node.must("POST", &format!("/{index}/_search"), r#"{"size":10000,"seq_no_primary_term":true}"#)?;
        let hits = found.pointer("/hits/hits").and_then(|hits| hits.as_array()).context("no hits")?;
        let document = |hit: &serde_json::Value| {
            Some((hit.get("_id")?.as_str()?.to_owned(), hit.get("_source")?.to_string()))
        };
        Ok(hits.iter().filter_map(document).collect())
    }

    /// Waits until each site has what the other wrote last, and nothing is under way; then until both hold the same, which
    /// takes a listing where something was deleted. What they hold.
    fn wait_until_equal(&self, index: &str) -> Result<(Status, Documents)> {
        let n = std::time::UNIX_EPOCH.elapsed()?.as_micros();
        for (site, node) in self.nodes.iter().enumerate() {
            node.must("PUT", &format!("/{index}/_doc/end-{site}"), &format!("{{\"v\":\"{n}\"}}"))?;
        }
        let has_both = |node: &ElasticsearchServer| {
            (0..2).all(|site| {
                let found = node.request("GET", &format!("/{index}/_source/end-{site}"), "");
                found.is_ok_and(|(_, text)| text.contains(&n.to_string()))
            })
        };
        self.seat.wait_until("the last writes", DRAIN, |_| self.nodes.iter().all(has_both))?;
        let until = Instant::now() + DRAIN;
        loop {
            let status = self.seat.wait_until_drained(DRAIN)?;
            let (dc, cloud) = (self.documents(0, index)?, self.documents(1, index)?);
            if dc == cloud {
                return Ok((status, dc));
            }
            let differs: Vec<_> = dc
                .keys()
                .chain(cloud.keys())
                .filter(|id| dc.get(*id) != cloud.get(*id))
                .map(|id| format!("{id}: {:?}, {:?}", dc.get(id), cloud.get(id)))
                .take(5)
                .collect();
            ensure!(Instant::now() < until, "they differ in {differs:?}\n{}", self.seat.log_end());
        }
    }
}

/// Writes at one site until it is stopped, and keeps of its own documents what was acknowledged last.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<String, Acknowledged>>,
}

/// What a document of one writer alone may hold.
#[derive(Debug, Clone)]
struct Acknowledged {
    last: Option<String>,
    /// Sent since, and nobody answered.
    open: Vec<Option<String>>,
}

impl Writer {
    fn start(site: usize, port: u16, seed: u64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, port) = (Arc::clone(&stop), Arc::new(AtomicU16::new(port)));
        let thread = std::thread::spawn(move || {
            let (mut rng, mut kept) =
                (SmallRng::seed_from_u64(seed), BTreeMap::<String, Acknowledged>::new());
            let mut n = 0_u64;
            while !stopped.load(Ordering::SeqCst) {
                n += 1;
                let text = format!("{{\"v\":\"{site}-{n}\"}}");
                let (id, text) = match rng.random_range(0..16) {
                    0..4 => (format!("hot-{}", rng.random_range(0..HOT)), Some(text)),
                    // Each site deletes others.
                    4 => (format!("old-{}", rng.random_range(0..OLD / 2) * 2 + site as u64), None),
                    _ => (format!("own-{site}-{}", rng.random_range(0..OWN)), Some(text)),
                };
                let path = format!("/push-1/_doc/{id}");
                let port = port.load(Ordering::SeqCst);
                let answer = match &text {
                    Some(text) => request(port, "PUT", &path, text),
                    None => request(port, "DELETE", &path, ""),
                };
                if id.starts_with("hot") {
                    continue;
                }
                let before = id.strip_prefix("old-").map(|n| format!("{{\"v\":\"old {n}\"}}"));
                let entry = kept.entry(id).or_insert(Acknowledged { last: before, open: Vec::new() });
                match answer {
                    // Deleted before.
                    Ok((404, answer)) if text.is_none() && answer.contains("not_found\"") => {}
                    Ok((200..=299, _)) => *entry = Acknowledged { last: text, open: Vec::new() },
                    // The node is away, or came back and does not serve yet: nobody knows.
                    _ => {
                        entry.open.push(text);
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            }
            kept
        });
        Writer { stop, thread }
    }

    fn finish(self) -> Result<BTreeMap<String, Acknowledged>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))
    }
}

const INDEX: &str = r#"{"settings":{"number_of_shards":2,"number_of_replicas":0},"mappings":{"properties":{"v":{"type":"keyword"}}},
    "aliases":{"push":{}}}"#;

/// A new user's first minutes: what exists is copied, into an index made like it, what follows is carried both ways, deletes
/// too, and all of ours can be taken out again.
#[test]
fn what_exists_and_what_follows_arrive_at_the_other_site() -> Result<()> {
    let Some(mut pair) = Pair::new("")? else { return Ok(()) };
    pair.nodes[0].must("PUT", "/push-1", INDEX)?;
    let mut body = String::new();
    for n in 0..2_000 {
        body.push_str(&format!("{{\"index\":{{\"_id\":\"old-{n}\"}}}}\n{{\"v\":\"old {n}\"}}\n"));
    }
    pair.nodes[0].must("POST", "/push-1/_bulk?refresh=true", &body)?;
    let checked = pair.seat.syncd(&["check"])?;
    ensure!(checked.status.success(), "check: {}", String::from_utf8_lossy(&checked.stdout));
    pair.seat.start(None)?;
    let copied = |_: &Status| pair.documents(1, "push-1").is_ok_and(|documents| documents.len() == 2_000);
    pair.seat.wait_until("the copy", DRAIN, copied)?;
    pair.seat.wait_until_drained(DRAIN)?;
    // By number, as text, and one that only says what its type is.
    pair.nodes[0].must("PUT", "/push-1/_doc/new", r#"{"v":"of dc","n":1.50,"since":"2026-01-01"}"#)?;
    pair.nodes[0].must("DELETE", "/push-1/_doc/old-7", "")?;
    pair.nodes[1].must("PUT", "/push-1/_doc/old-8", r#"{"v":"of cloud"}"#)?;
    pair.nodes[1].must("DELETE", "/push-1/_doc/old-9", "")?;
    // An index that nobody knew when the daemon began.
    pair.nodes[1].must("PUT", "/push-2", INDEX.replace("push\"", "push-second\"").as_str())?;
    pair.nodes[1].must("PUT", "/push-2/_doc/1", r#"{"v":"of cloud"}"#)?;
    let gone = |_: &Status| {
        let is_gone = |site: usize, id: &str| {
            pair.nodes[site]
                .request("GET", &format!("/push-1/_doc/{id}"), "")
                .is_ok_and(|(status, _)| status == 404)
        };
        is_gone(1, "old-7") && is_gone(0, "old-9")
    };
    pair.seat.wait_until("the deletes", DRAIN, gone)?;
    let (status, documents) = pair.wait_until_equal("push-1")?;
    ensure!(documents.len() == 2_000 - 2 + 1 + 2, "{} documents", documents.len());
    ensure!(
        documents.get("old-8").is_some_and(|text| text.contains("of cloud")),
        "{:?}",
        documents.get("old-8")
    );
    let dead: u64 = status.channels.iter().flat_map(|c| &c.directions).map(|d| d.dead_letters).sum();
    ensure!(dead == 0, "{dead} dead letters\n{}", pair.seat.log_end());
    pair.wait_until_equal("push-2")?;
    let raw = pair.nodes[1].request("GET", "/push-1/_source/new", "")?.1;
    ensure!(raw == r#"{"v":"of dc","n":1.50,"since":"2026-01-01"}"#, "{raw}");
    let mapping = |site: usize| pair.nodes[site].must("GET", "/push-1/_mapping", "");
    ensure!(mapping(0)? == mapping(1)?, "the mappings differ: {} {}", mapping(0)?, mapping(1)?);
    ensure!(
        pair.nodes[1].must("GET", "/push-1/_alias", "")?.to_string().contains("\"push\""),
        "the alias lacks"
    );
    ensure!(pair.seat.terminate()? == Some(0), "{}", pair.seat.log_end());
    let cleaned = pair.seat.syncd(&["cleanup"])?;
    ensure!(cleaned.status.success(), "cleanup: {}", String::from_utf8_lossy(&cleaned.stderr));
    for node in &pair.nodes {
        let left = node.request("GET", "/_cat/indices/.causeway*?expand_wildcards=all&h=index", "")?.1;
        ensure!(left.trim().is_empty(), "{left} is left");
    }
    Ok(())
}

/// FF33, FF35, FF36, FF41. Both sites write their own documents and the same ones, and delete, while syncd and either node are killed: nothing
/// that was acknowledged is lost, and both end with the same.
#[test]
fn writes_at_both_sites_end_equal_whatever_is_killed() -> Result<()> {
    let Some(mut pair) = Pair::new("")? else { return Ok(()) };
    let seed = seed();
    let mut rng = SmallRng::seed_from_u64(seed);
    for node in &pair.nodes {
        node.must("PUT", "/push-1", INDEX)?;
    }
    let mut body = String::new();
    for n in 0..OLD {
        body.push_str(&format!("{{\"index\":{{\"_id\":\"old-{n}\"}}}}\n{{\"v\":\"old {n}\"}}\n"));
    }
    pair.nodes[0].must("POST", "/push-1/_bulk", &body)?;
    pair.seat.start(None)?;
    let copied =
        |_: &Status| pair.documents(1, "push-1").is_ok_and(|documents| documents.len() as u64 == OLD);
    pair.seat.wait_until("the copy", DRAIN, copied)?;
    // Until each site has listed them: what comes and goes between two listings is not found if nobody runs then.
    std::thread::sleep(Duration::from_secs(3));
    let writers = [0, 1].map(|site| Writer::start(site, pair.nodes[site].port(), seed ^ site as u64));
    let end = Instant::now() + story_seconds(40);
    let mut kills = 0;
    while Instant::now() < end || kills < 4 {
        std::thread::sleep(Duration::from_millis(rng.random_range(1_500..5_000)));
        match kills % 4 {
            // Each at least once, however short the story is.
            0 | 2 => {
                pair.seat.kill()?;
                pair.seat.start(None)?;
            }
            n => {
                let node = &mut pair.nodes[n / 2];
                node.kill();
                node.restart()?;
            }
        }
        kills += 1;
    }
    let kept: Vec<_> = writers.into_iter().map(Writer::finish).collect::<Result<_>>()?;
    let (_, documents) = pair.wait_until_equal("push-1")?;
    for (id, acknowledged) in kept.iter().flatten() {
        let found = documents.get(id);
        let is_right = found == acknowledged.last.as_ref() || acknowledged.open.contains(&found.cloned());
        ensure!(is_right, "seed {seed}: {id} holds {found:?}, {acknowledged:?}\n{}", pair.seat.log_end());
    }
    let is_old = |id: &&String| id.starts_with("old-");
    let (left, deleted) = (
        documents.keys().filter(is_old).count(),
        kept.iter().flat_map(BTreeMap::keys).filter(is_old).count(),
    );
    ensure!(
        (left..=left + deleted).contains(&(OLD as usize)),
        "{left} of the old ones are left, {deleted} deleted"
    );
    println!(
        "{kills} kills, {} documents, {} written by one site",
        documents.len(),
        kept.iter().flatten().count()
    );
    Ok(())
}
