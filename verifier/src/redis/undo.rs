//! Values kept whole, as DUMP payloads, and put back by RESTORE if nobody wrote the key since.

use bytes::Bytes;
use causeway_core::Space;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, cmd};

use super::link::Lane;
use super::read::{PIPELINE_BYTES, RedisReader, SCAN_COUNT, server_time};
use super::reply;
use crate::compare::{Reader, State};
use crate::error::Result;
use crate::undo::{Held, PutBack, Undoable, Value};

const KEEP: &str = "read what is overwritten";
const PUT_BACK: &str = "put a key back";

/// Values read in one pipeline at the most.
const VALUES_AT_ONCE: usize = 256;

/// How often a key that changes between its comparison and the write is compared again.
const TRIES: usize = 5;

impl RedisReader {
    /// About what each of `names` takes in the server's memory; 0: it is gone.
    async fn sizes(&self, db: u32, names: &[Bytes]) -> Result<Vec<u64>> {
        let mut sizes = Vec::with_capacity(names.len());
        for names in names.chunks(self.link.pace.burst().min(SCAN_COUNT)) {
            let mut commands = Pipeline::with_capacity(names.len());
            for name in names {
                commands.add_command(cmd("MEMORY").arg("USAGE").arg(name.as_ref()).take());
            }
            for reply in self.link.send(db, Lane::Values, commands, KEEP).await? {
                let reply = self.link.accept(reply, KEEP)?;
                sizes.push(reply.as_ref().and_then(reply::number).map_or(0, |size| size.max(0) as u64));
            }
        }
        Ok(sizes)
    }

    /// Payloads and expire-at times, each key's of one moment.
    async fn dump(&self, db: u32, names: &[Bytes]) -> Result<Vec<Option<Value>>> {
        let mut asked: Vec<fn(&[u8]) -> Cmd> = vec![|name| cmd("DUMP").arg(name).take()];
        match self.features.expire_time {
            true => asked.push(|name| cmd("PEXPIRETIME").arg(name).take()),
            false => {
                asked.extend([(|name| cmd("PTTL").arg(name).take()) as fn(&[u8]) -> Cmd, |_| cmd("TIME")])
            }
        }
        let mut commands = Pipeline::with_capacity(names.len() * (asked.len() + 2));
        for name in names {
            commands.add_command(cmd("MULTI"));
            asked.iter().for_each(|command| {
                commands.add_command(command(name));
            });
            commands.add_command(cmd("EXEC"));
        }
        let replies = self.link.send(db, Lane::Values, commands, KEEP).await?;
        let mut replies = replies.into_iter();
        let mut values = Vec::with_capacity(names.len());
        for _ in names {
            let mut last = redis::Value::Nil;
            for reply in replies.by_ref().take(asked.len() + 2) {
                last = self.link.accept(reply, KEEP)?.unwrap_or(redis::Value::Nil);
            }
            let mut told = Vec::new();
            for reply in reply::list(last).unwrap_or_default() {
                told.push(self.link.accept(reply, KEEP)?);
            }
            let mut told = told.into_iter();
            let (payload, expiry, time) =
                (told.next().flatten(), told.next().flatten(), told.next().flatten());
            let redis::Value::BulkString(bytes) = payload.unwrap_or(redis::Value::Nil) else {
                values.push(None);
                continue;
            };
            let left = expiry.as_ref().and_then(reply::number).and_then(|left| u64::try_from(left).ok());
            let from = if self.features.expire_time { 0 } else { server_time(time) };
            values.push(Some(Value { bytes, expire_at: left.map(|left| from + left) }));
        }
        Ok(values)
    }

    /// What `name` holds now.
    async fn state(&self, space: &Space, name: &Bytes) -> Result<Option<State>> {
        let name = std::slice::from_ref(name);
        let kinds = self.look(space, name).await?;
        Ok(self.read(space, name, &kinds).await?.into_iter().next().flatten())
    }

