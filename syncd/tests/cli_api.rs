//! The HTTP interface over an engine that pretends.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod cli_support;

use std::sync::Arc;

use cli_support::{Fake, client, serve};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

async fn ask(client: &Client, method: Method, url: String) -> (StatusCode, Value) {
    let response = client.request(method, url).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

#[tokio::test]
async fn status_is_as_the_contract_has_it() {
    let base = format!("http://{}", serve(Arc::default()).await);
    let (code, status) = ask(&client(), Method::GET, format!("{base}/v1/status")).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!((&status["link"], &status["sites"]), (&json!("l"), &json!(["dc", "cloud"])));
    let channel = &status["channels"][0];
    assert_eq!(
        (&channel["name"], &channel["store"], &channel["state"]),
        (&json!("tags"), &json!("redis"), &json!("running"))
    );
    let direction = &channel["directions"][0];
    for (key, expected) in [
        ("from", json!("dc")),
        ("to", json!("cloud")),
        ("phase", json!("snapshot")),
        ("snapshot", json!({ "done": 5, "total": 10 })),
        ("lag", json!({ "changes": 5, "seconds": 0.5 })),
        ("applied", json!(5)),
        ("conflicts", json!(7)),
        ("dead_letters", json!(1)),
        ("gaps", json!(0)),
        ("held", json!("FLUSHALL at dc")),
        ("error", Value::Null),
    ] {
        assert_eq!(direction[key], expected, "{key}");
    }
}

#[tokio::test]
async fn keys_to_repair_reach_the_engine_with_their_places() {
    let fake = Arc::new(Fake::default());
    let base = format!("http://{}", serve(fake.clone()).await);
    let many = vec![json!({ "key": "k" }); 1001];
    for (channel, body, code) in [
        (
            "tags",
            json!({ "from": "dc", "keys": [{ "key": "a", "db": 3 }, { "key": { "base64": "/w==" }, "table": "s.t" }] }),
            200,
        ),
        ("aliases", json!({ "from": "dc", "keys": [] }), 404),
        ("tags", json!({ "from": "dc", "keys": [{ "key": "" }] }), 400),
        ("tags", json!({ "from": "dc", "keys": [{ "key": { "base64": "!" } }] }), 400),
        ("tags", json!({ "from": "dc", "keys": many }), 400),
        ("tags", json!({ "from": "dc", "keys": [{ "key": "a", "dbs": 3 }] }), 400),
        ("tags", json!({ "keys": [] }), 400),
    ] {
        let answer =
            client().post(format!("{base}/v1/channels/{channel}/repair")).json(&body).send().await.unwrap();
        let (status, answer) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, code, "{body}: {answer}");
        if code == 200 {
            assert_eq!(answer, json!({ "asked": 2 }));
        }
    }
    let asked = fake.asked.lock().unwrap().concat();
    assert!(
        asked.starts_with("repair dc ") && asked.contains("Db(3)") && asked.contains("Table(b\"s.t\")"),
        "{asked}"
    );
}

