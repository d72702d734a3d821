//! Writers at both sites that collide on a few hot keys, over two real Redis servers, while the line is cut and
//! healed and the daemon killed. What the servers acknowledged is held against what both sites have in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use causeway_stories::proxy::Proxy;
use causeway_stories::{Link, Setup, seed, servers};
use causeway_testkit::resp::{Connection, Reply, cmd};
use causeway_testkit::servers::Options;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const DRAIN: Duration = Duration::from_secs(90);
const SITES: [&str; 2] = ["dc", "cloud"];
const MILLION: u64 = 1_000_000;
/// A batch of operations every `PACE`.
const PACE: Duration = Duration::from_millis(10);
const BATCH: usize = 8;
/// How long nothing is disturbed before the writers end, in seconds.
const CALM: f64 = 4.0;
/// A write is captured within this time while nothing is disturbed, and this long after it was, in seconds.
const CAPTURED: f64 = 1.5;

/// A command that a server acknowledged and that did something, its words with a blank between; sent at `at`, in seconds.
#[derive(Debug)]
struct Act {
    at: f64,
    site: usize,
    line: String,
}

impl Act {
    fn words(&self) -> Vec<&str> {
        self.line.split(' ').collect()
    }

    /// Of a command that writes one element: the key, the element, and its new value if it is not removed.
    fn written(&self) -> Option<(&str, &str, Option<&str>)> {
        Some(match self.words()[..] {
            ["HSET", key, field, value] => (key, field, Some(value)),
            ["ZADD", key, score, member] => (key, member, Some(score)),
            ["SADD" | "LPUSH" | "RPUSH", key, element] => (key, element, Some("")),
            ["XADD", key, _, field, value] => (key, value, Some(field)),
            ["SET" | "APPEND", key, text, ..] => (key, text.trim_start_matches(';'), Some("")),
            ["HDEL" | "ZREM" | "SREM", key, element] => (key, element, None),
            _ => return None,
        })
    }

    /// Of a command on a counted key: the key, the element, and by how much it grows.
    fn counts(&self) -> Option<(&str, &str, i64)> {
        let words = self.words();
        let (kind, _) = words.get(1)?.split_once(':')?;
        let number = |text: &str| text.parse::<i64>().ok();
        Some(match words[..] {
            _ if !COUNTED.contains(&kind) => return None,
            ["INCR", key] => (key, "", 1),
            ["INCRBY", key, by] => (key, "", number(by)?),
            ["DECRBY", key, by] => (key, "", -number(by)?),
            ["HINCRBY", key, field, by] => (key, field, number(by)?),
            ["ZINCRBY" | "ZADD", key, by, member] => (key, member, number(by)?),
            ["SADD" | "LPUSH" | "RPUSH" | "SETBIT", key, element, ..] => (key, element, 1),
            ["XADD", key, _, _, value] => (key, value, 1),
            ["SREM", key, member] => (key, member, -1),
            _ => return None,
        })
    }
}

/// Kinds of keys of which the end is known exactly.
const COUNTED: [&str; 8] = ["sum", "sums", "ranks", "pushed", "scored", "bits", "members", "stream"];

/// What a writer does next: one command, or a few in a MULTI.
type Draw = fn(&mut Writer) -> Vec<String>;

struct Writer {
    site: usize,
    random: SmallRng,
    began: Instant,
    lasts: f64,
    drawn: u32,
    /// Members of counted sets that this writer added and may remove again.
    removable: Vec<String>,
    acts: Vec<Act>,
}

