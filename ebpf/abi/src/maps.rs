//! The maps: names, keys, values, and who writes them.

use crate::layout::plain;
use crate::{Addr, Port};

/// Map names: in the object, in the pin directory, in messages.
pub mod map {
    pub const SERVICES: &str = "services";
    pub const SLICES: &str = "slices";
    pub const BACKENDS: &str = "backends";
    pub const CLUSTER_HEALTH: &str = "cluster_health";
    pub const NODE_HEALTH: &str = "node_health";
    pub const IPCACHE: &str = "ipcache";
    pub const REMOTE_BLOCKS: &str = "remote_blocks";
    pub const ENDPOINTS: &str = "endpoints";
    pub const EXPORTED: &str = "exported";
    pub const SOCK_PEER: &str = "sock_peer";
    pub const SOCK_REV: &str = "sock_rev";
    pub const SOCKET_PINS: &str = "socket_pins";
    pub const CLIENT_PINS: &str = "client_pins";
    pub const RESET_WISHES: &str = "reset_wishes";
    pub const FLOWS: &str = "flows";
    pub const LEFT_OUT: &str = "left_out";
    pub const NAT: &str = "nat";
    pub const NAT_BEGUN: &str = "nat_begun";
    pub const FRONTENDS: &str = "frontends";
    pub const ENTERED: &str = "entered";
    pub const ENTER_BEGUN: &str = "enter_begun";
    pub const NODE_TRAFFIC: &str = "node_traffic";
    pub const COUNTERS: &str = "counters";
    pub const CONFIG: &str = "config";

    /// All of them.
    pub const ALL: [&str; 24] = [
        SERVICES,
        SLICES,
        BACKENDS,
        CLUSTER_HEALTH,
        NODE_HEALTH,
        IPCACHE,
        REMOTE_BLOCKS,
        ENDPOINTS,
        EXPORTED,
        SOCK_PEER,
        SOCK_REV,
        SOCKET_PINS,
        CLIENT_PINS,
        RESET_WISHES,
        FLOWS,
        LEFT_OUT,
        NAT,
        NAT_BEGUN,
        FRONTENDS,
        ENTERED,
        ENTER_BEGUN,
        NODE_TRAFFIC,
        COUNTERS,
        CONFIG,
    ];
}

/// Default sizes. Hash and array sizes are settings of the loader; the health arrays are fixed by the id ranges.
pub mod size {
    pub const SERVICES: u32 = 65_536;
    pub const SLICES: u32 = 131_072;
    pub const BACKENDS: u32 = 262_144;
    pub const CLUSTERS: u32 = 512;
    pub const NODES: u32 = 65_536;
    /// With its content: 254 clusters of 100 nodes and 1,000 pods are 310,000 entries where no prefix holds a node's pods.
    pub const IPCACHE: u32 = 524_288;
    pub const ENDPOINTS: u32 = 4_096;
    pub const EXPORTED: u32 = 65_536;
    pub const SOCK_REV: u32 = 32_768;
    pub const SOCKET_PINS: u32 = 32_768;
    pub const CLIENT_PINS: u32 = 32_768;
    pub const RESET_WISHES: u32 = 65_536;
    pub const FLOWS: u32 = 131_072;
    pub const LEFT_OUT: u32 = 4_096;
    pub const NAT: u32 = 65_536;
    pub const FRONTENDS: u32 = 65_536;
    pub const ENTERED: u32 = 65_536;
}

/// The most clusters one service can have slices of: the choice is one bounded pass over them.
pub const MAX_SLICES: u32 = 512;
/// The most slices one cluster can have of one service.
pub const MAX_GROUPS: u32 = 4;

pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_ICMPV6: u8 = 58;

