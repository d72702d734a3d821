//! What the connector promises beyond the conformance suite, on two real nodes that all tests of this file share.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use causeway_core::{
    Batch, Change, Error, ErrorKind, Event, Hlc, Marker, Op, Opened, Outcome, Position, Seq, Site, Source,
    Term, Told,
};
use causeway_testkit::elasticsearch::{ElasticsearchServer, elasticsearch_home};
use serde_json::Value;
use support::{Applier, INDEX, Line, Pair, anew, changes, is_end, position, spec, until};

const DC: Site = Site::First;
const CLOUD: Site = Site::Second;

macro_rules! pair {
    ($more:expr, $definition:expr) => {
        match Pair::new($more, $definition).await? {
            Some(pair) => pair,
            None => return Ok(()),
        }
    };
}

fn put(pair: &Pair, id: &str, source: &str, hlc: u64) -> Change {
    let value = Some(Bytes::from(source.to_owned()));
    let mut change = Change::captured(Op::Put, pair.key(id), value, Position::default(), 0);
    change.hlc = Hlc(hlc);
    change
}

fn delete(pair: &Pair, id: &str, hlc: u64) -> Change {
    let mut change = Change::captured(Op::Delete, pair.key(id), None, Position::default(), 0);
    change.hlc = Hlc(hlc);
    change
}

/// So many milliseconds from now, as a change of `site`.
fn hlc(site: Site, ms: i64) -> u64 {
    Hlc::at(causeway_core::time::now_ms().saturating_add_signed(ms), site).0
}

/// All documents of a site's index, by id and routing.
async fn all(pair: &Pair, site: Site) -> Result<BTreeMap<(String, String), String>> {
    pair.must(site, "POST", "/_refresh", "").await?;
    let (_, text) = pair.ask(site, "GET", "/_search?size=10000", "").await?;
    #[derive(serde::Deserialize)]
    struct Found<'a> {
        #[serde(borrow)]
        hits: Hits<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Hits<'a> {
        #[serde(borrow)]
        hits: Vec<Hit<'a>>,
    }
    #[derive(serde::Deserialize)]
    struct Hit<'a> {
        _id: String,
        #[serde(default)]
        _routing: String,
        #[serde(borrow)]
        _source: &'a serde_json::value::RawValue,
    }
    let found: Found = serde_json::from_str(&text)?;
    Ok(found
        .hits
        .hits
        .iter()
        .map(|hit| ((hit._id.clone(), hit._routing.clone()), hit._source.get().to_owned()))
        .collect())
}

