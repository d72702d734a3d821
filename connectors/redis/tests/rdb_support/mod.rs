//! What the tests of the RDB splitter share: data of every type and encoding, and a server's account of a key.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use causeway_redis::rdb::{Entry, Item, Options, RdbError, Splitter, Value};
use causeway_testkit::resp::{Connection, Reply};
use causeway_testkit::servers::{Options as ServerOptions, RedisServer, redis_server};

/// Small and seeded; its numbers need no quality.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A server with `args`, or `None` where there is no program.
pub(crate) fn server(args: &[&str]) -> Option<RedisServer> {
    redis_server()?;
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Some(RedisServer::start(ServerOptions { args, ..ServerOptions::default() }).unwrap())
}

/// A server to write rewritten values to: of the program `CAUSEWAY_REDIS_SERVER_OTHER`, to try pairs of
/// which the one refuses what the other dumps; else of the same.
pub(crate) fn other_server() -> Option<RedisServer> {
    redis_server()?;
    let program = std::env::var("CAUSEWAY_REDIS_SERVER_OTHER").ok().map(|program| vec![program]);
    Some(RedisServer::start(ServerOptions { program, ..ServerOptions::default() }).unwrap())
}

pub(crate) fn text(words: &str) -> Vec<Vec<u8>> {
    words.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

pub(crate) fn run(c: &mut Connection, words: &str) -> Reply {
    c.must(&text(words)).unwrap_or_else(|error| panic!("{words}: {error}"))
}

fn must(c: &mut Connection, words: &[&[u8]]) {
    c.must(words).unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(words[0])));
}

/// Whether the server knows `command`.
pub(crate) fn knows(c: &mut Connection, command: &str) -> bool {
    let reply = run(c, &format!("COMMAND INFO {command}"));
    matches!(reply.items().first(), Some(Reply::Array(Some(items))) if !items.is_empty())
}

/// Writes keys of every type, small and large, into databases 0 and 3.
pub(crate) fn fill(c: &mut Connection, random: &mut Random) {
    for number in
        ["0", "-1", "127", "-128", "32767", "-40000", "2147483647", "9223372036854775807", "00", "1.5"]
    {
        must(c, &[b"SET", format!("string:{number}").as_bytes(), number.as_bytes()]);
    }
    run(c, "SETRANGE string:bitmap 40000 x");
    must(c, &[b"SET", b"string:empty", b""]);
    must(c, &[b"SET", b"", b"the empty name"]);
    must(c, &[b"SET", &random.bytes(40), &random.bytes(400)]);
    must(c, &[b"SET", b"string:repeats", &b"causeway ".repeat(500)]);
    must(c, &[b"SET", b"string:1.2MB", &random.bytes(1_200_000)]);
    must(c, &[b"SET", b"string:repeats:3MB", &b"0123456789".repeat(300_000)]);
    must(c, &[b"SET", b"string:repeats:30MB", &vec![b'z'; 30_000_000]]);
    run(c, "SET string:expires x PXAT 4102444800123");
    run(c, "PFADD hll a b c d e f");
    for size in [1usize, 5, 200, 3000] {
        for kind in ["int", "text"] {
            for n in 0..size {
                let element = match kind {
                    "int" => (random.next() as i64 >> (n % 60)).to_string().into_bytes(),
                    _ => {
                        let len = random.below(90);
                        if n % 7 == 0 {
                            vec![b'a' + (n % 26) as u8; 70 + n % 1000]
                        } else {
                            random.bytes(len)
                        }
                    }
                };
                let score = match n % 6 {
                    0 => format!("{n}"),
                    1 => format!("{:e}", f64::from_bits(random.next() >> 2)),
                    2 => "-inf".to_owned(),
                    3 => "inf".to_owned(),
                    4 => "1e17".to_owned(),
                    _ => format!("{}", n as f64 / 3.0),
                };
                let key = |of: &str| format!("{of}:{kind}:{size}").into_bytes();
                must(c, &[b"RPUSH", &key("list"), &element]);
                must(c, &[b"SADD", &key("set"), &element]);
                must(c, &[b"ZADD", &key("zset"), score.as_bytes(), &element]);
                must(c, &[b"HSET", &key("hash"), &element, &random.bytes(n % 50)]);
            }
        }
    }
    must(c, &[b"RPUSH", b"list:large-nodes", b"a", &random.bytes(9000), b"b", &[b'x'; 70000], b"c"]);
    run(c, "PEXPIREAT list:int:5 4102444800000");
    // Over the default limit of a whole value, of each type.
    for n in 0..150 {
        let value = random.bytes(12_000);
        let name = format!("{n}");
        must(c, &[b"RPUSH", b"list:2MB", &value]);
        must(c, &[b"HSET", b"hash:2MB", name.as_bytes(), &value]);
        must(c, &[b"SADD", b"set:2MB", &value]);
        must(c, &[b"ZADD", b"zset:2MB", name.as_bytes(), &value]);
    }
    run(c, "PEXPIREAT hash:2MB 4102444800000");
    streams(c, random);
    run(c, "SELECT 3");
    run(c, "SET other x");
    run(c, "SADD set 1 2 3");
    run(c, "SELECT 0");
}

