//! The data of a push service: what the demo loads, tests compare and benches measure.
//!
//! Devices are hashes, tags sets, aliases strings with a TTL, online users sorted sets, message queues
//! streams with consumer groups and pending entries, outboxes lists, audiences HyperLogLogs, daily
//! activity bitmaps, regions geo sets, quotas counters. Keys spread over [`TENANTS`] tenants Zipf-like:
//! the first has about a tenth of them. A seed gives the same data for ever.

mod history;
mod load;
mod rng;
mod traffic;

use std::fmt::Write as _;

pub use history::{Counted, Entry, History, Verdict, judge};
pub use load::{Loaded, fill, load};
pub use traffic::{Traffic, TrafficOptions};

use crate::resp::Command;
use rng::Rng;

/// How many tenants there are, whatever the number of keys.
pub const TENANTS: u64 = 20_000;

/// The databases that hold keys: of 1000 keys, 40 are in each of 1, 2 and 3, the rest in 0.
pub const DATABASES: [u32; 4] = [0, 1, 2, 3];

/// The kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A hash: a device's registration.
    Device,
    /// A set: the devices that have a tag.
    Tag,
    /// A string with a TTL: which device an alias means.
    Alias,
    /// A sorted set: users online, by time.
    Online,
    /// A stream with a consumer group and pending entries.
    Queue,
    /// A list.
    Outbox,
    /// A HyperLogLog.
    Audience,
    /// A bitmap.
    Active,
    /// A geo set.
    Region,
    /// A string that counts.
    Quota,
}

/// What a key of each hundred is.
const MIX: [(Kind, u64); 10] = [
    (Kind::Device, 38),
    (Kind::Alias, 22),
    (Kind::Tag, 12),
    (Kind::Quota, 7),
    (Kind::Online, 6),
    (Kind::Outbox, 5),
    (Kind::Queue, 4),
    (Kind::Active, 3),
    (Kind::Audience, 2),
    (Kind::Region, 1),
];

impl Kind {
    /// The word in the key's name.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Device => "device",
            Kind::Tag => "tag",
            Kind::Alias => "alias",
            Kind::Online => "online",
            Kind::Queue => "queue",
            Kind::Outbox => "outbox",
            Kind::Audience => "audience",
            Kind::Active => "active",
            Kind::Region => "region",
            Kind::Quota => "quota",
        }
    }
}

/// A key of the generated data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataKey {
    /// Its database.
    pub db: u32,
    /// Its kind.
    pub kind: Kind,
    /// Its name, such as `push:app00042:device:1234`; the number is its index, so no two are equal.
    pub name: String,
}

/// The name of a tenant: `app00042`.
pub fn tenant_name(tenant: u64) -> String {
    format!("app{tenant:05}")
}

/// The key number `index` of `keys` of a seed. Databases follow each other, so that a loader selects each
/// of them once.
pub fn key_at(seed: u64, keys: u64, index: u64) -> DataKey {
    let mut rng = Rng::of(seed, index);
    draw_key(&mut rng, keys, index)
}

fn draw_key(rng: &mut Rng, keys: u64, index: u64) -> DataKey {
    let mut at = rng.below(100);
    let mut kind = Kind::Device;
    for (candidate, share) in MIX {
        if at < share {
            kind = candidate;
            break;
        }
        at -= share;
    }
    let tenant = tenant_name(rng.zipf(TENANTS));
    DataKey { db: db_at(keys, index), kind, name: format!("push:{tenant}:{}:{index}", kind.word()) }
}

fn db_at(keys: u64, index: u64) -> u32 {
    let from_end = keys.saturating_sub(1 + index);
    match from_end.checked_div(keys / 25) {
        Some(n @ 0..=2) => 3 - n as u32,
        _ => 0,
    }
}

/// The commands that make `keys` keys on an empty server, each key's own behind each other, SELECTs among
/// them; the last one selects database 0. Five of the keys (from 10,000 keys on) are large: ten thousand
/// elements, and a string of 1 MB.
pub fn generate(seed: u64, keys: u64) -> impl Iterator<Item = Command> {
    let mut db = 0;
    (0..keys)
        .flat_map(move |index| {
            let mut commands = Vec::with_capacity(4);
            let at = db_at(keys, index);
            if at != db {
                commands.push(words(&["SELECT", &at.to_string()]));
                db = at;
            }
            make_key(seed, keys, index, &mut commands);
            commands
        })
        .chain(std::iter::once(words(&["SELECT", "0"])))
}

/// The commands that build one hash of about `bytes` bytes under `name`, for tests of large values.
pub fn large_hash(name: &str, bytes: u64) -> impl Iterator<Item = Command> {
    const FIELD_BYTES: u64 = 200;
    let name = name.to_owned();
    (0..(bytes / FIELD_BYTES / 100).max(1)).map(move |n| {
        let mut command = words(&["HSET", &name]);
        for i in n * 100..n * 100 + 100 {
            command.push(format!("field:{i:010}").into_bytes());
            command.push(filler(i, 184));
        }
        command
    })
}

