//! Loading: the object into the kernel, its maps pinned or adopted, its programs behind the links of an earlier agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};
use hawser_ebpf_abi::{
    ABI_VERSION, Addr, BLOCK_WORDS, Backend, Config, Endpoint, EnterBegun, EnterKey, Entered, Exported, Flow,
    FlowKey, IpEntry, LeftOut, Nat, NatBegun, NatKey, NodeTraffic, Pin, PinKey, PrefixKey, Reason, ResetWish,
    Service, ServiceKey, Slice, SockPeer, SockRev, SockRevKey, map, size,
};

use crate::attach::{
    Attachments, Hook, Links, OPTED_IN, SOCKET_PROGRAMS, USERS, classifier, loaded, socket_program,
    users_program,
};
use crate::error::{AttachError, LoadError, MapError, UninstallError};
use crate::lru::{LruSizes, LruUse, let_go_if_resized};
use crate::maps::Maps;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hawser-datapath.o"));

/// How packet programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcKind {
    /// Links with an order, replaced atomically (kernel 6.6, commit e420bed02507).
    Tcx,
    /// A clsact filter.
    Clsact,
}

impl TcKind {
    /// What this kernel has.
    pub fn of_this_kernel() -> Self {
        let running = aya::util::KernelVersion::current();
        let has_tcx = running.is_ok_and(|running| running >= aya::util::KernelVersion::new(6, 6, 0));
        if has_tcx { Self::Tcx } else { Self::Clsact }
    }
}

/// Whether `connect` can tell that a program chose no keep-alive of its own, and so may set it: kernel 6.1
/// (commit 65ddc82d3b96).
pub fn can_set_keep_alive() -> bool {
    let running = aya::util::KernelVersion::current();
    running.is_ok_and(|running| running >= aya::util::KernelVersion::new(6, 1, 0))
}

/// Where things are; found in mountinfo by the caller, never by path.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    pub bpffs: PathBuf,
    /// Below the bpffs, usually `hawser`.
    pub directory: String,
    /// The tunnel device's name: two agents in two network namespaces may share a bpffs.
    pub device: String,
    pub cgroup2: PathBuf,
    pub tc: TcKind,
    pub lru: LruSizes,
}

impl LoadConfig {
    fn root(&self) -> PathBuf {
        self.bpffs.join(&self.directory).join(format!("v{ABI_VERSION}")).join(&self.device)
    }

    pub(crate) fn pin(&self, map: &str) -> PathBuf {
        self.root().join("maps").join(map)
    }
}

/// The programs and maps of one node. Dropping it leaves them at work.
pub struct Datapath {
    object: Ebpf,
    links: Links,
    cgroup2: PathBuf,
    lru: LruSizes,
    pub maps: Maps,
    no_users: Option<LoadError>,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("links", &self.links).finish_non_exhaustive()
    }
}

impl Datapath {
    /// Adopts what an earlier agent left: map content stays, programs are replaced atomically.
    pub fn load(config: &LoadConfig) -> Result<Self, LoadError> {
        let maps = config.root().join("maps");
        let links = config.root().join("links");
        for path in [&maps, &links] {
            fs::create_dir_all(path).map_err(|source| LoadError::Directory { path: path.clone(), source })?;
        }
        for (name, entries) in config.lru.of() {
            let_go_if_resized(&maps.join(name), entries)?;
        }
        for shape in shapes(&config.lru) {
            shape.check(&maps.join(shape.name))?;
        }
        let mut loader = EbpfLoader::new();
        let btf = Btf::from_sys_fs().ok();
        loader.btf(btf.as_ref());
        // Where it cannot be found out, the verifier says so.
        let helper = BpfHelper::BPF_FUNC_skb_get_xfrm_state;
        if !is_helper_supported(ProgramType::SchedClassifier, helper).unwrap_or(true) {
            loader.override_global("HAS_XFRM", &0u32, true);
        }
        for name in map::ALL {
            loader.map_pin_path(name, maps.join(name));
        }
        for (name, entries) in config.lru.of() {
            loader.map_max_entries(name, entries);
        }
        let mut object = loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?;
        load_programs(&mut object)?;
        let users = users_program(&mut object).and_then(|users| users.load());
        let no_users =
            users.err().map(|error| LoadError::Program { program: USERS, source: Box::new(error) });
        let maps = Maps::open(&mut object)?;
        let links = Links::adopt(links, config.tc, no_users.is_none(), &mut object)?;
        Ok(Self { object, links, cgroup2: config.cgroup2.clone(), lru: config.lru, maps, no_users })
    }