fn streams(c: &mut Connection, random: &mut Random) {
    run(c, "XGROUP CREATE stream:never-filled g $ MKSTREAM");
    run(c, "XADD stream:emptied 5-1 a 1");
    run(c, "XDEL stream:emptied 5-1");
    run(c, "XADD stream:moved-on 5-1 a 1");
    run(c, "XSETID stream:moved-on 9-9");
    for (key, count) in [("stream:small", 10), ("stream:large", 3000)] {
        for n in 1..=count {
            let id = format!("{}-{}", 1000 + n / 3, n);
            let value = random.bytes(n % 40);
            match n % 4 {
                0 => must(c, &[b"XADD", key.as_bytes(), id.as_bytes(), b"other", &value, b"field", b"12"]),
                _ => must(
                    c,
                    &[b"XADD", key.as_bytes(), id.as_bytes(), b"temperature", b"-7", b"device", &value],
                ),
            }
        }
        for n in (1..=count).step_by(5) {
            run(c, &format!("XDEL {key} {}-{n}", 1000 + n / 3));
        }
        run(c, &format!("XGROUP CREATE {key} all 0"));
        run(c, &format!("XGROUP CREATE {key} none $"));
        run(c, &format!("XGROUP CREATE {key} read 1001-2 ENTRIESREAD 2"));
        for consumer in ["alice", "bob", "alice", "carol"] {
            run(c, &format!("XREADGROUP GROUP all {consumer} COUNT {} STREAMS {key} >", count / 5));
        }
        run(c, &format!("XGROUP CREATECONSUMER {key} all idle"));
        run(c, &format!("XREADGROUP GROUP read dave COUNT 3 STREAMS {key} >"));
        run(c, &format!("XCLAIM {key} all bob 0 1001-3 1001-4 RETRYCOUNT 7 TIME 1234567"));
        run(c, &format!("PEXPIREAT {key} 4102444800000"));
    }
    let value = random.bytes(9000);
    for n in 1..=300 {
        must(c, &[b"XADD", b"stream:2MB", format!("{n}-1").as_bytes(), b"value", &value[n..]]);
    }
    run(c, "XGROUP CREATE stream:2MB g 0");
    run(c, "XREADGROUP GROUP g alice COUNT 100 STREAMS stream:2MB >");
    // Pending entries whose stream entries are gone: at the front (trimmed), in the middle, at the end.
    for key in ["stream:missing", "stream:missing:all"] {
        for n in 1..=40 {
            run(c, &format!("XADD {key} {n}-0 n {n}"));
        }
        run(c, &format!("XGROUP CREATE {key} g 0"));
        run(c, &format!("XGROUP CREATE {key} h 10"));
        run(c, &format!("XREADGROUP GROUP g alice COUNT 20 STREAMS {key} >"));
        run(c, &format!("XREADGROUP GROUP g bob STREAMS {key} >"));
        run(c, &format!("XREADGROUP GROUP h eve STREAMS {key} >"));
    }
    run(c, "XDEL stream:missing 20-0 21-0 39-0 40-0");
    run(c, "XTRIM stream:missing MINID 5");
    run(c, "XTRIM stream:missing:all MAXLEN 0");
}

/// The value's type, expiry and content in a form that no encoding and no version of the server changes;
/// for a stream all of its state except what no command can set.
pub(crate) fn account(c: &mut Connection, db: u32, key: &[u8]) -> String {
    run(c, &format!("SELECT {db}"));
    let kind = c.must(&[b"TYPE", key]).unwrap().text().unwrap();
    let expires = c.must(&[b"PEXPIRETIME", key]).unwrap();
    let mut account = format!("{kind} {expires:?} ");
    match kind.as_str() {
        "stream" => {
            let info = c.must(&[&b"XINFO"[..], b"STREAM", key, b"FULL", b"COUNT", b"0"]).unwrap();
            show(&info, &mut account);
        }
        // The servers' digests print doubles in their own ways.
        "zset" => {
            let members = bulks(&c.must(&[&b"ZRANGE"[..], key, b"0", b"-1", b"WITHSCORES"]).unwrap());
            for member in members.chunks(2) {
                let score: f64 = std::str::from_utf8(&member[1]).unwrap().parse().unwrap();
                account.push_str(&format!("{:x?} {:x} ", member[0], score.to_bits()));
            }
        }
        // Their digests differ where fields expire.
        "hash" if fields_expire(c, key, &mut account) => {
            let fields = bulks(&c.must(&[b"HGETALL", key]).unwrap());
            let mut fields: Vec<&[Vec<u8>]> = fields.chunks(2).collect();
            fields.sort();
            account.push_str(&format!("{fields:x?}"));
        }
        _ => {
            let digest = c.must(&[b"DEBUG", &b"DIGEST-VALUE"[..], key]).unwrap();
            account.push_str(&format!("{digest:?}"));
        }
    }
    account
}

