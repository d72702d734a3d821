//! `verifier` against two real Elasticsearch nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use causeway_testkit::elasticsearch::{ElasticsearchServer, shared};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::support::{Answer, verifier};

/// A channel of the indices that `index` names.
fn config(nodes: &[ElasticsearchServer; 2], index: &str) -> String {
    format!(
        "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"devices\"\nstore = \"elasticsearch\"\n\
         direction = \"both\"\nindices = [\"{index}\"]\nexclude = [\"*-not\"]\ndc = {{ url = \"{}\" }}\ncloud = {{ url = \"{}\" }}\n",
        nodes[0].url(),
        nodes[1].url()
    )
}

/// Runs `verifier` with these words and that channel.
fn run(nodes: &[ElasticsearchServer; 2], index: &str, words: &[&str]) -> Answer {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncd.toml");
    std::fs::write(&path, config(nodes, index)).unwrap();
    let config = path.to_str().unwrap();
    verifier(&[words, &["--config", config]].concat())
}

/// A window is told by a date of the documents, at either site: what lies in it is compared, and nothing else.
#[test]
fn a_window_can_be_told_by_a_date_of_the_documents() {
    let Some(nodes) = shared() else { return };
    let mapping = r#"{"settings":{"number_of_replicas":0},"mappings":{"properties":{"at":{"properties":{"changed":
        {"type":"date","format":"yyyy-MM-dd HH:mm:ss||epoch_millis"}}},"changed":{"type":"keyword"}}}}"#;
    let doc = |id: &str, at: &str, v: u64| {
        let action = serde_json::json!({"index": {"_id": id}});
        format!("{action}\n{}\n", serde_json::json!({"at": {"changed": at}, "v": v}))
    };
    let time = |minute: u64, second: u64| format!("2026-03-01 02:{minute:02}:{second:02}");
    for (site, node) in nodes.iter().enumerate() {
        node.must("PUT", "/timed-a", mapping).unwrap();
        node.must("PUT", "/timed-b", r#"{"settings":{"number_of_replicas":0}}"#).unwrap();
        // More than a page lies in the window.
        let mut body: String =
            (0..3_600).map(|n| doc(&format!("same-{n}"), &time(n / 60, n % 60), n)).collect();
        let v = site as u64;
        for (id, at) in
            [("before", time(9, 59)), ("first", time(10, 0)), ("last", time(49, 59)), ("behind", time(50, 0))]
        {
            body += &doc(id, &at, v);
        }
        // Of which one site alone says that it lies in it.
        body += &doc("moved", &time(if site == 0 { 5 } else { 20 }, 0), 1);
        body += &doc(&format!("only-{site}"), &time(30, 0), 1);
        node.must("POST", "/timed-a/_bulk", &body).unwrap();
        node.must("PUT", "/timed-b/_doc/other", &format!("{{\"v\":{site}}}")).unwrap();
    }
    let check = |field: &str| {
        let window =
            ["--from", "2026-03-01T02:10:00Z", "--to", "2026-03-01T02:50:00Z", "--time-column", field];
        run(nodes, "timed-*", &[&["check", "--json"], &window[..]].concat())
    };
    let answer = check("at.changed");
    let report: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let differences = report["differences"].as_array().unwrap();
    let mut found: Vec<&str> = differences.iter().filter_map(|one| one["key"].as_str()).collect();
    found.sort_unstable();
    assert_eq!(found, ["first", "last", "moved", "only-0", "only-1"], "{} {}", answer.stdout, answer.stderr);
    assert_eq!((answer.code, &report["compared"]), (1, &(2_400 + 5).into()));
    for field in ["changed", "nowhere"] {
        let answer = check(field);
        assert!(
            answer.code == 2 && answer.stderr.contains("a date field of Elasticsearch"),
            "{}",
            answer.stderr
        );
    }
}