/// The health word, as `hawser_model::HealthWord` writes it: weight in bits 0..16, 256 = full.
pub const HEALTH_FULL_WEIGHT: u32 = 256;
pub const HEALTH_WEIGHT_MASK: u32 = 0xffff;
pub const HEALTH_NO_NEW: u32 = 1 << 30;
/// Established connections are ended, some time after the word was written.
pub const HEALTH_RESET: u32 = 1 << 31;
/// When a word with [`HEALTH_RESET`] was written: bits 16..30, in ticks, of which the lowest 14 bits are kept.
pub const HEALTH_SINCE_SHIFT: u32 = 16;
pub const TICKS_MASK: u32 = 0x3fff;
/// A tick is 2^28 ns of CLOCK_MONOTONIC, about a quarter of a second; the word's 14 bits come round after 73 minutes.
pub const TICK_SHIFT: u32 = 28;
/// [`Config::reset_after`], [`ResetWish::ticks`]: more than the word's ticks can ever say.
pub const RESET_NEVER: u16 = u16::MAX;

/// Rounded up.
#[inline(always)]
pub const fn ticks_of_millis(millis: u32) -> u16 {
    let ticks = (millis as u64 * 1_000_000).div_ceil(1 << TICK_SHIFT);
    if ticks > TICKS_MASK as u64 { TICKS_MASK as u16 } else { ticks as u16 }
}

/// Slices of a tier are used while every lower tier has no healthy backend. Tiers are `0..TIERS`; as many as KEP-5939 has
/// selectors.
pub const TIERS: u8 = 16;

/// A socket that sends UDP to a service without connecting keeps its backend while it is not idle for this long.
pub const UDP_IDLE_SECONDS: u32 = 60;

/// [`Service::flags`]: runs of backends are tables, of which a client has always the same slot.
pub const SERVICE_MAGLEV: u16 = 1;

/// [`Backend::flags`]: takes nothing new while another one can. Who is pinned to it stays.
pub const BACKEND_DRAINING: u8 = 1;

/// [`Exported::flags`]: withdrawn, and for a while still there for what is established.
pub const EXPORTED_CLOSING: u32 = 1;

/// [`IpEntry::flags`]: behind the tunnel. Such an address is believed only on a packet that `tunnel_in` saw.
pub const IP_REMOTE: u16 = 1;
/// [`IpEntry::flags`]: a node's mesh address.
pub const IP_MESH_ADDRESS: u16 = 2;
/// [`IpEntry::flags`]: nothing leads there, and what is for it must not leave in clear all the same: the mesh's own ranges, and what
/// was another cluster's until lately.
pub const IP_GUARDED: u16 = 4;
/// [`IpEntry::flags`], at a gateway: a node or pod of another cluster or, without [`IP_REMOTE`], of the own one, whose packets for the
/// other kind are sent on from the tunnel into the tunnel.
pub const IP_CARRIED: u16 = 8;

/// [`Config::flags`]: the own keyspace is stale, so a pick in the own cluster is left to kube-proxy or the CNI.
pub const CONFIG_OWN_STALE: u16 = 1;
/// [`Config::flags`]: every other cluster is down. Then it is usually we who are cut off, and nothing is ended.
pub const CONFIG_CUT_OFF: u16 = 2;
/// [`Config::flags`]: some pod of this node is left out of the socket load balancer. Without it nobody is looked for.
pub const CONFIG_LEFT_OUT: u16 = 4;
/// [`Config::flags`]: the tunnels are the kernel's IPsec: a packet must have come by the association of the very node that its
/// source is behind. WireGuard sees to that by itself.
pub const CONFIG_KERNEL_IPSEC: u16 = 8;
/// [`Config::flags`]: the agent was stopped on purpose, and the kernel carries on. Probes are answered with AdminDown.
pub const CONFIG_STOPPED: u16 = 32;

/// [`Config::flags`]: traffic from outside is served at uplinks of this node.
pub const CONFIG_UPLINKS: u16 = 16;

/// [`Config::flags`]: this node is a gateway, so `tunnel_in` looks for [`IP_CARRIED`].
pub const CONFIG_GATEWAY: u16 = 64;

/// [`Endpoint::flags`]: left out of the socket load balancer; its packets are translated at its interface.
pub const ENDPOINT_TRANSLATED: u32 = 1;

plain! {
    /// `services` (HASH): one entry per ClusterIP, port and protocol of a global service. Also the key of `exported`.
    pub struct ServiceKey: 20 {
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub pad: u8,
    }
}