/// Appends the fields that expire, and when.
fn fields_expire(c: &mut Connection, key: &[u8], account: &mut String) -> bool {
    if !knows(c, "HPEXPIRETIME") {
        return false;
    }
    let mut fields: Vec<Vec<u8>> = bulks(&c.must(&[b"HKEYS", key]).unwrap());
    fields.sort();
    let count = fields.len().to_string();
    let mut words = vec![b"HPEXPIRETIME".to_vec(), key.to_vec(), b"FIELDS".to_vec(), count.into_bytes()];
    words.extend(fields.clone());
    let times = c.must(&words).unwrap();
    let before = account.len();
    for (field, at) in fields.iter().zip(times.items()).filter(|(_, at)| at.int() != Some(-1)) {
        account.push_str(&format!("{field:x?} {at:?} "));
    }
    account.len() > before
}

fn bulks(reply: &Reply) -> Vec<Vec<u8>> {
    let bulk = |item: &Reply| if let Reply::Bulk(Some(bytes)) = item { bytes.clone() } else { Vec::new() };
    reply.items().iter().map(bulk).collect()
}

/// A reply as text without the fields that may differ.
fn show(reply: &Reply, out: &mut String) {
    let Reply::Array(Some(items)) = reply else {
        match reply {
            Reply::Bulk(Some(bytes)) => out.push_str(&format!(" {}", bytes.escape_ascii())),
            other => out.push_str(&format!(" {other:?}")),
        }
        return;
    };
    out.push_str(" [");
    let mut items = items.iter();
    while let Some(item) = items.next() {
        match item.text().as_deref() {
            Some("radix-tree-keys" | "radix-tree-nodes" | "seen-time" | "active-time") => _ = items.next(),
            _ => show(item, out),
        }
    }
    out.push(']');
}

/// The RDB that the server writes now.
pub(crate) fn save(server: &RedisServer) -> Vec<u8> {
    run(&mut server.connect().unwrap(), "SAVE");
    std::fs::read(server.dir().join("dump.rdb")).unwrap()
}

/// Splits `bytes`, fed in chunks of the sizes that `chunk` gives.
pub(crate) fn split(
    bytes: &[u8],
    options: Options,
    mut chunk: impl FnMut() -> usize,
) -> Result<Vec<Item>, RdbError> {
    let mut splitter = Splitter::new(options);
    let mut items = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(chunk().clamp(1, rest.len()));
        rest = later;
        splitter.feed(now);
        while let Some(item) = splitter.next()? {
            items.push(item);
        }
    }
    splitter.finish()?;
    assert_eq!(splitter.consumed(), bytes.len() as u64);
    Ok(items)
}

pub(crate) fn entries(items: Vec<Item>) -> Vec<Entry> {
    items
        .into_iter()
        .filter_map(|item| if let Item::Entry(entry) = item { Some(entry) } else { None })
        .collect()
}

/// Runs commands that are encoded already and checks that none fails.
pub(crate) fn apply(c: &mut Connection, commands: &[u8], key: &[u8]) {
    for command in arrays(commands) {
        c.write(command).unwrap();
        let reply = c.read().unwrap();
        let shown = String::from_utf8_lossy(&command[..command.len().min(200)]).into_owned();
        assert!(reply.error().is_none(), "{}: {shown}: {reply:?}", String::from_utf8_lossy(key));
    }
}

/// Cuts joined RESP arrays.
pub(crate) fn arrays(mut bytes: &[u8]) -> Vec<&[u8]> {
    fn line(bytes: &[u8]) -> (usize, usize) {
        let end = bytes.iter().position(|&byte| byte == b'\r').unwrap();
        (std::str::from_utf8(&bytes[1..end]).unwrap().parse().unwrap(), end + 2)
    }
    let mut arrays = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[0], b'*');
        let (args, mut at) = line(bytes);
        for _ in 0..args {
            let (len, head) = line(&bytes[at..]);
            at += head + len + 2;
        }
        let (array, rest) = bytes.split_at(at);
        arrays.push(array);
        bytes = rest;
    }
    arrays
}

/// Writes an entry into the server of `c`: restores, or does a part's commands and sets the expiry.
pub(crate) fn write(c: &mut Connection, entry: &Entry) {
    run(c, &format!("SELECT {}", entry.db));
    match &entry.value {
        Value::Dump(payload) => {
            let expires = entry.expire_at.unwrap_or(0).to_string();
            let words: [&[u8]; 5] = [b"RESTORE", &entry.name, expires.as_bytes(), payload, b"ABSTTL"];
            let reply = c.call(&words).unwrap();
            assert_eq!(reply, Reply::Simple("OK".into()), "{:?}", entry.name);
        }
        Value::Part { last, commands, .. } => {
            apply(c, commands, &entry.name);
            if let (true, Some(at)) = (last, entry.expire_at) {
                c.must(&[b"PEXPIREAT", &entry.name[..], at.to_string().as_bytes()]).unwrap();
            }
        }
        Value::Left { reason } => panic!("left: {reason}"),
    }
}
