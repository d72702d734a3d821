//! Stories of two Elasticsearch nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_core::time::{now_ms, rfc3339};
use causeway_core::{Hlc, Site};
use causeway_stories::{DRAIN, Seat, differing, kill_in_turn, seed, story_seconds};
use causeway_testkit::elasticsearch::{ElasticsearchServer, LentNodes, elasticsearch_home, request};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::Status;

/// Documents that only one site writes, of each site; and those that both write.
const OWN: u64 = 200;
const HOT: u64 = 20;
/// Documents that were there before, of which each site deletes its half.
const OLD: u64 = 1_000;

/// Two nodes and a daemon for both, with one channel `push` between them.
struct Pair {
    seat: Seat,
    /// Behind the daemon, which ends first.
    nodes: LentNodes,
}

/// An index's documents by their ids, as text.
type Documents = BTreeMap<String, String>;

impl Pair {
    fn new(more: &str) -> Result<Option<Pair>> {
        if elasticsearch_home().is_none() {
            return Ok(None);
        }
        let nodes = LentNodes::take()?;
        let poll = if more.contains("poll =") { "" } else { "poll = \"100ms\"" };
        let text = format!(
            "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"push\"\n\
             store = \"elasticsearch\"\ndirection = \"both\"\nsnapshot = \"dc\"\nindices = [\"push-*\"]\n{poll}\n\
             deletes = \"500ms\"\n{more}\ndc = {{ url = \"{}\" }}\ncloud = {{ url = \"{}\" }}\n",
            nodes[0].url(),
            nodes[1].url()
        );
        Ok(Some(Pair { seat: Seat::with(&text)?, nodes }))
    }

    /// Writes a document that no stream tells: with a version as our own applier gives it.
    fn plant(&self, site: usize, id: &str, query: &str, source: &str) -> Result<()> {
        let node = &self.nodes[site];
        let (_, found) = node.request("GET", &format!("/push-1/_doc/{id}?_source=false&{query}"), "")?;
        let found: serde_json::Value = serde_json::from_str(&found)?;
        let of = if site == 0 { Site::First } else { Site::Second };
        let some_time_ago = Hlc::at(now_ms() - 60_000, of);
        let version = Hlc(found["_version"].as_u64().unwrap_or(0)).next(of).max(some_time_ago).0;
        let path = format!("/push-1/_doc/{id}?version={version}&version_type=external&{query}");
        node.must("PUT", &path, source).map(drop)
    }

    /// A pair whose index has so many documents `n-N`, and two of one id, at both sites.
    fn with_documents(more: &str, count: u64) -> Result<Option<Pair>> {
        let Some(mut pair) = Pair::new(more)? else { return Ok(None) };
        pair.nodes[0].must("PUT", "/push-1", INDEX)?;
        let mut body = String::new();
        for n in 0..count {
            body.push_str(&format!("{{\"index\":{{\"_id\":\"n-{n}\"}}}}\n{{\"v\":\"first {n}\"}}\n"));
        }
        for routing in ["one", "other"] {
            body.push_str(&format!(
                "{{\"index\":{{\"_id\":\"two\",\"routing\":\"{routing}\"}}}}\n{{ \"v\" : \"{routing}\" }}\n"
            ));
        }
        pair.nodes[0].must("POST", "/push-1/_bulk?refresh=true", &body)?;
        pair.seat.start(None)?;
        let copied = |_: &Status| {
            pair.documents(1, "push-1").is_ok_and(|documents| documents.len() as u64 == count + 1)
        };
        pair.seat.wait_until("the copy", DRAIN, copied)?;
        pair.wait_until_equal("push-1")?;
        Ok(Some(pair))
    }

