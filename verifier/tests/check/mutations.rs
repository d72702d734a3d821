//! FF53: a verifier that cannot fail proves nothing. Every type in every encoding gets one thing wrong, and
//! exactly that is found.

use crate::support::{Pair, run};

/// What is the same at both sites before.
const BEFORE: &[&str] = &[
    // Strings: int, embstr, raw, over one page, large; a bitmap; a HyperLogLog, sparse and dense.
    "SET str:int 12345",
    "SET str:short abcdef",
    "SET str:raw aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "SET str:case abc",
    "SET str:longer abc",
    "SETRANGE str:page 65535 z",
    "SETRANGE str:pages 1114111 z",
    "SET str:20M {20M}",
    "SETBIT bitmap 100000 1",
    "PFADD hll:sparse {0..50}",
    "PFADD hll:dense {0..5000}",
    "GEOADD geo 13.361389 38.115556 Palermo 15.087269 37.502669 Catania",
    // Lists: one node, several nodes, over several pages; the order.
    "RPUSH list:small a b c",
    "RPUSH list:order a b c",
    "RPUSH list:split ab c",
    "RPUSH list:twice a b b",
    "RPUSH list:nodes {0..5000}",
    "RPUSH list:longer {0..5000}",
    "RPUSH list:64 {0..64}",
    "RPUSH list:20M {20M} a",
    // Sets: intset, table, over several pages.
    "SADD set:int 1 2 3",
    "SADD set:text a b c",
    "SADD set:large {0..5000}",
    "SADD set:huge {0..5000:x}",
    "SADD set:more a b c",
    "SADD set:20M {20M} a",
    // Sorted sets: listpack, skiplist.
    "ZADD zset:score 1 a 2 b 3 c",
    "ZADD zset:ulp 1 a 2 b 3 c",
    "ZADD zset:member 1 a 2 b 3 c",
    "ZADD zset:swap 1 a 2 b",
    "ZADD zset:inf inf a -inf b",
    "ZADD zset:large {0..1:first}",
    "ZADD zset:64 {0..64:m}",
    // Hashes: listpack, table.
    "HSET hash:value f v g w",
    "HSET hash:field f v g w",
    "HSET hash:swap f v g w",
    "HSET hash:split ab c",
    "HSET hash:large {0..5000:v}",
    "HSET hash:gone {0..5000:v}",
    "HSET hash:20M f {20M} g w",
    // Expire-at.
    "SET ttl:other v",
    "PEXPIREAT ttl:other 4000000000000",
    "SET ttl:none v",
    "PEXPIREAT ttl:none 4000000000000",
    "SET ttl:some v",
    "SET ttl:near v",
    "PEXPIREAT ttl:near 4000000000000",
    // Whole keys.
    "SET gone v",
    "SET type v",
    "SET type:list v",
    "HSET type:hash f v",
    "SET equal v",
];

/// What is done at the second site: the key that then differs, how, and the command.
const WRONG: &[(&str, &str, &str)] = &[
    ("str:int", "content", "SET str:int 12346"),
    ("str:short", "content", "SETBIT str:short 7 0"),
    ("str:raw", "content", "SETBIT str:raw 688 1"),
    ("str:case", "content", "SET str:case abC"),
    ("str:longer", "content", "APPEND str:longer d"),
    ("str:page", "content", "SETBIT str:page 524284 0"),
    ("str:pages", "content", "SETRANGE str:pages 1114112 z"),
    ("str:20M", "content", "SETBIT str:20M 159999999 1"),
    ("bitmap", "content", "SETBIT bitmap 5 1"),
    ("hll:sparse", "content", "PFADD hll:sparse one-more-element"),
    ("hll:dense", "content", "PFADD hll:dense {5000..5200}"),
    ("geo", "content", "GEOADD geo 13.361395 38.115556 Palermo"),
    ("list:small", "content", "LSET list:small 1 B"),
    ("list:order", "content", "LMOVE list:order list:order LEFT RIGHT"),
    ("list:split", "content", "LMPOP 1 list:split LEFT COUNT 2"),
    ("list:twice", "content", "LSET list:twice 1 a"),
    ("list:nodes", "content", "LSET list:nodes 4321 x"),
    ("list:longer", "content", "RPUSH list:longer x"),
    ("list:64", "content", "RPUSH list:64 x"),
    ("list:20M", "content", "LSET list:20M 1 b"),
    ("set:int", "content", "SMOVE set:int elsewhere 3"),
    ("elsewhere", "missing", "SMOVE set:int elsewhere 2"),
    ("set:text", "content", "SREM set:text a"),
    ("set:large", "content", "SREM set:large 4999"),
    ("set:huge", "content", "SADD set:huge 5000"),
    ("set:more", "content", "SADD set:more d"),
    ("set:20M", "content", "SREM set:20M a"),
    ("zset:score", "content", "ZADD zset:score 2.5 b"),
    ("zset:ulp", "content", "ZADD zset:ulp 2.0000000000000004 b"),
    ("zset:member", "content", "ZREM zset:member b"),
    ("zset:swap", "content", "ZADD zset:swap 2 a 1 b"),
    ("zset:inf", "content", "ZADD zset:inf -inf a"),
    ("zset:large", "content", "ZADD zset:large 1999.5 k1999"),
    ("zset:64", "content", "ZADD zset:64 9 n"),
    ("hash:value", "content", "HSET hash:value g W"),
    ("hash:field", "content", "HDEL hash:field g"),
    ("hash:swap", "content", "HSET hash:swap f w g v"),
    ("hash:split", "content", "HSET hash:split a bc"),
    ("hash:large", "content", "HSET hash:large 4999 w"),
    ("hash:gone", "content", "HDEL hash:gone 17"),
    ("hash:20M", "content", "HSET hash:20M g W"),
    ("ttl:other", "expiry", "PEXPIREAT ttl:other 4000000001001"),
    ("ttl:none", "expiry", "PERSIST ttl:none"),
    ("ttl:some", "expiry", "PEXPIREAT ttl:some 4000000000000"),
    ("gone", "extra", "DEL gone"),
    ("new", "missing", "SET new v"),
    ("type", "content", "HSET type2 f v"),
    ("type:list", "content", "LPUSH type:list2 v"),
    ("type:hash", "content", "ZADD type:hash2 1 f"),
];