/// FF53. Each of many documents with one thing wrong is found, and what is written in another way is equal.
#[test]
fn documents_that_differ_in_anything_are_found_and_no_others() {
    let Some(nodes) = shared() else { return };
    let index =
        "{\"settings\":{\"number_of_shards\":3,\"number_of_replicas\":0},\"mappings\":{\"dynamic\":false}}";
    for (node, shards) in nodes.iter().zip(["3", "2"]) {
        let index = index.replace("\"number_of_shards\":3", &format!("\"number_of_shards\":{shards}"));
        for name in ["verify-a", "verify-not"] {
            node.must("PUT", &format!("/{name}"), &index).unwrap();
        }
    }
    let put = |site: usize, id: &str, source: &str| {
        nodes[site].must("PUT", &format!("/verify-a/_doc/{id}"), source).unwrap();
    };
    let mut body = String::new();
    for n in 0..2_500 {
        body.push_str(&format!(
            "{{\"index\":{{\"_id\":\"same-{n}\"}}}}\n{{\"n\":{n},\"t\":\"{}\"}}\n",
            "x".repeat(n % 90)
        ));
    }
    for node in nodes {
        node.must("POST", "/verify-a/_bulk", &body).unwrap();
    }
    let long = "i".repeat(512);
    for (id, first, second) in [
        ("spaces", "{ \"a\" : 1.0 }", "{\"a\":1.0}"),
        ("order", r#"{"a":1,"b":{"c":2,"d":[]}}"#, r#"{"b":{"d":[],"c":2},"a":1}"#),
        ("escapes", r#"{"a":"é\n"}"#, r#"{"a":"\u00e9\u000a"}"#),
        (&long, "{}", "{}"),
        ("routed?routing=r", r#"{"a":1}"#, r#"{"a":1}"#),
    ] {
        put(0, id, first);
        put(1, id, second);
    }
    let mutations = [
        ("digits", r#"{"a":1.0}"#, r#"{"a":1.00}"#),
        ("number", r#"{"a":12345678901234567890}"#, r#"{"a":12345678901234567891}"#),
        ("kind", r#"{"a":1}"#, r#"{"a":"1"}"#),
        ("null", r#"{"a":null}"#, "{}"),
        ("list", r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#),
        ("deep", r#"{"a":[{"b":{"c":1}}]}"#, r#"{"a":[{"b":{"c":2}}]}"#),
        ("case", r#"{"a":"x"}"#, r#"{"a":"X"}"#),
        ("name", r#"{"a":1}"#, r#"{"A":1}"#),
        ("blank", r#"{"a":"x"}"#, r#"{"a":"x "}"#),
        ("empty", r#"{"a":[]}"#, r#"{"a":{}}"#),
        ("true", r#"{"a":true}"#, r#"{"a":"true"}"#),
    ];
    let large = "y".repeat(300_000);
    for (id, first, second) in mutations {
        put(0, id, first);
        put(1, id, second);
    }
    put(0, "large", &format!("{{\"a\":\"{large}1\"}}"));
    put(1, "large", &format!("{{\"a\":\"{large}2\"}}"));
    put(0, "only-dc", "{}");
    put(1, "only-cloud", "{}");
    // The same id in another shard is another document.
    put(0, "moved?routing=one", "{}");
    put(1, "moved?routing=two", "{}");
    nodes[0].must("PUT", "/verify-not/_doc/1", "{}").unwrap();
    nodes[0].must("PUT", "/verify-b", index).unwrap();
    nodes[0].must("PUT", "/verify-b/_doc/alone", "{}").unwrap();

    let answer = run(nodes, "verify-*", &["check", "--json", "--list-max", "1000"]);
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let report: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let key =
        |one: &serde_json::Value| [text(one, "key"), text(one, "routing")].join(" ").trim_end().to_owned();
    let differences = report["differences"].as_array().unwrap();
    let found: BTreeMap<(String, String), String> =
        differences.iter().map(|one| ((text(one, "index"), key(one)), text(one, "kind"))).collect();
    let mut expected: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut expect = |index: &str, key: &str, kind: &str| {
        expected.insert((index.to_owned(), key.to_owned()), kind.to_owned());
    };
    mutations.iter().for_each(|(id, ..)| expect("verify-a", id, "content"));
    expect("verify-a", "large", "content");
    expect("verify-a", "only-dc", "extra");
    expect("verify-a", "only-cloud", "missing");
    expect("verify-a", "moved one", "extra");
    expect("verify-a", "moved two", "missing");
    expect("verify-b", "alone", "extra");
    assert_eq!(found, expected);
    assert_eq!(report["compared"], 2_500 + 5 + 11 + 1 + 2 + 2 + 1, "{report}");

    // A site that lacks the index is not given one by guesswork.
    let plan = run(nodes, "verify-b", &["repair", "--from", "dc"]);
    assert!(
        plan.code == 1
            && plan.stdout.contains("0 keys to repair")
            && plan.stdout.contains("left, its index is not there"),
        "{} {}",
        plan.stdout,
        plan.stderr
    );
}

/// Two nodes with a daemon that carries what the test does at `cloud`.
struct Repaired {
    nodes: &'static [ElasticsearchServer; 2],
    daemon: Daemon,
    folder: TempDir,
    index: &'static str,
    carried: Arc<Mutex<Vec<Write>>>,
}

/// Method, path behind the index, body.
type Write = (&'static str, String, String);

impl Repaired {
    fn start(index: &'static str) -> Option<Repaired> {
        let nodes = shared()?;
        let carried = Arc::new(Mutex::new(Vec::<Write>::new()));
        let writes = Arc::clone(&carried);
        let daemon = Daemon::start(move |asked| {
            // Of documents that are asked for after an undo nothing is left to do.
            let keys = asked["keys"].as_array().unwrap();
            if keys.is_empty() {
                // It is only to look at what is new.
                return;
            }
            assert!(keys.iter().all(|key| key["index"].is_string() && key.get("table").is_none()), "{asked}");
            for (method, path, body) in std::mem::take(&mut *writes.lock().unwrap()) {
                nodes[1].must(method, &format!("/{path}"), &body).unwrap();
            }
        });
        Some(Repaired { nodes, daemon, folder: tempfile::tempdir().unwrap(), index, carried })
    }

    fn verifier(&self, words: &[&str]) -> Answer {
        let path = self.folder.path().join("syncd.toml");
        std::fs::write(&path, format!("{}\n{}", config(self.nodes, self.index), self.daemon.config()))
            .unwrap();
        verifier(&[words, &["--config", path.to_str().unwrap()]].concat())
    }

    /// Repairs from `dc`, which these writes do at `cloud`; the undo file.
    fn repair(&self, writes: Vec<Write>) -> String {
        *self.carried.lock().unwrap() = writes;
        let answer = self.verifier(&["repair", "--from", "dc", "--yes", "--json", "--share-max", "100"]);
        assert_eq!(answer.code, 0, "{} {}", answer.stdout, answer.stderr);
        answer.json()["undo"].as_str().unwrap().to_owned()
    }

    fn put(&self, site: usize, path: &str, body: &str) {
        self.nodes[site].must("PUT", &format!("/{path}"), body).unwrap();
    }

    fn source(&self, site: usize, path: &str) -> (u16, String) {
        self.nodes[site].request("GET", &format!("/{}", path.replace("_doc", "_source")), "").unwrap()
    }
}

#[test]
fn a_document_that_a_repair_overwrote_is_put_back_byte_by_byte() {
    let Some(it) = Repaired::start("undo-a") else { return };
    let long = "i".repeat(512);
    let large = format!("{{\"a\":\"{}\"}}", "y".repeat(300_000));
    let shapes = [
        ("undo-a/_doc/spaces".to_owned(), "{ \"a\" :\n 1.0 }"),
        ("undo-a/_doc/%C3%A9%2F%20%3F%25?routing=x%20%26y".to_owned(), r#"{"a":"\u00e9"}"#),
        ("undo-a/_doc/same?routing=1".to_owned(), r#"{"a":1}"#),
        ("undo-a/_doc/same?routing=2".to_owned(), r#"{"a":2}"#),
        (format!("undo-a/_doc/{long}"), "{}"),
        ("undo-a/_doc/large".to_owned(), large.as_str()),
    ];
    for node in it.nodes {
        node.must("PUT", "/undo-a", r#"{"settings":{"number_of_shards":3},"mappings":{"dynamic":false}}"#)
            .unwrap();
        node.must("PUT", "/undo-a/_doc/equal", "{}").unwrap();
    }
    let mut right = Vec::new();
    for (path, old) in &shapes {
        it.put(0, path, r#"{"a":"right"}"#);
        it.put(1, path, old);
        right.push(("PUT", path.clone(), r#"{"a":"right"}"#.to_owned()));
    }
    // One that is there alone at either site, and an id with a zero byte.
    it.put(0, "undo-a/_doc/new", "{}");
    right.push(("PUT", "undo-a/_doc/new".to_owned(), "{}".to_owned()));
    it.put(1, "undo-a/_doc/old?routing=r", r#"{"a":"old"}"#);
    right.push(("DELETE", "undo-a/_doc/old?routing=r".to_owned(), String::new()));
    let zero = "{\"index\":{\"_id\":\"a\\u0000b\"}}\n{\"a\":\"zero\"}\n";
    it.nodes[1].must("POST", "/undo-a/_bulk", zero).unwrap();
    right.push(("POST", "undo-a/_bulk".to_owned(), "{\"delete\":{\"_id\":\"a\\u0000b\"}}\n".to_owned()));

    let file = it.repair(right);
    assert_eq!(it.verifier(&["check"]).code, 0);
    let answer = it.verifier(&["undo", &file, "--yes", "--json"]);
    let told = answer.json()["channels"][0].clone();
    assert_eq!(
        (&told["back"], &told["deleted"]),
        (&(shapes.len() + 3).into(), &1.into()),
        "{told} {}",
        answer.stderr
    );
    assert_eq!((&told["left"], &told["changed"]), (&0.into(), &0.into()), "{told}");
    for (path, old) in &shapes {
        assert_eq!(it.source(1, path), (200, (*old).to_owned()), "{path}");
    }
    assert_eq!(it.source(1, "undo-a/_doc/new").0, 404);
    assert_eq!(it.source(1, "undo-a/_doc/old?routing=r"), (200, r#"{"a":"old"}"#.to_owned()));
    let found =
        it.nodes[1].must("POST", "/_mget", r#"{"docs":[{"_index":"undo-a","_id":"a\u0000b"}]}"#).unwrap();
    assert_eq!(found["docs"][0]["_source"]["a"], "zero", "{found}");
    // And the undo of the undo.
    let kept = answer.json()["undo"].as_str().unwrap().to_owned();
    let answer = it.verifier(&["undo", &kept, "--yes"]);
    assert_eq!(answer.code, 0, "{} {}", answer.stdout, answer.stderr);
    assert_eq!(it.verifier(&["check"]).code, 0);
}

#[test]
fn what_stands_in_the_way_of_a_document_is_told_and_it_is_left_alone() {
    let Some(it) = Repaired::start("undo-b-*") else { return };
    let names = ["changed", "deleted", "gone", "strict", "blocked", "fine"];
    let mut right = Vec::new();
    for name in names {
        let path = format!("undo-b-{name}/_doc/1");
        for (site, source) in [r#"{"right":1}"#, r#"{"older":"secret"}"#].into_iter().enumerate() {
            it.put(site, &format!("undo-b-{name}"), "");
            it.put(site, &path, source);
        }
        right.push(("PUT", path, r#"{"right":1}"#.to_owned()));
    }
    let file = it.repair(right);
    let node = &it.nodes[1];
    it.put(1, "undo-b-changed/_doc/1", r#"{"newer":1}"#);
    node.must("DELETE", "/undo-b-deleted/_doc/1", "").unwrap();
    node.must("DELETE", "/undo-b-gone", "").unwrap();
    node.must("DELETE", "/undo-b-strict", "").unwrap();
    it.put(1, "undo-b-strict", r#"{"mappings":{"dynamic":"strict","properties":{"right":{"type":"long"}}}}"#);
    it.put(1, "undo-b-strict/_doc/1", r#"{"right":1}"#);
    it.put(1, "undo-b-blocked/_settings", r#"{"index.blocks.write":true}"#);
    let answer = it.verifier(&["undo", &file, "--yes", "--json"]);
    let listed = answer.json()["channels"][0]["listed"].clone();
    let text = |one: &serde_json::Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let mut all: Vec<[String; 3]> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| ["index", "what", "reason"].map(|name| text(one, name)))
        .collect();
    all.sort_unstable();
    let expected = [
        ["undo-b-blocked", "left", "the index takes no writes: it is blocked"],
        ["undo-b-changed", "changed", ""],
        ["undo-b-deleted", "changed", ""],
        ["undo-b-fine", "put back", ""],
        ["undo-b-gone", "left", "its index is not there, or closed"],
        ["undo-b-strict", "left", "the store does not take it: strict_dynamic_mapping_exception"],
    ];
    assert_eq!(all, expected, "{}", answer.stderr);
    assert_eq!(answer.code, 1);
    assert!(!answer.stdout.contains("secret") && !answer.stderr.contains("secret"), "{}", answer.stdout);
    assert_eq!(it.source(1, "undo-b-changed/_doc/1").1, r#"{"newer":1}"#);
    assert_eq!(it.source(1, "undo-b-strict/_doc/1").1, r#"{"right":1}"#);
    it.put(1, "undo-b-blocked/_settings", r#"{"index.blocks.write":false}"#);
}

/// What somebody made up, and what is too large to be kept.
#[test]
fn what_is_no_document_or_cannot_be_kept_is_refused_or_left() {
    let Some(it) = Repaired::start("undo-c") else { return };
    for (site, old) in ["right", "old"].into_iter().enumerate() {
        it.put(site, "undo-c", "");
        it.put(site, "undo-c/_doc/small?routing=r", &format!("{{\"a\":\"{old}\"}}"));
        it.put(site, "undo-c/_doc/large", &format!("{{\"a\":\"{}\"}}", old.repeat(1_000)));
    }
    let path = |name: &str| it.folder.path().join(name).display().to_string();
    let report = path("check.json");
    let json = it.verifier(&["check", "--json"]);
    std::fs::write(&report, &json.stdout).unwrap();
    // A result file says of the same ones.
    let results = path("results.sqlite");
    it.verifier(&["check", "--result", &results]);
    for listed in [&report, &results] {
        let plan = it.verifier(&["repair", "--from", "dc", "--report", listed]);
        assert!(
            plan.code == 1 && plan.stdout.contains("2 keys to repair"),
            "{} {}",
            plan.stdout,
            plan.stderr
        );
        assert!(plan.stdout.contains("undo-c small, routing r"), "{}", plan.stdout);
    }
    for (from, to) in [
        ("\"index\":\"undo-c\"", "\"table\":\"undo-c\""),
        ("\"index\":\"undo-c\"", "\"index\":\"../_all\""),
        ("\"key\":\"small\"", "\"key\":{\"base64\":\"/w==\"}"),
    ] {
        let wrong = path("wrong.json");
        std::fs::write(&wrong, json.stdout.replace(from, to)).unwrap();
        let refused = it.verifier(&["repair", "--from", "dc", "--report", &wrong, "--yes"]);
        assert!(
            refused.code >= 2 && refused.stderr.len() < 1_000,
            "{from} {to}: {} {}",
            refused.stdout,
            refused.stderr
        );
    }
    *it.carried.lock().unwrap() =
        vec![("PUT", "undo-c/_doc/small?routing=r".to_owned(), r#"{"a":"right"}"#.to_owned())];
    let words = ["repair", "--from", "dc", "--yes", "--share-max", "100", "--undo-value-max", "2KiB"];
    let answer = it.verifier(&[&words[..], &["--undo", &path("undo.jsonl")]].concat());
    assert!(
        answer.code == 1 && answer.stdout.contains("1 of them too large to be kept"),
        "{} {}",
        answer.stdout,
        answer.stderr
    );
    assert!(it.source(1, "undo-c/_doc/large").1.contains("oldold"));
    let undo = std::fs::read_to_string(path("undo.jsonl")).unwrap();
    let line = undo.lines().nth(1).unwrap();
    assert!(line.contains(r#""key":"small","index":"undo-c","routing":"r""#), "{line}");
    for (from, to) in [
        ("undo-c", "not-carried"),
        ("\"key\":\"small\"", "\"key\":\"\""),
        ("\"routing\":\"r\"", "\"routing\":\"\""),
    ] {
        std::fs::write(path("changed.jsonl"), undo.replace(from, to)).unwrap();
        let refused = it.verifier(&["undo", &path("changed.jsonl"), "--yes"]);
        assert!(refused.code > 0, "{from} {to}: {} {}", refused.stdout, refused.stderr);
        assert_eq!(it.source(1, "undo-c/_doc/small?routing=r").1, r#"{"a":"right"}"#, "{from} {to}");
    }
    assert_eq!(
        it.verifier(&["undo", &path("undo.jsonl"), "--yes"]).code,
        1,
        "nobody carries it in this test"
    );
    assert_eq!(it.source(1, "undo-c/_doc/small?routing=r").1, r#"{"a":"old"}"#);
}