    /// Brings the packet programs to where they should be.
    pub fn attach(&mut self, wanted: &Attachments) -> Vec<AttachError> {
        self.links.sync_devices(&mut self.object, wanted)
    }

    /// The programs of the tunnel alone: on a device that is to get its first peer.
    pub fn attach_tunnel(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.links.add_device(&mut self.object, Hook::TunnelIn, ifindex)?;
        self.links.add_device(&mut self.object, Hook::TunnelOut, ifindex)
    }

    /// The guards alone: on a device that has just appeared, and is not known to be a pod's.
    pub fn attach_guards(&mut self, ifindex: u32) -> Result<(), AttachError> {
        if self.links.is_pod(ifindex) {
            return Ok(());
        }
        self.links.add_device(&mut self.object, Hook::GuardOut, ifindex)?;
        if self.links.is_underlay(ifindex) {
            return Ok(());
        }
        self.links.add_device(&mut self.object, Hook::GuardIn, ifindex)
    }

    /// Brings the socket programs to every child cgroup; new ones appear at any time.
    pub fn attach_cgroups(&mut self) -> Vec<AttachError> {
        self.links.sync_cgroups(&mut self.object, &self.cgroup2)
    }

    /// Why users' connections are not counted on this kernel.
    pub fn no_users(&self) -> Option<&LoadError> {
        self.no_users.as_ref()
    }

    /// What the LRU maps took in, by the programs' own count. One system call per reason.
    pub fn lru(&self) -> Result<Vec<LruUse>, MapError> {
        Ok(self.lru.uses(&self.maps.counters()?))
    }

    /// For tests that run a packet program on a packet of theirs.
    pub fn program(&mut self, hook: Hook) -> Option<&mut aya::programs::SchedClassifier> {
        loaded(&mut self.object, hook.program()).ok()
    }
}

fn load_programs(object: &mut Ebpf) -> Result<(), LoadError> {
    for hook in Hook::ALL.into_iter().filter(|hook| !OPTED_IN.contains(hook)) {
        let program = hook.program();
        let loaded = classifier(object, program).and_then(|classifier| classifier.load());
        loaded.map_err(|source| LoadError::Program { program, source: Box::new(source) })?;
    }
    for program in SOCKET_PROGRAMS {
        let loaded = socket_program(object, program).and_then(|socket| socket.load());
        loaded.map_err(|source| LoadError::Program { program, source: Box::new(source) })?;
    }
    Ok(())
}

