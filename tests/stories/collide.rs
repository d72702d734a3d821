//! Writers at both sites that collide on a few hot keys, over two real Redis servers, while the line is cut and
//! healed and the daemon killed. What the servers acknowledged is held against what both sites have in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use causeway_stories::hot::{Act, Draw, MILLION, SITES, Writer, appends, everything, kind};
use causeway_stories::proxy::Proxy;
use causeway_stories::watch::{Captured, Watch};
use causeway_stories::{DRAIN, Link, Setup, seed, servers, story_seconds};
use causeway_testkit::resp::{Connection, Reply};
use causeway_testkit::servers::Options;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// How many wrong keys of each kind are told.
const TOLD: usize = 4;
/// How long nothing is disturbed before the writers end, in seconds.
const CALM: f64 = 4.0;

/// `conflict = "owner"`: of two writes at once that of the site which serves the tenant stands, also if it is the older
/// one; what its peer writes when it has seen that is later; a tenant that nobody owns goes by the time.
#[test]
fn who_owns_a_tenant_wins_of_two_writes_at_once() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let owner = "conflict = \"owner\"\nowners_file = \"owners.csv\"\ntenant = { key = \"push:{tenant}:*\" }";
    let setup = Setup { channel: owner.to_owned(), ..Setup::default() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    std::fs::write(link.dir().join("owners.csv"), "# tenant,site\nof-dc,dc\nof-cloud,cloud\n")?;
    let [mut dc, mut cloud] = [link.stores[0].connect()?, link.stores[1].connect()?];
    link.start()?;
    dc.must(&["SET", "push:of-dc:seen", "1"])?;
    link.wait_until_drained(DRAIN)?;
    let told = |words: &[&str]| {
        let output = link.syncd(words)?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    told(&["pause", "--channel", "push"])?;
    // Either site is the first one to write to each.
    for tenant in ["of-dc", "of-cloud", "of-nobody"] {
        for (first, second) in [("dc", "cloud"), ("cloud", "dc")] {
            for site in [first, second] {
                let store = if site == "dc" { &mut dc } else { &mut cloud };
                let key = |kind: &str| format!("push:{tenant}:{kind}:{first}-first");
                store.must(&["SET", &key("value"), site])?;
                store.must(&["HSET", &key("hash"), "both", site, site, "1"])?;
                store.must(&["INCRBY", &key("count"), "3"])?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    cloud.must(&["SET", "push:of-dc:seen", "2"])?;
    told(&["resume", "--channel", "push"])?;
    link.wait_until_drained(DRAIN)?;
    for store in [&mut dc, &mut cloud] {
        for (tenant, owner) in [("of-dc", Some("dc")), ("of-cloud", Some("cloud")), ("of-nobody", None)] {
            for (first, second) in [("dc", "cloud"), ("cloud", "dc")] {
                let key = |kind: &str| format!("push:{tenant}:{kind}:{first}-first");
                let wins = Some(owner.unwrap_or(second).to_owned());
                let value = store.must(&["GET", &key("value")])?.text();
                ensure!(value == wins, "{}: {value:?} instead of {wins:?}", key("value"));
                let both = store.must(&["HGET", &key("hash"), "both"])?.text();
                ensure!(both == wins, "{}: {both:?} instead of {wins:?}", key("hash"));
                ensure!(store.must(&["HLEN", &key("hash")])?.int() == Some(3), "a field is lost");
                ensure!(store.must(&["GET", &key("count")])?.text().as_deref() == Some("6"), "not counted");
            }
        }
        let seen = store.must(&["GET", "push:of-dc:seen"])?.text();
        ensure!(seen.as_deref() == Some("2"), "what had seen the owner's write is gone: {seen:?}");
    }
    let listed = told(&["conflicts", "list"])?;
    ensure!(listed.contains("push:of-dc:value:dc-first"), "not told: {listed}");
    link.verify()
}

/// Redis does not say when it was written to: what is read of its backlog after an outage counts as written at the last
/// time that is known before it. So it goes over nothing that the peer wrote meanwhile, and the conflict is told as a guess.
#[test]
fn what_is_read_after_an_outage_counts_as_written_before_it() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([Options::default(), Options::default()], &Setup::default())?;
    let [mut dc, mut cloud] = [link.stores[0].connect()?, link.stores[1].connect()?];
    let lines = link.lines()?;
    link.start()?;
    dc.must(&["SET", "push:warm", "1"])?;
    link.wait_until_drained(DRAIN)?;
    lines[0].stall(true);
    lines[0].cut();
    dc.must(&["SET", "push:older", "dc"])?;
    dc.must(&["INCRBY", "push:count", "2"])?;
    std::thread::sleep(Duration::from_millis(1_500));
    cloud.must(&["SET", "push:older", "cloud"])?;
    cloud.must(&["INCRBY", "push:count", "3"])?;
    std::thread::sleep(Duration::from_millis(500));
    lines[0].stall(false);
    lines[0].cut();
    link.wait_until_drained(DRAIN)?;
    for store in [&mut dc, &mut cloud] {
        let value = store.must(&["GET", "push:older"])?.text();
        ensure!(value.as_deref() == Some("cloud"), "it went over what was written later: {value:?}");
        ensure!(store.must(&["GET", "push:count"])?.text().as_deref() == Some("5"), "not counted");
    }
    let output = link.syncd(&["conflicts", "list", "--json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let entries = listed["conflicts"].as_array().context("no list")?;
    let of_key = entries.iter().find(|entry| entry["key"] == "push:older").context("no conflict is told")?;
    ensure!(of_key["uncertain"] == true && of_key["winner"] == "cloud", "{of_key}");
    // From here on the time is known again.
    cloud.must(&["SET", "push:older", "cloud"])?;
    std::thread::sleep(Duration::from_millis(100));
    dc.must(&["SET", "push:older", "dc"])?;
    link.wait_until_drained(DRAIN)?;
    let value = cloud.must(&["GET", "push:older"])?.text();
    ensure!(value.as_deref() == Some("dc"), "{value:?} is older than the last write");
    link.verify()
}

/// What a key holds: its type, its elements with their values, and when it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    kind: String,
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    expires: Option<i64>,
}

impl Content {
    fn read(from: &mut Connection, key: &str) -> Result<Content> {
        let kind = from.must(&["TYPE", key])?.text().context("no type")?;
        let (words, width) = match kind.as_str() {
            "string" => (vec!["GET", key], 1),
            "hash" => (vec!["HGETALL", key], 2),
            "set" => (vec!["SMEMBERS", key], 1),
            "zset" => (vec!["ZRANGE", key, "0", "-1", "WITHSCORES"], 2),
            "list" => (vec!["LRANGE", key, "0", "-1"], 1),
            "stream" => (vec!["XRANGE", key, "-", "+"], 3),
            _ => (vec!["GET", key], 1),
        };
        let mut flat = Vec::new();
        flatten(&from.must(&words)?, &mut flat);
        let pair = |part: &[Vec<u8>]| match part {
            [id, field, value] => (value.clone(), [&id[..], b" ", field].concat()),
            [element, value] => (element.clone(), value.clone()),
            _ => (part.concat(), Vec::new()),
        };
        let mut pairs: Vec<_> = flat.chunks(width).map(pair).collect();
        if kind == "hash" || kind == "set" {
            pairs.sort();
        }
        Ok(Content { kind, pairs, expires: from.must(&["PEXPIRETIME", key])?.int() })
    }

    fn told(&self) -> String {
        let pairs: Vec<_> =
            self.pairs.iter().map(|(e, v)| format!("{}={}", e.escape_ascii(), v.escape_ascii())).collect();
        let mut told = format!("{} expires {:?}: {}", self.kind, self.expires, pairs.join(" "));
        told.truncate(400);
        told
    }

    fn texts(&self) -> impl Iterator<Item = (String, String)> {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        self.pairs.iter().map(move |(element, value)| (text(element), text(value)))
    }

    /// How much there is of each element: numbers and scores as they are, else how often it is there.
    fn tally(&self, key: &str) -> BTreeMap<String, i64> {
        let mut tally = BTreeMap::new();
        for (bytes, (element, value)) in self.pairs.iter().map(|(element, _)| element).zip(self.texts()) {
            if kind(key) == "bits" {
                let set = |bit: &usize| bytes[bit / 8] & (128 >> (bit % 8)) != 0;
                tally.extend((0..8 * bytes.len()).filter(set).map(|bit| (bit.to_string(), 1)));
            } else if kind(key) == "stream" {
                // An entry that was refused may come again under another id.
                tally.insert(element, 1);
            } else if kind(key) == "sum" {
                tally.insert(String::new(), element.parse().unwrap_or(i64::MIN));
            } else {
                *tally.entry(element).or_default() += value.parse().unwrap_or(1);
            }
        }
        tally
    }
}

fn flatten(reply: &Reply, flat: &mut Vec<Vec<u8>>) {
    match reply {
        Reply::Bulk(Some(bytes)) => flat.push(bytes.clone()),
        reply => reply.items().iter().for_each(|item| flatten(item, flat)),
    }
}

/// What was written, what disturbed it (from when to when, in seconds), and what both sites have in the end.
struct Outcome {
    acts: Vec<Act>,
    troubles: Vec<(f64, f64)>,
    captured: [Captured; 2],
    found: [BTreeMap<String, Content>; 2],
    /// What is wrong with a key.
    wrong: BTreeMap<String, Vec<String>>,
}

/// How a site wrote an element last.
#[derive(Debug)]
struct Last {
    site: usize,
    at: f64,
    by: f64,
    /// If it was not removed.
    value: Option<String>,
}

/// Runs a writer at each site while lines and daemon are disturbed, and waits until all has arrived.
fn collide(link: &mut Link, lines: &[Proxy; 2], draw: Draw) -> Result<Outcome> {
    let mut random = SmallRng::seed_from_u64(seed());
    let lasts = story_seconds(15).as_secs_f64();
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let began = Instant::now();
    let writers = [0, 1].map(|site| {
        let writer = Writer::new(site, random.random(), began, lasts);
        let url = link.urls()[site].clone();
        std::thread::spawn(move || writer.run(&url, draw))
    });
    let watches = [Watch::start(&link.urls()[0], began)?, Watch::start(&link.urls()[1], began)?];
    let mut troubles = Vec::new();
    while began.elapsed().as_secs_f64() < lasts - CALM {
        std::thread::sleep(Duration::from_millis(random.random_range(50..1_500)));
        let from = began.elapsed().as_secs_f64();
        disturb(link, lines, &mut random)?;
        troubles.push((from, began.elapsed().as_secs_f64()));
    }
    let mut acts = Vec::new();
    for writer in writers {
        acts.extend(writer.join().map_err(|_| anyhow!("a writer panicked"))??);
    }
    acts.sort_by(|a, b| a.at.total_cmp(&b.at));
    let behind: Vec<_> = link.status()?.channels[0].directions.iter().map(|d| d.lag.changes).collect();
    println!("{} acknowledged, {} times disturbed, behind {behind:?}", acts.len(), troubles.len());
    let status = link.wait_until_drained(DRAIN)?;
    ensure!(status.channels[0].directions.iter().all(|d| d.gaps == 0), "a gap: {status:?}");
    ensure!(!link.log().contains("panicked"), "{}", link.log_end());
    let found = [contents(link, 0)?, contents(link, 1)?];
    let [dc, cloud] = watches;
    let captured = [dc.end()?, cloud.end()?];
    Ok(Outcome { acts, troubles, captured, found, wrong: BTreeMap::new() })
}

/// Cuts or stalls one of the lines and heals it, or kills the daemon and starts it again.
fn disturb(link: &mut Link, lines: &[Proxy; 2], random: &mut SmallRng) -> Result<()> {
    match random.random_range(0..6_usize) {
        0 | 1 => {
            link.kill()?;
            std::thread::sleep(Duration::from_millis(random.random_range(0..1_000)));
            link.start()?;
        }
        n => _ = lines[n % 2].disturb(random),
    }
    Ok(())
}

/// The elements of which there is another amount than expected.
fn off(expected: &BTreeMap<String, i64>, found: &BTreeMap<String, i64>) -> Vec<String> {
    let amounts = |element| [expected, found].map(|tally| tally.get(element).copied().unwrap_or(0));
    let elements: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let off = elements.into_iter().map(|element| (element, amounts(element))).filter(|(_, [a, b])| a != b);
    off.map(|(element, [expected, found])| format!("{element} {found}, not {expected}")).collect()
}

/// All that is at `site`, by key.
fn contents(link: &Link, site: usize) -> Result<BTreeMap<String, Content>> {
    let mut from = link.stores[site].connect()?;
    let keys = from.must(&["KEYS", "*"])?;
    let keys = keys.items().iter().filter_map(Reply::text).filter(|key| !key.starts_with("causeway:{"));
    let read = keys.map(|key| Ok((key.clone(), Content::read(&mut from, &key)?)));
    read.filter(|read| !read.as_ref().is_ok_and(|(_, content)| content.kind == "none")).collect()
}

impl Outcome {
    fn blame(&mut self, key: &str, what: String) {
        self.wrong.entry(key.to_owned()).or_default().push(what);
    }

    /// Each key holds the same at both sites, and expires at the same time.
    fn sites_are_equal(&mut self) {
        let [dc, cloud] = self.found.clone();
        let all: BTreeSet<_> = dc.keys().chain(cloud.keys()).collect();
        for key in all.into_iter().filter(|key| dc.get(*key) != cloud.get(*key)) {
            self.blame(key, "the sites differ".to_owned());
        }
    }

    /// Each counted write took effect once at both sites: no sum and no element is off.
    fn counts_are_exact(&mut self) {
        let mut expected: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
        for (key, element, by) in self.acts.iter().filter_map(Act::counts) {
            *expected.entry(key.to_owned()).or_default().entry(element.to_owned()).or_default() += by;
        }
        for (key, expected) in expected {
            for site in [0, 1] {
                let found = self.found[site].get(&key).map(|c| c.tally(&key)).unwrap_or_default();
                let off = off(&expected, &found);
                if let Some(some) = off.get(..off.len().min(8)).filter(|some| !some.is_empty()) {
                    let (site, many, some) = (SITES[site], off.len(), some.join(", "));
                    self.blame(&key, format!("{many} elements are off at {site}: {some}"));
                }
            }
        }
    }

    /// Whether the daemon read it as it was written. What it read after a break counts as written before that.
    fn is_dated(&self, last: &Last) -> bool {
        let looks = &self.captured[last.site];
        let Some(captured) = looks.at(last.by) else { return false };
        let before = self.troubles.iter().rfind(|(from, _)| *from < captured);
        before.is_none_or(|(_, to)| looks.was_connected(*to, last.at))
    }

    /// Each element is as one of the two sites wrote it last; as the later one did, where that is certain.
    fn newest_stand(&mut self) {
        let mut last: BTreeMap<_, [Option<Last>; 2]> = BTreeMap::new();
        for act in &self.acts {
            if let Some((key @ ("fields" | "tags" | "scores"), element, value)) = act.written() {
                let last = last.entry((key.to_owned(), element.to_owned())).or_default();
                let value = value.map(str::to_owned);
                last[act.site] = Some(Last { site: act.site, at: act.at, by: act.by, value });
            }
        }
        let mut certain = 0;
        for ((key, element), last) in last {
            let mut stands: Vec<_> = last.into_iter().flatten().collect();
            stands.sort_by(|a, b| a.at.total_cmp(&b.at));
            let captured = |last: &Last| self.captured[last.site].at(last.by);
            let is_later = |first, second: &Last| {
                captured(first).is_some_and(|captured| captured < second.at) && self.is_dated(second)
            };
            if stands.len() == 2 && is_later(&stands[0], &stands[1]) {
                stands.remove(0);
                certain += 1;
            }
            let found = self.found[0].get(&key).and_then(|c| c.texts().find(|(e, _)| *e == element));
            let found = found.map(|(_, value)| value);
            if stands.iter().all(|last| last.value != found) {
                self.blame(&key, format!("{element} is {found:?}, not of {stands:?}"));
            }
        }
        println!("{certain} elements with one newest write");
    }

    /// No contested key holds what nobody wrote to one of its kind, and no list an element twice.
    fn nothing_comes_from_nowhere(&mut self) {
        let written = self.acts.iter().filter_map(|act| act.written().map(|(key, e, v)| (kind(key), e, v)));
        let written: BTreeSet<_> = written.map(|(kind, e, v)| (kind, e, v.unwrap_or_default())).collect();
        let known = |kind: &str, element: &str, value: &str| match kind {
            "hot-bits" | "hot-any" => true,
            "hot-text" => {
                element.trim_start_matches(';').split(';').all(|part| written.contains(&(kind, part, "")))
            }
            "hot-number" => {
                let set = element.parse().map_or(1, |n: u64| n / MILLION * MILLION);
                set == 0 || written.contains(&(kind, &set.to_string(), ""))
            }
            "hot-stream" => written.contains(&(kind, element, "n")),
            _ => written.contains(&(kind, element, value)),
        };
        let mut nowhere = Vec::new();
        for (key, content) in self.found.iter().flatten().filter(|(key, _)| key.starts_with("hot-")) {
            if let Some(odd) = content.texts().find(|(element, value)| !known(kind(key), element, value)) {
                nowhere.push((key.clone(), format!("nobody wrote {odd:?}")));
            }
            if kind(key) == "hot-list" && content.tally(key).values().any(|times| *times > 1) {
                nowhere.push((key.clone(), "an element is there twice".to_owned()));
            }
        }
        nowhere.into_iter().for_each(|(key, what)| self.blame(&key, what));
    }

    /// Of the keys that were to live for a moment those live on that a site let live on, and no others.
    fn what_was_kept_alive_lives(&mut self) {
        let brief = |key: &str| kind(key) == "brief";
        let kept = self.acts.iter().map(Act::words).filter(|words| ["PERSIST", "EXPIRE"].contains(&words[0]));
        let kept: BTreeSet<_> = kept.map(|words| words[1].to_owned()).filter(|key| brief(key)).collect();
        for site in [0, 1] {
            let found = self.found[site].keys().filter(|key| brief(key)).cloned().collect();
            for key in kept.symmetric_difference(&found) {
                let what = if kept.contains(key) { "kept alive, and is gone" } else { "over, and lives" };
                self.blame(key, format!("{what} at {}", SITES[site]));
            }
        }
        println!("{} keys kept alive", kept.len());
    }

    /// What its only writer deleted in the end is nowhere.
    fn nothing_lives_again(&mut self) {
        let all: BTreeSet<_> = self.found.iter().flat_map(BTreeMap::keys).cloned().collect();
        for key in all.iter().filter(|key| key.starts_with("own:")) {
            self.blame(key, "its only writer deleted it".to_owned());
        }
    }

    /// Fails with some of the wrong keys, what both sites have of it, and what was done to it last.
    fn is_right(&self) -> Result<()> {
        let mut told = String::new();
        let wrong: Vec<_> = self.wrong.iter().collect();
        let some =
            wrong.chunk_by(|a, b| kind(a.0) == kind(b.0)).flat_map(|of_a_kind| of_a_kind.iter().take(TOLD));
        for &(key, what) in some {
            writeln!(told, "{key}: {}", what.join("; "))?;
            for site in [0, 1] {
                let content = self.found[site].get(key);
                writeln!(told, "  {}: {}", SITES[site], content.map_or("nothing".to_owned(), Content::told))?;
            }
            let on_it: Vec<_> = self.acts.iter().filter(|act| act.words().contains(&key.as_str())).collect();
            for act in &on_it[on_it.len().saturating_sub(20)..] {
                writeln!(told, "  {:.3} {}: {}", act.at, SITES[act.site], act.line)?;
            }
        }
        ensure!(
            told.is_empty(),
            "{} keys are wrong; disturbed: {:.2?}\n{told}",
            self.wrong.len(),
            self.troubles
        );
        Ok(())
    }
}

/// Whatever both sites do to a few hot keys at once, in the end both have the same: each counted write once, of each
/// element the newest write, nothing that nobody wrote, and nothing that was deleted.
#[test]
fn writers_that_collide_on_hot_keys_end_equal_and_lose_nothing() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([Options::default(), Options::default()], &Setup::default())?;
    let lines = link.lines()?;
    let mut outcome = collide(&mut link, &lines, everything)?;
    outcome.counts_are_exact();
    outcome.newest_stand();
    outcome.nothing_comes_from_nowhere();
    outcome.what_was_kept_alive_lives();
    outcome.nothing_lives_again();
    outcome.sites_are_equal();
    outcome.is_right()?;
    let dead = link.dead_letters();
    println!("{} dead letters", dead.lines().count());
    // What a stream refuses: docs/CONVERGENCE.md, section 5.
    ensure!(
        dead.lines().all(|letter| letter.contains("hot-stream:") || letter.contains("hot-any:")),
        "dead letters: {dead}"
    );
    link.verify()
}

/// Both sites append to one stream, with ids that their servers give: each entry is at both in the end.
#[test]
fn streams_that_both_sites_append_to_keep_every_entry() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([Options::default(), Options::default()], &Setup::default())?;
    let lines = link.lines()?;
    let mut outcome = collide(&mut link, &lines, appends)?;
    outcome.counts_are_exact();
    outcome.sites_are_equal();
    outcome.is_right()?;
    link.verify()
}
