use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value};
use tokio::sync::Mutex;

use super::connect::Server;
use super::reply;
use crate::error::Result;
use crate::pace::Pace;
use crate::site::Site;

/// Connections a database: the first lists keys, so that it never waits behind values; the others read.
const CONNECTIONS: usize = 3;

/// What a command is for, which decides its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Short answers.
    Keys,
    /// Values.
    Values,
}

/// The connections to one site's instance, all databases.
pub(super) struct Link {
    server: Server,
    pub(super) pace: Pace,
    open: Mutex<BTreeMap<u32, Vec<MultiplexedConnection>>>,
    turn: AtomicUsize,
    /// Connections that nobody shares, by database, while nobody has them.
    own: Mutex<BTreeMap<u32, Vec<MultiplexedConnection>>>,
}

impl Link {
    /// Opens nothing yet.
    pub(super) fn new(server: Server, pace: Pace) -> Self {
        Link { server, pace, open: Mutex::default(), turn: AtomicUsize::new(0), own: Mutex::default() }
    }

    /// Which instance this is.
    pub(super) fn site(&self) -> &Site {
        &self.server.site
    }

    async fn connection(&self, db: u32, lane: Lane) -> Result<MultiplexedConnection> {
        let mut open = self.open.lock().await;
        let connections = match open.entry(db) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(slot) => {
                let mut connections = Vec::with_capacity(CONNECTIONS);
                for _ in 0..CONNECTIONS {
                    let mut connection = self.server.open(db).await?;
                    // So that our reads don't pass for the application's where memory runs short; from Redis
                    // 7.2, before that it is an error that changes nothing.
                    let no_touch = redis::cmd("CLIENT").arg("NO-TOUCH").arg("ON").take();
                    let _ = connection.send_packed_command(&no_touch).await;
                    connections.push(connection);
                }
                slot.insert(connections)
            }
        };
        let turn = match lane {
            Lane::Keys => 0,
            Lane::Values => 1 + self.turn.fetch_add(1, Ordering::Relaxed) % (CONNECTIONS - 1),
        };
        connections.get(turn).cloned().ok_or_else(|| self.site().failed("send", "no connection is open"))
    }

    /// A connection that nobody shares, as WATCH needs it. One that failed, or watches still, is not given back.
    pub(super) async fn own(&self, db: u32) -> Result<MultiplexedConnection> {
        let free = self.own.lock().await.get_mut(&db).and_then(Vec::pop);
        match free {
            Some(connection) => Ok(connection),
            None => self.server.open(db).await,
        }
    }

    /// For the next one who needs it.
    pub(super) async fn give_back(&self, db: u32, connection: MultiplexedConnection) {
        self.own.lock().await.entry(db).or_default().push(connection);
    }

    /// Sends `commands` in one go; one reply for each, in the same order, errors of single commands among
    /// them.
    pub(super) async fn send(
        &self,
        db: u32,
        lane: Lane,
        commands: Pipeline,
        action: &str,
    ) -> Result<Vec<Value>> {
        let count = commands.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        self.pace.take(count).await;
        let mut connection = self.connection(db, lane).await?;
        let replies = connection.send_packed_commands(&commands, 0, count).await;
        let replies = replies.map_err(|e| self.site().failed(action, e))?;
        if replies.len() != count {
            return Err(self.site().failed(action, format!("{} replies to {count} commands", replies.len())));
        }
        Ok(replies)
    }

    /// How long the server takes to answer a PING.
    pub(super) async fn probe(&self) -> Result<Duration> {
        let mut connection = self.connection(0, Lane::Keys).await?;
        let begin = Instant::now();
        let answer = redis::cmd("PING").query_async::<Value>(&mut connection).await;
        answer.map_err(|e| self.site().failed("ask whether it is there", e))?;
        Ok(begin.elapsed())
    }

    /// Sends one command.
    pub(super) async fn ask(&self, db: u32, lane: Lane, command: Cmd, action: &str) -> Result<Value> {
        let mut commands = Pipeline::with_capacity(1);
        commands.add_command(command);
        let replies = self.send(db, lane, commands, action).await?;
        Ok(replies.into_iter().next().unwrap_or(Value::Nil))
    }

    /// `value`, or `None` where the key was deleted or became another type meanwhile.
    ///
    /// # Errors
    ///
    /// Any other error of the server: it would be one for every key.
    pub(super) fn accept(&self, value: Value, action: &str) -> Result<Option<Value>> {
        let Value::ServerError(error) = &value else { return Ok(Some(value)) };
        let gone = error.details().is_some_and(|text| text.contains("no such key"));
        if error.code() == "WRONGTYPE" || error.code() == "NOGROUP" || gone {
            return Ok(None);
        }
        let text = format!("{} {}", error.code(), error.details().unwrap_or_default());
        let advice = if error.code() == "NOPERM" { "; give the user the right to it" } else { "" };
        Err(self.site().failed(action, format!("{text}{advice}")))
    }

    /// Whether the server knows `command`, which must change nothing.
    pub(super) async fn knows(&self, command: Cmd, action: &str) -> Result<bool> {
        let reply = self.ask(0, Lane::Keys, command, action).await?;
        if let Value::ServerError(error) = &reply {
            let details = error.details().unwrap_or_default();
            if error.code() == "ERR" && details.contains("unknown command") {
                return Ok(false);
            }
        }
        self.accept(reply, action).map(|_| true)
    }

    /// A list of texts of the reply to `command`, or none.
    pub(super) async fn list(
        &self,
        db: u32,
        lane: Lane,
        command: Cmd,
        action: &str,
    ) -> Result<Option<Vec<Value>>> {
        let reply = self.ask(db, lane, command, action).await?;
        Ok(self.accept(reply, action)?.and_then(reply::list))
    }
}