/// What a pinned map must look like: aya 0.14 takes any map that it finds at the path.
struct Shape {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

const fn shape<K, V>(name: &'static str, kind: MapType, entries: u32) -> Shape {
    Shape { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries }
}

fn shapes(lru: &LruSizes) -> [Shape; 24] {
    [
        shape::<ServiceKey, Service>(map::SERVICES, MapType::Hash, size::SERVICES),
        shape::<u32, Slice>(map::SLICES, MapType::Array, size::SLICES),
        shape::<u32, Backend>(map::BACKENDS, MapType::Array, size::BACKENDS),
        shape::<u32, u32>(map::CLUSTER_HEALTH, MapType::Array, size::CLUSTERS),
        shape::<u32, u32>(map::NODE_HEALTH, MapType::Array, size::NODES),
        shape::<PrefixKey, IpEntry>(map::IPCACHE, MapType::LpmTrie, size::IPCACHE),
        shape::<u32, u64>(map::REMOTE_BLOCKS, MapType::Array, BLOCK_WORDS),
        shape::<Addr, Endpoint>(map::ENDPOINTS, MapType::Hash, size::ENDPOINTS),
        shape::<ServiceKey, Exported>(map::EXPORTED, MapType::Hash, size::EXPORTED),
        shape::<u32, SockPeer>(map::SOCK_PEER, MapType::SkStorage, 0),
        shape::<SockRevKey, SockRev>(map::SOCK_REV, MapType::LruHash, lru.sock_rev),
        shape::<PinKey, Pin>(map::SOCKET_PINS, MapType::LruHash, lru.socket_pins),
        shape::<PinKey, Pin>(map::CLIENT_PINS, MapType::LruHash, lru.client_pins),
        shape::<ServiceKey, ResetWish>(map::RESET_WISHES, MapType::Hash, size::RESET_WISHES),
        shape::<FlowKey, Flow>(map::FLOWS, MapType::LruHash, lru.flows),
        shape::<u64, LeftOut>(map::LEFT_OUT, MapType::Hash, size::LEFT_OUT),
        shape::<NatKey, Nat>(map::NAT, MapType::LruHash, lru.nat),
        shape::<u32, NatBegun>(map::NAT_BEGUN, MapType::PerCpuArray, 1),
        shape::<ServiceKey, ServiceKey>(map::FRONTENDS, MapType::Hash, size::FRONTENDS),
        shape::<EnterKey, Entered>(map::ENTERED, MapType::LruHash, lru.entered),
        shape::<u32, EnterBegun>(map::ENTER_BEGUN, MapType::PerCpuArray, 1),
        shape::<u32, NodeTraffic>(map::NODE_TRAFFIC, MapType::Array, size::NODES),
        shape::<u32, u64>(map::COUNTERS, MapType::PerCpuArray, Reason::COUNT),
        shape::<u32, Config>(map::CONFIG, MapType::Array, 1),
    ]
}

impl Shape {
    fn check(&self, path: &Path) -> Result<(), LoadError> {
        if !path.exists() {
            return Ok(());
        }
        let wanted = describe(self.kind, self.key, self.value, self.entries);
        let found = match MapInfo::from_pin(path) {
            Ok(info) => describe(
                info.map_type().unwrap_or(MapType::Unspecified),
                info.key_size() as usize,
                info.value_size() as usize,
                info.max_entries(),
            ),
            Err(error) => format!("unreadable: {error}"),
        };
        if found == wanted {
            return Ok(());
        }
        Err(LoadError::Shape { path: path.to_owned(), found, wanted })
    }
}

fn describe(kind: MapType, key: usize, value: usize, entries: u32) -> String {
    format!("{kind:?}, key {key}, value {value}, {entries} entries")
}

/// Takes the datapath away, of whatever ABI.
pub fn uninstall(config: &LoadConfig) -> Result<(), UninstallError> {
    retire(config)?;
    take_away(&config.root())
}

/// Takes away what an agent with another ABI left at work. To be called when this one's is whole: until then the old
/// programs answer from the old maps, and afterwards they would answer from maps that nobody writes.
pub fn retire(config: &LoadConfig) -> Result<(), UninstallError> {
    let own = config.root();
    let Ok(versions) = fs::read_dir(config.bpffs.join(&config.directory)) else { return Ok(()) };
    let roots = versions.filter_map(|version| Some(version.ok()?.path().join(&config.device)));
    roots.filter(|root| *root != own && root.exists()).try_for_each(|root| take_away(&root))
}

/// Links first, so that no program runs on maps that are going; then the maps.
fn take_away(root: &Path) -> Result<(), UninstallError> {
    for part in ["links", "maps"] {
        remove(&root.join(part), |path| fs::remove_dir_all(path))?;
    }
    remove(root, |path| fs::remove_dir(path))?;
    // Another device's datapath may live beside it.
    for parent in root.ancestors().skip(1).take(2) {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn remove(path: &Path, how: impl Fn(&Path) -> io::Result<()>) -> Result<(), UninstallError> {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(UninstallError { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}
