//! `verifier check` against two real Elasticsearch nodes.

use std::collections::BTreeMap;

use causeway_testkit::elasticsearch::{ElasticsearchServer, shared};
use tempfile::TempDir;

use crate::support::{Answer, verifier};

/// Runs `verifier` with these words and a channel of the indices that `index` names.
fn run(nodes: &[ElasticsearchServer; 2], index: &str, words: &[&str]) -> Answer {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncd.toml");
    let text = format!(
        "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"devices\"\nstore = \"elasticsearch\"\n\
         direction = \"both\"\nindices = [\"{index}\"]\nexclude = [\"*-not\"]\ndc = {{ url = \"{}\" }}\ncloud = {{ url = \"{}\" }}\n",
        nodes[0].url(),
        nodes[1].url()
    );
    std::fs::write(&path, text).unwrap();
    let config = path.to_str().unwrap();
    verifier(&[words, &["--config", config]].concat())
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
    let differences = report["differences"].as_array().unwrap();
    let found: BTreeMap<(String, String), String> =
        differences.iter().map(|one| ((text(one, "table"), text(one, "key")), text(one, "kind"))).collect();
    let mut expected: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut expect = |index: &str, key: &str, kind: &str| {
        expected.insert((index.to_owned(), key.to_owned()), kind.to_owned());
    };
    mutations.iter().for_each(|(id, ..)| expect("verify-a", id, "content"));
    expect("verify-a", "large", "content");
    expect("verify-a", "only-dc", "extra");
    expect("verify-a", "only-cloud", "missing");
    expect("verify-a", "moved\0one", "extra");
    expect("verify-a", "moved\0two", "missing");
    expect("verify-b", "alone", "extra");
    assert_eq!(found, expected);
    assert_eq!(report["compared"], 2_500 + 5 + 11 + 1 + 2 + 2 + 1, "{report}");

    for words in [
        &["repair", "--from", "dc"][..],
        &["check", "--from", "2026-01-01T00:00:00Z", "--to", "2026-01-02T00:00:00Z"],
        &["watch", "--for", "1s"],
    ] {
        let refused = run(nodes, "verify-*", words);
        assert!(
            refused.code == 2 && refused.stderr.contains("not built for Elasticsearch"),
            "{words:?}: {}",
            refused.stderr
        );
    }
}