impl ServiceKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, proto: u8) -> Self {
        Self { addr, port, proto, pad: 0 }
    }

    /// Folded to 32 bits; exact for IPv4 up to the port. See [`Service::check`].
    #[inline(always)]
    pub const fn check(&self) -> u32 {
        let [a, b, c, d] = self.addr.words();
        let port = ((self.port.wire() as u32) << 8) | self.proto as u32;
        a ^ b.rotate_left(8) ^ c ^ d ^ port.rotate_left(16)
    }
}

plain! {
    /// Where a service's slices are. Replaced by one hash update after everything it points at was written: a reader sees
    /// the old runs or the new ones.
    pub struct Service: 24 {
        /// [`ServiceKey::check`] of its own key. The kernel may recycle a hash element under a reader that holds it; a
        /// value that belongs to another key shows here.
        pub check: u32,
        pub id: u32,
        pub generation: u32,
        /// Index of the first slice.
        pub slices_at: u32,
        pub slices_len: u16,
        pub flags: u16,
        /// Session affinity: a client keeps its backend while it is not idle for so many seconds; 0 = it does not.
        pub session_seconds: u32,
    }
}

plain! {
    /// `slices` (ARRAY): what one cluster contributes to one service, or one group of its backends. A service's slices lie side
    /// by side, ordered by cluster.
    pub struct Slice: 28 {
        /// Service id and generation: a reader that finds others was overtaken by a reuse and starts again.
        pub service: u32,
        pub generation: u32,
        pub backends_at: u32,
        pub backends_len: u32,
        /// The generation of the backend run, which outlives a generation of slices when the cluster did not change.
        pub backends_generation: u32,
        pub cluster: u16,
        /// 0 = takes nothing, not even when nothing else is left. Always 0 when there are no backends.
        pub weight: u16,
        /// The lowest tier with a healthy backend gets every new connection.
        pub tier: u16,
        /// The health weight that counts at least: 0, or [`HEALTH_FULL_WEIGHT`] where health does not matter.
        pub floor: u16,
    }
}

plain! {
    /// `backends` (ARRAY): one address and port behind a service in one cluster. A slice's run is sorted by address, then
    /// port, as [`Addr`] and [`Port`] are ordered, so that one backend is found in it by halving.
    pub struct Backend: 36 {
        pub addr: Addr,
        pub service: u32,
        pub generation: u32,
        /// Slot in `node_health`; 0 = no node known: counts as up.
        pub node: u32,
        pub port: Port,
        pub cluster: u16,
        pub proto: u8,
        pub flags: u8,
        pub pad: u16,
    }
}

plain! {
    /// `ipcache` (LPM_TRIE by [`crate::PrefixKey`]): who an address is.
    pub struct IpEntry: 12 {
        pub identity: u32,
        /// Slot in `node_health`; 0 = none.
        pub node: u32,
        pub cluster: u16,
        pub flags: u16,
    }
}

impl IpEntry {
    #[inline(always)]
    pub const fn is_remote(&self) -> bool {
        self.flags & IP_REMOTE != 0
    }

    /// What is for it leaves this node through the tunnel or not at all.
    #[inline(always)]
    pub const fn is_guarded(&self) -> bool {
        self.flags & (IP_REMOTE | IP_GUARDED) != 0
    }
}

plain! {
    /// `endpoints` (HASH by [`Addr`]): the pods of this node and the host side of their interface.
    pub struct Endpoint: 12 {
        pub ifindex: u32,
        pub identity: u32,
        pub flags: u32,
    }
}

plain! {
    /// `exported` (HASH by [`ServiceKey`]): the address, port and protocol that traffic from the mesh may reach on this
    /// node: backends of exported global services, and services on the own mesh address.
    pub struct Exported: 4 {
        pub flags: u32,
    }
}

impl Exported {
    /// Connections may be begun.
    #[inline(always)]
    pub const fn takes_new(&self) -> bool {
        self.flags & EXPORTED_CLOSING == 0
    }
}

