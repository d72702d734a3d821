//! A site's daemons as a consumer group in its own Kafka: which of them serves which partition is what the group
//! assigns. Nothing is consumed through it and no offset is committed; what keeps two writers apart is the fence.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::super::partition::lock;
use super::super::{PartitionId, Result};
use super::cluster::{Cluster, Logged, REQUEST, blocking};

/// How long a member that says nothing keeps its partitions. Settings of the client can say otherwise.
const SESSION: &str = "10000";
/// How often a member is heard of.
const HEARTBEAT: &str = "1000";
/// How long one poll waits, and with it whoever leaves.
const POLL: Duration = Duration::from_millis(100);
/// How long a partition may take to be given up; longer than a stop of its channel takes.
const GIVEN_UP_AT_MOST: Duration = Duration::from_secs(10);
/// Before a membership that ended is begun again.
const JOIN_AGAIN: Duration = Duration::from_secs(2);
/// Rebalances that nobody has taken note of.
const TURNS_MAX: usize = 64;

/// What does not pass by itself.
const NEEDS_SOMEBODY: [RDKafkaErrorCode; 7] = [
    RDKafkaErrorCode::GroupAuthorizationFailed,
    RDKafkaErrorCode::TopicAuthorizationFailed,
    RDKafkaErrorCode::InvalidSessionTimeout,
    RDKafkaErrorCode::InvalidGroupId,
    RDKafkaErrorCode::InconsistentGroupProtocol,
    RDKafkaErrorCode::GroupMaxSizeReached,
    RDKafkaErrorCode::UnknownTopicOrPartition,
];

/// What the group says to one of its members.
#[derive(Debug)]
pub enum Turn {
    /// These are to be served here from now on.
    Given(Vec<PartitionId>),
    /// These are to be served elsewhere, as soon as `done` is sent to or dropped.
    Taken {
        /// Which.
        partitions: Vec<PartitionId>,
        /// Dropped, or sent to: they are given up here.
        done: std_mpsc::Sender<()>,
    },
    /// The group has not heard of us for so long that others may serve these by now. It may also be out of reach for
    /// all of them: whoever serves one in our place will have fenced us.
    Lost(Vec<PartitionId>),
}

/// A member of a group, as all of its members see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its own, for as long as it keeps its folder.
    pub name: String,
    /// Whence it dials.
    pub host: String,
    /// What is assigned to it.
    pub partitions: Vec<PartitionId>,
}

/// This process's membership in a group. Dropped, the member falls silent: a next start under the same name finds
/// what was assigned to it as it was, others take it over when the session ends.
pub struct Group {
    membership: Arc<Membership>,
    turns: mpsc::Receiver<Turn>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("name", &self.membership.group).finish_non_exhaustive()
    }
}

/// What the thread that keeps up the membership shares with others.
pub struct Membership {
    cluster: Arc<Cluster>,
    group: String,
    /// Ours, by which the group knows us again.
    name: Mutex<String>,
    /// By topic and number.
    partitions: HashMap<(String, i32), PartitionId>,
    trouble: Mutex<Option<String>>,
    left: AtomicBool,
}

impl Group {
    /// Joins the group `group` under `name`, for `partitions`, by topic.
    pub(super) fn join(
        cluster: Arc<Cluster>,
        group: String,
        name: String,
        partitions: impl Iterator<Item = (String, PartitionId)>,
    ) -> Result<Group> {
        let partitions = partitions.map(|(topic, id)| ((topic, id.number as i32), id)).collect();
        let membership = Arc::new(Membership {
            cluster,
            group,
            name: Mutex::new(name),
            partitions,
            trouble: Mutex::default(),
            left: AtomicBool::new(false),
        });
        let (sender, turns) = mpsc::channel(TURNS_MAX);
        let consumer = membership.consumer(sender.clone())?;
        let thread = Arc::clone(&membership);
        let spawned = std::thread::Builder::new()
            .name(format!("member {}", membership.group))
            .spawn(move || thread.stay(consumer, &sender));
        spawned.map_err(|error| membership.cluster.failed("start a thread for the group", &error))?;
        Ok(Group { membership, turns })
    }

    /// What the group says next; `None`: the membership has ended.
    pub async fn next(&mut self) -> Option<Turn> {
        self.turns.recv().await
    }

    /// What it has said already and nobody took.
    pub fn told(&mut self) -> Option<Turn> {
        self.turns.try_recv().ok()
    }

    /// What tells of all members.
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.membership)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.membership.left.store(true, Ordering::SeqCst);
    }
}