#[tokio::test]
async fn what_is_handed_over_is_answered_by_what_became_of_it() {
    let fake = Arc::new(Fake::default());
    let base = format!("http://{}/v1/channels", serve(fake.clone()).await);
    let long = "x".repeat(1_001);
    for (path, body, code, told) in [
        ("tags/changes", "two lines", 202, r#""repeated":1"#),
        ("aliases/changes", "two lines", 404, "no channel `aliases`"),
        ("tags/changes", "wrong", 400, "no line"),
        ("tags/changes", "lines", 400, r#""lines":[{"error":"no id","line":3}]"#),
        ("tags/changes", "other", 422, "another body"),
        ("tags/changes", "full", 429, "try again"),
        ("tags/changes", "later", 503, "not reached"),
        ("tags/changes?site=dc&batch=1", "", 400, "unknown field `batch`"),
        ("tags/changes", &long, 413, "at most 1000 bytes"),
    ] {
        let request = client().post(format!("{base}/{path}")).header("Idempotency-Key", "k");
        let answer = request.body(body.to_owned()).send().await.unwrap();
        let (status, again) = (answer.status().as_u16(), answer.headers().get("retry-after").cloned());
        let text = answer.text().await.unwrap();
        assert_eq!((status, again.is_some()), (code, [429, 503].contains(&code)), "{path} {body}: {text}");
        assert!(text.contains(told), "{path} {body}: {text}");
    }
    client().post(format!("{base}/tags/changes?site=dc")).body("ab").send().await.unwrap();
    let asked = fake.asked.lock().unwrap();
    assert!(asked.first().unwrap().starts_with(r#"hand_over None Some("k") 9"#), "{asked:?}");
    assert!(asked.last().unwrap().starts_with(r#"hand_over Some("dc") None 2"#), "{asked:?}");
}

#[tokio::test]
async fn what_was_written_in_a_window_comes_line_by_line_with_an_end() {
    let fake = Arc::new(Fake::default());
    let base = format!("http://{}/v1/channels", serve(fake.clone()).await);
    let get = async |path: &str| {
        let answer = client().get(format!("{base}/{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let window = "from=2026-03-01T02:00:00Z&to=2026-03-01T03:00:00Z";
    let (code, text) = get(&format!("tags/written?{window}")).await;
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(code, 200);
    assert_eq!(
        lines,
        [
            json!({ "site": "dc", "key": "a", "db": 0 }),
            json!({ "site": "dc", "key": { "base64": "/w==" }, "db": 0 }),
            json!({ "site": "cloud", "key": "a", "db": 0 }),
            json!({ "site": "cloud", "whole": true }),
            json!({ "end": { "dc": "2026-03-01T03:00:00.000Z", "cloud": "2026-03-01T03:00:00.000Z" } }),
        ]
    );
    assert_eq!(*fake.asked.lock().unwrap(), ["written 1772330400000..1772334000000 tags"]);
    for (path, code) in [
        (format!("aliases/written?{window}"), 404),
        ("tags/written".to_owned(), 400),
        ("tags/written?from=yesterday".to_owned(), 400),
        ("tags/written?from=2026-03-01T03:00:00Z&to=2026-03-01T02:00:00Z".to_owned(), 400),
        ("tags/written?from=2126-03-01T03:00:00Z".to_owned(), 400),
        (format!("tags/written?{window}&site=dc"), 400),
    ] {
        let (answered, text) = get(&path).await;
        assert_eq!(answered, code, "{path}: {text}");
        assert!(serde_json::from_str::<Value>(&text).unwrap()["error"].is_string(), "{text}");
    }
}

#[tokio::test]
async fn the_site_that_is_right_is_told_of_each_key() {
    let base = format!("http://{}/v1/channels", serve(Arc::default()).await);
    let many = vec![json!({ "key": "k".repeat(50) }); 100_001];
    for (channel, body, code) in [
        (
            "tags",
            json!({ "by": "newest", "keys": [{ "key": "a", "db": 3 }, { "key": "b", "table": "s.t" }] }),
            200,
        ),
        ("aliases", json!({ "by": "owner", "keys": [] }), 404),
        ("tags", json!({ "by": "owner", "keys": [{ "key": "" }] }), 400),
        ("tags", json!({ "by": "owner", "keys": many }), 400),
        ("tags", json!({ "by": "oldest", "keys": [] }), 400),
        ("tags", json!({ "keys": [] }), 400),
    ] {
        let answer = client().post(format!("{base}/{channel}/whose")).json(&body).send().await.unwrap();
        let (status, answer) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, code, "{answer}");
        if code == 200 {
            assert_eq!(answer, json!({ "whose": [null, "dc"] }));
        }
    }
}

#[tokio::test]
async fn what_is_asked_reaches_the_engine_and_its_no_comes_back_as_json() {
    let fake = Arc::new(Fake::default());
    let base = format!("http://{}", serve(fake.clone()).await);
    let client = client();
    for (path, code) in [
        ("/v1/channels/tags/pause", 200),
        ("/v1/pause", 200),
        ("/v1/channels/tags/resume?held=drop", 200),
        ("/v1/resume?held=apply", 200),
        ("/v1/resume", 409),
        ("/v1/channels/tags/resume?held=burn", 400),
        ("/v1/channels/tags/resume?hold=drop", 400),
        ("/v1/channels/aliases/pause", 404),
        ("/v1/channels/tags/snapshot", 500),
        ("/v1/channels/tags/burn", 404),
        ("/v1/status", 405),
    ] {
        let (status, body) = ask(&client, Method::POST, format!("{base}{path}")).await;
        assert_eq!(status.as_u16(), code, "{path}: {body}");
        assert_eq!(body.get("error").is_none_or(Value::is_null), code == 200, "{path}: {body}");
    }
    assert_eq!(
        *fake.asked.lock().unwrap(),
        [
            "pause tags",
            "pause *",
            "resume Some(Drop) tags",
            "resume Some(Apply) *",
            "resume None *",
            "pause aliases",
            "snapshot tags"
        ]
    );
}

#[tokio::test]
async fn dead_letters_can_be_had_of_one_channel() {
    let base = format!("http://{}", serve(Arc::default()).await);
    let client = client();
    let (code, letters) = ask(&client, Method::GET, format!("{base}/v1/dead-letters?channel=tags")).await;
    let newest = &letters["dead_letters"][0];
    assert_eq!((code, newest["key"].clone()), (StatusCode::OK, json!({ "base64": "cHVzaDr/" })));
    let (_, rest) =
        ask(&client, Method::GET, format!("{base}/v1/dead-letters?before={}", letters["next"])).await;
    assert_eq!((&rest["dead_letters"][0]["id"], &rest["next"]), (&json!(7), &Value::Null));
    for wrong in ["limit=0", "limit=1001", "before=x", "after=1"] {
        let (code, _) = ask(&client, Method::GET, format!("{base}/v1/dead-letters?{wrong}")).await;
        assert_eq!(code, StatusCode::BAD_REQUEST, "{wrong}");
    }
    for (path, code, answer) in [
        ("8/ack", StatusCode::OK, json!({ "acknowledged": 1 })),
        ("ack?channel=tags", StatusCode::OK, json!({ "acknowledged": 3 })),
        (
            "6/ack",
            StatusCode::NOT_FOUND,
            json!({ "error": "no dead letter 6: it was never there, or was acknowledged" }),
        ),
        ("ack?channel=x", StatusCode::NOT_FOUND, json!({ "error": "no channel `x`, there is tags" })),
    ] {
        assert_eq!(
            ask(&client, Method::POST, format!("{base}/v1/dead-letters/{path}")).await,
            (code, answer),
            "{path}"
        );
    }
    let (code, body) = ask(&client, Method::GET, format!("{base}/v1/dead-letters?channel=x")).await;
    assert_eq!(
        (code, body["error"].clone()),
        (StatusCode::NOT_FOUND, json!("no channel `x`, there is tags"))
    );
}

#[tokio::test]
async fn conflicts_are_listed_by_pages() {
    let fake = Arc::new(Fake::default());
    let base = format!("http://{}", serve(fake.clone()).await);
    let client = client();
    let get = |path: &str| ask(&client, Method::GET, format!("{base}/v1/conflicts{path}"));
    let (code, page) = get("?channel=tags&key=push:7&since=2026-03-01T04:00:00%2B02:00&limit=2").await;
    assert_eq!(code, StatusCode::OK, "{page}");
    assert_eq!((&page["next"], &page["left_out"]), (&json!(9), &json!(3)));
    let expected = json!({
        "id": 10, "time": "2026-03-01T02:00:01.250Z", "channel": "tags", "from": "dc", "to": "cloud",
        "key": { "base64": "cHVzaDr/" }, "db": 3, "resolution": "kept", "winner": "cloud", "uncertain": false,
        "sides": [
            { "site": "dc", "seq": 110, "hlc": "3717123456789012992", "op": "delete",
              "time": "2026-03-01T02:00:00.000Z", "digest": null, "bytes": 0 },
            { "site": "cloud", "seq": 110, "hlc": "3717123456789012992", "op": "command",
              "time": "2026-03-01T02:00:00.000Z", "digest": "0123456789abcdef0123456789abcdef", "bytes": 12 },
        ],
    });
    assert_eq!(page["conflicts"][0], expected);
    let (_, page) = get("?before=3").await;
    assert_eq!((page["conflicts"].as_array().map(Vec::len), &page["next"]), (Some(2), &Value::Null));
    assert_eq!(
        *fake.asked.lock().unwrap(),
        [
            r#"conflicts Some("tags") Some("push:7") Some("2026-03-01T02:00:00.000Z") None 2"#,
            "conflicts None None None Some(3) 100"
        ]
    );
    let (code, entry) = get("/7").await;
    assert_eq!((code, &entry["id"]), (StatusCode::OK, &json!(7)));
    for (path, code, holds) in [
        ("?channel=x", 404, "no channel `x`, there is tags"),
        ("?limit=0", 400, "limit is 0, allowed is 1 to 1000"),
        ("?limit=1001", 400, "limit is 1001, allowed is 1 to 1000"),
        ("?since=yesterday", 400, "since is `yesterday`, allowed is RFC 3339"),
        ("?until=now", 400, "unknown field `until`"),
        ("/11", 404, "no conflict 11"),
        ("/eleven", 400, "eleven"),
    ] {
        let (found, body) = get(path).await;
        assert_eq!(found.as_u16(), code, "{path}: {body}");
        assert!(body["error"].as_str().unwrap().contains(holds), "{path}: {body}");
    }
}

#[tokio::test]
async fn probes_metrics_and_the_page_answer() {
    let base = format!("http://{}", serve(Arc::default()).await);
    let client = client();
    for (path, code, kind, holds) in [
        ("/healthz", 200, "text/plain", "ok"),
        ("/readyz", 503, "text/plain", "not reached"),
        ("/metrics", 200, "text/plain; version=0.0.4", "causeway_gaps_total 0"),
        ("/", 200, "text/html", "<title>Causeway</title>"),
    ] {
        let response = client.get(format!("{base}{path}")).send().await.unwrap();
        assert_eq!(response.status().as_u16(), code, "{path}");
        let found = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(found.starts_with(kind), "{path}: {found}");
        assert!(response.text().await.unwrap().contains(holds), "{path}");
    }
}

/// The page brings everything along: a site without a way out shows it, too.
#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let base = format!("http://{}", serve(Arc::default()).await);
    let page = client().get(base).send().await.unwrap().text().await.unwrap();
    for outside in ["src=\"http", "href=\"http", "url(http", "@import", "//cdn"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

/// The interface has no passwords, so a browser is not lent to a stranger's page.
#[tokio::test]
async fn a_strangers_page_cannot_reach_in() {
    let fake = Arc::new(Fake::default());
    let address = serve(fake.clone()).await;
    let (client, url) = (client(), format!("http://{address}/v1/pause"));
    let own = client.post(&url).header("origin", format!("http://{address}")).send().await.unwrap();
    assert_eq!(own.status(), StatusCode::OK);
    let other = client.post(&url).header("origin", "https://evil.example").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::FORBIDDEN);
    let rebound = client.get(format!("http://{address}/v1/status")).header("host", "evil.example");
    assert_eq!(rebound.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(*fake.asked.lock().unwrap(), ["pause *"]);
}

#[tokio::test]
async fn a_taken_port_says_what_to_do() {
    let address = serve(Arc::default()).await;
    let error = syncd::api::bind(address).await.unwrap_err();
    assert!(error.contains("another program has it") && error.contains("--listen"), "{error}");
}
