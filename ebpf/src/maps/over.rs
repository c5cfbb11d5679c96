//! Which connections are over, asked from outside: by the same rule as the datapath's, about those that say nothing.

use aya::maps::MapError as Kernel;
use aya::maps::lpm_trie::Key as LpmKey;
use hawser_ebpf_abi::{
    Addr, CONFIG_CUT_OFF, CONFIG_LEFT_OUT, FlowKey, HEALTH_RESET, IPPROTO_TCP, IpEntry, NAT_THERE, NatKey,
    Port, ServiceKey, map,
};
use hawser_ebpf_logic::reset;

use super::cell::Cell;
use super::{Maps, kernel};
use crate::error::MapError;
use crate::sys;

/// A TCP connection of this node, from its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub local: Addr,
    pub local_port: Port,
    pub remote: Addr,
    pub remote_port: Port,
}

/// A connection whose time came longer ago than this many ticks (8 s) was swept already, or was begun in spite of the verdict.
const JUST_NOW: u32 = 30;

impl Maps {
    /// Whether the address is one of this node's pods.
    pub fn is_local_pod(&self, addr: Addr) -> bool {
        self.endpoints.contains(&addr)
    }

    /// Whether the time of this connection has come, just now. Three system calls for one to a healthy place, seven at most.
    pub fn is_over(&self, connection: &Connection) -> Result<bool, MapError> {
        let Some(config) = self.written_config.filter(|config| config.flags & CONFIG_CUT_OFF == 0) else {
            return Ok(false);
        };
        let mut found = self.entry(connection.remote)?.filter(IpEntry::is_remote);
        let mut translated = *connection;
        if found.is_none() && config.flags & CONFIG_LEFT_OUT != 0 {
            translated = self.as_on_the_wire(connection)?;
            found = self.entry(translated.remote)?.filter(IpEntry::is_remote);
        }
        let (Some(to), connection) = (found, &translated) else { return Ok(false) };
        let words = [self.cluster_health(to.cluster)?, self.node_health(to.node)?];
        if words.iter().all(|word| word & HEALTH_RESET == 0) {
            return Ok(false);
        }
        let backend = ServiceKey::new(connection.remote, connection.remote_port, IPPROTO_TCP);
        let wish = self.reset_wishes.get(&backend).map(|wish| wish.ticks);
        let (after, now) = (wish.unwrap_or(config.reset_after.into()), sys::ticks());
        let began = match self.began(connection)? {
            Some(began) => began,
            None if self.is_exported(connection) => return Ok(false),
            None => 0,
        };
        let just_now = |word| reset::elapsed(word, now) < after.saturating_add(JUST_NOW);
        Ok(words.into_iter().any(|word| reset::is_over(word, after, began, now) && just_now(word)))
    }

    /// With the backend in the service's place, where a pod's interface has it translated.
    fn as_on_the_wire(&self, connection: &Connection) -> Result<Connection, MapError> {
        let key = NatKey {
            pod: connection.local,
            peer: connection.remote,
            pod_port: connection.local_port,
            peer_port: connection.remote_port,
            proto: IPPROTO_TCP,
            way: NAT_THERE,
            pad: 0,
        };
        match self.nat.get(&Cell(key), 0) {
            Ok(Cell(backend)) => {
                Ok(Connection { remote: backend.addr, remote_port: backend.port, ..*connection })
            }
            Err(Kernel::KeyNotFound) => Ok(*connection),
            Err(source) => Err(kernel(map::NAT, source)),
        }
    }

    fn is_exported(&self, connection: &Connection) -> bool {
        self.exported.contains(&ServiceKey::new(connection.local, connection.local_port, IPPROTO_TCP))
    }

    fn entry(&self, addr: Addr) -> Result<Option<IpEntry>, MapError> {
        match self.ipcache.map().get(&LpmKey::new(128, Cell(addr)), 0) {
            Ok(Cell(entry)) => Ok(Some(entry)),
            Err(Kernel::KeyNotFound) => Ok(None),
            Err(source) => Err(kernel(map::IPCACHE, source)),
        }
    }

    /// The tick of the connection's first packet, where it is a pod's and not forgotten.
    fn began(&self, connection: &Connection) -> Result<Option<u32>, MapError> {
        let key = FlowKey {
            local: connection.local,
            remote: connection.remote,
            local_port: connection.local_port,
            remote_port: connection.remote_port,
            proto: IPPROTO_TCP,
            pad0: 0,
            pad1: 0,
        };
        match self.flows.get(&Cell(key), 0) {
            Ok(Cell(flow)) => Ok(Some(flow.began)),
            Err(Kernel::KeyNotFound) => Ok(None),
            Err(source) => Err(kernel(map::FLOWS, source)),
        }
    }
}
