//! Keys that one site has and its peer lacks: what a snapshot of the peer leaves where it is.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use bytes::{Bytes, BytesMut};
use causeway_core::{Error, Key, OnlyAt, Result, Site, Space};

use crate::config::RedisConfig;
use crate::conn::{Conn, server_error};
use crate::info::ServerInfo;
use crate::resp::{self, decimal};
use crate::scan::{page, select};

const ACTION: &str = "look for keys";
/// Keys that one SCAN step looks at, and that the peer is asked for at once.
const SCAN_COUNT: u32 = 1000;
/// Keys that are known again if SCAN names them twice, at 16 bytes or so each. It does where its table shrinks.
const KNOWN_MAX: usize = 1 << 20;
/// No more bytes of names are listed than this.
const LISTED_BYTES_MAX: usize = 8 << 20;

/// See [`Connector::only_at`](causeway_core::Connector::only_at). One step of `site`'s keys is listed while
/// the peer is asked for those of the step before.
pub(crate) async fn only_at(config: &RedisConfig, site: Site, listed_max: usize) -> Result<OnlyAt> {
    let mut here = Conn::connect(config.endpoint(site)).await?;
    let mut peer = Conn::connect(config.endpoint(site.peer())).await?;
    let mut found = Found::new(listed_max);
    let info = ServerInfo::read(&mut here).await?;
    for (db, _) in info.keys.into_iter().filter(|(db, _)| config.filter.carries_db(*db)) {
        select(&mut here, db).await?;
        let has_db = has_database(&mut peer, db).await?;
        let mut step = Some(page(&mut here, 0, SCAN_COUNT).await?);
        while let Some((next, mut keys)) = step.take() {
            keys.retain(|key| config.filter.carries(db, key));
            let more = async {
                match next {
                    0 => Ok(None),
                    next => page(&mut here, next, SCAN_COUNT).await.map(Some),
                }
            };
            let (lacking, more) = tokio::try_join!(lacking(&mut peer, has_db, keys), more)?;
            lacking.into_iter().for_each(|key| found.add(db, key));
            step = more;
        }
    }
    Ok(found.only)
}

struct Found {
    only: OnlyAt,
    listed_max: usize,
    listed_bytes: usize,
    known: HashSet<u64>,
    hasher: RandomState,
}

impl Found {
    fn new(listed_max: usize) -> Found {
        let only = OnlyAt { exact: true, ..OnlyAt::default() };
        Found { only, listed_max, listed_bytes: 0, known: HashSet::new(), hasher: RandomState::new() }
    }

    fn add(&mut self, db: u32, name: Bytes) {
        if self.known.len() < KNOWN_MAX {
            if !self.known.insert(self.hasher.hash_one((db, &name))) {
                return;
            }
        } else if self.known.contains(&self.hasher.hash_one((db, &name))) {
            return;
        } else {
            self.only.exact = false;
        }
        self.only.count += 1;
        if self.only.keys.len() < self.listed_max && self.listed_bytes + name.len() <= LISTED_BYTES_MAX {
            self.listed_bytes += name.len();
            // A copy: the name shares memory with the whole step.
            self.only.keys.push(Key { space: Space::Db(db), name: Bytes::copy_from_slice(&name) });
        }
    }
}

/// Selects a database, if the server has it.
async fn has_database(conn: &mut Conn, db: u32) -> Result<bool> {
    let reply = conn.call(&[b"SELECT", &decimal(db)]).await?;
    match reply.error() {
        None => Ok(true),
        Some(text) if text.contains("out of range") => Ok(false),
        Some(text) => Err(server_error(ACTION, conn.endpoint_label(), text)),
    }
}

/// Those of `keys` that are not in the selected database, asked for in one go.
async fn lacking(conn: &mut Conn, has_db: bool, keys: Vec<Bytes>) -> Result<Vec<Bytes>> {
    if !has_db || keys.is_empty() {
        return Ok(keys);
    }
    let mut out = BytesMut::new();
    keys.iter().for_each(|key| resp::encode(&mut out, &[b"EXISTS", key]));
    conn.send(&out).await?;
    let mut lacking = Vec::new();
    for key in keys {
        let reply = conn.reply().await?;
        match (reply.int(), reply.error()) {
            (Some(0), _) => lacking.push(key),
            (Some(_), _) => {}
            (None, Some(text)) => return Err(server_error(ACTION, conn.endpoint_label(), text)),
            (None, None) => {
                return Err(Error::Garbled {
                    endpoint: conn.endpoint_label().to_owned(),
                    what: "reply to EXISTS",
                    at: 0,
                    reason: "a number was expected".to_owned(),
                });
            }
        }
    }
    Ok(lacking)
}