plain! {
    /// `sock_peer` (SK_STORAGE): where a socket is connected to, and what its program asked for. It lives as long as the socket,
    /// takes memory of nobody else's, and is never lost.
    pub struct SockPeer: 40 {
        pub backend: Addr,
        pub service: Addr,
        pub backend_port: Port,
        pub service_port: Port,
        pub pad: u32,
    }
}

plain! {
    /// `sock_rev` (LRU_HASH): a UDP socket and a backend that it sent to without being connected. One map for both families: a
    /// v4-mapped socket crosses between the hooks (it sends by the `4` ones and receives by the `6` ones).
    pub struct SockRevKey: 32 {
        /// The socket's cookie.
        pub socket: u64,
        pub backend: Addr,
        pub backend_port: Port,
        pub pad0: u16,
        pub pad1: u32,
    }
}

plain! {
    /// What the program of the socket asked for. Losing one shows the program a backend instead.
    pub struct SockRev: 20 {
        pub service: Addr,
        pub service_port: Port,
        pub pad: u16,
    }
}

plain! {
    /// `socket_pins` (LRU_HASH): UDP, a socket's cookie. `client_pins` (LRU_HASH): session affinity, a network namespace's
    /// cookie. Losing one means choosing anew.
    pub struct PinKey: 16 {
        pub client: u64,
        pub service: u32,
        pub pad: u32,
    }
}

plain! {
    /// The backend that a client keeps. Held against the service at every use: what the service no longer has, or what is
    /// unhealthy, is let go.
    pub struct Pin: 32 {
        /// The last use, in nanoseconds of CLOCK_MONOTONIC.
        pub seen: u64,
        pub addr: Addr,
        pub port: Port,
        pub cluster: u16,
        pub pad: u32,
    }
}

plain! {
    /// `flows` (LRU_HASH): a flow that a local pod began. Losing one closes the way back until the pod sends again.
    pub struct FlowKey: 40 {
        pub local: Addr,
        pub remote: Addr,
        /// For an ICMP echo both ports are its identifier.
        pub local_port: Port,
        pub remote_port: Port,
        pub proto: u8,
        pub pad0: u8,
        pub pad1: u16,
    }
}

plain! {
    /// A known flow. When it is forgotten is the LRU's business.
    pub struct Flow: 4 {
        /// The tick of its first packet; 0 when that was not seen.
        pub began: u32,
    }
}

plain! {
    /// `left_out` (HASH by a network namespace's cookie): its sockets keep the addresses that they ask for.
    pub struct LeftOut: 4 {
        pub pad: u32,
    }
}

/// [`NatKey::way`]: the peer is a service.
pub const NAT_THERE: u8 = 0;
/// [`NatKey::way`]: the peer is a backend.
pub const NAT_BACK: u8 = 1;

plain! {
    /// `nat` (LRU_HASH): a flow of a pod that is translated at its interface, as the pod sees it ([`NAT_THERE`], TCP only: UDP has
    /// its pin) and as its backend does ([`NAT_BACK`]). One that is lost is made again while the other one is there.
    pub struct NatKey: 40 {
        pub pod: Addr,
        pub peer: Addr,
        pub pod_port: Port,
        pub peer_port: Port,
        pub proto: u8,
        pub way: u8,
        pub pad: u16,
    }
}

plain! {
    /// Who stands in the peer's place: the backend on the way there, the service on the way back.
    pub struct Nat: 20 {
        pub addr: Addr,
        pub port: Port,
        pub pad: u16,
    }
}

plain! {
    /// `nat_begun` (PERCPU_ARRAY of one): a packet's translation between its steps, which are programs' functions of their own.
    pub struct NatBegun: 64 {
        pub there: NatKey,
        pub nat: Nat,
        /// 0: its first packet.
        pub established: u32,
    }
}

/// [`EnterKey::way`]: as its client sends it.
pub const ENTER_THERE: u8 = 0;
/// [`EnterKey::way`]: as its backend answers.
pub const ENTER_BACK: u8 = 1;