impl Membership {
    /// The group's name.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The name by which the group knows this process.
    pub fn name(&self) -> String {
        lock(&self.name).clone()
    }

    /// Why the group is not as it should be; `None` if nothing is known to be wrong.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// Asks the brokers for all members, in the order of their names.
    ///
    /// # Errors
    ///
    /// [`Error::Kafka`](super::super::Error::Kafka) if they cannot be reached or do not tell.
    pub async fn members(self: &Arc<Self>) -> Result<Vec<GroupMember>> {
        let this = Arc::clone(self);
        let members = blocking(move || this.listed()).await;
        let members = members.map_err(|error| self.cluster.failed("list the group", &error))?;
        let ours = self.name();
        if members.iter().any(|member| member.name == ours) {
            *lock(&self.trouble) = None;
        }
        Ok(members)
    }

    fn listed(&self) -> std::result::Result<Vec<GroupMember>, KafkaError> {
        let listed = self.cluster.asks.fetch_group_list(Some(&self.group), REQUEST)?;
        let all = listed.groups().iter().filter(|group| group.name() == self.group);
        let mut members: Vec<_> = all
            .flat_map(|group| group.members())
            .map(|member| GroupMember {
                name: instance_of(member.id()).to_owned(),
                host: member.client_host().trim_start_matches('/').to_owned(),
                partitions: self.known(assigned(member.assignment().unwrap_or_default())),
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(members)
    }

    fn known(&self, mut places: Vec<(String, i32)>) -> Vec<PartitionId> {
        places.sort();
        places.iter().filter_map(|place| self.partitions.get(place).cloned()).collect()
    }

    fn named(&self, list: &TopicPartitionList) -> Vec<PartitionId> {
        let elements = list.elements();
        self.known(elements.iter().map(|place| (place.topic().to_owned(), place.partition())).collect())
    }

    fn consumer(self: &Arc<Self>, turns: mpsc::Sender<Turn>) -> Result<BaseConsumer<Rebalances>> {
        let mut config = self.cluster.consumer_config(&[
            ("session.timeout.ms", SESSION),
            ("heartbeat.interval.ms", HEARTBEAT),
            // A topic that was not everywhere known at first is, soon.
            ("topic.metadata.refresh.interval.ms", "10000"),
        ]);
        config.set("group.id", &self.group).set("group.instance.id", self.name());
        config.set("partition.assignment.strategy", "cooperative-sticky");
        let consumer: BaseConsumer<Rebalances> = config
            .create_with_context(Rebalances { membership: Arc::clone(self), turns })
            .map_err(|error| self.cluster.failed("set up a member of the group", &error))?;
        let mut topics: Vec<&str> = self.partitions.keys().map(|(topic, _)| topic.as_str()).collect();
        topics.sort_unstable();
        topics.dedup();
        consumer.subscribe(&topics).map_err(|error| self.cluster.failed("join the group", &error))?;
        Ok(consumer)
    }

    /// Keeps up the membership until it is left.
    fn stay(self: Arc<Self>, first: BaseConsumer<Rebalances>, turns: &mpsc::Sender<Turn>) {
        let mut consumer = Some(first);
        while !self.left.load(Ordering::SeqCst) {
            let Some(open) = &consumer else {
                std::thread::sleep(JOIN_AGAIN);
                consumer =
                    self.consumer(turns.clone()).inspect_err(|error| self.note(error.to_string())).ok();
                continue;
            };
            // What comes of the partitions themselves is of no use here.
            let Some(Err(error)) = open.poll(POLL) else { continue };
            if let Some((code, reason)) = open.client().fatal_error() {
                if code == RDKafkaErrorCode::FencedInstanceId {
                    // Of a copied folder: two that take each other's name would never come to rest.
                    *lock(&self.name) = new_name();
                }
                self.note(format!("{code}: {reason}; joining it again as {}", self.name()));
                consumer = None;
            } else if let KafkaError::MessageConsumption(code) = error {
                if NEEDS_SOMEBODY.contains(&code) {
                    self.note(format!("the group cannot be joined: {code}"));
                } else {
                    debug!(group = self.group, %code, "the group");
                }
            }
        }
    }

    fn note(&self, trouble: String) {
        let known = lock(&self.trouble).replace(trouble.clone());
        if known.as_ref() != Some(&trouble) {
            warn!(group = self.group, "{trouble}");
        }
    }
}

/// Hands rebalances on.
struct Rebalances {
    membership: Arc<Membership>,
    turns: mpsc::Sender<Turn>,
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Logged.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logged.error(error, reason);
    }
}

impl ConsumerContext for Rebalances {
    /// Runs in the thread that polls. What is assigned is never read here: it stays paused, at its end.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = self.membership.named(list);
        let shown: Vec<_> = partitions.iter().map(|id| id.channel.as_str()).collect();
        let group = &self.membership.group;
        let done = if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            info!(group, channels = ?shown, "assigned to this daemon");
            let assigned = list
                .set_all_offsets(rdkafka::Offset::End)
                .and_then(|()| consumer.incremental_assign(list))
                .and_then(|()| consumer.pause(list));
            self.hand_on(Turn::Given(partitions));
            assigned
        } else {
            if consumer.assignment_lost() {
                warn!(group, channels = ?shown, "the group was not reached for long: others may have these");
                self.hand_on(Turn::Lost(partitions));
            } else {
                info!(group, channels = ?shown, "assigned to another daemon");
                let (done, given_up) = std_mpsc::channel();
                self.hand_on(Turn::Taken { partitions, done });
                // Whoever comes next fences us, should this take longer.
                let _late = given_up.recv_timeout(GIVEN_UP_AT_MOST);
            }
            consumer.incremental_unassign(list)
        };
        if let Err(error) = done {
            self.membership.note(format!("a rebalance failed: {error}"));
        }
    }
}

