//! Looks at both sites before anything runs, and says what stands in the way.

use std::collections::BTreeMap;

use bytes::Bytes;
use causeway_core::time::now_ms;
use causeway_core::{Finding, Pattern, Result, Site};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::config::{Auth, Config};
use crate::definition::{self, Definition};
use crate::documents::{self, in_path};
use crate::http::Client;
use crate::{names, version};

/// Shards whose places a change can carry without being mostly that.
const SHARDS_MANY: usize = 100;
/// What a delete is remembered for, unless the index says otherwise.
const GC_DELETES: &str = "60s";

struct Found {
    site: String,
    definitions: BTreeMap<String, Definition>,
}

fn finding(fatal: bool, site: &str, what: String, advice: &str) -> Finding {
    Finding { fatal, site: Some(site.to_owned()), what, advice: advice.to_owned() }
}

/// See [`Connector::check`](causeway_core::Connector::check).
///
/// # Errors
///
/// `Retry`: a site cannot be reached. `Setup`: it does not let us in.
pub(crate) async fn check(config: &Config, sites: &[Site]) -> Result<Vec<Finding>> {
    let (mut findings, mut found) = (Vec::new(), Vec::new());
    for site in sites {
        found.push(one(config, *site, &mut findings).await?);
    }
    if let [first, second] = &found[..] {
        between(first, second, config.definitions, &mut findings);
    }
    Ok(findings)
}

async fn one(config: &Config, site: Site, findings: &mut Vec<Finding>) -> Result<Found> {
    let name = config.site(site).to_owned();
    let client = Client::new(config.server(site))?;
    health(&client, &name, findings).await?;
    versions(&client, &name, findings).await?;
    names_fit(config, &client, &name, findings).await?;
    if config.server(site).auth != Auth::None {
        privileges(config, &client, site, findings).await?;
    }
    let indices = &config.indices;
    let expression = indices.expression();
    let definitions = definition::read(&client, &expression, |index| indices.carries(index)).await?;
    if definitions.is_empty() {
        let what = "no index is there that `indices` names".to_owned();
        findings.push(finding(false, &name, what, "compare the patterns with GET _resolve/index/*"));
    }
    for (index, definition) in &definitions {
        settings(config, site, index, definition, findings);
    }
    let shards = documents::carried(&client, indices).await?;
    if config.is_source(site) && shards.len() > SHARDS_MANY {
        let what =
            format!("{} shards are carried: each change tells how far all of them were read", shards.len());
        findings.push(finding(false, &name, what, "spread the indices over several channels"));
    }
    beyond(config, &client, &name, findings).await?;
    Ok(Found { site: name, definitions })
}

async fn health(client: &Client, site: &str, findings: &mut Vec<Finding>) -> Result<()> {
    #[derive(Deserialize)]
    struct Health {
        status: String,
        #[serde(default)]
        unassigned_primary_shards: u64,
    }
    let health: Health =
        client.json("ask for the cluster's health", Method::GET, "/_cluster/health", None).await?;
    if health.status == "red" {
        let what =
            format!("the cluster is red: {} primary shards are not there", health.unassigned_primary_shards);
        findings.push(finding(false, site, what, "see GET _cluster/allocation/explain"));
    }
    Ok(())
}

/// Not by `GET /`: a distribution may lack it.
async fn versions(client: &Client, site: &str, findings: &mut Vec<Finding>) -> Result<()> {
    #[derive(Deserialize)]
    struct Nodes {
        nodes: BTreeMap<String, Node>,
    }
    #[derive(Deserialize)]
    struct Node {
        version: String,
    }
    let path = "/_nodes/_all/none?filter_path=nodes.*.version";
    let nodes: Nodes = client.json("ask for the nodes' versions", Method::GET, path, None).await?;
    let mut all: Vec<&str> = nodes.nodes.values().map(|node| node.version.as_str()).collect();
    all.sort_unstable();
    all.dedup();
    if let Some(other) = all.iter().find(|version| !version.starts_with("8.")) {
        let what = format!("a node has version {other}: 8.19 was tried");
        findings.push(finding(false, site, what, "try it on a copy before you rely on it"));
    }
    Ok(())
}