plain! {
    /// `entered` (LRU_HASH): the packets of a flow that entered at an uplink, one way. One that is lost while the flow is at work
    /// ends it, or its answers until the client sends again.
    pub struct EnterKey: 40 {
        pub src: Addr,
        pub dst: Addr,
        pub src_port: Port,
        pub dst_port: Port,
        pub proto: u8,
        pub way: u8,
        pub pad: u16,
    }
}

/// [`Entered::state`]: netfilter is to put the node's address in the client's place.
pub const ENTERED_MASQUERADED: u32 = 1;
/// [`Entered::state`], of the way back: the backend has answered.
pub const ENTERED_ANSWERED: u32 = 2;
/// [`Entered::state`], of the way back: the client has sent its last (FIN).
pub const ENTERED_CLIENT_DONE: u32 = 4;
/// [`Entered::state`], of the way back: the backend has.
pub const ENTERED_BACKEND_DONE: u32 = 8;

plain! {
    /// What such a packet is sent on as.
    pub struct Entered: 48 {
        pub src: Addr,
        pub dst: Addr,
        pub src_port: Port,
        pub dst_port: Port,
        /// The uplink.
        pub ifindex: u32,
        /// Of the way back: the tick of the last packet, either way.
        pub seen: u32,
        pub state: u32,
    }
}

plain! {
    /// `enter_begun` (PERCPU_ARRAY of one): a packet between its steps, which are programs' functions of their own.
    pub struct EnterBegun: 88 {
        pub there: EnterKey,
        pub to: Entered,
    }
}

plain! {
    /// `node_traffic` (ARRAY, by a node's slot): what became of users' TCP connections to its pods.
    pub struct NodeTraffic: 72 {
        pub begun: u64,
        pub established: u64,
        /// Round trips with data.
        pub spoke: u64,
        /// Attempts without an answer for a second.
        pub late: u64,
        /// Established ones without an acknowledgement for three retransmission timeouts in a row.
        pub stalled: u64,
        /// Retransmission timeouts of established ones.
        pub repeated: u64,
        /// Of those that were established.
        pub closed: u64,
        /// Which clients had late attempts: 32 marks of the epoch `marked_at`, and of the one before it.
        pub marked_at: u32,
        pub marks: u32,
        pub marks_before: u32,
        pub pad: u32,
    }
}

plain! {
    /// `reset_wishes` (HASH by [`ServiceKey`], of a backend): where connections are ended sooner or later than
    /// [`Config::reset_after`] says.
    pub struct ResetWish: 4 {
        pub ticks: u32,
    }
}

plain! {
    /// `config` (ARRAY of one). All zero until the agent has spoken: then nothing is steered and nothing is admitted.
    pub struct Config: 64 {
        pub abi_version: u32,
        /// The tunnel device; 0 = none: what should enter it is dropped.
        pub tunnel_ifindex: u32,
        pub tunnel_mtu: u32,
        /// Of packets that `tunnel_in` admitted, until they reach the pod.
        pub mark: u32,
        pub mark_mask: u32,
        pub own_cluster: u16,
        pub flags: u16,
        pub own_mesh_v4: Addr,
        pub own_mesh_v6: Addr,
        /// UDP on the own mesh address that is always admitted: probes leave from here, and their answers come back.
        pub probe_port: Port,
        /// Connections to what is down are ended so many ticks after the verdict.
        pub reset_after: u16,
        /// Set on packets whose client netfilter is to hide behind the node's address; 0 = there is no such rule.
        pub masquerade_mark: u32,
    }
}

impl Config {
    pub const MARK: u32 = 0x0049_0000;
    pub const MARK_MASK: u32 = 0x00ff_0000;

    /// The fixed part filled in; the rest is the agent's.
    pub const fn new(own_cluster: u16) -> Self {
        Self {
            abi_version: crate::ABI_VERSION,
            tunnel_ifindex: 0,
            tunnel_mtu: 0,
            mark: Self::MARK,
            mark_mask: Self::MARK_MASK,
            own_cluster,
            flags: 0,
            own_mesh_v4: Addr::UNSPECIFIED,
            own_mesh_v6: Addr::UNSPECIFIED,
            probe_port: Port::new(51872),
            reset_after: ticks_of_millis(2_000),
            masquerade_mark: 0,
        }
    }
}
