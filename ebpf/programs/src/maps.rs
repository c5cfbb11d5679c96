//! The maps, and look-ups that copy out: an element of a hash may be recycled under whoever holds a pointer to it.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_sock_addr};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use hawser_ebpf_abi::{
    Addr, BLOCK_WORDS, Backend, Config, Endpoint, EnterBegun, EnterKey, Entered, Exported, Flow, FlowKey,
    IpEntry, LeftOut, Nat, NatBegun, NatKey, NodeTraffic, Pin, PinKey, Port, Reason, ResetWish, Service,
    ServiceKey, Slice, SockPeer, SockRev, SockRevKey, TICK_SHIFT, block, size,
};
use hawser_ebpf_logic::pin::Client;
use hawser_ebpf_logic::reset::is_repetition;

/// Elements come with content, not beforehand.
const GROWS: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceKey, Service, { size::SERVICES as usize }, GROWS> = HashMap::new();
#[btf_map(name = "slices")]
static SLICES: Array<Slice, { size::SLICES as usize }> = Array::new();
#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, { size::BACKENDS as usize }> = Array::new();
#[btf_map(name = "cluster_health")]
static CLUSTER_HEALTH: Array<u32, { size::CLUSTERS as usize }> = Array::new();
#[btf_map(name = "node_health")]
static NODE_HEALTH: Array<u32, { size::NODES as usize }> = Array::new();
#[btf_map(name = "ipcache")]
static IPCACHE: LpmTrie<Addr, IpEntry, { size::IPCACHE as usize }> = LpmTrie::new();
#[btf_map(name = "remote_blocks")]
static REMOTE_BLOCKS: Array<u64, { BLOCK_WORDS as usize }> = Array::new();
#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<Addr, Endpoint, { size::ENDPOINTS as usize }, GROWS> = HashMap::new();
#[btf_map(name = "exported")]
static EXPORTED: HashMap<ServiceKey, Exported, { size::EXPORTED as usize }, GROWS> = HashMap::new();
#[btf_map(name = "sock_peer")]
static SOCK_PEER: SkStorage<SockPeer> = SkStorage::new();
#[btf_map(name = "sock_rev")]
static SOCK_REV: LruHashMap<SockRevKey, SockRev, { size::SOCK_REV as usize }> = LruHashMap::new();
#[btf_map(name = "socket_pins")]
static SOCKET_PINS: LruHashMap<PinKey, Pin, { size::SOCKET_PINS as usize }> = LruHashMap::new();
#[btf_map(name = "client_pins")]
static CLIENT_PINS: LruHashMap<PinKey, Pin, { size::CLIENT_PINS as usize }> = LruHashMap::new();
#[btf_map(name = "reset_wishes")]
static RESET_WISHES: HashMap<ServiceKey, ResetWish, { size::RESET_WISHES as usize }, GROWS> = HashMap::new();
#[btf_map(name = "flows")]
static FLOWS: LruHashMap<FlowKey, Flow, { size::FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "left_out")]
static LEFT_OUT: HashMap<u64, LeftOut, { size::LEFT_OUT as usize }, GROWS> = HashMap::new();
#[btf_map(name = "nat")]
static NAT: LruHashMap<NatKey, Nat, { size::NAT as usize }> = LruHashMap::new();
#[btf_map(name = "nat_begun")]
static NAT_BEGUN: PerCpuArray<NatBegun, 1> = PerCpuArray::new();
#[btf_map(name = "frontends")]
static FRONTENDS: HashMap<ServiceKey, ServiceKey, { size::FRONTENDS as usize }, GROWS> = HashMap::new();
#[btf_map(name = "entered")]
static ENTERED: LruHashMap<EnterKey, Entered, { size::ENTERED as usize }> = LruHashMap::new();
#[btf_map(name = "enter_begun")]
static ENTER_BEGUN: PerCpuArray<EnterBegun, 1> = PerCpuArray::new();
#[btf_map(name = "node_traffic")]
static NODE_TRAFFIC: Array<NodeTraffic, { size::NODES as usize }> = Array::new();
#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, { Reason::COUNT as usize }> = PerCpuArray::new();
#[btf_map(name = "config")]
static CONFIG: Array<Config, 1> = Array::new();

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the slot is this CPU's own, and the map outlives the program.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// All zero before the agent has spoken.
#[inline(always)]
pub(crate) fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// Field by field, `check` last: whoever recycles the element writes `check` first, so a mixture shows.
#[inline(always)]
pub(crate) fn service(key: &ServiceKey) -> Option<Service> {
    let found = SERVICES.get_ptr(key)?;
    // SAFETY: the element's memory stays mapped for the life of the program run; volatile reads keep their order.
    unsafe {
        let id = (&raw const (*found).id).read_volatile();
        let generation = (&raw const (*found).generation).read_volatile();
        let slices_at = (&raw const (*found).slices_at).read_volatile();
        let slices_len = (&raw const (*found).slices_len).read_volatile();
        let flags = (&raw const (*found).flags).read_volatile();
        let session_seconds = (&raw const (*found).session_seconds).read_volatile();
        let check = (&raw const (*found).check).read_volatile();
        Some(Service { check, id, generation, slices_at, slices_len, flags, session_seconds })
    }
}