/// The same of every type and encoding at both sites.
pub(crate) fn fill(pair: &mut Pair) {
    for line in BEFORE {
        pair.both(line);
    }
    for number in 0..2000 {
        pair.both(&format!("ZADD zset:large {number} k{number}"));
    }
}

/// One thing of each gets wrong at the second site; returns the keys that differ then, and how.
pub(crate) fn plant(pair: &mut Pair) -> Vec<(String, String)> {
    let mut expected = Vec::new();
    for (key, kind, line) in WRONG {
        run(&mut pair.sites[1], line);
        expected.push(((*key).to_owned(), (*kind).to_owned()));
    }
    // Types that differ: the new value takes the old one's name. An emptied list is a missing key.
    for key in ["type", "type:list", "type:hash"] {
        run(&mut pair.sites[1], &format!("RENAME {key}2 {key}"));
    }
    run(&mut pair.sites[1], "RPUSH list:split a bc");
    run(&mut pair.sites[1], "HDEL hash:split ab");
    expected.sort();
    expected
}

#[test]
fn one_wrong_thing_of_each_type_and_encoding_is_found_and_nothing_else() {
    let Some(mut pair) = Pair::start() else { return };
    fill(&mut pair);
    let before = pair.check(&[]);
    assert_eq!((before.code, before.differences()), (0, vec![]), "{}", before.stderr);
    let keys = BEFORE.iter().filter(|line| !line.starts_with("PEXPIREAT")).count();
    assert_eq!(before.json()["compared"], keys);

    let mut expected = plant(&mut pair);
    // Within the tolerance.
    run(&mut pair.sites[1], "PEXPIREAT ttl:near 4000000000900");

    let after = pair.check(&[]);
    assert_eq!(after.code, 1, "{}", after.stderr);
    assert_eq!(after.differences(), expected);
    let json = after.json();
    assert_eq!((&json["different"], &json["undecided"]), (&expected.len().into(), &0.into()));
    assert_eq!(json["equal"], false);

    // From the other side the same keys differ, and who lacks what is turned round.
    let [a, b] =
        [&pair.servers[1], &pair.servers[0]].map(|s| format!("{{ url = \"redis://127.0.0.1:{}\" }}", s.port));
    let turned = pair.config_at("", "", &a, &b);
    for (_, kind) in &mut expected {
        *kind = match kind.as_str() {
            "missing" => "extra".to_owned(),
            "extra" => "missing".to_owned(),
            other => other.to_owned(),
        };
    }
    assert_eq!(pair.check_at(&turned, &[]).differences(), expected);
}

/// What gets wrong of a stream at the second site.
const WRONG_STREAMS: &[(&str, &[&str])] = &[
    ("entry", &["XDEL s:entry 7-0", "XSETID s:entry 300-0 ENTRIESADDED 300 MAXDELETEDID 0-0"]),
    ("added", &["XSETID s:added 300-0 ENTRIESADDED 301 MAXDELETEDID 0-0"]),
    ("deleted", &["XSETID s:deleted 300-0 ENTRIESADDED 300 MAXDELETEDID 1-0"]),
    ("lastid", &["XSETID s:lastid 301-0 ENTRIESADDED 300 MAXDELETEDID 0-0"]),
    ("last", &["XADD s:last 301-0 f v"]),
    ("group", &["XGROUP CREATE s:group h 0"]),
    ("nogroup", &["XGROUP DESTROY s:nogroup g"]),
    ("delivered", &["XGROUP SETID s:delivered g 299-0"]),
    ("acked", &["XACK s:acked g 290-0"]),
    ("owner", &["XCLAIM s:owner g idle 0 290-0 RETRYCOUNT 1"]),
    ("count", &["XCLAIM s:count g c 0 290-0 RETRYCOUNT 2"]),
];