    /// What a site's index holds.
    fn documents(&self, site: usize, index: &str) -> Result<Documents> {
        self.nodes[site].documents(index)
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
            let differs = differing(&dc, &cloud);
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
    pair.nodes[0].fill("push-1", 2_000)?;
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
    for node in pair.nodes.iter() {
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
    for node in pair.nodes.iter() {
        node.must("PUT", "/push-1", INDEX)?;
    }
    pair.nodes[0].fill("push-1", OLD)?;
    pair.seat.start(None)?;
    let copied =
        |_: &Status| pair.documents(1, "push-1").is_ok_and(|documents| documents.len() as u64 == OLD);
    pair.seat.wait_until("the copy", DRAIN, copied)?;
    // Until each site has listed them: what comes and goes between two listings is not found if nobody runs then.
    std::thread::sleep(Duration::from_secs(3));
    let writers = [0, 1].map(|site| Writer::start(site, pair.nodes[site].port(), seed ^ site as u64));
    let end = Instant::now() + story_seconds(25);
    let mut kills = 0;
    while Instant::now() < end || kills < 4 {
        std::thread::sleep(Duration::from_millis(rng.random_range(1_500..5_000)));
        // Each at least once, however short the story is.
        kill_in_turn(kills, &mut pair.seat, &mut pair.nodes)?;
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

/// What a report lists, as `index id routing kind`, sorted.
fn listed(report: &serde_json::Value) -> Vec<String> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    let all = report["differences"].as_array().cloned().unwrap_or_default();
    let line =
        |one: &serde_json::Value| ["index", "key", "routing", "kind"].map(|name| text(&one[name])).join(" ");
    let mut lines: Vec<String> = all.iter().map(line).collect();
    lines.sort_unstable();
    lines
}

/// A document that differs, one that is missing and one that is there alone are repaired from either site, and an undo brings
/// back, at both, what the other one held: also what it had deleted, without waiting for a listing.
#[test]
fn a_repair_from_either_site_is_carried_and_undone_at_both() -> Result<()> {
    // No listing comes meanwhile.
    let Some(pair) = Pair::with_documents("", 200)? else { return Ok(()) };
    for (site, name) in ["dc", "cloud"].into_iter().enumerate() {
        let other = 1 - site;
        // What this site has is right, and what the other one has is wrong, and comes back by the undo.
        let id = |what: &str| format!("{what}-{name}");
        pair.plant(other, &format!("n-{}", 10 + site), "", r#"{ "v" : "other" , "n" : 1.50 }"#)?;
        pair.plant(site, &format!("n-{}", 20 + site), "", r#"{"v":"right"}"#)?;
        pair.plant(other, "two", "routing=one", &format!("{{\"v\":\"other {name}\"}}"))?;
        pair.plant(site, &id("only-here"), "", r#"{"v":"here"}"#)?;
        pair.plant(other, &id("only-there"), "routing=r", r#"{"v":"there"}"#)?;
        let before = [pair.documents(0, "push-1")?, pair.documents(1, "push-1")?];
        let two_before = pair.nodes[other].request("GET", "/push-1/_source/two?routing=one", "")?.1;

        let report = pair.seat.report(&[])?;
        let (here, there) = if site == 0 { ("extra", "missing") } else { ("missing", "extra") };
        let mut expected = vec![
            format!("push-1 n-{} - content", 10 + site),
            format!("push-1 n-{} - content", 20 + site),
            format!("push-1 {} - {here}", id("only-here")),
            format!("push-1 {} r {there}", id("only-there")),
            "push-1 two one content".to_owned(),
        ];
        expected.sort_unstable();
        ensure!(listed(&report) == expected, "{report}");

        let (code, said) = pair.seat.repair(&["--from", name])?;
        ensure!(
            code == 1 && said.contains("5 keys to repair") && said.contains("nothing was changed"),
            "{code} {said}"
        );
        ensure!(said.contains(&format!("push-1 {}, routing r", id("only-there"))), "{said}");
        ensure!(
            before == [pair.documents(0, "push-1")?, pair.documents(1, "push-1")?],
            "the plan changed something"
        );
        let (code, said) = pair.seat.repair(&["--from", name, "--yes"])?;
        ensure!(code == 0 && said.contains("5 keys repaired"), "{code} {said}\n{}", pair.seat.log_end());
        ensure!(pair.documents(other, "push-1")? == before[site], "{name}: {said}");

        let (code, undone) = pair.seat.undo(&said)?;
        ensure!(code == 0, "{code} {undone}\n{}", pair.seat.log_end());
        pair.seat.wait_until_drained(DRAIN)?;
        for at in [other, site] {
            ensure!(pair.documents(at, "push-1")? == before[other], "{name}, at {at}: {undone}");
            let two = pair.nodes[at].request("GET", "/push-1/_source/two?routing=one", "")?.1;
            ensure!(two == two_before, "{two}");
            let raw = pair.nodes[at].request("GET", &format!("/push-1/_source/n-{}", 10 + site), "")?.1;
            ensure!(raw == r#"{ "v" : "other" , "n" : 1.50 }"#, "{raw}");
        }
        // A second time there is nothing to do.
        let (code, again) = pair.seat.undo(&said)?;
        ensure!(code == 0 && again.contains("5 more hold that already"), "{code} {again}");
        let (code, again) = pair.seat.repair(&["--from", name, "--yes"])?;
        ensure!(code == 0 && again.contains("0 keys repaired"), "{code} {again}");
    }
    // By the log: of each the site that wrote it last; what no log names is left.
    pair.nodes[1].must("PUT", "/push-1/_doc/n-30", r#"{"v":"of cloud"}"#)?;
    pair.wait_until_equal("push-1")?;
    pair.plant(0, "n-30", "", r#"{"v":"wrong"}"#)?;
    pair.plant(0, "n-31", "", r#"{"v":"nobody knows"}"#)?;
    let (code, said) = pair.seat.repair(&["--from", "newest", "--yes"])?;
    ensure!(
        code == 1
            && said.contains("from cloud push-1 n-30")
            && said.contains("left, no log names it: push-1 n-31"),
        "{code} {said}"
    );
    ensure!(pair.documents(0, "push-1")?.get("n-30").is_some_and(|text| text.contains("of cloud")), "{said}");
    Ok(())
}

/// A window of which no log knows is closed by a date of the documents, by the command and as a step of a runbook: what dc has goes
/// over, what cloud alone has stays, and nothing else is touched.
#[test]
fn a_window_that_no_log_knows_is_closed_by_a_date_of_the_documents() -> Result<()> {
    let Some(pair) = Pair::with_documents("", 50)? else { return Ok(()) };
    for node in pair.nodes.iter() {
        node.must("PUT", "/push-1/_mapping", r#"{"properties":{"changed":{"type":"date"}}}"#)?;
    }
    let inside = |v: &str| format!("{{\"v\":\"{v}\",\"changed\":\"2026-03-01T02:30:00Z\"}}");
    for n in 0..30 {
        pair.plant(0, &format!("in-{n}"), "routing=r", &inside("dc"))?;
        pair.plant(0, &format!("out-{n}"), "", r#"{"v":"dc","changed":"2026-03-01T03:00:00Z"}"#)?;
    }
    pair.plant(0, "n-5", "", &inside("right"))?;
    pair.plant(1, "only-cloud", "", &inside("cloud"))?;
    // dc's is not of the window, and older.
    pair.plant(0, "moved", "", r#"{"v":"dc","changed":"2026-03-01T01:00:00Z"}"#)?;
    pair.plant(1, "moved", "", &inside("newer"))?;
    let before = pair.documents(0, "push-1")?;
    let backfill = |more: &[&str]| -> Result<(Option<i32>, String)> {
        let words = [
            "backfill",
            "--channel",
            "push",
            "--from",
            "2026-03-01T02:00:00Z",
            "--to",
            "2026-03-01T03:00:00Z",
        ];
        let out = pair.seat.syncd(&[&words[..], &["--time-column", "changed"], more].concat())?;
        Ok((out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()))
    };
    let (code, said) = backfill(&[])?;
    ensure!(code == Some(2) && said.contains("--site dc or --site cloud"), "{code:?} {said}");
    let (code, said) = backfill(&["--site", "dc", "--dry-run"])?;
    ensure!(code == Some(0) && said.contains("31 by dc") && said.contains("a dry run"), "{code:?} {said}");
    ensure!(!pair.documents(1, "push-1")?.contains_key("in-0"), "a dry run carried something");
    let (code, said) = backfill(&["--site", "dc"])?;
    ensure!(code == Some(1) && said.contains("carried: 31") && said.contains("NOT EQUAL"), "{code:?} {said}");
    ensure!(before == pair.documents(0, "push-1")?, "dc was written to");
    let mut expected: Documents =
        before.into_iter().filter(|(id, _)| !id.starts_with("out-") && id != "moved").collect();
    let alone = |id: &String| id == "only-cloud" || id == "moved";
    expected.extend(pair.documents(1, "push-1")?.into_iter().filter(|(id, _)| alone(id)));
    ensure!(expected.get("moved").is_some_and(|text| text.contains("newer")), "{said}");
    ensure!(pair.documents(1, "push-1")? == expected, "{said}");

    for id in ["only-cloud", "moved"] {
        pair.nodes[1].must("DELETE", &format!("/push-1/_doc/{id}"), "")?;
    }
    pair.plant(0, "in-late", "", &inside("dc"))?;
    let book = pair.seat.config().with_file_name("window.yaml");
    std::fs::write(
        &book,
        "runbook: window\nsteps:\n  - backfill: { from: 2026-03-01T02:00:00Z, to: 2026-03-01T03:00:00Z, time_column: changed, site: dc }\n  \
         - verify: { from: 2026-03-01T02:00:00Z, to: 2026-03-01T03:00:00Z, time_column: changed }\n",
    )?;
    let out = pair.seat.syncd(&["runbook", "run", book.to_str().context("a path")?])?;
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    ensure!(out.status.code() == Some(0), "{said}\n{}", pair.seat.log_end());
    ensure!(pair.documents(1, "push-1")?.contains_key("in-late"), "{said}");
    Ok(())
}

/// FF57: what a site writes while a repair carries what the other one holds stays, and goes over.
#[test]
fn a_repair_from_a_named_site_leaves_newer_writes_alone() -> Result<()> {
    let Some(pair) = Pair::with_documents("", 2_000)? else { return Ok(()) };
    let hot = 40;
    for n in 0..200 {
        pair.plant(1, &format!("n-{n}"), "", r#"{"v":"wrong"}"#)?;
    }
    let (stop, port) = (Arc::new(AtomicBool::new(false)), pair.nodes[1].port());
    let stopped = Arc::clone(&stop);
    let writer = std::thread::spawn(move || -> Result<u64> {
        let mut n = 0_u64;
        while !stopped.load(Ordering::SeqCst) || n < hot {
            n += 1;
            let (status, said) = request(
                port,
                "PUT",
                &format!("/push-1/_doc/n-{}", n % hot),
                &format!("{{\"v\":\"newer {n}\"}}"),
            )?;
            ensure!((200..300).contains(&status), "{status} {said}");
        }
        Ok(n)
    });
    let mut said = Vec::new();
    for _ in 0..3 {
        said.push(pair.seat.repair(&["--from", "dc", "--yes", "--share-max", "100"])?);
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    pair.wait_until_equal("push-1")?;
    let (code, last) = pair.seat.repair(&["--from", "dc", "--yes"])?;
    ensure!(code == 0, "{code} {last}\n{said:?}");
    let documents = pair.documents(1, "push-1")?;
    for n in written - hot + 1..=written {
        let found = documents.get(&format!("n-{}", n % hot));
        ensure!(found == Some(&format!("{{\"v\":\"newer {n}\"}}")), "{n}: {found:?}\n{said:?}");
    }
    let wrong = documents.values().filter(|text| text.contains("wrong")).count();
    ensure!(wrong == 0, "{wrong} are wrong still: {said:?}");
    println!("{written} written, {}", last.lines().next().unwrap_or_default());
    Ok(())
}

fn is_undo(file: &std::fs::DirEntry) -> bool {
    file.file_name().to_string_lossy().starts_with("causeway-undo-")
}

/// A node that goes away in the middle: the repair says so, and a second one does the rest. So does the undo.
#[test]
fn a_repair_that_a_node_broke_off_is_run_again() -> Result<()> {
    let Some(mut pair) = Pair::with_documents("", 3_000)? else { return Ok(()) };
    // Those of a copy have one version.
    let copied =
        pair.nodes[1].must("GET", "/push-1/_doc/n-0", "")?["_version"].as_u64().context("no version")?;
    let version = Hlc(copied).next(Site::Second).0;
    let mut body = String::new();
    for n in 0..1_500 {
        let action = serde_json::json!({"index": {"_id": format!("n-{n}"), "version": version, "version_type": "external"}});
        body.push_str(&format!("{action}\n{{\"v\":\"wrong\"}}\n"));
    }
    pair.nodes[1].must("POST", "/push-1/_bulk?refresh=true", &body)?;
    let wrong = pair.documents(1, "push-1")?;
    let words = ["--from", "dc", "--yes", "--share-max", "100", "--keys-per-second", "300"];
    // Once something is overwritten, of which the file is written first.
    let break_off = |pair: &mut Pair, command: &'static str, words: &[&str]| -> Result<(i32, String)> {
        let (seat, node) = (&pair.seat, &mut pair.nodes[1]);
        let data = seat.config().with_file_name("data");
        let files = || std::fs::read_dir(&data).map_or(0, |files| files.flatten().filter(is_undo).count());
        let before = files();
        std::thread::scope(|scope| {
            let running = scope.spawn(move || seat.verifier(command, words));
            while files() == before && !running.is_finished() {
                std::thread::sleep(Duration::from_millis(50));
            }
            std::thread::sleep(Duration::from_secs(1));
            node.kill();
            let said = running.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
            node.restart()?;
            said
        })
    };
    let (code, first) = break_off(&mut pair, "repair", &words)?;
    ensure!(code == 3 && first.contains("cloud"), "{code} {first}");
    pair.seat.wait_until_drained(DRAIN)?;
    let (code, second) = pair.seat.repair(&["--from", "dc", "--yes", "--share-max", "100"])?;
    ensure!(code == 0, "{code} {second}\n{}", pair.seat.log_end());
    ensure!(pair.documents(0, "push-1")? == pair.documents(1, "push-1")?, "{second}");
    let file = |said: &str| {
        let named = said.split_once("is kept in ").and_then(|(_, named)| named.lines().next());
        named.map(str::to_owned)
    };
    let files = [file(&first), file(&second)];
    let [Some(first), Some(second)] = files else { anyhow::bail!("no undo file: {files:?}") };
    let (code, said) = break_off(&mut pair, "undo", &[&first, "--yes", "--keys-per-second", "50"])?;
    ensure!(code == 3, "{code} {said}");
    pair.seat.wait_until_drained(DRAIN)?;
    for file in [&first, &second] {
        let (code, said) = pair.seat.verifier("undo", &[file, "--yes"])?;
        ensure!(code == 0, "{code} {said}\n{}", pair.seat.log_end());
    }
    pair.seat.wait_until_drained(DRAIN)?;
    ensure!(
        pair.documents(1, "push-1")? == wrong && pair.documents(0, "push-1")? == wrong,
        "another content"
    );
    Ok(())
}

/// A window of documents, with routing and of deleted ones; what differs in it is found, no other, carried once more by a
/// backfill, and found and seen to be mended by a watch.
#[test]
fn a_window_of_documents_is_closed_by_what_the_log_names() -> Result<()> {
    let Some(pair) = Pair::with_documents("", 100)? else { return Ok(()) };
    // What was written before is named within ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    let from = rfc3339(now_ms());
    pair.nodes[0].must("PUT", "/push-1/_doc/n-1", r#"{"v":"of dc"}"#)?;
    pair.nodes[0].must("PUT", "/push-1/_doc/routed?routing=r", r#"{"v":"of dc"}"#)?;
    pair.nodes[0].must("DELETE", "/push-1/_doc/n-2", "")?;
    pair.nodes[1].must("PUT", "/push-1/_doc/n-3", r#"{"v":"of cloud"}"#)?;
    pair.nodes[1].must("PUT", "/push-2", &INDEX.replace("push\"", "push-second\""))?;
    pair.nodes[1].must("PUT", "/push-2/_doc/1", r#"{"v":"of cloud"}"#)?;
    let to = rfc3339(now_ms());
    let window = ["--from", from.as_str(), "--to", to.as_str()];
    pair.wait_until_equal("push-1")?;
    // Until deletes before its end are known, too.
    let is_known = |_: &Status| pair.seat.report(&window).is_ok_and(|report| report["equal"] == true);
    pair.seat.wait_until("the window is known", DRAIN, is_known)?;
    let report = pair.seat.report(&window)?;
    ensure!(report["compared"].as_u64().is_some_and(|n| (5..10).contains(&n)), "{report}");
    let plant = || -> Result<()> {
        pair.plant(1, "n-1", "", r#"{"v":"wrong"}"#)?;
        pair.plant(1, "routed", "routing=r", r#"{"v":"wrong"}"#)?;
        pair.plant(0, "n-3", "", r#"{"v":"wrong"}"#)?;
        pair.plant(1, "n-50", "", r#"{"v":"not in the window"}"#)
    };
    plant()?;
    let report = pair.seat.report(&window)?;
    let found = listed(&report);
    ensure!(found == ["push-1 n-1 - content", "push-1 n-3 - content", "push-1 routed r content"], "{report}");
    let done = pair.seat.syncd(&[&["backfill", "--channel", "push"], &window[..]].concat())?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success() && said.contains("the window is equal"), "{said}\n{}", pair.seat.log_end());
    let of = |site: usize, id: &str| {
        Ok::<_, anyhow::Error>(pair.documents(site, "push-1")?.remove(id).unwrap_or_default())
    };
    ensure!(of(1, "n-1")?.contains("of dc") && of(0, "n-3")?.contains("of cloud"), "{said}");
    let report = pair.seat.report(&[])?;
    ensure!(listed(&report) == ["push-1 n-50 - content"], "{report}");

    // A sample of all finds it, too.
    let report = pair.seat.report(&["--sample", "100"])?;
    ensure!(listed(&report) == ["push-1 n-50 - content"] && report["sample"]["share"] == 1.0, "{report}");

    let watched = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let words = ["--every", "1s", "--whole-every", "4s", "--for", "25s", "--json"];
            pair.seat.verifier("watch", &words)
        });
        std::thread::sleep(Duration::from_secs(10));
        let repaired = pair.seat.repair(&["--from", "dc", "--yes"])?;
        ensure!(repaired.0 == 0, "{repaired:?}");
        watching.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?
    })?;
    let (code, said) = watched;
    let events: Vec<serde_json::Value> =
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of_it = |event: &str| {
        let is_it = |one: &&serde_json::Value| {
            one["event"] == event && one["key"] == "n-50" && one["index"] == "push-1"
        };
        events.iter().filter(is_it).count()
    };
    ensure!(of_it("content") == 1 && of_it("equal again") == 1 && code == 0, "{code} {said}");
    ensure!(events.iter().all(|one| one["event"] != "error"), "{said}");
    Ok(())
}

/// FF56: a document that does not fit is refused with its key, and comes once it does and the dead letter is acknowledged.
#[test]
fn a_document_that_does_not_fit_comes_back_once_it_does() -> Result<()> {
    let Some(pair) = Pair::with_documents("", 10)? else { return Ok(()) };
    pair.nodes[1].must("PUT", "/push-3", r#"{"mappings":{"properties":{"n":{"type":"integer"}}}}"#)?;
    pair.nodes[0].must("PUT", "/push-3", r#"{"mappings":{"properties":{"n":{"type":"keyword"}}}}"#)?;
    pair.nodes[0].must("PUT", "/push-3/_doc/a?routing=r", r#"{"n":"seven"}"#)?;
    let dead = |status: &Status| {
        status
            .channels
            .iter()
            .flat_map(|channel| &channel.directions)
            .map(|direction| direction.dead_letters)
            .sum::<u64>()
    };
    pair.seat.wait_until("the dead letter", DRAIN, |status| dead(status) == 1)?;
    let said = String::from_utf8(pair.seat.syncd(&["dead-letters"])?.stdout)?;
    ensure!(said.contains("push-3: a, routing r"), "{said}");
    pair.nodes[1].must("DELETE", "/push-3", "")?;
    pair.nodes[1].must("PUT", "/push-3", r#"{"mappings":{"properties":{"n":{"type":"keyword"}}}}"#)?;
    let acknowledged = pair.seat.syncd(&["dead-letters", "ack", "--all"])?;
    ensure!(acknowledged.status.success(), "{}", String::from_utf8_lossy(&acknowledged.stderr));
    let came = |_: &Status| {
        pair.nodes[1].request("GET", "/push-3/_source/a?routing=r", "").is_ok_and(|(status, _)| status == 200)
    };
    pair.seat.wait_until("the document", DRAIN, came).map(drop)
}

/// FF52: what was planted is found each time, and nothing else is called different, while both sites write.
#[test]
fn the_verifier_finds_what_was_planted_and_nothing_else_under_traffic() -> Result<()> {
    // As often as a daemon looks unless told otherwise.
    let Some(pair) = Pair::with_documents("poll = \"1s\"", 2_000)? else { return Ok(()) };
    for site in 0..2 {
        pair.plant(site, &format!("n-{}", 7 + site), "", r#"{"v":"planted"}"#)?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers = [0, 1].map(|site| {
        let (stopped, port) = (Arc::clone(&stop), pair.nodes[site].port());
        std::thread::spawn(move || -> Result<u64> {
            let mut n = 0_u64;
            while !stopped.load(Ordering::SeqCst) {
                n += 1;
                let id = 10 + (n * 37) % 1_900 / 2 * 2 + site as u64;
                let (status, said) = request(
                    port,
                    "PUT",
                    &format!("/push-1/_doc/n-{id}"),
                    &format!("{{\"v\":\"{site} {n}\"}}"),
                )?;
                ensure!((200..300).contains(&status), "{status} {said}");
            }
            Ok(n)
        })
    });
    let end = Instant::now() + story_seconds(15);
    let (mut checks, mut undecided) = (0, 0);
    let checked = loop {
        let report = pair.seat.report(&[])?;
        if listed(&report) != ["push-1 n-7 - content", "push-1 n-8 - content"] {
            break Err(anyhow::anyhow!("{report}"));
        }
        (checks, undecided) = (checks + 1, undecided + report["undecided"].as_u64().unwrap_or(0));
        if Instant::now() > end {
            break Ok(());
        }
    };
    stop.store(true, Ordering::SeqCst);
    let mut writes = 0;
    for writer in writers {
        writes += writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    checked.with_context(|| pair.seat.log_end())?;
    println!("{checks} checks, {writes} writes, {undecided} undecided");
    let (code, said) = pair.seat.repair(&["--from", "dc", "--yes"])?;
    ensure!(code == 0 && said.contains("2 keys repaired"), "{code} {said}");
    let (code, said) = pair.seat.undo(&said)?;
    ensure!(code == 0, "{code} {said}");
    Ok(())
}
