//! The table of commands against what a real server's replication link brings: each write command that
//! the server says it has is executed, and what comes is carried to a second server by the table alone.
//! Both hold the same afterwards.
#![allow(clippy::unwrap_used)] // A test may fail by it, helper functions included.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::{Bytes, BytesMut};
use causeway_redis::commands::{Effects, SplitOp, effects};
use causeway_redis::resp::{self, Command, parse_command};
use causeway_testkit::resp::{Connection, Reply};
use causeway_testkit::servers::{Options, RedisServer, redis_server};

/// What is executed: commands with `;` between, words with spaces between. `PAYLOAD` stands for a DUMP
/// payload, `PAST` and `SOON` for milliseconds since 1970. Each is looked at by itself, on empty servers.
const CASES: &[&str] = &[
    "SET k v ; SET k w XX ; SET k x GET",
    "SET k v PX 100000 ; SET k v EX 100 ; SET k w KEEPTTL ; SET l v NX EX 100 ; SET m v EXAT 4000000000",
    "SET k v NX ; SET k w NX",
    "SETNX k v ; SETNX k w",
    "SETEX k 100 v ; PSETEX l 100000 v",
    "GETSET k v ; GETSET k w",
    "SET k v ; GETDEL k",
    "SET k v ; GETEX k EX 100 ; GETEX k PERSIST ; GETEX k PXAT SOON ; GETEX k EXAT 1",
    "MSET a 1 b 2 a 3",
    "MSETNX a 1 b 2 ; MSETNX a 3 c 4",
    "MSETEX 2 a 1 b 2 EX 100 ; MSETEX 1 a 3 KEEPTTL ; MSETEX 1 c 3 NX",
    "APPEND k ab ; APPEND k cd ; SETRANGE k 1 XY ; SETBIT k 3 1 ; BITFIELD k SET u8 0 7 INCRBY u8 8 3",
    "INCR k ; INCRBY k 5 ; DECR k ; DECRBY k 2 ; INCRBYFLOAT k 1.5",
    "SET k 1 EX 100 ; INCRBYFLOAT k 1.5 ; INCR l",
    "SET a x ; SET b y ; BITOP OR c a b ; BITOP NOT a b",
    "SET a 1 ; SET b 2 ; DEL a b c ; SET a 1 ; UNLINK a",
    "SET a 1 ; DELEX a IFEQ 1 ; SET a 1 ; DELIFEQ a 1",
    "SET a 1 ; EXPIRE a 100 ; EXPIRE a 200 GT ; PEXPIRE a 500000 XX ; EXPIREAT a 4000000000 ; PEXPIREAT a SOON LT",
    "SET a 1 ; PEXPIREAT a SOON ; PERSIST a ; EXPIREAT a 1",
    "SET a 1 ; RENAME a b ; SET a 2 ; RENAMENX a c ; SET a 3 ; RENAMENX a c",
    "SET a 1 ; MOVE a 3 ; SELECT 3 ; SET b 1 ; MOVE b 0 ; SELECT 0",
    "SET a 1 ; COPY a b ; COPY a b DB 2 REPLACE ; COPY b a REPLACE",
    "RESTORE a 0 PAYLOAD ; RESTORE b 100000 PAYLOAD ; RESTORE c SOON PAYLOAD ABSTTL ; RESTORE-ASKING d 0 PAYLOAD",
    "RPUSH l a b c d e ; LPUSH l z ; RPUSHX l y ; LPUSHX l x ; LPUSHX m x ; LSET l 0 w ; LINSERT l BEFORE a q",
    "RPUSH l a b c d e ; RPOP l ; LPOP l 2 ; LREM l 1 d ; RPUSH l a b c ; LTRIM l 0 1 ; LPOP l 9",
    "RPUSH l a b c d e f ; LMOVE l m LEFT RIGHT ; RPOPLPUSH l l ; RPOPLPUSH l m ; LMPOP 2 x l LEFT COUNT 2",
    "RPUSH l a b c d e f ; BLPOP l 1 ; BRPOP l 1 ; BLMOVE l m LEFT LEFT 1 ; BRPOPLPUSH l m 1 ; BLMPOP 1 1 l RIGHT",
    "RPUSH l 3 1 2 ; SORT l STORE m ; SORT l BY nosort DESC STORE l ; SORT l",
    "SADD s a b c d ; SREM s a z ; SPOP s ; SADD s e f ; SMOVE s t e ; SMOVE s t zz ; SPOP s 99",
    "SADD s a b c ; SADD t b c d ; SUNIONSTORE u s t ; SINTERSTORE s s t ; SDIFFSTORE t t s ; SDIFFSTORE u s s",
    "HSET h a 1 b 2 ; HMSET h c 3 ; HSETNX h d 4 ; HSETNX h d 5 ; HDEL h a z ; HINCRBY h b 5 ; HINCRBYFLOAT h b 0.5",
    "HSET h a 1 b 2 c 3 ; HPEXPIREAT h SOON FIELDS 1 a ; HEXPIRE h 100 FIELDS 2 a b ; HPERSIST h FIELDS 1 a",
    "HSET h a 1 b 2 c 3 ; HEXPIREAT h 4000000000 FIELDS 1 a ; HPEXPIRE h 100000 FIELDS 1 b ; HPEXPIRE h 0 FIELDS 1 c",
    "HSETEX h EX 100 FIELDS 1 a 1 ; HSETEX h FNX PX 100000 FIELDS 2 b 1 c 2 ; HGETEX h PERSIST FIELDS 1 a",
    "HSET h a 1 b 2 ; HGETEX h EX 100 FIELDS 1 a ; HGETDEL h FIELDS 1 b ; HSETEX h KEEPTTL FIELDS 1 a 2",
    "ZADD z 1 a 2 b 3 c ; ZADD z NX 9 a 4 d ; ZADD z XX 5 a ; ZADD z GT CH 6 a 1 b ; ZADD z LT 1 c ; ZADD z INCR 2 a",
    "ZADD z 1 a 2 b 3 c 4 d ; ZINCRBY z 1.5 a ; ZREM z b ; ZPOPMIN z ; ZPOPMAX z 1 ; ZMPOP 1 z MIN",
    "ZADD z 1 a 2 b 3 c 4 d ; BZPOPMIN z 1 ; BZPOPMAX z 1 ; BZMPOP 1 1 z MAX COUNT 1",
    "ZADD z 0 a 0 b 0 c 0 d 0 e ; ZREMRANGEBYLEX z [a [b ; ZREMRANGEBYRANK z 0 0 ; ZREMRANGEBYSCORE z 0 0",
    "ZADD z 1 a 2 b ; ZADD y 3 b 4 c ; ZUNIONSTORE x 2 z y ; ZINTERSTORE z 2 z y ; ZDIFFSTORE w 2 y z ; ZRANGESTORE y x 0 1",
    "GEOADD g 13 38 p 15 37 c ; GEOADD g CH XX 13.1 38 p ; GEOSEARCHSTORE s g FROMMEMBER p BYRADIUS 500 km",
    "GEOADD g 13 38 p 15 37 c ; GEORADIUS g 15 37 200 km STORE s ; GEORADIUSBYMEMBER g p 200 km STOREDIST t",
    "PFADD p a b c ; PFADD q c d ; PFMERGE r p q ; PFCOUNT p ; PFCOUNT r ; PFDEBUG GETREG q ; PFADD p a",
    "XADD s 1-1 f v ; XADD s * f v ; XADD s MAXLEN ~ 100 * f v ; XADD s NOMKSTREAM 9999999999999-1 a b ; XDEL s 1-1",
    "XADD s 1-1 f v ; XADD s 2-1 f v ; XADD s 3-1 f v ; XTRIM s MAXLEN 2 ; XADD s MINID 3 4-1 f v ; XSETID s 9-9",
    "XGROUP CREATE s g $ MKSTREAM ; XGROUP CREATECONSUMER s g c ; XADD s 1-1 f v ; XADD s 2-1 f v ; XADD s 3-1 f v \
     ; XREADGROUP GROUP g c COUNT 2 STREAMS s > ; XACK s g 1-1 ; XCLAIM s g d 0 2-1 ; XAUTOCLAIM s g e 0 0 \
     ; XGROUP SETID s g 1-1 ; XREADGROUP GROUP g n NOACK STREAMS s > ; XGROUP DELCONSUMER s g e ; XGROUP DESTROY s g",
    "XGROUP CREATE s g $ MKSTREAM ; XADD s 1-1 f v ; XADD s 2-1 f v ; XREADGROUP GROUP g c STREAMS s > \
     ; XACKDEL s g DELREF IDS 1 1-1 ; XDELEX s KEEPREF IDS 1 2-1 ; XCFGSET s IDMP-DURATION 100",
    "SET a 1 ; SELECT 3 ; SET a 2 ; SELECT 0 ; SWAPDB 0 3 ; SELECT 3 ; FLUSHDB ; SELECT 0 ; FLUSHALL",
    "MULTI ; SET a 1 ; SELECT 2 ; INCR n ; SELECT 0 ; RPUSH l a ; EXEC",
    "EVAL redis.call('SET','a',1)redis.call('SPOP','none')redis.call('SADD','s','x','y') 0",
    "FUNCTION LOAD LIBRARY ; FCALL put 1 k ; FUNCTION DELETE lib ; FUNCTION FLUSH",
    "FUNCTION RESTORE FUNCTIONS ; PUBLISH c m ; SPUBLISH c m",
];

