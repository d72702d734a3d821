use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Counted, DATABASES, History, Kind, TENANTS, key_at, rng::Rng, tenant_name};
use crate::resp::{Command, Connection, cmd, encode};

/// How a [`Traffic`] writes.
#[derive(Debug, Clone)]
pub struct TrafficOptions {
    /// The server.
    pub url: String,
    /// The site, a word in the names of its keys: two writers with different sites never write the same.
    pub site: String,
    /// The same seed does the same operations in the same order.
    pub seed: u64,
    /// Operations per second; 0: as many as go.
    pub rate: u64,
    /// Seed and number of the keys that [`fill`](super::fill) loaded here: some of the operations change
    /// those. For one of two sites only.
    pub filled: Option<(u64, u64)>,
}

/// A writer on a thread of its own: operations of all kinds on keys that only it writes, with a
/// [`History`] of those that can be counted. Connects again by itself when the server goes away.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<History>>,
}

impl Traffic {
    /// Starts writing.
    pub fn start(options: TrafficOptions) -> Traffic {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writer = Writer {
            rng: Rng::new(options.seed),
            history: History::default(),
            options,
            db: 0,
            stop: Arc::clone(&stop),
            done: Arc::clone(&done),
        };
        let thread = std::thread::spawn(move || {
            writer.run();
            writer.history
        });
        Traffic { stop, done, thread: Some(thread) }
    }

    /// How many operations were acknowledged so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends the writing after the operations under way; waits for those at most as long as a server that
    /// is gone is waited for (2 s).
    ///
    /// # Panics
    ///
    /// If the writer did.
    pub fn stop(mut self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(history)) => history,
            _ => panic!("the traffic writer panicked"),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What an operation does to something counted, if it took effect.
enum Effect {
    Add(Counted, String, u64),
    Element(Counted, String, u64),
}

/// One operation: commands that are sent together, and what they count.
struct Operation {
    db: u32,
    commands: Vec<Command>,
    effects: Vec<Effect>,
}

struct Writer {
    options: TrafficOptions,
    rng: Rng,
    history: History,
    db: u32,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

/// Operations sent before their replies are read.
const PIPELINE_MAX: u64 = 64;
/// How many keys of each kind a site's traffic writes, so that keys are hit again.
const KEYS_A_KIND: u64 = 40;

impl Writer {
    fn run(&mut self) {
        let start = Instant::now();
        let mut sent = 0;
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some(open) = &mut connection else {
                connection = self.connect();
                continue;
            };
            let due = match self.options.rate {
                0 => PIPELINE_MAX,
                rate => ((start.elapsed().as_secs_f64() * rate as f64) as u64).saturating_sub(sent),
            };
            if due == 0 {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let operations: Vec<Operation> = (0..due.min(PIPELINE_MAX)).map(|_| self.operation()).collect();
            sent += operations.len() as u64;
            if self.send(open, operations).is_err() {
                connection = None;
            }
        }
    }

    fn connect(&mut self) -> Option<Connection> {
        let opened = Connection::open(&self.options.url).and_then(|mut c| {
            c.must(&["PING"])?;
            Ok(c)
        });
        self.db = 0;
        if opened.is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        opened.ok()
    }

    /// Sends all, reads all, and takes down what is known of each: an error of the connection leaves the
    /// rest unknown.
    fn send(&mut self, connection: &mut Connection, operations: Vec<Operation>) -> io::Result<()> {
        let mut out = Vec::new();
        let mut lengths = Vec::with_capacity(operations.len());
        for operation in &operations {
            let mut n = operation.commands.len();
            if operation.db != self.db {
                encode(&["SELECT", &operation.db.to_string()], &mut out);
                self.db = operation.db;
                n += 1;
            }
            operation.commands.iter().for_each(|c| encode(c, &mut out));
            lengths.push(n);
        }
        let mut failed = connection.write(&out).err();
        for (operation, n) in operations.into_iter().zip(lengths) {
            let mut refused = false;
            for _ in 0..n {
                if failed.is_some() {
                    break;
                }
                match connection.read() {
                    Ok(reply) => refused |= reply.error().is_some(),
                    Err(error) => failed = Some(error),
                }
            }
            self.record(operation, failed.is_some(), refused);
        }
        failed.map_or(Ok(()), Err)
    }