fn make_key(seed: u64, keys: u64, index: u64, out: &mut Vec<Command>) {
    let mut rng = Rng::of(seed, index);
    let key = draw_key(&mut rng, keys, index);
    let large = keys >= 10_000 && index % (keys / 5) == keys / 10;
    let size = |rng: &mut Rng, most: u64| if large { 10_000 } else { 1 + rng.below(most) };
    let name = key.name.as_str();
    match key.kind {
        Kind::Device => {
            let mut command =
                words(&["HSET", name, "platform", ["ios", "android", "web"][index as usize % 3]]);
            let mut field = |name: &str, value: String| {
                command.push(name.as_bytes().to_vec());
                command.push(value.into_bytes());
            };
            field("token", format!("{:016x}{:016x}", rng.next(), rng.next()));
            field("app_version", format!("{}.{}.{}", rng.below(9), rng.below(20), rng.below(100)));
            field("badge", rng.below(50).to_string());
            out.push(command);
            if large {
                out.extend(large_hash(name, 2_000_000));
            }
        }
        Kind::Tag => many(out, &["SADD", name], size(&mut rng, 12), |_, i, c| {
            c.push(format!("device:{}", index * 7 + i).into_bytes());
        }),
        Kind::Alias => {
            let seconds = (3_600 + rng.below(30 * 86_400)).to_string();
            let value =
                if large { filler(index, 1_000_000) } else { filler(index, 20 + rng.below(40) as usize) };
            let mut command = words(&["SET", name]);
            command.push(value);
            command.extend(words(&["EX", &seconds]));
            out.push(command);
        }
        Kind::Online => many(out, &["ZADD", name], size(&mut rng, 15), |rng, i, c| {
            c.push((1_700_000_000 + rng.below(10_000_000)).to_string().into_bytes());
            c.push(format!("user:{}", index + i).into_bytes());
        }),
        Kind::Queue => make_queue(out, name, size(&mut rng, 8)),
        Kind::Outbox => many(out, &["RPUSH", name], size(&mut rng, 10), |rng, i, c| {
            c.push(format!("msg:{i}:{:08x}", rng.below(1 << 32)).into_bytes());
        }),
        Kind::Audience => many(out, &["PFADD", name], size(&mut rng, 40), |rng, _, c| {
            c.push(rng.next().to_le_bytes().to_vec());
        }),
        Kind::Active => {
            for _ in 0..1 + rng.below(4) {
                out.push(words(&["SETBIT", name, &rng.below(4_096).to_string(), "1"]));
            }
        }
        Kind::Region => many(out, &["GEOADD", name], size(&mut rng, 6), |rng, i, c| {
            c.push(format!("{:.5}", rng.unit() * 300.0 - 150.0).into_bytes());
            c.push(format!("{:.5}", rng.unit() * 160.0 - 80.0).into_bytes());
            c.push(format!("user:{}", index + i).into_bytes());
        }),
        Kind::Quota => out.push(words(&["SET", name, &rng.below(1_000_000).to_string()])),
    }
    // Some that are no alias have an end, too.
    if key.kind != Kind::Alias && rng.below(20) == 0 {
        out.push(words(&["EXPIRE", name, &(86_400 + rng.below(864_000)).to_string()]));
    }
    if key.kind == Kind::Queue {
        // Delivered and not acknowledged: pending entries of two consumers.
        out.push(words(&["XREADGROUP", "GROUP", "senders", "s1", "COUNT", "2", "STREAMS", name, ">"]));
        out.push(words(&["XREADGROUP", "GROUP", "senders", "s2", "COUNT", "1", "STREAMS", name, ">"]));
    }
}

/// Entry ids are fixed, so that a seed's streams are equal on every server.
fn make_queue(out: &mut Vec<Command>, name: &str, size: u64) {
    for i in 0..size {
        let mut body = String::new();
        let _ = write!(body, "hello {i}");
        out.push(words(&["XADD", name, &format!("{}-{i}", 1_700_000_000_000 + i * 1_000), "body", &body]));
    }
    out.push(words(&["XGROUP", "CREATE", name, "senders", "0"]));
}

/// One command for each hundred of `size` elements.
fn many(
    out: &mut Vec<Command>,
    head: &[&str],
    size: u64,
    mut element: impl FnMut(&mut Rng, u64, &mut Command),
) {
    let mut rng = Rng::of(size, head.iter().map(|h| h.len() as u64).sum());
    for start in (0..size).step_by(100) {
        let mut command = words(head);
        for i in start..size.min(start + 100) {
            element(&mut rng, i, &mut command);
        }
        out.push(command);
    }
}

fn filler(n: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::of(n, len as u64);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(rng.next().to_le_bytes().map(|b| b'a' + b % 26));
    }
    bytes.truncate(len);
    bytes
}

fn words(words: &[&str]) -> Command {
    crate::resp::cmd(words)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_commands_twice_and_another_seed_others() {
        let of = |seed| generate(seed, 500).collect::<Vec<_>>();
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn all_kinds_and_databases_appear_and_no_name_twice() {
        let keys: Vec<DataKey> = (0..5_000).map(|i| key_at(1, 5_000, i)).collect();
        let kinds: HashSet<_> = keys.iter().map(|k| k.kind).collect();
        let dbs: HashSet<_> = keys.iter().map(|k| k.db).collect();
        let names: HashSet<_> = keys.iter().map(|k| &k.name).collect();
        assert_eq!((kinds.len(), dbs.len(), names.len()), (MIX.len(), DATABASES.len(), 5_000));
        assert_eq!(keys.iter().filter(|k| k.db == 0).count(), 4_400);
    }

    #[test]
    fn a_few_keys_are_large() {
        let large = generate(3, 20_000).map(|c| c[1].clone()).fold(
            std::collections::HashMap::<Vec<u8>, u32>::new(),
            |mut seen, name| {
                *seen.entry(name).or_default() += 1;
                seen
            },
        );
        assert!(large.values().filter(|n| **n >= 100).count() >= 1);
    }
}
