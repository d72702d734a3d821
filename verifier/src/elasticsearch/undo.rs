//! Documents kept whole, and put back if nobody wrote them since: on condition of the number of their last operation.

use std::time::Duration;

use bytes::Bytes;
use causeway_core::{Space, document};
use reqwest::Method;

use super::connect::Answer;
use super::read::{EsReader, Got, in_url};
use crate::compare::State;
use crate::error::Result;
use crate::report::key_text;
use crate::undo::{Held, PutBack, Undoable, Value};

const KEEP: &str = "read what is overwritten";

/// How often a document that somebody else wrote meanwhile is looked at again, or a node that has no room asked again.
const TRIES: u32 = 5;

/// Before the first repetition of what found no room; doubled for each further one.
const BUSY_WAIT: Duration = Duration::from_millis(200);

/// What came of one try.
enum Tried {
    Answered(PutBack),
    /// Somebody wrote it between the look and the write.
    Again,
    /// The node has no room, or may not write just now.
    Busy(u16),
}

/// A document's place: its index, as a path's beginning, its id, and its routing as a query's end.
struct At {
    path: String,
    routing: String,
}

impl EsReader {
    async fn try_put_back(
        &self,
        action: &str,
        At { path, routing }: &At,
        back: Option<&str>,
        is_expected: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> Result<Tried> {
        let refused = |reason: String| Ok(Tried::Answered(PutBack::Refused(reason)));
        let found =
            self.link.ask(action, Method::GET, &format!("{path}?{routing}"), None, usize::MAX).await?;
        let Answer::Whole(_, found) = found else { return refused("it is too large to be read".to_owned()) };
        let now: Got<'_> = self.link.parse(action, &found)?;
        if now.error.is_some() {
            return refused(GONE.to_owned());
        }
        if !is_expected(now.state()) {
            return Ok(Tried::Answered(PutBack::Changed));
        }
        let Got { seq_no, primary_term, .. } = now;
        let unchanged = format!("if_seq_no={seq_no}&if_primary_term={primary_term}");
        let (method, guard) = match (now.found, back) {
            (false, None) => return Ok(Tried::Answered(PutBack::Done)),
            (true, None) => (Method::DELETE, unchanged),
            // It is to hold what it held: no pipeline of the index changes it.
            (true, Some(_)) => (Method::PUT, format!("{unchanged}&pipeline=_none")),
            (false, Some(_)) => (Method::PUT, "op_type=create&pipeline=_none".to_owned()),
        };
        let path = format!("{path}?{guard}{routing}");
        let answer = self.link.at_once(action, method, &path, back.map(str::to_owned), usize::MAX);
        let answer = self.link.paced(answer).await?;
        let Answer::Whole(status, body) = answer else { return Ok(Tried::Again) };
        let kind = || {
            let answer = serde_json::from_slice::<Got<'_>>(&body).ok();
            answer.and_then(|answer| answer.error).map_or_else(|| status.to_string(), |error| error.kind)
        };
        match status {
            200..=299 => Ok(Tried::Answered(PutBack::Done)),
            404 | 409 => Ok(Tried::Again),
            429 | 502..=504 => Ok(Tried::Busy(status)),
            413 => refused("it is larger than http.max_content_length lets a request be".to_owned()),
            403 if kind() == "cluster_block_exception" => {
                refused("the index takes no writes: it is blocked".to_owned())
            }
            401 | 403 => Err(self.link.site.failed(
                action,
                format!("{status}: the account needs `index` and `delete` on the indices of the channel"),
            )),
            // Its own words may show values.
            400 => refused(format!("the store does not take it: {}", kind())),
            _ => Err(self.link.site.failed(action, format!("the node answers {status}"))),
        }
    }
}

const GONE: &str = "its index is not there, or closed";

impl Undoable for EsReader {
    const DELETES_LATE: bool = true;

    async fn keep(
        &self,
        space: &Space,
        names: &[Bytes],
        value_max: u64,
        take: &mut (dyn FnMut(usize, Held) -> Result<()> + Send),
    ) -> Result<()> {
        self.get(self.index(space)?, names, true, |at, got| {
            let held = match got.source {
                _ if !got.found => Held::Absent,
                None => return Err(self.link.site.failed(KEEP, "its index keeps no _source")),
                Some(source) if source.get().len() as u64 > value_max => Held::TooLarge,
                Some(source) => Held::Value(Value { bytes: source.get().into(), expire_at: None }),
            };
            take(at, held)
        })
        .await
    }

    fn obstacle(&self, space: &Space, back: Option<&Value>) -> Option<String> {
        match self.index(space) {
            Ok(index) if !self.indices.carries(index) => {
                Some("the channel does not carry its index".to_owned())
            }
            Ok(index) if !self.there.iter().any(|there| there == index) => Some(GONE.to_owned()),
            Ok(_) if back.is_none_or(|back| std::str::from_utf8(&back.bytes).is_ok()) => None,
            _ => Some("the undo file holds no document of it".to_owned()),
        }
    }

    async fn put_back(
        &self,
        space: &Space,
        name: &Bytes,
        back: Option<&Value>,
        is_expected: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> Result<PutBack> {
        let none = || Ok(PutBack::Refused("the undo file holds no document of it".to_owned()));
        let index = self.index(space)?;
        let Some((id, routing)) = document::parts(name) else { return none() };
        let Ok(back) = back.map(|back| std::str::from_utf8(&back.bytes)).transpose() else { return none() };
        let routing = routing.map_or(String::new(), |routing| format!("&routing={}", in_url(routing)));
        let at = At { path: format!("/{}/_doc/{}", in_url(index), in_url(id)), routing };
        let action = format!("put back {index} {}", key_text(space, name));
        let (mut wait, mut busy) = (BUSY_WAIT, None);
        for _ in 0..TRIES {
            busy = match self.try_put_back(&action, &at, back, is_expected).await? {
                Tried::Answered(answer) => return Ok(answer),
                Tried::Again => None,
                Tried::Busy(status) => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                    Some(status)
                }
            };
        }
        match busy {
            Some(status) => {
                let reason = format!("the node answers {status}: it has no room; run it again later");
                Err(self.link.site.failed(&action, reason))
            }
            None => Ok(PutBack::Changed),
        }
    }
}