/// FF37. Mappings, analyzers and aliases come first; documents of every kind stay the bytes that they were.
#[tokio::test(flavor = "multi_thread")]
async fn documents_arrive_byte_for_byte_in_an_index_made_like_theirs() -> Result<()> {
    let pair = pair!("", None);
    let definition = format!(
        r#"{{"settings":{{"number_of_shards":3,"number_of_replicas":0,"analysis":{{"analyzer":{{"folded":{{"type":"custom",
        "tokenizer":"standard","filter":["lowercase","stop"]}}}}}}}},
        "mappings":{{"properties":{{"name":{{"type":"text","analyzer":"folded"}},"n":{{"type":"double"}},
        "lines":{{"type":"nested","properties":{{"sku":{{"type":"keyword"}}}}}}}}}},
        "aliases":{{"{}-all":{{}}}}}}"#,
        pair.index
    );
    pair.must(DC, "PUT", "", &definition).await?;
    let long = "i".repeat(512);
    let large = format!(r#"{{"name":"{}"}}"#, "x ".repeat(5 << 20));
    let documents: Vec<(&str, &str, &str)> = vec![
        ("plain", "", r#"{"name":"Zoë","n":1.0}"#),
        ("spaces", "", "{ \"n\" : 1e2,\t\"name\":\"\\u00e9\" }"),
        ("lines", "", "{\n  \"n\": 0.10,\r\n  \"name\": \"two\"\n}"),
        ("order", "", r#"{"z":1,"a":2,"n":12345678901234567890.1}"#),
        ("nested", "", r#"{"lines":[{"sku":"a","q":1},{"sku":"b"}]}"#),
        ("empty", "", "{}"),
        ("nulls", "", r#"{"name":null,"n":[1,null,2.50]}"#),
        ("routed", "r 1/é", r#"{"n":3}"#),
        ("odd%2F%20%C3%A9", "", r#"{"n":4}"#),
        (&long, "", r#"{"n":5}"#),
        ("large", "", &large),
    ];
    for (id, routing, source) in &documents {
        let routing: String = routing.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let query = if routing.is_empty() { String::new() } else { format!("?routing={routing}") };
        pair.must(DC, "PUT", &format!("/_doc/{id}{query}"), source).await?;
    }
    let mut source = anew(&pair, DC, true).await?;
    let events = until(source.as_mut(), "the snapshot's end", is_end).await?;
    let told = changes(&events);
    ensure!(told.first().is_some_and(|change| change.op == Op::Ddl), "what makes the index comes first");
    let mut applier = Applier::new(&pair, CLOUD).await?;
    for change in told {
        applier.must(vec![change]).await?;
    }
    // One more, with a field that nobody knew, and of the nested ones another.
    pair.put(DC, "later", r#"{"fresh":17,"lines":[{"sku":"c","since":"2026-01-01"}]}"#).await?;
    let is_later =
        |event: &Event| matches!(event, Event::Change(c) if c.op == Op::Put && c.key.name == "later");
    for change in changes(&until(source.as_mut(), "the later one", is_later).await?) {
        applier.must(vec![change]).await?;
    }
    let (dc, cloud) = (all(&pair, DC).await?, all(&pair, CLOUD).await?);
    ensure!(dc.len() == documents.len() + 1, "{} documents", dc.len());
    for (key, source) in &dc {
        ensure!(cloud.get(key) == Some(source), "{key:?} is not the same");
    }
    ensure!(cloud.len() == dc.len(), "cloud has {} documents", cloud.len());
    let of = |answer: Value, what: &str| answer.pointer(&format!("/{}/{what}", pair.index)).cloned();
    for what in ["mappings", "aliases", "settings/index/analysis", "settings/index/number_of_shards"] {
        let (dc, cloud) = (pair.must(DC, "GET", "", "").await?, pair.must(CLOUD, "GET", "", "").await?);
        let (dc, cloud) = (of(dc, what), of(cloud, what));
        ensure!(dc.is_some() && dc == cloud, "{what}: {dc:?} and {cloud:?}");
    }
    Ok(())
}

/// FF34. A snapshot that broke goes on where it was, whatever was written meanwhile: each document that nobody wrote is read
/// once, and each that was written comes as it is now.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_broke_goes_on_without_loss_or_doubles() -> Result<()> {
    let pair = pair!("limits = { snapshot_bytes_per_second = 60_000, shards_at_once = 1 }", Some(INDEX));
    let mut body = String::new();
    for n in 0..3_000 {
        body.push_str(&format!("{{\"index\":{{\"_id\":\"{n}\"}}}}\n{{\"text\":\"old {n}\"}}\n"));
    }
    pair.must(DC, "POST", "/_bulk", &body).await?;
    let mut read: Vec<String> = Vec::new();
    let mut put: BTreeSet<String> = BTreeSet::new();
    let mut deleted: BTreeSet<String> = BTreeSet::new();
    let mut source = anew(&pair, DC, true).await?;
    let mut from: Option<Position> = None;
    let mut breaks = 0;
    let name = |change: &Change| String::from_utf8_lossy(&change.key.name).into_owned();
    loop {
        let mut events = Vec::new();
        source.next(&mut events, 1 << 20).await?;
        for change in changes(&events) {
            match change.op {
                Op::Read => read.push(name(&change)),
                Op::Put => _ = put.insert(name(&change)),
                Op::Delete => _ = deleted.insert(name(&change)),
                _ => {}
            }
        }
        from = position(&events).or(from);
        if events.iter().any(is_end) {
            break;
        }
        if breaks < 3 && read.len() > 900 * (breaks + 1) {
            let text = from.clone().context("a position")?.to_string();
            let from: Position = text.parse().map_err(|text| anyhow::anyhow!("{text}"))?;
            for n in [breaks * 7, 2_990 - breaks] {
                pair.put(DC, &n.to_string(), "{\"text\":\"new\"}").await?;
            }
            breaks += 1;
            drop(source);
            source = pair.connector.source(DC);
            source.held(&from);
            let opened = source.open(Some(&from), true, Told::new()).await?;
            ensure!(opened == Opened::Resumed, "{opened:?}");
        }
    }
    ensure!(breaks == 3, "it broke {breaks} times");
    let once: BTreeSet<&String> = read.iter().collect();
    ensure!(once.len() == read.len(), "{} reads of {} documents", read.len(), once.len());
    if put.len() < 6 {
        let is_last = |event: &Event| matches!(event, Event::Idle { .. });
        for change in changes(&until(source.as_mut(), "what was written", is_last).await?) {
            put.insert(name(&change));
        }
    }
    let either: BTreeSet<&String> = read.iter().chain(&put).collect();
    ensure!(either.len() == 3_000, "{} documents came", either.len());
    ensure!(put.len() == 6 && deleted.is_empty(), "written: {put:?}, deleted: {deleted:?}");
    Ok(())
}

/// FF32, FF36. The index forgets deletes at once, and the copy still had the document: its delete comes behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_deleted_during_the_snapshot_does_not_come_back() -> Result<()> {
    let definition = INDEX.replace("\"number_of_shards\"", "\"gc_deletes\":\"0s\",\"number_of_shards\"");
    let pair = pair!(
        "deletes = \"200ms\"\nlimits = { snapshot_bytes_per_second = 3_000, shards_at_once = 1 }",
        Some(&definition)
    );
    for n in 0..40 {
        pair.put(DC, &n.to_string(), &format!("{{\"text\":\"{}\"}}", "x".repeat(200))).await?;
    }
    let mut source = anew(&pair, DC, true).await?;
    let first = |event: &Event| matches!(event, Event::Change(c) if c.op == Op::Read);
    let mut events = until(source.as_mut(), "the first read", first).await?;
    // All of them, read and not read yet.
    for n in 0..40 {
        pair.must(DC, "DELETE", &format!("/_doc/{n}"), "").await?;
    }
    pair.put(DC, "last", "{\"text\":\"v\"}").await?;
    events.extend(until(source.as_mut(), "the snapshot's end", is_end).await?);
    let reads = changes(&events).iter().filter(|change| change.op == Op::Read).count();
    let mut seen = 0;
    while seen < reads {
        let mut more = Vec::new();
        source.next(&mut more, 1 << 20).await?;
        seen += changes(&more).iter().filter(|change| change.op == Op::Delete).count();
        events.extend(more);
    }
    let mut applier = Applier::new(&pair, CLOUD).await?;
    let told: Vec<Change> = changes(&events).into_iter().filter(|change| change.op != Op::Ddl).collect();
    applier.must(told).await?;
    let left = all(&pair, CLOUD).await?;
    ensure!(left.keys().map(|(id, _)| id.as_str()).collect::<Vec<_>>() == ["last"], "{left:?}");
    Ok(())
}

/// FF32. The index has forgotten the delete, and an applier that was overtaken still brings the older write.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_write_does_not_revive_a_deleted_document() -> Result<()> {
    let definition = INDEX.replace("\"number_of_shards\"", "\"gc_deletes\":\"0s\",\"number_of_shards\"");
    let pair = pair!("", Some(&definition));
    let (older, newer) = (hlc(DC, -2_000), hlc(DC, -1_000));
    let mut late = Applier::new(&pair, CLOUD).await?;
    let mut applier = Applier::new(&pair, CLOUD).await?;
    applier.must(vec![put(&pair, "k", "{\"text\":\"v\"}", older), delete(&pair, "k", newer)]).await?;
    applier.must(vec![put(&pair, "other", "{}", newer)]).await?;
    pair.must(CLOUD, "POST", "/_refresh", "").await?;
    ensure!(
        late.apply(vec![put(&pair, "k", "{\"text\":\"v\"}", older)]).await.is_err(),
        "it was not overtaken"
    );
    ensure!(pair.source(CLOUD, "k").await?.is_none(), "the document is back");
    // What is repeated after a crash ends as it had ended.
    applier.must(vec![put(&pair, "k", "{\"text\":\"v\"}", older), delete(&pair, "k", newer)]).await?;
    ensure!(pair.source(CLOUD, "k").await?.is_none(), "the document is back");
    Ok(())
}

/// FF33, FF37.
#[tokio::test(flavor = "multi_thread")]
async fn a_mapping_conflict_amid_good_documents_is_refused_alone() -> Result<()> {
    let pair = pair!(
        "bulk = { bytes_max = 2_000 }",
        Some(
            r#"{"settings":{"number_of_shards":2,"number_of_replicas":0},"mappings":{"properties":{"n":{"type":"long"}}}}"#
        )
    );
    let mut applier = Applier::new(&pair, CLOUD).await?;
    let (from, bad) = (hlc(DC, -5_000), [3_usize, 77]);
    let documents: Vec<Change> = (0..100_usize)
        .map(|n| {
            let source =
                if bad.contains(&n) { "{\"n\":\"s3cret\"}".to_owned() } else { format!("{{\"n\":{n}}}") };
            put(&pair, &n.to_string(), &source, from + ((n as u64) << 9))
        })
        .collect();
    let outcome = applier.apply(documents).await?;
    let Outcome::Committed { refused, .. } = outcome else { anyhow::bail!("{outcome:?}") };
    ensure!(refused.iter().map(|refused| refused.index).collect::<Vec<_>>() == bad, "{refused:?}");
    let says =
        |reason: &str| reason.contains("[n]") && reason.contains("[long]") && !reason.contains("s3cret");
    ensure!(refused.iter().all(|refused| says(&refused.reason)), "{refused:?}");
    ensure!(all(&pair, CLOUD).await?.len() == 98, "the rest is not there");
    // Of an index that is not there nothing is made by guessing.
    let mut elsewhere = put(&pair, "k", "{}", from);
    elsewhere.key = support_key(&format!("{}-missing", pair.index), "k");
    let outcome = applier.apply(vec![elsewhere]).await?;
    let Outcome::Committed { refused, .. } = outcome else { anyhow::bail!("{outcome:?}") };
    ensure!(refused.iter().any(|refused| refused.reason.contains("no such index")), "{refused:?}");
    Ok(())
}

fn support_key(index: &str, id: &str) -> causeway_core::Key {
    causeway_core::Key {
        space: causeway_core::Space::Index(Bytes::from(index.to_owned())),
        name: Bytes::from(id.to_owned()),
    }
}

/// FF14. What we applied is not told as news; what an application writes on top of it is, and what it deletes.
#[tokio::test(flavor = "multi_thread")]
async fn ours_is_told_from_what_an_application_wrote_on_top() -> Result<()> {
    let pair = pair!("deletes = \"200ms\"", Some(INDEX));
    let mut source = anew(&pair, CLOUD, false).await?;
    let mut applier = Applier::new(&pair, CLOUD).await?;
    let from = hlc(DC, -5_000);
    let of = |n: u64| put(&pair, &n.to_string(), "{\"text\":\"of dc\"}", from + (n << 9));
    applier.must((0..40).map(of).collect()).await?;
    pair.put(CLOUD, "3", "{\"text\":\"of cloud\"}").await?;
    pair.put(CLOUD, "own", "{\"text\":\"of cloud\"}").await?;
    let told =
        until(source.as_mut(), "both", |event| matches!(event, Event::Change(c) if c.key.name == "own"))
            .await?;
    let mut told: Vec<Change> = changes(&told);
    if !told.iter().any(|change| change.key.name == "3") {
        let more = until(
            source.as_mut(),
            "the third",
            |event| matches!(event, Event::Change(c) if c.key.name == "3"),
        );
        told.extend(changes(&more.await?));
    }
    let names: BTreeSet<_> = told.iter().map(|change| change.key.name.clone()).collect();
    ensure!(names == BTreeSet::from([Bytes::from("3"), Bytes::from("own")]) && told.len() == 2, "{names:?}");
    // Ours, and an application's.
    applier.must(vec![delete(&pair, "7", from + (100 << 9)), delete(&pair, "8", from + (101 << 9))]).await?;
    pair.must(CLOUD, "DELETE", "/_doc/9", "").await?;
    let is_delete = |event: &Event| matches!(event, Event::Change(c) if c.op == Op::Delete);
    let told = changes(&until(source.as_mut(), "the delete", is_delete).await?);
    ensure!(told.iter().map(|change| change.key.name.clone()).collect::<Vec<_>>() == ["9"], "{told:?}");
    Ok(())
}

/// The store's order is that of the versions, whatever comes first: what the rule for concurrent writes says.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_writes_the_newer_one_stands_in_any_order() -> Result<()> {
    let pair = pair!("", Some(INDEX));
    let (older, newer) = (hlc(DC, -2_000), hlc(CLOUD, -1_000));
    for (site, order) in [(DC, [newer, older]), (CLOUD, [older, newer])] {
        let mut applier = Applier::new(&pair, site).await?;
        for version in order {
            applier.must(vec![put(&pair, "k", &format!("{{\"text\":\"{version}\"}}"), version)]).await?;
            // A second time it is there.
            applier.must(vec![put(&pair, "k", &format!("{{\"text\":\"{version}\"}}"), version)]).await?;
        }
    }
    for site in Site::BOTH {
        let found = pair.source(site, "k").await?;
        ensure!(found == Some(format!("{{\"text\":\"{newer}\"}}")), "{found:?}");
    }
    Ok(())
}

/// One way the marker is not looked at before each batch: an older applier does no harm all the same. And what was decided, as that
/// a document is gone at the origin, goes over what is newer.
#[tokio::test(flavor = "multi_thread")]
async fn one_way_an_older_applier_does_no_harm_and_a_decided_delete_takes_effect() -> Result<()> {
    let pair = pair!("", Some(INDEX));
    let urls = pair.lines.each_ref().map(|line| format!("http://127.0.0.1:{}", line.port));
    let mut spec = spec(&pair.index, "", [&urls[0], &urls[1]])?;
    spec.carries = [true, false];
    let connector = causeway_elasticsearch::open(&spec)?;
    let text = |n: u64| format!("{{\"text\":\"{n}\"}}");
    let [first, second, third] = [-3_000, -2_000, -1_000].map(|ms| hlc(DC, ms));
    let mut older = Applier::of(connector.as_ref(), CLOUD).await?;
    older.must(vec![put(&pair, "k", &text(1), first)]).await?;
    let mut newer = Applier::of(connector.as_ref(), CLOUD).await?;
    newer.must(vec![put(&pair, "k", &text(3), third)]).await?;
    let late = older.apply(vec![put(&pair, "k", &text(2), second)]).await;
    let kind = late.as_ref().err().and_then(|e| e.downcast_ref::<Error>()).map(Error::kind);
    ensure!(kind == Some(ErrorKind::Fenced), "{late:?}");
    let found = pair.source(CLOUD, "k").await?;
    ensure!(found == Some(text(3)), "{found:?}");
    newer.decided(vec![delete(&pair, "k", 1)]).await?;
    ensure!(pair.source(CLOUD, "k").await?.is_none(), "it is there");
    let own = format!("/.causeway-l-{}*", pair.index);
    let node = &pair.nodes[CLOUD.index()];
    let (_, left) = tokio::task::spawn_blocking(move || {
        node.request("POST", &format!("{own}/_refresh?expand_wildcards=all"), "")?;
        node.request("GET", &format!("{own}/_count?expand_wildcards=all"), "")
    })
    .await??;
    ensure!(left.contains("\"count\":1,"), "more than the marker: {left}");
    Ok(())
}

/// What an application writes just before ours arrives comes out of the stream, though ours stands on it then.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_overwritten_at_once_is_told_all_the_same() -> Result<()> {
    let pair = pair!("", Some(INDEX));
    let mut source = anew(&pair, CLOUD, false).await?;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let reading = tokio::spawn(async move {
        let mut events = Vec::new();
        while !*stopped.borrow() {
            tokio::select! {
                read = source.next(&mut events, 1 << 20) => read?,
                _ = stopped.changed() => {}
            }
        }
        anyhow::Ok(events)
    });
    let mut applier = Applier::new(&pair, CLOUD).await?;
    for n in 0..30 {
        pair.put(CLOUD, &n.to_string(), "{\"text\":\"of cloud\"}").await?;
        applier.must(vec![put(&pair, &n.to_string(), "{\"text\":\"of dc\"}", hlc(DC, 0))]).await?;
    }
    stop.send_replace(true);
    let told = changes(&reading.await??);
    let names: BTreeSet<_> = told.iter().map(|change| change.key.name.clone()).collect();
    ensure!(names.len() == 30, "{} of 30 were told: {names:?}", names.len());
    Ok(())
}

/// FF27. A resume tells again what our own index said, with places up to where the log ends, and nothing else twice.
#[tokio::test(flavor = "multi_thread")]
async fn markers_come_again_after_a_restart_and_documents_do_not() -> Result<()> {
    let pair = pair!("", Some(INDEX));
    let mut source = anew(&pair, CLOUD, false).await?;
    let mut applier = Applier::new(&pair, CLOUD).await?;
    let from = hlc(DC, -5_000);
    let mut events =
        until(source.as_mut(), "an idle stream", |event| matches!(event, Event::Idle { .. })).await?;
    let restart = position(&events).context("a position")?;
    for n in 0..5_u64 {
        pair.put(CLOUD, &format!("c{n}"), "{\"text\":\"of cloud\"}").await?;
        applier.must(vec![put(&pair, &format!("d{n}"), "{\"text\":\"of dc\"}", from + (n << 9))]).await?;
    }
    let count =
        |events: &[Event]| events.iter().filter(|event| matches!(event, Event::Marker { .. })).count();
    while count(&events) < 5 || changes(&events).len() < 5 {
        source.next(&mut events, 1 << 20).await?;
    }
    let last = position(&events).context("a position")?;
    drop(source);
    let mut source = pair.connector.source(CLOUD);
    source.held(&last);
    ensure!(
        source.open(Some(&restart), true, Told::new()).await? == Opened::Resumed && source.moved(),
        "not resumed"
    );
    pair.put(CLOUD, "new", "{\"text\":\"v\"}").await?;
    let again = until(source.as_mut(), "the new one", |event| matches!(event, Event::Change(_))).await?;
    let told = changes(&again);
    ensure!(told.len() == 1 && told[0].key.name == "new" && told[0].pos.at > last.at, "{told:?}");
    let places: Vec<u64> = again
        .iter()
        .filter_map(|event| if let Event::Marker { pos, .. } = event { Some(pos.at) } else { None })
        .collect();
    ensure!(
        places.len() == 5 && places.iter().all(|at| (restart.at + 1..=last.at).contains(at)),
        "{places:?}"
    );
    Ok(())
}

/// Nobody is there, or somebody else; what an operator should know is said before anything runs.
#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_said_before_anything_runs() -> Result<()> {
    let pair = pair!("", Some(INDEX));
    let alias = format!("{}-alias", pair.index);
    pair.must(DC, "PUT", &format!("/_alias/{alias}"), "").await?;
    let path = format!("/_doc/far?version={}&version_type=external", u64::MAX >> 1);
    pair.must(DC, "PUT", &path, "{}").await?;
    pair.must(DC, "POST", "/_refresh", "").await?;
    let mapping = r#"{"properties":{"text":{"type":"keyword"},"n":{"type":"long"}}}"#;
    pair.must(CLOUD, "PUT", "/_mapping", mapping).await?;
    let findings = pair.connector.check(&Site::BOTH).await?;
    let says = |fatal: bool, text: &str| findings.iter().any(|f| f.fatal == fatal && f.what.contains(text));
    ensure!(says(true, "version of its own"), "{findings:?}");
    ensure!(says(false, "its mapping (properties.n"), "{findings:?}");
    ensure!(says(false, &format!("the alias {alias}")), "{findings:?}");
    let urls = pair.nodes.each_ref().map(|node| node.url());
    let named = causeway_elasticsearch::open(&spec(&alias, "", [&urls[0], &urls[1]]).map(|mut spec| {
        spec.table.insert("indices".to_owned(), toml::Value::Array(vec![toml::Value::String(alias.clone())]));
        spec
    })?)?;
    let findings = named.check(&[DC]).await?;
    ensure!(findings.iter().any(|f| f.fatal && f.what.contains("is an alias")), "{findings:?}");
    // Nobody listens there any more.
    let line = Line::to(9).await?;
    let nowhere = format!("http://127.0.0.1:{}", line.port);
    let gone = causeway_elasticsearch::open(&spec(&pair.index, "", [&nowhere, &nowhere])?)?;
    let error = gone.check(&[DC]).await.err().context("nobody is there")?;
    ensure!(
        error.kind() == ErrorKind::Retry && error.to_string().contains(&line.port.to_string()),
        "{error}"
    );
    let error = gone.target(DC).take_over(Term(1)).await.err().context("nobody is there")?;
    ensure!(error.kind() == ErrorKind::Retry, "{error}");
    // Of two nodes the one that is there serves.
    let mut both = spec(&pair.index, "", [&nowhere, &urls[1]])?;
    let two = toml::Value::Array(vec![toml::Value::String(nowhere), toml::Value::String(urls[0].clone())]);
    both.site_tables[0] = toml::Table::from_iter([("urls".to_owned(), two)]);
    let mut source: Box<dyn Source> = causeway_elasticsearch::open(&both)?.source(DC);
    source.open(None, false, Told::new()).await?;
    Ok(())
}

/// A watched delete takes nothing that was written since the watch began.
#[tokio::test(flavor = "multi_thread")]
async fn a_watched_delete_leaves_what_was_written_meanwhile() -> Result<()> {
    let pair = pair!("", Some(INDEX));
    pair.put(CLOUD, "k", "{\"text\":\"1\"}").await?;
    let mut applier = Applier::new(&pair, CLOUD).await?;
    let send = |applier: &mut Applier| {
        let mut change = delete(&pair, "k", hlc(DC, 0));
        change.seq = Seq(applier.next);
        let marker = Marker { term: Term(1), applied: Seq(applier.next + 1), ..Marker::default() };
        Batch { marker, changes: vec![change], watched: true, decided: true, ..Batch::default() }
    };
    applier.target.watch(&[pair.key("k")]).await?;
    pair.put(CLOUD, "k", "{\"text\":\"2\"}").await?;
    let batch = send(&mut applier);
    applier.target.send(batch).await?;
    ensure!(applier.target.outcome().await? == Outcome::Touched, "it was not touched");
    ensure!(pair.source(CLOUD, "k").await?.is_some(), "it is gone");
    applier.target.watch(&[pair.key("k")]).await?;
    let batch = send(&mut applier);
    applier.target.send(batch).await?;
    ensure!(matches!(applier.target.outcome().await?, Outcome::Committed { .. }), "it was touched");
    ensure!(pair.source(CLOUD, "k").await?.is_none(), "it is there");
    Ok(())
}

/// A watched batch may write a document and delete it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_watched_batch_deletes_what_it_wrote_itself() -> Result<()> {
    let pair = pair!("", Some(INDEX));
    let mut applier = Applier::new(&pair, CLOUD).await?;
    applier.target.watch(&[pair.key("k")]).await?;
    let mut changes = vec![put(&pair, "k", "{\"text\":\"1\"}", hlc(DC, 0)), delete(&pair, "k", hlc(DC, 1))];
    changes.iter_mut().zip(applier.next..).for_each(|(change, seq)| change.seq = Seq(seq));
    let marker = Marker { term: Term(1), applied: Seq(applier.next + 2), ..Marker::default() };
    applier.target.send(Batch { marker, changes, watched: true, decided: true, ..Batch::default() }).await?;
    let outcome = applier.target.outcome().await?;
    ensure!(matches!(&outcome, Outcome::Committed { refused, .. } if refused.is_empty()), "{outcome:?}");
    ensure!(pair.source(CLOUD, "k").await?.is_none(), "it is there");
    Ok(())
}

/// A state may have a higher version than its own change says: what follows it in the order of the log stands all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_state_stands_whatever_version_that_got() -> Result<()> {
    let pair = pair!("", Some(INDEX));
    let mut applier = Applier::new(&pair, CLOUD).await?;
    let (ours, theirs) = (hlc(CLOUD, 5), hlc(DC, 5));
    let text = |n: u64| format!("{{\"text\":\"{n}\"}}");
    let state = |key, n| Change { op: Op::State, ..put(&pair, key, &text(n), theirs) };
    for key in ["one", "two", "gone"] {
        applier.must(vec![put(&pair, key, &text(1), ours)]).await?;
        applier.must(vec![state(key, 2)]).await?;
    }
    // As they are evaluated again: in one batch behind another state, and in one of its own.
    applier.decided(vec![state("one", 3), put(&pair, "one", &text(4), ours)]).await?;
    applier.decided(vec![put(&pair, "two", &text(4), ours)]).await?;
    applier.decided(vec![state("gone", 3), delete(&pair, "gone", ours)]).await?;
    // What the same site wrote next, by a clock that stood still.
    applier.must(vec![state("three", 2), state("three", 3), put(&pair, "three", &text(4), theirs)]).await?;
    for key in ["one", "two", "three"] {
        let held = pair.source(CLOUD, key).await?;
        ensure!(held == Some(text(4)), "{key}: {held:?}");
    }
    ensure!(pair.source(CLOUD, "gone").await?.is_none(), "it is there");
    Ok(())
}