impl Writer {
    fn run(mut self, url: &str, draw: Draw) -> Result<Vec<Act>> {
        let mut to = Connection::open(url)?;
        while self.now() < self.lasts {
            let batch = (0..BATCH).flat_map(|_| draw(&mut self)).collect();
            self.send(&mut to, batch)?;
            std::thread::sleep(PACE);
        }
        let ended = (0..3).map(|n| format!("DEL own:{}:{n}", self.site)).collect();
        self.send(&mut to, ended)?;
        Ok(self.acts)
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Keeps what was acknowledged, also within a MULTI.
    fn send(&mut self, to: &mut Connection, batch: Vec<String>) -> Result<()> {
        let at = self.now();
        let commands: Vec<_> = batch.iter().map(|line| cmd(&line.split(' ').collect::<Vec<_>>())).collect();
        let mut queued = Vec::new();
        for (line, reply) in batch.into_iter().zip(to.pipeline(&commands)?) {
            match line.as_str() {
                "MULTI" => {}
                "EXEC" => queued.drain(..).zip(reply.items()).for_each(|(line, r)| self.keep(at, line, r)),
                _ if reply == Reply::Simple("QUEUED".to_owned()) => queued.push(line),
                _ => self.keep(at, line, &reply),
            }
        }
        Ok(())
    }

    fn keep(&mut self, at: f64, line: String, reply: &Reply) {
        let verb = line.split(' ').next().unwrap_or_default();
        let in_vain = ["SADD", "SREM", "HDEL", "ZREM"].contains(&verb) && *reply == Reply::Int(0);
        if reply.error().is_some() || in_vain {
            return;
        }
        if line.starts_with("SADD members:") {
            self.removable.push(line.replacen("SADD", "SREM", 1));
        }
        self.acts.push(Act { at, site: self.site, line });
    }

    fn below(&mut self, n: u32) -> u32 {
        self.random.random_range(0..n)
    }

    /// A word that nobody else writes, and no one twice.
    fn fresh(&mut self) -> String {
        self.drawn += 1;
        format!("{}{}", SITES[self.site], self.drawn)
    }

    /// On keys of which the end is known exactly, in whatever order the sites' writes meet.
    fn counted(&mut self) -> String {
        let (n, by, fresh) = (self.below(2), 1 + self.below(9), self.fresh());
        match self.below(11) {
            0 => format!("INCRBY sum:{n} {by}"),
            1 => format!("DECRBY sum:{n} {by}"),
            2 => format!("INCR sum:{n}"),
            3 => format!("HINCRBY sums:{n} f{by} {by}"),
            4 => format!("ZINCRBY ranks:{n} {by} m{by}"),
            5 => format!("LPUSH pushed:{n} {fresh}"),
            6 => format!("RPUSH pushed:{n} {fresh}"),
            7 => format!("ZADD scored:{n} {by} {fresh}"),
            8 => format!("SETBIT bits:{n} {} 1", 2 * self.drawn as usize + self.site),
            9 if !self.removable.is_empty() => self.removable.remove(0),
            _ => format!("SADD members:{n} {fresh}"),
        }
    }

    /// On single elements that both sites write, and end to write at different times.
    fn element(&mut self) -> Option<String> {
        let (n, fresh) = (self.below(25), self.fresh());
        let turn = if self.site == 0 { n % 5 } else { n / 5 };
        if self.now() > self.lasts - 2.5 * f64::from(turn) {
            return None;
        }
        Some(match self.below(6) {
            0 => format!("HSET fields f{n} {fresh}"),
            1 => format!("HDEL fields f{n}"),
            2 => format!("SADD tags m{n}"),
            3 => format!("SREM tags m{n}"),
            4 => format!("ZADD scores {} m{n}", self.drawn as usize * 2 + self.site),
            _ => format!("ZREM scores m{n}"),
        })
    }

    /// On keys that only this site writes, and deletes in the end.
    fn own(&mut self) -> String {
        let site = self.site;
        let [key, other] = [(); 2].map(|()| format!("own:{site}:{}", self.below(3)));
        match self.below(8) {
            0 => format!("DEL {key}"),
            1 => format!("PEXPIRE {key} {}", 1 + self.below(300)),
            2 => format!("RENAME {key} {other}"),
            3 => format!("APPEND {key} ;{}", self.fresh()),
            4 => format!("SET {key} {} PX {}", self.fresh(), 1 + self.below(500)),
            _ => format!("SET {key} {}", self.fresh()),
        }
    }

    /// On keys of one type that both sites write, delete, rename and let expire.
    fn contested(&mut self) -> String {
        let kind = KINDS[self.below(KINDS.len() as u32) as usize];
        let [key, from, other] = [(); 3].map(|()| format!("{kind}:{}", self.below(3)));
        match self.below(20) {
            0 => format!("DEL {key}"),
            1 => format!("UNLINK {key}"),
            2 => format!("EXPIRE {key} {}", 600 + self.below(3_000)),
            3 => format!("PEXPIRE {key} {}", 1 + self.below(300)),
            4 => format!("PERSIST {key}"),
            5 => format!("RENAME {key} {other}"),
            6 if kind == "hot-set" => format!("SUNIONSTORE {key} {from} {other}"),
            _ => self.inside(kind, &key),
        }
    }

    /// On the inside of `key`, which is of `kind`.
    fn inside(&mut self, kind: &str, key: &str) -> String {
        let (n, fresh) = (self.below(8), self.fresh());
        match (kind, n % 4) {
            ("hot-text", 0) => format!("SET {key} {fresh}"),
            ("hot-text", 1) => format!("SET {key} {fresh} PX {}", 1 + self.below(300)),
            ("hot-text", _) => format!("APPEND {key} ;{fresh}"),
            ("hot-number", 0) => {
                format!("SET {key} {}", MILLION * u64::from(2 * self.drawn) + MILLION * self.site as u64)
            }
            ("hot-number", _) => format!("INCRBY {key} {n}"),
            ("hot-bits", 0) => format!("SETBIT {key} {} 0", self.below(99)),
            ("hot-bits", _) => format!("SETBIT {key} {} 1", self.below(99)),
            ("hot-hash", 0) => format!("HDEL {key} f{n}"),
            ("hot-hash", _) => format!("HSET {key} f{n} {fresh}"),
            ("hot-set", 0) => format!("SREM {key} m{n}"),
            ("hot-set", 1) => format!("SADD {key} {fresh}"),
            ("hot-set", _) => format!("SADD {key} m{n}"),
            ("hot-sorted", 0) => format!("ZREM {key} m{n}"),
            ("hot-sorted", _) => format!("ZADD {key} {} m{n}", 2 * self.drawn as usize + self.site),
            ("hot-list", 0) => format!("LPOP {key}"),
            ("hot-list", 1) => format!("RPUSH {key} {fresh}"),
            ("hot-list", _) => format!("LPUSH {key} {fresh}"),
            _ => format!("XADD {key} * n {fresh}"),
        }
    }

    /// One of the above.
    fn any(&mut self) -> String {
        match self.below(10) {
            0..3 => self.counted(),
            3..5 => self.element().unwrap_or_else(|| self.own()),
            5 => self.own(),
            _ => self.contested(),
        }
    }
}

/// The contested keys, by what they hold.
const KINDS: [&str; 8] =
    ["hot-text", "hot-number", "hot-bits", "hot-hash", "hot-set", "hot-sorted", "hot-list", "hot-stream"];

/// Everything on every key; one in eight is a transaction.
fn everything(writer: &mut Writer) -> Vec<String> {
    if writer.below(8) > 0 {
        return vec![writer.any()];
    }
    let commands: Vec<_> = (0..2 + writer.below(3)).map(|_| writer.any()).collect();
    [vec!["MULTI".to_owned()], commands, vec!["EXEC".to_owned()]].concat()
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
        told.truncate(1_000);
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
            if key.starts_with("bits:") {
                let set = |bit: &usize| bytes[bit / 8] & (128 >> (bit % 8)) != 0;
                tally.extend((0..8 * bytes.len()).filter(set).map(|bit| (bit.to_string(), 1)));
            } else if key.starts_with("sum:") {
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
    found: [BTreeMap<String, Content>; 2],
    /// What is wrong with a key.
    wrong: BTreeMap<String, String>,
}

/// Runs a writer at each site while lines and daemon are disturbed, and waits until all has arrived.
fn collide(link: &mut Link, lines: &[Proxy; 2], draw: Draw) -> Result<Outcome> {
    let mut random = SmallRng::seed_from_u64(seed());
    let lasts = std::env::var("CAUSEWAY_STORY_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15.0);
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let began = Instant::now();
    let writers = [0, 1].map(|site| {
        let random = SmallRng::seed_from_u64(random.random());
        let writer = Writer { site, random, began, lasts, drawn: 0, removable: Vec::new(), acts: Vec::new() };
        let url = link.urls()[site].clone();
        std::thread::spawn(move || writer.run(&url, draw))
    });
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
    println!("{} acknowledged, {} times disturbed", acts.len(), troubles.len());
    let status = link.wait_until_drained(DRAIN)?;
    ensure!(status.channels[0].directions.iter().all(|d| d.gaps == 0), "a gap: {status:#?}");
    ensure!(!link.log().contains("panicked"), "{}", link.log_end());
    let found = [contents(link, 0)?, contents(link, 1)?];
    Ok(Outcome { acts, troubles, found, wrong: BTreeMap::new() })
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
        self.wrong.entry(key.to_owned()).or_insert(what);
    }

    /// Each key holds the same at both sites, and expires at the same time.
    fn sites_are_equal(&mut self) {
        let [dc, cloud] = self.found.clone();
        for key in dc.keys().chain(cloud.keys()).filter(|key| dc.get(*key) != cloud.get(*key)) {
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
                let elements: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
                let counts = elements
                    .into_iter()
                    .map(|e| (e, [&expected, &found].map(|m| m.get(e).copied().unwrap_or(0))));
                let off: Vec<_> = counts.filter(|(_, [expected, found])| expected != found).collect();
                if !off.is_empty() {
                    let some = &off[..off.len().min(8)];
                    self.blame(
                        &key,
                        format!("{} off at {}, [expected, found]: {some:?}", off.len(), SITES[site]),
                    );
                }
            }
        }
    }

    /// When a write that was sent at `at` was captured for sure.
    fn captured(&self, at: f64) -> f64 {
        let later = |by: f64, (from, to): &(f64, f64)| match *from < by && at < *to + CAPTURED {
            true => by.max(to + CAPTURED),
            false => by,
        };
        self.troubles.iter().fold(at + CAPTURED, later)
    }

    /// Each element is as one of the two sites wrote it last; as the later one did, where that is certain.
    fn newest_stand(&mut self) {
        let mut last: BTreeMap<_, [Option<(f64, Option<String>)>; 2]> = BTreeMap::new();
        for act in &self.acts {
            if let Some((key @ ("fields" | "tags" | "scores"), element, value)) = act.written() {
                let last = last.entry((key.to_owned(), element.to_owned())).or_default();
                last[act.site] = Some((act.at, value.map(str::to_owned)));
            }
        }
        let mut certain = 0;
        for ((key, element), last) in last {
            let mut stands: Vec<_> = last.into_iter().flatten().collect();
            stands.sort_by(|a, b| a.0.total_cmp(&b.0));
            if stands.len() == 2 && self.captured(stands[0].0) < stands[1].0 {
                stands.remove(0);
                certain += 1;
            }
            let found = self.found[0].get(&key).and_then(|c| c.texts().find(|(e, _)| *e == element));
            let found = found.map(|(_, value)| value);
            if stands.iter().all(|(_, value)| *value != found) {
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
            "hot-text" => element
                .split(';')
                .filter(|part| !part.is_empty())
                .all(|part| written.contains(&(kind, part, ""))),
            "hot-number" => {
                let set = element.parse().map_or(1, |n: u64| n / MILLION * MILLION);
                set == 0 || written.contains(&(kind, &set.to_string(), ""))
            }
            "hot-stream" => written.contains(&(kind, element, "n")),
            _ => written.contains(&(kind, element, value)),
        };
        let mut nowhere = Vec::new();
        for (key, content) in self.found.iter().flatten().filter(|(key, _)| key.starts_with("hot-")) {
            let mut pairs = content.texts().filter(|_| kind(key) != "hot-bits");
            if let Some(odd) = pairs.find(|(element, value)| !known(kind(key), element, value)) {
                nowhere.push((key.clone(), format!("nobody wrote {odd:?}")));
            }
            if kind(key) == "hot-list" && content.tally(key).values().any(|times| *times > 1) {
                nowhere.push((key.clone(), "an element is there twice".to_owned()));
            }
        }
        nowhere.into_iter().for_each(|(key, what)| self.blame(&key, what));
    }

    /// What its only writer deleted in the end is nowhere.
    fn nothing_lives_again(&mut self) {
        let all: BTreeSet<_> = self.found.iter().flat_map(BTreeMap::keys).cloned().collect();
        for key in all.iter().filter(|key| key.starts_with("own:")) {
            self.blame(key, "its only writer deleted it".to_owned());
        }
    }

    /// Fails with each wrong key, what both sites have of it, and what was done to it last.
    fn is_right(&self) -> Result<()> {
        let mut told = String::new();
        for (key, what) in &self.wrong {
            writeln!(told, "{key}: {what}")?;
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

/// What a key is called before its number.
fn kind(key: &str) -> &str {
    key.split(':').next().unwrap_or_default()
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
    outcome.nothing_lives_again();
    outcome.sites_are_equal();
    outcome.is_right()?;
    let dead = link.dead_letters();
    println!("{} dead letters", dead.lines().count());
    // What a stream refuses: docs/CONVERGENCE.md, section 5.
    ensure!(dead.lines().all(|letter| letter.contains("hot-stream:")), "dead letters: {dead}");
    link.verify()
}