/// Write commands that no case can execute, and why.
const NOT_EXECUTED: &[&str] = &[
    // Needs a second server of the same data; arrives as DEL.
    "MIGRATE",
    // Needs a cluster.
    "CLUSTER|FLUSHSLOT",
    // Of a module that Redis 8 comes with: no command of the table's, its key is read again.
    "VADD",
    "VREM",
    "VSETATTR",
];

/// A replication link on a blocking socket.
struct Replica {
    socket: TcpStream,
    buf: BytesMut,
}

impl Replica {
    fn open(server: &RedisServer) -> Replica {
        let socket = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let mut replica = Replica { socket, buf: BytesMut::new() };
        replica.socket.write_all(b"PSYNC ? -1\r\n").unwrap();
        assert!(replica.line().starts_with(b"+FULLRESYNC"));
        let header = replica.line();
        let len: usize = std::str::from_utf8(&header[1..]).unwrap().parse().unwrap();
        while replica.buf.len() < len {
            replica.fill();
        }
        let _ = replica.buf.split_to(len);
        replica
    }

    fn fill(&mut self) {
        let mut bytes = [0; 1 << 16];
        let n = self.socket.read(&mut bytes).unwrap();
        assert!(n > 0, "the server hung up");
        self.buf.extend_from_slice(&bytes[..n]);
    }