/// The same streams at both sites.
pub(crate) fn fill_streams(pair: &mut Pair) {
    let names = WRONG_STREAMS.iter().map(|(name, _)| *name).chain(["idle"]);
    for name in names {
        for id in 1..=300 {
            pair.both(&format!("XADD s:{name} {id}-0 field value-{id}"));
        }
        pair.both(&format!("XGROUP CREATE s:{name} g 0"));
        pair.both(&format!("XGROUP CREATECONSUMER s:{name} g idle"));
        pair.both(&format!("XREADGROUP GROUP g c COUNT 300 STREAMS s:{name} >"));
    }
}

/// One thing of each gets wrong at the second site; returns the keys that differ then, and how.
pub(crate) fn plant_streams(pair: &mut Pair) -> Vec<(String, String)> {
    let mut expected = Vec::new();
    for (name, lines) in WRONG_STREAMS {
        for line in *lines {
            run(&mut pair.sites[1], line);
        }
        expected.push((format!("s:{name}"), "content".to_owned()));
    }
    expected
}

#[test]
fn one_wrong_thing_of_a_stream_is_found_and_nothing_else() {
    let Some(mut pair) = Pair::start() else { return };
    fill_streams(&mut pair);
    // A field's value, which no command can change: the second site's stream is written anew.
    for (site, value) in [(0, "v"), (1, "w")] {
        run(&mut pair.sites[site], "XADD s:value 1-0 f v");
        run(&mut pair.sites[site], &format!("XADD s:value 2-0 f {value}"));
    }
    // Reading makes idle times differ, and consumers that a replica is not told of: no content.
    run(&mut pair.sites[1], "XGROUP CREATECONSUMER s:idle g another");
    run(&mut pair.sites[1], "XCLAIM s:idle g c 0 5-0 IDLE 100000 RETRYCOUNT 1 JUSTID");

    let mut expected = vec![("s:value".to_owned(), "content".to_owned())];
    assert_eq!(pair.check(&[]).differences(), expected);
    expected.extend(plant_streams(&mut pair));
    expected.sort();
    assert_eq!(pair.check(&[]).differences(), expected);
}

#[test]
fn databases_binary_keys_and_functions_are_compared() {
    let Some(mut pair) = Pair::start() else { return };
    for site in &mut pair.sites {
        run(site, "SET same v");
        run(site, "SELECT 5");
        run(site, "SET same v");
        redis::cmd("SET").arg(b"\xff\x00 key").arg("v").exec(site).unwrap();
        redis::cmd("SET").arg(b"").arg("v").exec(site).unwrap();
        let library = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";
        redis::cmd("FUNCTION").arg("LOAD").arg(library).exec(site).unwrap();
    }
    let equal = pair.check(&[]);
    assert_eq!((equal.code, &equal.json()["compared"]), (0, &5.into()), "{}", equal.stdout);

    let site = &mut pair.sites[1];
    redis::cmd("SET").arg(b"\xff\x00 key").arg("w").exec(site).unwrap();
    redis::cmd("DEL").arg(b"").exec(site).unwrap();
    run(site, "SET same w");
    let library = "#!lua name=lib\nredis.register_function('f', function() return 2 end)";
    redis::cmd("FUNCTION").arg("LOAD").arg("REPLACE").arg(library).exec(site).unwrap();
    run(site, "SELECT 9");
    run(site, "SET only v");
    let answer = pair.check(&[]);
    let expected = [
        ("", "extra"),
        ("function library lib", "content"),
        ("only", "missing"),
        ("same", "content"),
        ("{\"base64\":\"/wAga2V5\"}", "content"),
    ];
    let expected: Vec<_> = expected.iter().map(|(k, d)| (k.to_string(), d.to_string())).collect();
    assert_eq!(answer.differences(), expected);
    let json = answer.json();
    let same = json["differences"].as_array().unwrap().iter().find(|d| d["key"] == "same").unwrap();
    assert_eq!(same["db"], 5);
    assert_eq!(same["sites"]["dc"]["digest"].as_str().unwrap().len(), 32);
    assert_eq!(same["sites"]["dc"]["expire_at"], serde_json::Value::Null);
}
