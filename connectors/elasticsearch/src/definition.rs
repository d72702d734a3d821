//! Settings, mappings and aliases of an index, carried ahead of its documents: a field that a document brings would be
//! given a type by guessing at the other site (FF37).

use std::collections::BTreeMap;

use bytes::Bytes;
use causeway_core::{Change, Key, Op, Position, Result, Space};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use crate::documents::in_path;
use crate::http::Client;
use crate::names::in_url;

/// What an index is, as a change carries it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Definition {
    /// By their full names, without what is one site's own.
    pub(crate) settings: Map<String, Value>,
    pub(crate) mappings: Value,
    pub(crate) aliases: Map<String, Value>,
}

/// Settings that are one site's own, or that only the server sets; by the beginning of their names.
const OWN_SETTINGS: [&str; 15] = [
    "index.uuid",
    "index.creation_date",
    "index.provided_name",
    "index.version.",
    "index.routing.allocation.",
    "index.routing_partition_size.",
    "index.lifecycle.",
    "index.blocks.",
    "index.resize.",
    "index.shrink.",
    "index.history.",
    "index.verified_before_close",
    "index.search.throttled",
    "index.default_pipeline",
    "index.final_pipeline",
];

/// The definitions of the indices that `expression` names and `carries` takes.
///
/// # Errors
///
/// As [`Client::send`].
pub(crate) async fn read(
    client: &Client,
    expression: &str,
    carries: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Definition>> {
    let path =
        format!("/{}?flat_settings=true&ignore_unavailable=true&allow_no_indices=true", in_path(expression));
    let found: Option<BTreeMap<String, Definition>> = client.find("read what the indices are", &path).await?;
    let mut found = found.unwrap_or_default();
    found.retain(|index, _| carries(index));
    for definition in found.values_mut() {
        definition.settings.retain(|name, _| !OWN_SETTINGS.iter().any(|own| name.starts_with(own)));
    }
    Ok(found)
}

/// Of each index numbers that change with its definition: cheap to ask for.
pub(crate) type Versions = BTreeMap<String, [u64; 3]>;

/// The same as `versions` in one number, never 0.
pub(crate) fn digest(versions: &Versions) -> u64 {
    let text: String = versions.iter().map(|(index, numbers)| format!("{index}={numbers:?};")).collect();
    xxh3_64(text.as_bytes()) | 1
}

/// Asks for them.
///
/// # Errors
///
/// As [`Client::send`].
pub(crate) async fn versions(
    client: &Client,
    expression: &str,
    carries: impl Fn(&str) -> bool,
) -> Result<Versions> {
    #[derive(Deserialize, Default)]
    struct State {
        #[serde(default)]
        metadata: Metadata,
    }
    #[derive(Deserialize, Default)]
    struct Metadata {
        #[serde(default)]
        indices: BTreeMap<String, Index>,
    }
    #[derive(Deserialize)]
    struct Index {
        mapping_version: u64,
        settings_version: u64,
        aliases_version: u64,
    }
    let path = format!(
        "/_cluster/state/metadata/{}?ignore_unavailable=true&allow_no_indices=true&filter_path=\
         metadata.indices.*.mapping_version,metadata.indices.*.settings_version,metadata.indices.*.aliases_version",
        in_path(expression)
    );
    let state: State = client.find("ask whether mappings changed", &path).await?.unwrap_or_default();
    let numbers = |index: Index| [index.mapping_version, index.settings_version, index.aliases_version];
    let all = state.metadata.indices.into_iter().filter(|(index, _)| carries(index));
    Ok(all.map(|(name, index)| (name, numbers(index))).collect())
}

impl Definition {
    /// The change that tells it.
    pub(crate) fn change(&self, index: &str, pos: Position, time: u64) -> Change {
        let key = Key { space: Space::Index(Bytes::copy_from_slice(index.as_bytes())), name: Bytes::new() };
        // Maps with texts as keys always become text.
        let value = serde_json::to_vec(self).unwrap_or_default();
        Change::captured(Op::Ddl, key, Some(value.into()), pos, time)
    }

    /// What `change` tells.
    pub(crate) fn of(change: &Change) -> Option<Definition> {
        (change.op == Op::Ddl).then(|| serde_json::from_slice(change.value.as_deref()?).ok()).flatten()
    }
}

/// Brings `index` at the target to `wanted` as far as that only adds: makes it where it is missing, adds fields and
/// aliases. What the target has otherwise stays, and is told in the log: documents that do not fit are refused one by one.
///
/// # Errors
///
/// As [`Client::send`].
pub(crate) async fn bring(client: &Client, index: &str, wanted: &Definition) -> Result<()> {
    let found = read(client, index, |_| true).await?.remove(index);
    let path = format!("/{}", in_url(index));
    let Some(found) = found else {
        let answer = client.send("create an index", Method::PUT, &path, Some(body(wanted))).await?;
        // Somebody else was faster.
        if answer.status == 400 && answer.reason().contains("resource_already_exists") {
            return Ok(());
        }
        if answer.status == 400 {
            warn!(index, reason = answer.reason(), "the index cannot be made as the other site has it");
            return Ok(());
        }
        return answer.ok("create an index").map(drop);
    };
    if found.mappings != wanted.mappings {
        let mapping = Some(Bytes::from(wanted.mappings.to_string()));
        let answer =
            client.send("add to a mapping", Method::PUT, &format!("{path}/_mapping"), mapping).await?;
        match answer.status {
            400 => warn!(index, reason = answer.reason(), "the mapping is not that of the other site"),
            _ => drop(answer.ok("add to a mapping")?),
        }
    }
    for (alias, what) in wanted.aliases.iter().filter(|(alias, _)| !found.aliases.contains_key(*alias)) {
        let what = Some(Bytes::from(what.to_string()));
        let answer = client
            .send("add an alias", Method::PUT, &format!("{path}/_alias/{}", in_url(alias)), what)
            .await?;
        match answer.status {
            400 => {
                warn!(index, alias, reason = answer.reason(), "the alias of the other site cannot be made")
            }
            _ => drop(answer.ok("add an alias")?),
        }
    }
    Ok(())
}

fn body(wanted: &Definition) -> Bytes {
    serde_json::to_vec(wanted).unwrap_or_default().into()
}

/// What differs between two sites' definitions of an index, in words; empty: nothing that matters.
pub(crate) fn differences(first: &Definition, second: &Definition) -> Vec<String> {
    let mut all = Vec::new();
    if first.mappings != second.mappings {
        all.push(format!("its mapping ({})", first_difference(&first.mappings, &second.mappings, "")));
    }
    // Copies and refresh are each site's own affair.
    let own = |name: &&String| {
        matches!(name.as_str(), "index.number_of_replicas" | "index.refresh_interval" | "index.gc_deletes")
    };
    let names = first.settings.keys().chain(second.settings.keys()).filter(|name| !own(name));
    let mut names: Vec<&String> =
        names.filter(|name| first.settings.get(*name) != second.settings.get(*name)).collect();
    names.sort_unstable();
    names.dedup();
    all.extend(names.into_iter().map(|name| format!("the setting {name}")));
    let aliases = first.aliases.keys().chain(second.aliases.keys());
    let mut aliases: Vec<&String> =
        aliases.filter(|name| first.aliases.get(*name) != second.aliases.get(*name)).collect();
    aliases.sort_unstable();
    aliases.dedup();
    all.extend(aliases.into_iter().map(|name| format!("the alias {name}")));
    all
}

/// The path of one place where they differ.
fn first_difference(first: &Value, second: &Value, path: &str) -> String {
    if let (Value::Object(a), Value::Object(b)) = (first, second) {
        for name in a.keys().chain(b.keys()) {
            let (x, y) = (a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null));
            if x != y {
                let dot = if path.is_empty() { "" } else { "." };
                return first_difference(x, y, &format!("{path}{dot}{name}"));
            }
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_and_what_is_a_site_s_own_is_none() {
        let of = |mappings: &str, settings: &str| Definition {
            settings: serde_json::from_str(settings).unwrap(),
            mappings: serde_json::from_str(mappings).unwrap(),
            aliases: Map::new(),
        };
        let a = of(r#"{"properties":{"n":{"type":"long"}}}"#, r#"{"index.number_of_replicas":"0"}"#);
        let b = of(r#"{"properties":{"n":{"type":"text"}}}"#, r#"{"index.number_of_replicas":"1"}"#);
        assert_eq!(differences(&a, &b), ["its mapping (properties.n.type)"]);
        assert!(differences(&a, &a).is_empty());
    }
}