    /// One try on a connection of its own, which WATCH needs; `None`: somebody wrote the key meanwhile.
    async fn try_put_back(
        &self,
        own: &mut MultiplexedConnection,
        (space, db, name): (&Space, u32, &Bytes),
        back: Option<&Value>,
        is_expected: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> Result<Option<PutBack>> {
        let site = self.link.site();
        let mut send = async |commands: Vec<Cmd>| -> Result<Vec<redis::Value>> {
            let count = commands.len();
            self.link.pace.take(count).await;
            let mut pipeline = Pipeline::with_capacity(count);
            commands.into_iter().for_each(|command| {
                pipeline.add_command(command);
            });
            let replies = own.send_packed_commands(&pipeline, 0, count).await;
            replies.map_err(|e| site.failed(&action(db, name), e))
        };
        for reply in send(vec![cmd("WATCH").arg(name.as_ref()).take()]).await? {
            self.link.accept(reply, PUT_BACK)?;
        }
        if !is_expected(self.state(space, name).await?) {
            send(vec![cmd("UNWATCH")]).await?;
            return Ok(Some(PutBack::Changed));
        }
        let write = match back {
            Some(Value { bytes, expire_at }) => {
                let mut restore = Cmd::with_capacity(6, bytes.len() + name.len() + 64);
                restore.arg("RESTORE").arg(name.as_ref()).arg(expire_at.unwrap_or(0)).arg(bytes);
                restore.arg("REPLACE").arg("ABSTTL").take()
            }
            None => cmd("DEL").arg(name.as_ref()).take(),
        };
        let mut replies = send(vec![cmd("MULTI"), write, cmd("EXEC")]).await?;
        let done = replies.pop().unwrap_or(redis::Value::Nil);
        for reply in replies {
            // What is refused here, such as for want of a right or of memory, would be so for every key.
            self.link.accept(reply, PUT_BACK)?;
        }
        let Some(done) = self.link.accept(done, PUT_BACK)? else { return Ok(None) };
        let Some(done) = reply::list(done) else { return Ok(None) };
        Ok(Some(match done.into_iter().next() {
            Some(redis::Value::ServerError(error)) => {
                let details = error.details().unwrap_or_default();
                PutBack::Refused(format!("the server refuses it: {} {details}", error.code()))
            }
            _ => PutBack::Done,
        }))
    }
}

fn action(db: u32, name: &Bytes) -> String {
    format!("put back db{db} {}", crate::report::printable(name))
}

impl Undoable for RedisReader {
    async fn keep(
        &self,
        space: &Space,
        names: &[Bytes],
        value_max: u64,
        take: &mut (dyn FnMut(usize, Held) -> Result<()> + Send),
    ) -> Result<()> {
        let Some(db) = Self::db(space) else {
            return Err(self.link.site().failed(KEEP, "functions are no keys"));
        };
        let sizes = self.sizes(db, names).await?;
        let mut from = 0;
        while from < names.len() {
            let (mut to, mut bytes) = (from, 0);
            while to < names.len() && to - from < VALUES_AT_ONCE {
                let size = sizes.get(to).copied().unwrap_or(0);
                if to > from && bytes + size > PIPELINE_BYTES as u64 {
                    break;
                }
                bytes += size;
                to += 1;
            }
            if to == from + 1 && bytes > value_max {
                take(from, Held::TooLarge)?;
            } else {
                let values = self.dump(db, names.get(from..to).unwrap_or_default()).await?;
                for (n, value) in values.into_iter().enumerate() {
                    let held = match value {
                        None => Held::Absent,
                        Some(value) if value.bytes.len() as u64 > value_max => Held::TooLarge,
                        Some(value) => Held::Value(value),
                    };
                    take(from + n, held)?;
                }
            }
            from = to;
        }
        Ok(())
    }

    async fn put_back(
        &self,
        space: &Space,
        name: &Bytes,
        back: Option<&Value>,
        is_expected: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> Result<PutBack> {
        let Some(db) = Self::db(space) else {
            return Ok(PutBack::Refused("functions are no keys".to_owned()));
        };
        let mut own = self.link.own(db).await?;
        for _ in 0..TRIES {
            if let Some(done) = self.try_put_back(&mut own, (space, db, name), back, is_expected).await? {
                self.link.give_back(db, own).await;
                return Ok(done);
            }
        }
        Ok(PutBack::Changed)
    }
}