#[inline(always)]
pub(crate) fn slice(at: u32) -> Option<Slice> {
    SLICES.get(at).copied()
}

#[inline(always)]
pub(crate) fn backend(at: u32) -> Option<Backend> {
    BACKENDS.get(at).copied()
}

#[inline(always)]
pub(crate) fn cluster_word(cluster: u16) -> u32 {
    CLUSTER_HEALTH.get(u32::from(cluster)).copied().unwrap_or(0)
}

#[inline(always)]
pub(crate) fn node_word(slot: u32) -> u32 {
    NODE_HEALTH.get(slot).copied().unwrap_or(0)
}

#[inline(always)]
pub(crate) fn node_traffic(slot: u32) -> Option<*mut NodeTraffic> {
    NODE_TRAFFIC.get_ptr_mut(slot)
}

#[inline(always)]
pub(crate) fn may_be_remote(block: u32) -> bool {
    REMOTE_BLOCKS.get(block / 64).is_none_or(|bits| bits >> (block % 64) & 1 != 0)
}

#[inline(always)]
pub(crate) fn ip_entry(addr: &Addr) -> Option<IpEntry> {
    // Most packets are between local pods: their addresses lie where nothing is remote.
    if !may_be_remote(block(addr)) {
        return None;
    }
    IPCACHE.get(&Key::new(128, *addr)).copied()
}

#[inline(always)]
pub(crate) fn endpoint(addr: &Addr) -> Option<Endpoint> {
    // SAFETY: copied out at once; a recycled element is another pod's, whose interface then refuses the packet.
    unsafe { ENDPOINTS.get(addr) }.copied()
}

#[inline(always)]
pub(crate) fn exported(key: &ServiceKey) -> Option<Exported> {
    // SAFETY: copied out at once; a recycled element is another backend's, for one packet.
    unsafe { EXPORTED.get(key) }.copied()
}

/// The kernel does not say what an LRU map lets go: what was put in is counted, and beyond its size something went.
#[inline(always)]
fn made(reason: Reason, done: bool) -> bool {
    if done {
        count(reason);
    }
    done
}

/// Looking marks the flow as used, which keeps it from the LRU's end.
#[inline(always)]
pub(crate) fn knows_flow(key: &FlowKey) -> bool {
    FLOWS.get_ptr(key).is_some()
}

#[inline(always)]
pub(crate) fn flow_began(key: &FlowKey) -> Option<u32> {
    // SAFETY: copied out at once; a recycled element is another flow's beginning, near now.
    unsafe { FLOWS.get(key) }.map(|flow| flow.began)
}

#[inline(always)]
pub(crate) fn remember_flow(key: &FlowKey, first: bool) -> bool {
    if first {
        if flow_began(key).is_some_and(|began| is_repetition(began, ticks())) {
            return true;
        }
        return made(Reason::FlowMade, FLOWS.insert(key, Flow { began: ticks() }, BPF_ANY).is_ok());
    }
    knows_flow(key) || made(Reason::FlowMade, FLOWS.insert(key, Flow { began: 0 }, BPF_ANY).is_ok())
}

/// Whether the sockets of this network namespace keep the addresses that they ask for.
#[inline(always)]
pub(crate) fn is_left_out(namespace: u64) -> bool {
    LEFT_OUT.get_ptr(&namespace).is_some()
}

#[inline(always)]
pub(crate) fn nat(key: &NatKey) -> Option<Nat> {
    // SAFETY: copied out at once; a recycled element sends one packet of one flow where it is not known.
    unsafe { NAT.get(key) }.copied()
}

#[inline(always)]
pub(crate) fn write_nat(key: &NatKey, nat: &Nat) -> bool {
    NAT.insert(key, nat, BPF_ANY).is_ok()
}

#[inline(always)]
pub(crate) fn begun() -> Option<NatBegun> {
    NAT_BEGUN.get(0).copied()
}

#[inline(always)]
pub(crate) fn keep(begun: &NatBegun) {
    if let Some(kept) = NAT_BEGUN.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own, which runs one packet's program at a time, and the map outlives it.
        unsafe { *kept = *begun };
    }
}

#[inline(always)]
pub(crate) fn frontend(key: &ServiceKey) -> Option<ServiceKey> {
    // SAFETY: copied out at once; a recycled element is another service's, for one flow.
    unsafe { FRONTENDS.get(key) }.copied()
}

