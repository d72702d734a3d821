//! Writers that collide: what both sites do to the same few keys at once, and what each server said to it.

use std::time::{Duration, Instant};

use anyhow::Result;
use causeway_testkit::resp::{Connection, Reply, cmd};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The sites' names.
pub const SITES: [&str; 2] = ["dc", "cloud"];
/// Contested numbers are set to multiples of it, and less is added to them.
pub const MILLION: u64 = 1_000_000;
/// A batch of operations every `PACE`.
const PACE: Duration = Duration::from_millis(10);
const BATCH: usize = 8;

/// A command that a server acknowledged, and that changed something.
#[derive(Debug)]
pub struct Act {
    /// When it was sent, in seconds.
    pub at: f64,
    /// When it was acknowledged.
    pub by: f64,
    /// Where.
    pub site: usize,
    /// Its words with a blank between.
    pub line: String,
}

impl Act {
    /// The command and its arguments.
    pub fn words(&self) -> Vec<&str> {
        self.line.split(' ').collect()
    }

    /// Of a command that writes one element: the key, the element, and its new value if it is not removed.
    pub fn written(&self) -> Option<(&str, &str, Option<&str>)> {
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
    pub fn counts(&self) -> Option<(&str, &str, i64)> {
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
pub type Draw = fn(&mut Writer) -> Vec<String>;

/// A writer at one site.
#[derive(Debug)]
pub struct Writer {
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
    /// A writer at `site` that began at `began` and writes for `lasts` seconds. The same seed draws the same.
    pub fn new(site: usize, seed: u64, began: Instant, lasts: f64) -> Writer {
        let random = SmallRng::seed_from_u64(seed);
        Writer { site, random, began, lasts, drawn: 0, removable: Vec::new(), acts: Vec::new() }
    }

    /// Writes what `draw` says; returns what was acknowledged, in the order in which it was sent.
    ///
    /// # Errors
    ///
    /// Those of the connection: what became of the last commands is unknown then.
    pub fn run(mut self, url: &str, draw: Draw) -> Result<Vec<Act>> {
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
        let replies = to.pipeline(&commands)?;
        let sent = (at, self.now());
        for (line, reply) in batch.into_iter().zip(replies) {
            match line.as_str() {
                "MULTI" => {}
                "EXEC" => queued.drain(..).zip(reply.items()).for_each(|(line, r)| self.keep(sent, line, r)),
                _ if reply == Reply::Simple("QUEUED".to_owned()) => queued.push(line),
                _ => self.keep(sent, line, &reply),
            }
        }
        Ok(())
    }

    fn keep(&mut self, (at, by): (f64, f64), line: String, reply: &Reply) {
        let verb = line.split(' ').next().unwrap_or_default();
        let in_vain = match verb {
            "SADD" | "SREM" | "HDEL" | "ZREM" | "PERSIST" | "EXPIRE" => *reply == Reply::Int(0),
            "SET" => *reply == Reply::Bulk(None),
            _ => false,
        };
        if reply.error().is_some() || in_vain {
            return;
        }
        if line.starts_with("SADD members:") {
            self.removable.push(line.replacen("SADD", "SREM", 1));
        }
        self.acts.push(Act { at, by, site: self.site, line });
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

    /// On keys that are set once, by one site, to live for a moment: either site may let them live on.
    fn brief(&mut self) -> String {
        let slot = (self.now() * 20.0) as usize;
        let recent = slot.saturating_sub(self.below(8) as usize);
        match self.below(4) {
            0 => format!("PERSIST brief:{recent}"),
            1 => format!("EXPIRE brief:{recent} {}", 600 + self.below(3_000)),
            // It outlives its slot, so that it is not set twice.
            _ => {
                let slot = slot / 2 * 2 + self.site;
                format!("SET brief:{slot} {} PX {} NX", self.fresh(), 150 + self.below(400))
            }
        }
    }

    /// On keys of one type, or of any, that both sites write, delete, rename and let expire.
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
            _ if kind == "hot-any" => {
                let kind = KINDS[1 + self.below(KINDS.len() as u32 - 1) as usize];
                self.inside(kind, &key)
            }
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

    /// One of the above; without what `CAUSEWAY_STORY_WITHOUT` names, such as `RENAME,PX`, to narrow a failure down.
    fn any(&mut self) -> String {
        let without = std::env::var("CAUSEWAY_STORY_WITHOUT").unwrap_or_default();
        loop {
            let line = match self.below(10) {
                0..3 => self.counted(),
                3..5 => self.element().unwrap_or_else(|| self.own()),
                5 => self.own(),
                6 => self.brief(),
                _ => self.contested(),
            };
            if !line.split(' ').any(|word| without.split(',').any(|w| w == word)) {
                return line;
            }
        }
    }
}

/// The contested keys, by what they hold.
const KINDS: [&str; 8] =
    ["hot-text", "hot-number", "hot-bits", "hot-hash", "hot-set", "hot-sorted", "hot-list", "hot-stream"];

/// Appends to a few streams.
pub fn appends(writer: &mut Writer) -> Vec<String> {
    let (n, fresh) = (writer.below(3), writer.fresh());
    if writer.below(8) > 0 { Vec::new() } else { vec![format!("XADD stream:{n} * n {fresh}")] }
}

/// Everything on every key; one in eight is a transaction.
pub fn everything(writer: &mut Writer) -> Vec<String> {
    if writer.below(8) > 0 {
        return vec![writer.any()];
    }
    let commands: Vec<_> = (0..2 + writer.below(3)).map(|_| writer.any()).collect();
    [vec!["MULTI".to_owned()], commands, vec!["EXEC".to_owned()]].concat()
}

/// What a key is called before its number.
pub fn kind(key: &str) -> &str {
    key.split(':').next().unwrap_or_default()
}
