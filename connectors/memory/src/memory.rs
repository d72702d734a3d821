use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use causeway_core::{
    Capability, Change, ChannelSpec, Class, Connector, Finding, Key, Op, OpenError, Position, Result, Site,
    Source, Space, Target, Unit,
};

use crate::command::{Command, units};
use crate::source::MemorySource;
use crate::store::{Clock, Fault, Store};
use crate::target::MemoryTarget;

/// Two stores, one for each site. A clone is the same pair.
#[derive(Clone)]
pub struct Memory {
    stores: [Arc<Store>; 2],
    part_bytes: usize,
    tells_times: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

/// Two empty stores, whatever the configuration says: the `Open` of `store = "memory"`.
///
/// # Errors
///
/// None.
pub fn open(_: &ChannelSpec) -> std::result::Result<Arc<dyn Connector>, OpenError> {
    Ok(Arc::new(Memory::new()))
}

impl Memory {
    /// Two empty stores.
    pub fn new() -> Memory {
        let ids = Arc::new(AtomicU64::new(1));
        let stores = [(); 2].map(|()| Arc::new(Store::new(Arc::clone(&ids))));
        Memory { stores, part_bytes: 1 << 20, tells_times: true }
    }

    /// Each site's store goes by its own clock from now on, not by the machine's.
    pub fn with_clocks(self, clocks: [Clock; 2]) -> Memory {
        for (store, clock) in self.stores.iter().zip(clocks) {
            store.set_clock(clock);
        }
        self
    }

    /// Snapshots carry values whose text is longer than this in parts.
    pub fn with_part_bytes(mut self, part_bytes: usize) -> Memory {
        self.part_bytes = part_bytes.max(1);
        self
    }

    /// Its streams do not tell when something was written.
    pub fn without_times(mut self) -> Memory {
        self.tells_times = false;
        self
    }

    fn store(&self, site: Site) -> &Arc<Store> {
        &self.stores[site.index()]
    }

    /// Writes at `site` as an application does, all of `commands` in one transaction.
    ///
    /// # Errors
    ///
    /// What the store has against one of them; nothing took effect then.
    pub fn write(&self, site: Site, commands: &[&str]) -> std::result::Result<(), String> {
        let commands: Vec<Command> =
            commands.iter().map(|c| Command::parse(c.as_bytes())).collect::<std::result::Result<_, _>>()?;
        self.store(site).lock().write(&commands)?;
        self.store(site).changed.notify_waiters();
        Ok(())
    }

    /// A key's value, as [`Value::text`](crate::Value::text), and its expire-at in milliseconds since 1970.
    pub fn read(&self, site: Site, key: &str) -> Option<(String, Option<u64>)> {
        self.store(site).lock().data.get(key).map(|s| (s.value.text(), s.expire_at))
    }

    /// Everything at `site`, in the form of [`read`](Memory::read).
    pub fn dump(&self, site: Site) -> BTreeMap<String, (String, Option<u64>)> {
        let state = self.store(site).lock();
        state.data.iter().map(|(k, s)| (k.clone(), (s.value.text(), s.expire_at))).collect()
    }

    /// How much of `site`'s stream was acknowledged.
    pub fn acknowledged(&self, site: Site) -> Option<Position> {
        self.store(site).lock().acknowledged.clone()
    }

    /// Makes `fault` happen at `site` from now on.
    pub fn inject(&self, site: Site, fault: Fault) {
        self.store(site).lock().faults.push(fault);
    }

    /// Ends the faults of [`inject`](Memory::inject) at `site`.
    pub fn clear(&self, site: Site) {
        self.store(site).lock().faults.clear();
    }

    /// Cuts all connections to `site`'s store. What was committed stays; it can be connected to again.
    pub fn cut(&self, site: Site) {
        self.store(site).lock().cut();
        self.store(site).changed.notify_waiters();
    }

    /// Cuts all connections and refuses new ones until [`start`](Memory::start).
    pub fn stop(&self, site: Site) {
        self.store(site).lock().down = true;
        self.cut(site);
    }

    /// Lets connections in again.
    pub fn start(&self, site: Site) {
        self.store(site).lock().down = false;
    }

    /// Cuts all connections, and a replica that had everything takes over: the stream has a new history, and goes on at the
    /// places of the one before.
    pub fn promote(&self, site: Site) {
        self.store(site).lock().promote();
        self.store(site).changed.notify_waiters();
    }

    /// Cuts all connections, and the stream begins a new history: no older position can be resumed.
    pub fn lose_position(&self, site: Site) {
        self.store(site).lock().lose_position();
        self.store(site).changed.notify_waiters();
    }

    /// How often `site`'s stream was opened, and how often a target took the store over; what failed counts.
    pub fn tries(&self, site: Site) -> (u64, u64) {
        let state = self.store(site).lock();
        (state.streams, state.reigns)
    }

    /// Keeps at most so many transactions in `site`'s stream; `None`: all.
    pub fn limit_backlog(&self, site: Site, transactions_max: Option<usize>) {
        self.store(site).lock().backlog_max = transactions_max;
    }

    /// Keeps a copy of `site`'s store, marker included, for [`restart_older`](Memory::restart_older).
    pub fn save(&self, site: Site) {
        self.store(site).lock().save();
    }

    /// The store comes back as it was at [`save`](Memory::save), or empty; with a new history.
    pub fn restart_older(&self, site: Site) {
        self.store(site).lock().restart_older();
        self.store(site).changed.notify_waiters();
    }

    fn endpoint(site: Site) -> String {
        format!("memory:{}", site.index())
    }
}

#[async_trait]
impl Connector for Memory {
    fn store(&self) -> &'static str {
        "memory"
    }

    fn capability(&self) -> Capability {
        Capability {
            resumes: true,
            groups: true,
            expiry: true,
            watch: true,
            resumes_snapshot: false,
            operations: true,
        }
    }

    fn source(&self, site: Site) -> Box<dyn Source> {
        let store = Arc::clone(self.store(site));
        Box::new(MemorySource::new(store, Memory::endpoint(site), self.part_bytes, self.tells_times))
    }

    fn target(&self, site: Site) -> Box<dyn Target> {
        Box::new(MemoryTarget::new(Arc::clone(self.store(site)), Memory::endpoint(site)))
    }

    fn units(&self, change: &Change) -> Vec<(Unit, Class)> {
        units(change)
    }

    /// A line is a command's words.
    fn intake(&self, line: &[u8]) -> std::result::Result<Change, String> {
        let command = Command::parse(line)?;
        let name = bytes::Bytes::copy_from_slice(command.key().as_bytes());
        let value = (command.op() == Op::Command).then(|| bytes::Bytes::copy_from_slice(line));
        let key = Key { space: Space::Whole, name };
        Ok(Change::captured(command.op(), key, value, Position::default(), 0))
    }

    async fn check(&self, _sites: &[Site]) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    async fn cleanup(&self, site: Site) -> Result<u64> {
        Ok(self.store(site).lock().cleanup())
    }
}