    fn record(&mut self, operation: Operation, unknown: bool, refused: bool) {
        let history = &mut self.history;
        match (unknown, refused) {
            // An error within a MULTI doesn't undo its other commands, so that is not known either.
            (true, _) => history.unknown += 1,
            (false, true) => history.refused += 1,
            (false, false) => {
                history.operations += 1;
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }
        let unknown = unknown || (refused && operation.commands.len() > 1);
        for effect in operation.effects {
            match effect {
                Effect::Add(counted, key, by) => {
                    let entry = history.entry(operation.db, &key, counted);
                    match (unknown, refused) {
                        (true, _) => entry.unknown += by,
                        (false, true) => {}
                        (false, false) => entry.acknowledged += by,
                    }
                }
                Effect::Element(counted, key, n) => {
                    let entry = history.entry(operation.db, &key, counted);
                    match (unknown, refused) {
                        (true, _) => {
                            entry.unknown += 1;
                            entry.unknown_elements.push(n);
                        }
                        (false, true) => entry.refused_elements.push(n),
                        (false, false) => entry.acknowledged += 1,
                    }
                }
            }
        }
    }

    /// A key of this site's traffic, such as `push:app00042:device:A17`.
    fn key(&mut self, word: &str) -> String {
        let n = self.rng.below(KEYS_A_KIND);
        // The tenant follows from the number: a key has one name.
        let tenant = tenant_name(n * 37 % TENANTS);
        format!("push:{tenant}:{word}:{}{n}", self.options.site)
    }

    fn element(&mut self, db: u32, counted: Counted, key: &str) -> u64 {
        let entry = self.history.entry(db, key, counted);
        entry.next += 1;
        entry.next - 1
    }

    fn operation(&mut self) -> Operation {
        // One in eight elsewhere than in database 0.
        let db = match self.rng.below(8) {
            0 => DATABASES[self.rng.below(DATABASES.len() as u64) as usize],
            _ => 0,
        };
        if self.options.filled.is_some() && self.rng.below(4) == 0 {
            return self.on_filled();
        }
        match self.rng.below(26) {
            0..12 => self.counted(db),
            n => self.uncounted(db, n),
        }
    }

    fn counted(&mut self, db: u32) -> Operation {
        let mut effects = Vec::new();
        let by = 1 + self.rng.below(3);
        let by_text = by.to_string();
        let commands = match self.rng.below(7) {
            0 => {
                let key = self.key("sent");
                effects.push(Effect::Add(Counted::Counter, key.clone(), 1));
                vec![cmd(&["INCR", &key])]
            }
            1 => {
                let key = self.key("sent");
                effects.push(Effect::Add(Counted::Counter, key.clone(), by));
                vec![cmd(&["INCRBY", &key, &by_text])]
            }
            2 => {
                let key = self.key("stats");
                effects.push(Effect::Add(Counted::Field, key.clone(), by));
                vec![cmd(&["HINCRBY", &key, "n", &by_text])]
            }
            3 => {
                let key = self.key("inbox");
                let n = self.element(db, Counted::List, &key);
                effects.push(Effect::Element(Counted::List, key.clone(), n));
                vec![cmd(&["RPUSH", &key, &n.to_string()])]
            }
            4 => {
                let key = self.key("events");
                let n = self.element(db, Counted::Stream, &key);
                effects.push(Effect::Element(Counted::Stream, key.clone(), n));
                vec![cmd(&["XADD", &key, "*", "n", &n.to_string()])]
            }
            5 => {
                let (count, list, device) = (self.key("sent"), self.key("inbox"), self.key("device"));
                let n = self.element(db, Counted::List, &list);
                effects.push(Effect::Add(Counted::Counter, count.clone(), by));
                effects.push(Effect::Element(Counted::List, list.clone(), n));
                vec![
                    cmd(&["MULTI"]),
                    cmd(&["INCRBY", &count, &by_text]),
                    cmd(&["HSET", &device, "last", &n.to_string()]),
                    cmd(&["RPUSH", &list, &n.to_string()]),
                    cmd(&["EXEC"]),
                ]
            }
            _ => {
                let (count, events) = (self.key("sent"), self.key("events"));
                let n = self.element(db, Counted::Stream, &events);
                effects.push(Effect::Add(Counted::Counter, count.clone(), by));
                effects.push(Effect::Element(Counted::Stream, events.clone(), n));
                let script =
                    "redis.call('INCRBY',KEYS[1],ARGV[1]) redis.call('XADD',KEYS[2],'*','n',ARGV[2])";
                vec![cmd(&["EVAL", script, "2", &count, &events, &by_text, &n.to_string()])]
            }
        };
        Operation { db, commands, effects }
    }

    fn uncounted(&mut self, db: u32, which: u64) -> Operation {
        let n = self.rng.below(200);
        let text = n.to_string();
        let command = match which {
            12 => cmd(&["SET", &self.key("profile"), &format!("value {n}")]),
            13 => cmd(&["SADD", &self.key("tag"), &text, &(n / 2).to_string()]),
            14 => cmd(&["SREM", &self.key("tag"), &text]),
            15 => cmd(&["ZADD", &self.key("online"), &text, &format!("user:{}", n % 50)]),
            16 => cmd(&["EXPIRE", &self.key("device"), &(300 + n).to_string()]),
            17 => cmd(&["SET", &self.key("session"), &text, "PX", &(50 + n * 20).to_string()]),
            18 => cmd(&["DEL", &self.key("profile"), &self.key("tag")]),
            19 => {
                let (from, to) = (self.key("draft"), self.key("final"));
                return Operation {
                    db,
                    commands: vec![cmd(&["SET", &from, &text]), cmd(&["RENAME", &from, &to])],
                    effects: Vec::new(),
                };
            }
            20 => cmd(&["SUNIONSTORE", &self.key("all"), &self.key("tag"), &self.key("tag")]),
            21 => cmd(&["PFADD", &self.key("audience"), &text]),
            22 => cmd(&["SETBIT", &self.key("active"), &text, if n.is_multiple_of(3) { "0" } else { "1" }]),
            23 => {
                let (x, y) = (self.rng.below(300) as f64 - 150.0, self.rng.below(160) as f64 - 80.0);
                cmd(&[
                    "GEOADD",
                    &self.key("region"),
                    &x.to_string(),
                    &y.to_string(),
                    &format!("user:{}", n % 50),
                ])
            }
            24 => cmd(&["HDEL", &self.key("device"), "last"]),
            _ => cmd(&["LMOVE", &self.key("todo"), &self.key("doing"), "LEFT", "RIGHT"]),
        };
        let mut commands = vec![command];
        if which == 25 {
            commands.insert(0, cmd(&["RPUSH", &self.key("todo"), &text]));
        }
        Operation { db, commands, effects: Vec::new() }
    }

    /// Changes a key that was loaded before: what a snapshot is about to read, or has just read.
    fn on_filled(&mut self) -> Operation {
        let (seed, keys) = self.options.filled.unwrap_or((0, 1));
        let key = key_at(seed, keys, self.rng.below(keys));
        let n = self.rng.below(1_000).to_string();
        let name = key.name.as_str();
        let command = match key.kind {
            _ if self.rng.below(12) == 0 => cmd(&["DEL", name]),
            Kind::Device => cmd(&["HINCRBY", name, "badge", "1"]),
            Kind::Tag => cmd(&["SADD", name, &n]),
            Kind::Alias => cmd(&["SET", name, &n, "EX", "86400"]),
            Kind::Online => cmd(&["ZINCRBY", name, "1", &format!("user:{n}")]),
            Kind::Queue => cmd(&["XADD", name, "*", "body", &n]),
            Kind::Outbox => cmd(&["RPUSH", name, &n]),
            Kind::Audience => cmd(&["PFADD", name, &n]),
            Kind::Active => cmd(&["SETBIT", name, &n, "1"]),
            Kind::Region => cmd(&["ZREM", name, &format!("user:{n}")]),
            Kind::Quota => cmd(&["DECRBY", name, "1"]),
        };
        Operation { db: key.db, commands: vec![command], effects: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{fill, judge};
    use super::*;
    use crate::servers::{AppendOnly, Options, RedisServer, redis_server};

    #[test]
    fn what_a_killed_server_acknowledged_is_there_and_nothing_was_refused() {
        if redis_server().is_none() {
            return;
        }
        let options = Options { appendonly: AppendOnly::Always, ..Options::default() };
        let mut server = RedisServer::start(options).unwrap();
        fill(&server.url(), 1, 2_000).unwrap();
        let traffic = Traffic::start(TrafficOptions {
            url: server.url(),
            site: "A".into(),
            seed: 5,
            rate: 4_000,
            filled: Some((1, 2_000)),
        });
        for _ in 0..2 {
            let before = traffic.done();
            while traffic.done() < before + 1_000 {
                std::thread::sleep(Duration::from_millis(10));
            }
            server.kill9();
            server.restart().unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
        let history = traffic.stop();
        assert_eq!(history.refused, 0);
        let mut verdict = judge(std::slice::from_ref(&history), &[server.url()]).unwrap();
        assert_eq!(verdict.wrong, Vec::<String>::new());
        assert!(verdict.increments > 100 && verdict.elements > 100, "{verdict:?}");

        // The judge finds one increment more, and one element less.
        let of = |counted| history.entries.values().find(|e| e.counted == counted && e.db == 0).unwrap();
        let mut connection = server.connect().unwrap();
        connection.must(&["INCRBY", &of(Counted::Counter).key, "1000"]).unwrap();
        connection.must(&["RPOP", &of(Counted::List).key]).unwrap();
        verdict = judge(std::slice::from_ref(&history), &[server.url()]).unwrap();
        assert_eq!(verdict.wrong.len(), 2, "{:?}", verdict.wrong);
    }
}
