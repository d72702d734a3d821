//! FF57: somebody writes the key just between its comparison and the write, against real servers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::{Pattern, Space};
use causeway_testkit::elasticsearch::shared;
use causeway_testkit::mysql::{MysqlOptions, mysql_server};
use causeway_testkit::resp::Connection;
use causeway_testkit::servers::{Options, RedisServer, redis_server, servers_required};

use super::{Held, PutBack, Undoable, Value};
use crate::config::{Channel, Endpoints, Store};
use crate::elasticsearch::Indices;
use crate::filter::Scope;
use crate::mysql::Tables;
use crate::{elasticsearch, mysql, redis};

fn channel(urls: [String; 2], store: Store) -> Channel {
    let endpoints = urls.map(|url| Endpoints { urls: vec![url], ..Endpoints::default() });
    Channel { name: "tags".into(), store, carries: [true; 2], intake: false, late: Duration::ZERO, endpoints }
}

/// What `name` holds, as an undo file has it.
async fn kept(site: &impl Undoable, space: &Space, name: &Bytes) -> Option<Value> {
    let mut kept = None;
    let mut take = |_: usize, held: Held| {
        match held {
            Held::Value(value) => kept = Some(value),
            Held::Absent => {}
            Held::TooLarge => panic!("too large"),
        }
        Ok(())
    };
    site.keep(space, std::slice::from_ref(name), 1 << 20, &mut take).await.unwrap();
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_between_the_comparison_and_the_write_stays_in_redis() {
    if redis_server().is_none() {
        assert!(!servers_required(), "redis-server is missing");
        return;
    }
    let servers = [0, 1].map(|_| RedisServer::start(Options::default()).unwrap());
    let channel = channel([servers[0].url(), servers[1].url()], Store::Redis(Scope::default()));
    let sites = ["dc".to_owned(), "cloud".to_owned()];
    let [_, site] =
        redis::open_pair(&channel, &Scope::default(), &sites, crate::pace::Rates::default()).await.unwrap();
    let other = Mutex::new(servers[1].connect().unwrap());
    let say = |words: &[&str]| {
        let mut other = other.lock().unwrap();
        Connection::must(&mut other, words).unwrap().text().unwrap_or_default()
    };
    let (space, name) = (Space::Db(0), Bytes::from("k"));
    say(&["SET", "k", "old"]);
    let old = kept(&site, &space, &name).await;
    // It holds what a repair put there, or is gone; then somebody writes it.
    for (before, after) in [(["SET", "k", "right"].as_slice(), "right+"), (&["DEL", "k"], "+")] {
        say(before);
        let asked = AtomicUsize::new(0);
        let is_expected = |_| {
            let is_first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            if is_first {
                say(&["APPEND", "k", "+"]);
            }
            is_first
        };
        let done = site.put_back(&space, &name, old.as_ref(), &is_expected).await.unwrap();
        assert_eq!((done, asked.into_inner(), say(&["GET", "k"]).as_str()), (PutBack::Changed, 2, after));
    }
    // And a write elsewhere is in nobody's way.
    let is_expected = |_| !say(&["SET", "another", "+"]).is_empty();
    let done = site.put_back(&space, &name, old.as_ref(), &is_expected).await.unwrap();
    assert_eq!((done, say(&["GET", "k"]).as_str()), (PutBack::Done, "old"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_between_the_comparison_and_the_write_stays_in_mysql() {
    let start = || mysql_server(&MysqlOptions::default());
    let (Some(dc), Some(cloud)) = (start(), start()) else { return };
    let cloud = Arc::new(cloud);
    for server in [&dc, &cloud] {
        server.sql("CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, v VARCHAR(20))").unwrap();
    }
    let tables = Tables { include: vec![Pattern::new("shop.*")], exclude: Vec::new() };
    let channel = channel([dc.url(), cloud.url()], Store::Mysql(tables.clone()));
    let sites = ["dc".to_owned(), "cloud".to_owned()];
    let [_, site] = mysql::open_pair(&channel, &tables, &sites, crate::pace::Rates::default()).await.unwrap();
    let (space, name) = (Space::Table("shop.t".into()), Bytes::from("1"));
    cloud.sql("INSERT INTO shop.t VALUES (1, 'old')").unwrap();
    let old = kept(&site, &space, &name).await;
    // It holds what a repair put there; somebody's write waits for the undo, and is made on top of it.
    cloud.sql("UPDATE shop.t SET v = 'right'").unwrap();
    let writer = Mutex::new(None);
    let is_expected = |_| {
        let cloud = Arc::clone(&cloud);
        let write = move || cloud.sql("UPDATE shop.t SET v = CONCAT(v, '+') WHERE id = 1").map(drop);
        *writer.lock().unwrap() = Some(std::thread::spawn(write));
        std::thread::sleep(Duration::from_millis(500));
        true
    };
    let done = site.put_back(&space, &name, old.as_ref(), &is_expected).await.unwrap();
    writer.lock().unwrap().take().unwrap().join().unwrap().unwrap();
    assert_eq!((done, cloud.sql("SELECT v FROM shop.t").unwrap().trim()), (PutBack::Done, "old+"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_between_the_comparison_and_the_write_stays_in_elasticsearch() {
    let Some(nodes) = shared() else { return };
    let put = |source: &str| nodes[1].must("PUT", "/undo/_doc/1?routing=r", source).map(drop).unwrap();
    let held = || nodes[1].request("GET", "/undo/_source/1?routing=r", "").unwrap().1;
    nodes.iter().for_each(|node| _ = node.must("PUT", "/undo", "").unwrap());
    put("{\"v\":\"old\"}");
    let include = vec![Pattern::new("undo")];
    let indices = Indices { globs: vec!["undo".into()], include, exclude: Vec::new() };
    let channel = channel([nodes[0].url(), nodes[1].url()], Store::Elasticsearch(indices.clone()));
    let sites = ["dc".to_owned(), "cloud".to_owned()];
    let [_, site] =
        elasticsearch::open_pair(&channel, &indices, &sites, crate::pace::Rates::default()).await.unwrap();
    let (space, name) = (Space::Index("undo".into()), causeway_core::document::name("1", Some("r")));
    let old = kept(&site, &space, &name).await;
    // It holds what a repair put there, or is gone; then somebody writes it. What is put back is that, or nothing.
    for (before, back) in [("PUT", old.as_ref()), ("DELETE", old.as_ref()), ("PUT", None)] {
        let body = if before == "PUT" { "{\"v\":\"right\"}" } else { "" };
        nodes[1].must(before, "/undo/_doc/1?routing=r", body).unwrap();
        let asked = AtomicUsize::new(0);
        let is_expected = |_| {
            let is_first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            if is_first {
                put("{\"v\":\"newer\"}");
            }
            is_first
        };
        let done = site.put_back(&space, &name, back, &is_expected).await.unwrap();
        assert_eq!((done, asked.into_inner(), held().as_str()), (PutBack::Changed, 2, "{\"v\":\"newer\"}"));
    }
    let done = site.put_back(&space, &name, old.as_ref(), &|now| now.is_some()).await.unwrap();
    assert_eq!((done, held().as_str()), (PutBack::Done, "{\"v\":\"old\"}"));
}