    fn line(&mut self) -> Bytes {
        loop {
            if let Some(end) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line = self.buf.split_to(end + 2).freeze().slice(..end);
                let from = line.iter().position(|&b| b != b'\n').unwrap_or(line.len());
                return line.slice(from..);
            }
            self.fill();
        }
    }

    fn command(&mut self) -> Command {
        loop {
            if let Some(command) = parse_command(&mut self.buf).unwrap() {
                return command;
            }
            self.fill();
        }
    }
}

/// Carries what `command` wrote to `target`, as the table says. `origin` is read where the table asks to.
fn carry(command: &Command, db: &mut u32, origin: &mut Connection, target: &mut Connection) {
    let words: Vec<String> = command.iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    if command.eq_ignore_case(0, b"SELECT") {
        *db = words[1].parse().unwrap();
    }
    let raw = |target: &mut Connection, db: u32, bytes: &Bytes| {
        target.must(&["SELECT", &db.to_string()]).unwrap();
        target.write(bytes).unwrap();
        let reply = target.read().unwrap();
        assert_eq!(reply.error(), None, "{words:?}");
    };
    match effects(command, *db) {
        Effects::Nothing => {}
        Effects::One(_) | Effects::Whole | Effects::Function => {
            raw(target, *db, &command.raw);
        }
        Effects::Split(parts) => {
            for (key, op) in parts {
                match op {
                    SplitOp::Delete => raw(target, *db, &Command::of(&[b"DEL", &key]).raw),
                    SplitOp::Command(bytes) => raw(target, *db, &bytes),
                }
            }
        }
        Effects::Reread(keys) => {
            for (db, key) in keys {
                origin.must(&["SELECT", &db.to_string()]).unwrap();
                let payload = origin.must(&[b"DUMP", &key[..]]).unwrap();
                let Reply::Bulk(Some(payload)) = payload else {
                    raw(target, db, &Command::of(&[b"DEL", &key]).raw);
                    continue;
                };
                let at = origin.must(&[b"PEXPIRETIME", &key[..]]).unwrap().int().unwrap().max(0);
                let restore = [&b"RESTORE"[..], &key, &resp::decimal(at), &payload, b"REPLACE", b"ABSTTL"];
                raw(target, db, &Command::of(&restore).raw);
            }
            origin.must(&["SELECT", "0"]).unwrap();
        }
        Effects::Unknown => panic!("not in the table: {words:?}"),
    }
}

