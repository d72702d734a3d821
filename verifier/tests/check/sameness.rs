//! What must not be called a difference.

use std::time::Duration;

use redis::Value;

use crate::support::{Pair, run};

#[test]
fn equal_content_in_different_encodings_is_equal() {
    let Some(mut pair) = Pair::start() else { return };
    for setting in [
        "hash-max-listpack-entries 0",
        "set-max-intset-entries 0",
        "zset-max-listpack-entries 0",
        "list-max-listpack-size 2",
        "list-compress-depth 1",
        "hll-sparse-max-bytes 0",
        "stream-node-max-entries 3",
    ] {
        run(&mut pair.sites[1], &format!("CONFIG SET {setting}"));
    }
    for line in [
        "SET int 100",
        "RPUSH list {0..50}",
        "RPUSH biglist {0..3000}",
        "SADD intset {0..50}",
        "SADD bigset {0..3000:x}",
        "ZADD zset {0..50:m}",
        "ZADD negzero 0 a",
        "HSET hash {0..50:v}",
        "HSET bighash {0..3000:v}",
        "PFADD hll {0..300}",
    ] {
        pair.both(line);
    }
    // The same content by other ways: other orders, a string that was a number, a zero with a sign.
    run(&mut pair.sites[1], "SETRANGE int 2 0");
    run(&mut pair.sites[1], "ZADD negzero -0.0 a");
    run(&mut pair.sites[0], "SADD order a b c 1 2");
    run(&mut pair.sites[1], "SADD order 2 c 1 b a");
    run(&mut pair.sites[0], "HSET horder a 1 b 2");
    run(&mut pair.sites[1], "HSET horder b 2 a 1");
    // A count fills the header's cache at one site only.
    run(&mut pair.sites[0], "PFCOUNT hll");
    for id in 1..50 {
        pair.both(&format!("XADD stream {id}-1 f {id}"));
    }
    // Tables that shrink are where SCAN names elements twice.
    pair.both("HSET shrunk {0..20000:v}");
    for number in (0..20000).filter(|n| n % 50 != 0).collect::<Vec<_>>().chunks(1000) {
        let fields: Vec<_> = number.iter().map(i32::to_string).collect();
        pair.both(&format!("HDEL shrunk {}", fields.join(" ")));
    }
    for key in ["int", "intset", "zset", "hash"] {
        let [a, b] = pair.sites.each_mut().map(|site| run(site, &format!("OBJECT ENCODING {key}")));
        assert_ne!(a, b, "{key} tests nothing");
    }
    let [a, b] = pair.sites.each_mut().map(|site| run(site, "STRLEN hll"));
    assert!(matches!((a, b), (Value::Int(a), Value::Int(b)) if a < b), "hll tests nothing");

    let answer = pair.check(&[]);
    assert_eq!(answer.differences(), vec![]);
    assert_eq!((answer.code, &answer.json()["compared"]), (0, &14.into()));
}

#[test]
fn a_key_that_expired_at_one_site_is_no_difference() {
    let Some(mut pair) = Pair::start() else { return };
    run(&mut pair.sites[1], "DEBUG SET-ACTIVE-EXPIRE 0");
    run(&mut pair.sites[0], "SET stays v");
    run(&mut pair.sites[1], "SET stays v");
    for number in 0..100 {
        pair.both(&format!("SET soon:{number} v PX 100"));
        run(&mut pair.sites[1], &format!("SET only:{number} v PX 100"));
    }
    std::thread::sleep(Duration::from_millis(300));
    let answer = pair.check(&[]);
    assert_eq!((answer.code, answer.differences()), (0, vec![]));
    assert_eq!(answer.json()["different"], 0);
}

#[test]
fn what_is_ours_or_not_in_scope_is_left_out() {
    let Some(mut pair) = Pair::start() else { return };
    pair.both("SET push:a:1 v");
    run(&mut pair.sites[0], "SET causeway:{dc-cloud.tags}:marker 1");
    run(&mut pair.sites[0], "SET push:tmp:1 v");
    run(&mut pair.sites[0], "SET other v");
    run(&mut pair.sites[0], "SET push:b:1 v");
    run(&mut pair.sites[0], "SELECT 1");
    run(&mut pair.sites[0], "SET push:c:1 v");
    let channel =
        "keys = [\"push:*\"]\nexcept = [\"push:tmp:*\"]\ndbs = [0]\ntenant = { key = \"push:{tenant}:*\" }";
    let path = pair.config("", channel);

    let whole = pair.check_at(&path, &["--channel", "tags"]);
    assert_eq!(whole.differences(), [("push:b:1".to_owned(), "extra".to_owned())]);
    assert_eq!(whole.json()["compared"], 2);
    let tenant = pair.check_at(&path, &["--tenant", "a"]);
    assert_eq!((tenant.code, &tenant.json()["compared"]), (0, &1.into()));
    assert_eq!(pair.check_at(&path, &["--tenant", "b"]).code, 1);
}
