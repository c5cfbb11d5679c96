//! What the agent wants the datapath to hold, in the ABI's own keys.
//!
//! `node-agent/core` builds one [`DesiredDatapath`] from its view; the loader compares it with what is in the kernel and
//! writes the differences, additions before removals. Health is not part of it: words are flipped one by one, at once.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::{
    Addr, Config, Endpoint, Exported, FewMap, FewSet, IpEntry, LeftOut, Port, PrefixKey, ResetWish,
    ServiceKey,
};

/// Everything but health. Two equal values mean the same kernel state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredDatapath {
    pub config: Config,
    /// By frontend: a Service with two ClusterIPs and three ports is six entries.
    pub services: BTreeMap<ServiceKey, ServiceSpec>,
    /// Pods, nodes and mesh addresses of every cluster; [`crate::IP_REMOTE`] on what lies behind the tunnel.
    pub ipcache: BTreeMap<PrefixKey, IpEntry>,
    /// This node's pods.
    pub endpoints: BTreeMap<Addr, Endpoint>,
    /// What the mesh may reach on this node.
    pub exported: BTreeMap<ServiceKey, Exported>,
    /// By backend, where connections are not ended when [`Config::reset_after`] says so.
    pub reset_wishes: BTreeMap<ServiceKey, ResetWish>,
    /// Network namespaces, by cookie, whose sockets the load balancer leaves alone.
    pub left_out: BTreeMap<u64, LeftOut>,
    /// Where else services are entered from outside: NodePorts, external addresses; each with the service's entry of `services`.
    pub frontends: BTreeMap<ServiceKey, ServiceKey>,
    /// Interfaces at which traffic from outside is served. Not a map: programs are attached there.
    pub uplinks: BTreeSet<u32>,
}

/// One frontend's backends by cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    /// How long a client keeps its backend; 0 = it does not.
    pub session_seconds: u32,
    /// A client goes to the same backend every time, and keeps none besides.
    pub maglev: bool,
    /// By cluster id, and a number of its own below [`crate::MAX_GROUPS`] for each group of the cluster's backends that has
    /// another tier; at most [`crate::MAX_SLICES`]. A cluster without backends may be left out.
    pub slices: FewMap<(u16, u8), SliceSpec>,
}

/// Slots of a table of so many backends: at least 32 for each of up to 128; none beyond 4,096, where they are a plain list.
/// Where it grows, most clients move once.
pub const fn maglev_slots(backends: usize) -> usize {
    match backends {
        0 => 0,
        1..=32 => 1_024,
        33..=4_096 => 4_096,
        more => more,
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceSpec {
    /// Relative to the other clusters' slices; 1..=4096 are told apart. The number of backends, for an even spread over
    /// all of them.
    pub weight: u16,
    /// `0..`[`crate::TIERS`].
    pub tier: u8,
    /// Verdicts about this cluster and its nodes are not heeded here.
    pub ignores_health: bool,
    pub backends: FewSet<BackendSpec>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendSpec {
    pub addr: Addr,
    pub port: Port,
    /// Slot in `node_health`; 0 = none.
    pub node: u32,
    /// Takes nothing new while another backend can: to be in a tier of its own.
    pub draining: bool,
}
