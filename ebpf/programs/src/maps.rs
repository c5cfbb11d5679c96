//! The maps, and look-ups that copy out: an element of a hash may be recycled under whoever holds a pointer to it.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use hawser_ebpf_abi::{
    Addr, Backend, Config, Endpoint, Exported, Flow, FlowKey, IpEntry, Reason, Service, ServiceKey, Slice,
    SockRev, size,
};

#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceKey, Service, { size::SERVICES as usize }> = HashMap::new();
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
#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<Addr, Endpoint, { size::ENDPOINTS as usize }> = HashMap::new();
#[btf_map(name = "exported")]
static EXPORTED: HashMap<ServiceKey, Exported, { size::EXPORTED as usize }> = HashMap::new();
#[btf_map(name = "sock_rev")]
static SOCK_REV: LruHashMap<u64, SockRev, { size::SOCK_REV as usize }> = LruHashMap::new();
#[btf_map(name = "flows")]
static FLOWS: LruHashMap<FlowKey, Flow, { size::FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, { Reason::COUNT as usize }> = PerCpuArray::new();
#[btf_map(name = "config")]
static CONFIG: Array<Config, 1> = Array::new();

const BPF_ANY: u64 = 0;

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
        let affinity = (&raw const (*found).affinity).read_volatile();
        let check = (&raw const (*found).check).read_volatile();
        Some(Service { check, id, generation, slices_at, slices_len, affinity, flags: 0 })
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
pub(crate) fn ip_entry(addr: &Addr) -> Option<IpEntry> {
    IPCACHE.get(&Key::new(128, *addr)).copied()
}

#[inline(always)]
pub(crate) fn endpoint(addr: &Addr) -> Option<Endpoint> {
    // SAFETY: copied out at once; a recycled element is another pod's, whose interface then refuses the packet.
    unsafe { ENDPOINTS.get(addr) }.copied()
}

#[inline(always)]
pub(crate) fn is_exported(key: &ServiceKey) -> bool {
    EXPORTED.get_ptr(key).is_some()
}

/// Looking marks the flow as used, which keeps it from the LRU's end.
#[inline(always)]
pub(crate) fn knows_flow(key: &FlowKey) -> bool {
    FLOWS.get_ptr(key).is_some()
}

#[inline(always)]
pub(crate) fn remember_flow(key: &FlowKey) -> bool {
    knows_flow(key) || FLOWS.insert(key, Flow { flags: 0 }, BPF_ANY).is_ok()
}

#[inline(always)]
pub(crate) fn sock_rev(cookie: u64) -> Option<SockRev> {
    // SAFETY: copied out at once; a recycled element names another backend, and the caller compares that.
    unsafe { SOCK_REV.get(cookie) }.copied()
}

#[inline(always)]
pub(crate) fn remember_socket(cookie: u64, rev: &SockRev) -> bool {
    SOCK_REV.insert(cookie, rev, BPF_ANY).is_ok()
}