#[derive(Deserialize, Default)]
struct Resolved {
    #[serde(default)]
    indices: Vec<Named>,
    #[serde(default)]
    aliases: Vec<Named>,
    #[serde(default)]
    data_streams: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    attributes: Vec<String>,
}

/// What the patterns name that is no index that can be carried.
async fn names_fit(config: &Config, client: &Client, site: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let globs = config.indices.expression();
    let path = format!("/_resolve/index/{}?expand_wildcards=all", in_path(&globs));
    let found: Resolved = client.find("see what the patterns name", &path).await?.unwrap_or_default();
    let patterns: Vec<Pattern> = globs.split(',').map(Pattern::new).collect();
    let is_named = |name: &str| patterns.iter().any(|pattern| pattern.matches(name.as_bytes()));
    for stream in found.data_streams.iter().filter(|stream| is_named(&stream.name)) {
        let what = format!("{} is a data stream: those cannot be carried yet", stream.name);
        findings.push(finding(true, site, what, "name indices alone, or name it in `exclude`"));
    }
    for index in &found.indices {
        if config.indices.carries(&index.name)
            && index.attributes.iter().any(|attribute| attribute == "closed")
        {
            let what = format!("{} is closed: nothing of it is carried", index.name);
            findings.push(finding(false, site, what, "open it, or name it in `exclude`"));
        }
    }
    for glob in globs.split(',').filter(|glob| !glob.contains('*')) {
        if found.aliases.iter().any(|alias| alias.name == glob) {
            let what = format!("`{glob}` in `indices` is an alias: an index is carried under its own name");
            findings.push(finding(
                true,
                site,
                what,
                "name the indices behind it; their aliases are carried, too",
            ));
        }
    }
    Ok(())
}

/// What the account may not do, where the cluster can tell.
async fn privileges(config: &Config, client: &Client, site: Site, findings: &mut Vec<Finding>) -> Result<()> {
    let (name, own) = (config.site(site), names::own_index(&config.link, &config.channel));
    let mut on_data = vec!["read", "view_index_metadata", "monitor", "maintenance"];
    if config.is_source(site.peer()) {
        on_data.extend(["index", "delete", "create_index", "manage"]);
    }
    let globs: Vec<String> = config.indices.expression().split(',').map(str::to_owned).collect();
    let body = serde_json::json!({
        "cluster": ["monitor"],
        "index": [{"names": globs, "privileges": on_data}, {"names": [own], "privileges": ["all"]}],
    });
    const ACTION: &str = "ask what the account may do";
    let answer = client
        .send(ACTION, Method::POST, "/_security/user/_has_privileges", Some(Bytes::from(body.to_string())))
        .await?;
    // Without security nobody is asked who they are.
    if answer.status != 200 {
        return Ok(());
    }
    let told: Value = answer.parse(ACTION)?;
    let mut lacks = Vec::new();
    lacking(&told, "", &mut lacks);
    if !lacks.is_empty() {
        let what = format!("the account lacks rights: {}", lacks.join(", "));
        findings.push(finding(true, name, what, "give them to it: README.md of the connector lists all"));
    }
    Ok(())
}

/// Of `{"cluster":{"monitor":true},"index":{"a":{"read":false}}}` what is false.
fn lacking(told: &Value, path: &str, lacks: &mut Vec<String>) {
    for (name, value) in told.as_object().into_iter().flatten() {
        match value {
            Value::Bool(false) if name != "has_all_requested" => lacks.push(format!("{name}{path}")),
            Value::Object(_) => {
                let path =
                    if name == "index" || name == "cluster" { String::new() } else { format!(" on {name}") };
                lacking(value, &path, lacks);
            }
            _ => {}
        }
    }
}