/// Everything of all databases that can be compared: the server's own digest of each, expire-ats, and what
/// that leaves out (groups and consumers of streams).
fn content(server: &mut Connection) -> Vec<String> {
    let mut all = Vec::new();
    for db in 0..4 {
        server.must(&["SELECT", &db.to_string()]).unwrap();
        let mut keys: Vec<String> =
            server.must(&["KEYS", "*"]).unwrap().items().iter().filter_map(Reply::text).collect();
        keys.sort();
        for key in keys {
            let value = server.must(&["DEBUG", "DIGEST-VALUE", &key]).unwrap();
            let at = server.must(&["PEXPIRETIME", &key]).unwrap().int();
            all.push(format!("{db} {key} {value:?} {at:?}"));
            if server.must(&["TYPE", &key]).unwrap().text().as_deref() == Some("stream") {
                let mut full = server.must(&["XINFO", "STREAM", &key, "FULL"]).unwrap();
                forget_times(&mut full);
                all.push(format!("{full:?}"));
            }
        }
    }
    server.must(&["SELECT", "0"]).unwrap();
    let functions = server.must(&["FUNCTION", "LIST", "WITHCODE"]).unwrap();
    all.push(format!("{functions:?}"));
    all
}

/// When a consumer was last seen is each server's own affair, and how its radix trees came to be, too. How
/// many entries a group has read is not in the stream of XREADGROUP: a replica of Redis's own lacks it, too.
fn forget_times(reply: &mut Reply) {
    let Reply::Array(Some(items)) = reply else { return };
    for i in 0..items.len() {
        let times =
            ["seen-time", "active-time", "radix-tree-keys", "radix-tree-nodes", "entries-read", "lag"];
        if items[i].text().is_some_and(|t| times.contains(&t.as_str())) && i + 1 < items.len() {
            items[i + 1] = Reply::Int(0);
        }
        forget_times(&mut items[i]);
    }
}

/// The names of what the server says writes, subcommands as `NAME|SUB`, in upper case.
fn write_commands(server: &mut Connection) -> (BTreeSet<String>, BTreeSet<String>) {
    fn add(of: &Reply, writes: &mut BTreeSet<String>, all: &mut BTreeSet<String>) {
        let name = of.items()[0].text().unwrap().to_ascii_uppercase();
        all.insert(name.clone());
        if of.items()[2].items().iter().any(|f| f.text().as_deref() == Some("write")) {
            writes.insert(name);
        }
        for sub in of.items().get(9).map(Reply::items).unwrap_or_default() {
            add(sub, writes, all);
        }
    }
    let (mut writes, mut all) = (BTreeSet::new(), BTreeSet::new());
    for command in server.must(&["COMMAND"]).unwrap().items() {
        add(command, &mut writes, &mut all);
    }
    (writes, all)
}