#[inline(always)]
pub(crate) fn entered(key: &EnterKey) -> Option<Entered> {
    // SAFETY: copied out at once; a recycled element sends one packet of one flow where it is not known.
    unsafe { ENTERED.get(key) }.copied()
}

#[inline(always)]
pub(crate) fn write_entered(key: &EnterKey, to: &Entered, new: bool) -> bool {
    ENTERED.insert(key, to, if new { BPF_NOEXIST } else { BPF_ANY }).is_ok()
}

#[inline(always)]
pub(crate) fn forget_entered(key: &EnterKey) {
    // Another CPU may have done so.
    let _ = ENTERED.remove(key);
}

/// Written only where something changes: most packets find the tick that the one before them wrote.
#[inline(always)]
pub(crate) fn touch_entered(key: &EnterKey, without: u32, with: u32) {
    let Some(found) = ENTERED.get_ptr_mut(key) else { return };
    let now = ticks();
    // SAFETY: the element's memory stays mapped for the life of the program run; of a recycled one the time and state of another
    // flow are touched, which keeps its port a little longer or shorter.
    unsafe {
        if (*found).seen != now {
            (*found).seen = now;
        }
        let state = (*found).state & !without | with;
        if (*found).state != state {
            (*found).state = state;
        }
    }
}

#[inline(always)]
pub(crate) fn begun_entered() -> Option<EnterBegun> {
    ENTER_BEGUN.get(0).copied()
}

#[inline(always)]
pub(crate) fn keep_entered(begun: &EnterBegun) {
    if let Some(kept) = ENTER_BEGUN.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own, which runs one packet's program at a time, and the map outlives it.
        unsafe { *kept = *begun };
    }
}

#[inline(always)]
pub(crate) fn send_entered_to(addr: Addr, port: Port) {
    if let Some(kept) = ENTER_BEGUN.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe {
            (*kept).to.dst = addr;
            (*kept).to.dst_port = port;
        }
    }
}

#[inline(always)]
pub(crate) fn reset_wish(backend: &ServiceKey) -> Option<u32> {
    // SAFETY: copied out at once; a recycled element is another backend's wish, for one packet.
    unsafe { RESET_WISHES.get(backend) }.map(|wish| wish.ticks)
}

/// Of the clock that health words are stamped with.
#[inline(always)]
pub(crate) fn ticks() -> u32 {
    // SAFETY: the helper takes nothing and always succeeds.
    (unsafe { bpf_ktime_get_ns() } >> TICK_SHIFT) as u32
}

/// Where the hook's socket is connected to.
#[inline(always)]
pub(crate) fn sock_peer(ctx: *mut bpf_sock_addr) -> Option<SockPeer> {
    // SAFETY: the hook's own socket; its storage outlives the program run.
    let found = unsafe { SOCK_PEER.get_ptr_mut(&SockAddrContext { sock_addr: ctx }) };
    // SAFETY: the map's own pointer, or null.
    unsafe { found.as_ref() }.copied()
}

/// One allocation for a socket's first; the next is written over it.
#[inline(always)]
pub(crate) fn remember_peer(ctx: *mut bpf_sock_addr, peer: &SockPeer) -> bool {
    let mut first = *peer;
    // SAFETY: as above; the helper copies the value.
    let held =
        unsafe { SOCK_PEER.get_or_insert_ptr_mut(&SockAddrContext { sock_addr: ctx }, Some(&mut first)) };
    // SAFETY: as above. Nobody else connects this socket: the kernel holds its lock.
    match unsafe { held.as_mut() } {
        Some(held) => {
            *held = *peer;
            true
        }
        None => false,
    }
}

#[inline(always)]
pub(crate) fn sock_rev(key: &SockRevKey) -> Option<SockRev> {
    // SAFETY: copied out at once; a recycled element shows another service's address for one message, once.
    unsafe { SOCK_REV.get(key) }.copied()
}

#[inline(always)]
pub(crate) fn remember_socket(key: &SockRevKey, rev: &SockRev) -> bool {
    made(Reason::ReplyMade, SOCK_REV.insert(key, rev, BPF_ANY).is_ok())
}

#[inline(always)]
pub(crate) fn pin(client: Client, key: &PinKey) -> Option<Pin> {
    // SAFETY: copied out at once; the caller holds what it says against the service.
    let found = unsafe {
        match client {
            Client::Socket => SOCKET_PINS.get(key),
            Client::Namespace => CLIENT_PINS.get(key),
        }
    };
    found.copied()
}

#[inline(always)]
pub(crate) fn write_pin(client: Client, key: &PinKey, pin: &Pin) -> bool {
    match client {
        Client::Socket => SOCKET_PINS.insert(key, pin, BPF_ANY).is_ok(),
        Client::Namespace => CLIENT_PINS.insert(key, pin, BPF_ANY).is_ok(),
    }
}