fn settings(config: &Config, site: Site, index: &str, definition: &Definition, findings: &mut Vec<Finding>) {
    let name = config.site(site);
    let setting = |key: &str| definition.settings.get(key).and_then(Value::as_str);
    if config.is_source(site) {
        let source = definition.mappings.get("_source");
        let off = source.and_then(|source| source.get("enabled")).is_some_and(|on| on == &Value::Bool(false));
        let parts =
            source.is_some_and(|source| source.get("includes").is_some() || source.get("excludes").is_some());
        let synthetic = source.and_then(|source| source.get("mode")).is_some_and(|mode| mode != "stored")
            || setting("index.mapping.source.mode").is_some_and(|mode| mode != "stored");
        if off || synthetic || parts {
            let what = format!("{index} does not keep its documents as they came (_source)");
            findings.push(finding(
                true,
                name,
                what,
                "name it in `exclude`, or make it anew with a stored _source",
            ));
        }
        if setting("index.translog.durability")
            .is_some_and(|durability| durability.eq_ignore_ascii_case("async"))
        {
            let what =
                format!("{index} does not sync what it acknowledged: a crash may lose it at this site alone");
            findings.push(finding(false, name, what, "set index.translog.durability to request"));
        }
    }
    let remembered = setting("index.gc_deletes").unwrap_or(GC_DELETES);
    if config.is_source(site.peer()) && matches!(remembered, "0" | "0s" | "0ms" | "-1") {
        let what = format!("{index} forgets deletes at once (index.gc_deletes is {remembered})");
        findings.push(finding(false, name, what, "leave it at 60s: a request that comes late is told by it"));
    }
}

/// Versions that applications give, and that ours would not get above.
async fn beyond(config: &Config, client: &Client, site: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let path = format!(
        "/{}/_search?ignore_unavailable=true&allow_no_indices=true&filter_path=hits.hits.sort,hits.hits._index",
        in_path(&config.indices.expression())
    );
    let body = serde_json::json!({"size": 1, "_source": false, "track_total_hits": false, "sort": [{"_version": "desc"}]});
    const ACTION: &str = "ask for the highest version";
    let answer = client.send(ACTION, Method::POST, &path, Some(Bytes::from(body.to_string()))).await?;
    // Where no index is there is none.
    if answer.status == 404 {
        return Ok(());
    }
    let found: Value = answer.ok(ACTION)?.parse(ACTION)?;
    let highest = found.pointer("/hits/hits/0/sort/0").and_then(Value::as_u64).unwrap_or(0);
    let index = found.pointer("/hits/hits/0/_index").and_then(Value::as_str).unwrap_or_default();
    if config.indices.carries(index) && version::is_beyond(highest, now_ms()) {
        let what =
            format!("a document of {index} has a version of its own, {highest}, which is above all of ours");
        let advice = "what gives it (version_type=external) cannot go on beside Causeway: copy the index without versions";
        findings.push(finding(true, site, what, advice));
    }
    Ok(())
}

fn between(first: &Found, second: &Found, definitions: bool, findings: &mut Vec<Finding>) {
    for (index, definition) in &first.definitions {
        let Some(other) = second.definitions.get(index) else { continue };
        let differs = definition::differences(definition, other);
        if !differs.is_empty() {
            let what = format!("{index} is not the same at both sites: {}", differs.join(", "));
            let advice = "make it equal: documents that do not fit one of them become dead letters";
            findings.push(Finding { fatal: false, site: None, what, advice: advice.to_owned() });
        }
    }
    for (here, there) in [(first, second), (second, first)] {
        let missing = here.definitions.keys().filter(|index| !there.definitions.contains_key(*index));
        let missing: Vec<&str> = missing.map(String::as_str).take(10).collect();
        if !missing.is_empty() && !definitions {
            let what = format!("{} lack at {}, and `definitions` is ignore", missing.join(", "), there.site);
            findings.push(finding(true, &there.site, what, "make them there, or let `definitions` be apply"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_that_lack_are_named_with_their_indices() {
        let told = serde_json::json!({"username": "u", "has_all_requested": false, "cluster": {"monitor": false},
            "index": {"push-*": {"read": true, "index": false}}, "application": {}});
        let mut lacks = Vec::new();
        lacking(&told, "", &mut lacks);
        assert_eq!(lacks, ["monitor", "index on push-*"]);
    }
}