struct Values {
    payload: Vec<u8>,
    functions: Vec<u8>,
}

fn words(command: &str, values: &Values) -> Vec<Vec<u8>> {
    let soon = format!("{}", now_ms() + 3_600_000);
    let word = |word: &str| match word {
        "PAYLOAD" => values.payload.clone(),
        "FUNCTIONS" => values.functions.clone(),
        "SOON" => soon.clone().into_bytes(),
        "LIBRARY" => LIBRARY.as_bytes().to_vec(),
        other => other.as_bytes().to_vec(),
    };
    command.split_whitespace().map(word).collect()
}

const LIBRARY: &str = "#!lua name=lib\nredis.register_function('put', function(keys) \
                       return redis.call('SET', keys[1], 'x') end)";

fn now_ms() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
}

#[test]
fn every_write_command_of_the_server_is_carried_by_the_table() {
    if redis_server().is_none() {
        return;
    }
    let (source, sink) = (server(), server());
    let (mut origin, mut target) = (source.connect().unwrap(), sink.connect().unwrap());
    let mut watcher = source.connect().unwrap();
    let (writes, all) = write_commands(&mut origin);
    let values = values(&mut origin);
    let mut replica = Replica::open(&source);
    let mut executed = BTreeSet::new();
    let mut db = 0;
    for (n, case) in CASES.iter().enumerate() {
        for command in case.split(';') {
            let words = words(command, &values);
            let name = String::from_utf8_lossy(&words[0]).to_ascii_uppercase();
            let sub = words.get(1).map(|w| String::from_utf8_lossy(w).to_ascii_uppercase());
            if !all.contains(&name) {
                println!("not on this server: {name}");
                continue;
            }
            let reply = origin.call(&words).unwrap();
            assert!(reply.error().is_none(), "{command}: {reply:?}");
            executed.insert(name.clone());
            if let Some(sub) = sub {
                executed.insert(format!("{name}|{sub}"));
            }
            // Inside MULTI nothing happens before EXEC, and so nothing comes.
            if reply == Reply::Simple("QUEUED".to_owned()) || name == "MULTI" {
                continue;
            }
            let mark = format!("mark-{n}");
            watcher.must(&["PUBLISH", "mark", &mark]).unwrap();
            loop {
                let came = replica.command();
                if came.eq_ignore_case(0, b"PUBLISH") && came.arg(2) == Some(mark.as_bytes()) {
                    break;
                }
                let shown: Vec<_> = came.iter().take(9).map(String::from_utf8_lossy).collect();
                println!("{:60} -> {}", command.trim(), shown.join(" ").escape_debug());
                carry(&came, &mut db, &mut watcher, &mut target);
            }
            assert_eq!(content(&mut origin_of(&source)), content(&mut target), "after {command} of {case}");
        }
        origin.must(&["FLUSHALL"]).unwrap();
        origin.must(&["FUNCTION", "FLUSH"]).unwrap();
    }
    let missing: Vec<&String> = writes
        .iter()
        .filter(|name| !executed.contains(*name) && !NOT_EXECUTED.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "write commands without a case: {missing:?}");
}

fn origin_of(server: &RedisServer) -> Connection {
    server.connect().unwrap()
}

fn server() -> RedisServer {
    RedisServer::start(Options::default()).unwrap()
}

fn values(origin: &mut Connection) -> Values {
    origin.must(&["SET", "k", "v"]).unwrap();
    origin.must(&["FUNCTION", "LOAD", LIBRARY]).unwrap();
    let bulk = |reply: Reply| match reply {
        Reply::Bulk(Some(bytes)) => bytes,
        other => panic!("{other:?}"),
    };
    let payload = bulk(origin.must(&["DUMP", "k"]).unwrap());
    let functions = bulk(origin.must(&["FUNCTION", "DUMP"]).unwrap());
    origin.must(&["FLUSHALL"]).unwrap();
    origin.must(&["FUNCTION", "FLUSH"]).unwrap();
    Values { payload, functions }
}
