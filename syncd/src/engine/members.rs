//! Daemons that share the channels of a site: each serves what the group assigns to it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::daemon::Daemon;
use super::run::ChannelRun;
use super::shared::lock;
use crate::log::{Group, GroupMember, Membership, PartitionId, Turn};
use crate::status::{GroupStatus, MemberStatus};

/// How often the brokers are asked who is there.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A channel that was taken from us and is ours all the same is begun again after so long.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);
/// Channels of which nobody has heard yet that another daemon fenced them.
const OVERTAKEN_MAX: usize = 1024;

/// What is known of the group.
pub(super) struct Members {
    membership: Arc<Membership>,
    overtaken: mpsc::Sender<String>,
    found: Mutex<Vec<GroupMember>>,
}

/// What the group says, and captures that were fenced.
pub(super) struct Turns {
    group: Group,
    overtaken: mpsc::Receiver<String>,
}

impl Members {
    pub(super) fn new(group: Group) -> (Members, Turns) {
        let (sender, overtaken) = mpsc::channel(OVERTAKEN_MAX);
        let members = Members { membership: group.membership(), overtaken: sender, found: Mutex::default() };
        (members, Turns { group, overtaken })
    }

    /// Where a capture that was fenced says so, with its channel's name.
    pub(super) fn overtaken(&self) -> mpsc::Sender<String> {
        self.overtaken.clone()
    }

    /// The member that serves a channel, as it was known last.
    pub(super) fn server_of(&self, channel: &str) -> Option<String> {
        let serves = |member: &&GroupMember| member.partitions.iter().any(|id| id.channel == channel);
        lock(&self.found).iter().find(serves).map(|member| member.name.clone())
    }

    pub(super) fn status(&self) -> GroupStatus {
        let name = self.membership.name();
        let members = lock(&self.found).clone().into_iter().map(|member| MemberStatus {
            here: member.name == name,
            name: member.name,
            host: member.host,
            channels: member.partitions.into_iter().map(|id| id.channel).collect(),
        });
        let members = members.collect();
        GroupStatus {
            name: self.membership.group().to_owned(),
            member: name,
            error: self.membership.trouble(),
            members,
        }
    }

    /// Whether the group knows this daemon, or did when it was asked last.
    pub(super) fn is_in(&self) -> bool {
        let name = self.membership.name();
        lock(&self.found).iter().any(|member| member.name == name)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        lock(&self.found).len()
    }

    /// Keeps up what is known of the group, for ever.
    async fn look(&self) {
        let mut due = tokio::time::interval(LOOK_EVERY);
        loop {
            due.tick().await;
            match self.membership.members().await {
                Ok(found) => *lock(&self.found) = found,
                Err(error) => debug!(%error, "who is in the group"),
            }
        }
    }
}

impl Daemon {
    /// Keeps up what is known of the group, until the daemon stops.
    pub(super) async fn look(self: Arc<Self>) {
        let Some(members) = &self.group else { return };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = members.look() => {}
        }
    }

    /// Serves what the group assigns, until the daemon stops.
    pub(super) async fn follow(self: Arc<Self>, mut turns: Turns) {
        let mut ours = BTreeSet::new();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                turn = turns.group.next() => match turn {
                    Some(turn) => self.turn(turn, &mut ours).await,
                    None => return,
                },
                Some(name) = turns.overtaken.recv() => self.step_back(&name, &mut turns.group, &mut ours).await,
            }
        }
    }

    async fn turn(&self, turn: Turn, ours: &mut BTreeSet<String>) {
        let named = |ids: &[PartitionId]| -> Vec<&ChannelRun> {
            let channels = self.channels.iter();
            channels.filter(|run| ids.iter().any(|id| id.channel == run.name())).collect()
        };
        match turn {
            Turn::Given(ids) => {
                ours.extend(ids.iter().map(|id| id.channel.clone()));
                join_all(named(&ids).into_iter().map(|run| self.begin(run))).await;
            }
            Turn::Taken { partitions, done } => {
                partitions.iter().for_each(|id| _ = ours.remove(&id.channel));
                join_all(named(&partitions).into_iter().map(|run| self.give_up(run))).await;
                drop(done);
            }
            // Nobody else may be there: they are served on until somebody fences us.
            Turn::Lost(ids) => ids.iter().for_each(|id| _ = ours.remove(&id.channel)),
        }
    }

    /// Somebody else has taken over the log of a channel.
    async fn step_back(&self, name: &str, group: &mut Group, ours: &mut BTreeSet<String>) {
        let Some(run) = self.channels.iter().find(|run| run.name() == name) else { return };
        self.give_up(run).await;
        // Whoever slept hears of it before the group tells that the channel is not ours any more.
        tokio::time::sleep(BEGIN_AGAIN).await;
        while let Some(turn) = group.told() {
            self.turn(turn, ours).await;
        }
        if ours.contains(name) {
            warn!(
                channel = name,
                "another daemon took it over, but it is assigned to this one: it is begun again"
            );
            self.begin(run).await;
        }
    }

    async fn give_up(&self, run: &ChannelRun) {
        run.end().await;
        run.directions.iter().for_each(|direction| self.log.release(&direction.partition));
    }
}