/// What comes within so many milliseconds.
async fn told_within(source: &mut dyn Source, ms: u64) -> Result<Vec<Change>> {
    let until = tokio::time::Instant::now() + std::time::Duration::from_millis(ms);
    let mut events = Vec::new();
    while let Ok(read) = tokio::time::timeout_at(until, source.next(&mut events, 1 << 20)).await {
        read?;
    }
    Ok(changes(&events))
}

/// FF36. What is deleted while nobody runs is found by the ids that were kept, and what our own applier deleted is not told.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_while_nobody_runs_is_found_afterwards() -> Result<()> {
    let pair = pair!("deletes = \"200ms\"", Some(INDEX));
    for n in 0..60 {
        pair.put(CLOUD, &n.to_string(), "{\"text\":\"v\"}").await?;
    }
    let mut source = anew(&pair, CLOUD, true).await?;
    let events = until(source.as_mut(), "the snapshot's end", is_end).await?;
    let mut last = position(&events).context("a position")?;
    // Kept by the listing behind the one that tells of a delete.
    for id in ["0", "1"] {
        pair.must(CLOUD, "DELETE", &format!("/_doc/{id}"), "").await?;
        let is_delete =
            |event: &Event| matches!(event, Event::Change(c) if c.op == Op::Delete && c.key.name == id);
        let events = until(source.as_mut(), "a delete", is_delete).await?;
        last = position(&events).context("a position")?;
        source.acknowledge(&last);
    }
    told_within(source.as_mut(), 2_000).await?;
    drop(source);
    // As another process would, which knows nothing of this one.
    let urls = pair.lines.each_ref().map(|line| format!("http://127.0.0.1:{}", line.port));
    let open = || {
        anyhow::Ok(causeway_elasticsearch::open(&spec(
            &pair.index,
            "deletes = \"200ms\"",
            [&urls[0], &urls[1]],
        )?)?)
    };
    let mut applier = Applier::of(open()?.as_ref(), CLOUD).await?;
    applier.must(vec![delete(&pair, "7", hlc(DC, 0))]).await?;
    for id in ["8", "9"] {
        pair.must(CLOUD, "DELETE", &format!("/_doc/{id}"), "").await?;
    }
    pair.put(CLOUD, "9", "{\"text\":\"again\"}").await?;
    let mut source = open()?.source(CLOUD);
    ensure!(source.open(Some(&last), true, Told::new()).await? == Opened::Resumed, "not resumed");
    pair.put(CLOUD, "end", "{\"text\":\"v\"}").await?;
    let is_delete = |event: &Event| matches!(event, Event::Change(c) if c.op == Op::Delete);
    let mut told = changes(&until(source.as_mut(), "the delete", is_delete).await?);
    // Nothing more comes with the listings behind it.
    told.extend(told_within(source.as_mut(), 2_000).await?);
    let deleted: Vec<_> = told.iter().filter(|c| c.op == Op::Delete).map(|c| c.key.name.clone()).collect();
    ensure!(deleted == ["8"], "{deleted:?}");
    Ok(())
}

/// A wrong password is somebody's to mend, and is not shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_and_not_shown() -> Result<()> {
    if elasticsearch_home().is_none() {
        return Ok(());
    }
    let start = || ElasticsearchServer::start(&[("xpack.security.enabled", "true")]);
    let node = tokio::task::spawn_blocking(start).await??;
    let url = format!("http://elastic:s3cret@127.0.0.1:{}", node.port());
    let connector = causeway_elasticsearch::open(&spec("none", "", [&url, &url])?)?;
    let checked = connector.check(&[DC]).await.err().context("it got in")?;
    let opened = connector.source(DC).open(None, true, Told::new()).await.err().context("it got in")?;
    let taken = connector.target(DC).take_over(Term(1)).await.err().context("it got in")?;
    for error in [checked, opened, taken] {
        let told = format!("{error} {error:?}");
        ensure!(error.kind() == ErrorKind::Setup && told.contains("401"), "{told}");
        ensure!(told.contains("password_file") && !told.contains("s3cret"), "{told}");
    }
    Ok(())
}