impl Rebalances {
    /// Waits, if the last ones are not taken note of yet; nobody is there to do so when the daemon stops.
    fn hand_on(&self, turn: Turn) {
        let _stopping = self.turns.blocking_send(turn);
    }
}

/// A name that no other daemon has: the machine's, and something drawn.
pub(crate) fn new_name() -> String {
    use std::hash::{BuildHasher, RandomState};
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String =
        host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    let host = if host.is_empty() { "daemon" } else { &host };
    format!("{host}-{:08x}", RandomState::new().hash_one(std::process::id()) as u32)
}

/// The `group.instance.id` in a member's id, to which the coordinator adds a UUID.
fn instance_of(id: &str) -> &str {
    const UUID: usize = "-00000000-0000-0000-0000-000000000000".len();
    id.len().checked_sub(UUID).and_then(|end| id.get(..end)).filter(|name| !name.is_empty()).unwrap_or(id)
}

/// Topics and numbers in a `ConsumerProtocolAssignment`: a version, then of each topic its name and its partitions.
/// What cannot be read is left out.
fn assigned(bytes: &[u8]) -> Vec<(String, i32)> {
    fn int(bytes: &mut &[u8]) -> Option<i32> {
        let (first, rest) = bytes.split_first_chunk::<4>()?;
        *bytes = rest;
        Some(i32::from_be_bytes(*first))
    }
    fn short(bytes: &mut &[u8]) -> Option<usize> {
        let (first, rest) = bytes.split_first_chunk::<2>()?;
        *bytes = rest;
        Some(usize::from(u16::from_be_bytes(*first)))
    }
    fn read(mut bytes: &[u8], places: &mut Vec<(String, i32)>) -> Option<()> {
        let _version = short(&mut bytes)?;
        for _ in 0..int(&mut bytes)? {
            let length = short(&mut bytes)?;
            let (topic, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            for _ in 0..int(&mut bytes)? {
                places.push((String::from_utf8_lossy(topic).into_owned(), int(&mut bytes)?));
            }
        }
        Some(())
    }
    let mut places = Vec::new();
    let _whole = read(bytes, &mut places);
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_as_far_as_it_goes() {
        let bytes = b"\0\x01\0\0\0\x02\0\x01a\0\0\0\x02\0\0\0\0\0\0\0\x01\0\x02bc\0\0\0\x01\0\0\0\x05\xff\xff\xff\xff";
        let all = [("a".to_owned(), 0), ("a".to_owned(), 1), ("bc".to_owned(), 5)];
        assert_eq!(assigned(bytes), all);
        for end in 0..bytes.len() {
            assert!(all.starts_with(&assigned(&bytes[..end])), "{end}");
        }
        // A count that nothing is behind.
        assert_eq!(assigned(b"\0\0\x7f\xff\xff\xff\0\x01a\x7f\xff\xff\xff\0\0\0\x03"), [("a".to_owned(), 3)]);
    }

    #[test]
    fn a_member_is_known_by_the_name_it_gave_itself() {
        let name = new_name();
        assert_eq!(instance_of(&format!("{name}-5e2b9d3c-7f0a-4f1d-9c59-2d2f3e6a1b0c")), name);
        assert_eq!(instance_of("short"), "short");
        assert_ne!(new_name(), name);
    }
}
