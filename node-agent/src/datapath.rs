//! The kernel's programs and maps, behind one lock (health words have another): what was applied is remembered, so that a preview needs no kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use hawser_agent_core::{Flip, Plan, WordPlace, WordWrite};
use hawser_discovery::{NodeId, Users};
use hawser_ebpf::{
    Attachments, Connection, Datapath as Loaded, LoadConfig, LruSizes, TcKind, Words, retire, uninstall,
};
use hawser_ebpf_abi::{DesiredDatapath, ENDPOINT_TRANSLATED, PrefixKey, Reason, ServiceKey, size};
use hawser_model::{ClusterId, ClusterIdWidth, HealthWord};
use hawser_tunnels::{Desired, DeviceName};

use crate::clock::Clock;
use crate::config::Config;
use crate::interfaces::Edge;
use crate::metrics::{MapFill, fills};
use crate::preflight::Mounts;
use crate::reconcile::Step;

#[derive(Debug)]
pub(crate) struct Datapath {
    clock: Clock,
    words: Mutex<Words>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    loaded: Loaded,
    config: LoadConfig,
    /// What is known to be in the kernel; none before the first sync, and after one that had problems.
    applied: Option<(Arc<Plan>, Attachments)>,
}

impl Datapath {
    /// Adopts what an earlier run left at work.
    pub(crate) fn load(mounts: &Mounts, config: &Config, clock: Clock) -> Result<Self> {
        let config = load_config(mounts, config);
        let loaded = Loaded::load(&config).context("loading the datapath")?;
        let words = Mutex::new(Words::open(&config).context("opening the maps of health words")?);
        Ok(Self { clock, words, inner: Mutex::new(Inner { loaded, config, applied: None }) })
    }

    /// Whether the kernel takes our programs and maps: all of them are loaded in a place of their own, attached to
    /// nothing, and taken away again. About a second.
    pub(crate) fn probe(mounts: &Mounts, config: &Config) -> Result<()> {
        let place = probe_config(mounts, config);
        // An earlier probe may have been killed.
        uninstall(&place).context("removing an earlier probe of the kernel")?;
        let loaded = Loaded::load(&place).map(drop);
        uninstall(&place).context("removing the probe of the kernel")?;
        loaded.context("probing the kernel")
    }

    /// Takes everything out of the kernel.
    pub(crate) fn remove(mounts: &Mounts, config: &Config) -> Result<()> {
        uninstall(&probe_config(mounts, config)).context("removing a probe of the kernel")?;
        uninstall(&load_config(mounts, config)).context("removing the datapath")
    }

    /// The health words that say something: of all clusters, and of the given nodes' slots.
    pub(crate) fn words(&self, slots: impl Iterator<Item = u32>) -> Result<Vec<WordWrite>> {
        let inner = self.lock();
        let mut words = Vec::new();
        for id in 1..=u32::from(ClusterId::MAX) {
            let Ok(cluster) = ClusterId::new(id, ClusterIdWidth::Bits9) else { continue };
            let raw = inner.loaded.maps.cluster_health(cluster.get())?;
            words.push(WordWrite { place: WordPlace::Cluster(cluster), word: HealthWord::from_raw(raw) });
        }
        for slot in slots.filter(|slot| *slot < size::NODES) {
            let raw = inner.loaded.maps.node_health(slot)?;
            words.push(WordWrite { place: WordPlace::Node(slot), word: HealthWord::from_raw(raw) });
        }
        words.retain(|write| write.word.raw() != 0);
        Ok(words)
    }

    /// What users' connections to these nodes came to, by their slots; none while the maps are being written.
    pub(crate) fn users(&self, slots: impl Iterator<Item = (NodeId, u32)>) -> Option<Vec<(NodeId, Users)>> {
        let inner = self.inner.try_lock().ok()?;
        let maps = &inner.loaded.maps;
        let read = |(node, slot)| {
            let seen = maps.node_traffic(slot).ok()?;
            let users = Users {
                begun: seen.begun,
                established: seen.established,
                spoke: seen.spoke,
                late: seen.late,
                stalled: seen.stalled,
                closed: seen.closed,
                late_clients: maps.late_clients(&seen),
            };
            Some((node, users))
        };
        Some(slots.filter_map(read).collect())
    }

    /// Why users' connections are not counted on this kernel.
    pub(crate) fn no_users(&self) -> Option<String> {
        self.lock().loaded.no_users().map(ToString::to_string)
    }

    /// Waits for no sync.
    pub(crate) fn write_word(&self, write: WordWrite) -> Result<()> {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        match write.place {
            WordPlace::Cluster(cluster) => words.set_cluster(cluster.get(), write.word.raw())?,
            WordPlace::Node(slot) => words.set_node(slot, write.word.raw())?,
        }
        Ok(())
    }

    /// Peers are told that this agent was stopped on purpose.
    pub(crate) fn say_stopped(&self) -> Result<()> {
        Ok(self.lock().loaded.maps.say_stopped()?)
    }

    /// Local picks are left to kube-proxy or the CNI from now on (decision 8).
    pub(crate) fn say_own_stale(&self) {
        if let Err(error) = self.lock().loaded.maps.say_own_stale() {
            tracing::warn!("what the last run knew of the own cluster is still used: {error}");
        }
    }

    /// Nothing comes out of the tunnel unjudged: to be called before its device gets a peer.
    pub(crate) fn guard_tunnel(&self, device: &DeviceName) -> Result<()> {
        let ifindex = nix::net::if_::if_nametoindex(device.as_str());
        let ifindex = ifindex.with_context(|| format!("looking for the device {device}"))?;
        Ok(self.lock().loaded.attach_tunnel(ifindex)?)
    }

    /// Before there is a plan: what is for these prefixes leaves by none of these devices. Gives what did not succeed.
    pub(crate) fn guard(&self, guards: &Desired, edge: &BTreeSet<u32>) -> Vec<String> {
        let mut inner = self.lock();
        let prefixes = guards.guards.union(&guards.routes);
        let keys = prefixes.filter_map(|prefix| PrefixKey::new(prefix.addr(), prefix.prefix_len()));
        let report = inner.loaded.maps.guard(keys);
        let devices = edge.iter().filter_map(|device| inner.loaded.attach_guards(*device).err());
        let devices: Vec<String> = devices.map(|error| error.to_string()).collect();
        report.problems.iter().map(ToString::to_string).chain(devices).collect()
    }

    /// A device that has just come up, unless it is known. One that is gone again needs no guard.
    pub(crate) fn guard_device(&self, ifindex: u32) {
        if let Err(error) = self.lock().loaded.attach_guards(ifindex) {
            tracing::debug!(
                ifindex,
                "a new device could not be guarded, the next reconcile tries again: {error}"
            );
        }
    }

    /// Programs first: an address that a service leads to must be steered before anybody is sent there. Gives what did
    /// not succeed; the rest was done.
    pub(crate) fn sync(&self, plan: &Arc<Plan>, edge: &Edge) -> Vec<String> {
        let desired = &plan.datapath;
        let wanted = attachments(desired, edge);
        let mut inner = self.lock();
        let mut problems: Vec<String> = Vec::new();
        problems.extend(inner.loaded.attach(&wanted).iter().map(ToString::to_string));
        problems.extend(inner.loaded.attach_cgroups().iter().map(ToString::to_string));
        let report = inner.loaded.maps.sync(desired, self.clock.now());
        if report.writes > 0 {
            tracing::debug!(writes = report.writes, "maps");
        }
        problems.extend(report.problems.iter().map(ToString::to_string));
        if problems.is_empty() && inner.applied.is_none() {
            problems.extend(retire(&inner.config).err().map(|error| error.to_string()));
        }
        inner.applied = problems.is_empty().then(|| (plan.clone(), wanted));
        problems
    }

    /// A few services and remote pods alone, and first what they lead to. Gives what did not succeed.
    pub(crate) fn flip(&self, flip: &Flip) -> Vec<String> {
        let pods = flip.pods.iter().map(|(ip, pod)| (PrefixKey::host((*ip).into()), pod.entry)).collect();
        let report = self.lock().loaded.maps.flip(&pods, &flip.services, &flip.exported, self.clock.now());
        if report.writes > 0 {
            tracing::debug!(writes = report.writes, "maps");
        }
        report.problems.iter().map(ToString::to_string).collect()
    }

    /// What [`Datapath::sync`] would change.
    pub(crate) fn preview(&self, desired: &DesiredDatapath, edge: &Edge) -> Vec<Step> {
        let wanted = attachments(desired, edge);
        let inner = self.lock();
        let nothing = Default::default();
        let (is, attached) = inner.applied.as_ref().unwrap_or(&nothing);
        let is = &is.datapath;
        let mut steps = Vec::new();
        programs(attached, &wanted, &mut steps);
        if is.config != desired.config {
            steps.push(Step { part: "map", text: format!("write config: {:?}", desired.config) });
        }
        entries("ipcache", &is.ipcache, &desired.ipcache, ToString::to_string, &mut steps);
        entries("endpoints", &is.endpoints, &desired.endpoints, ToString::to_string, &mut steps);
        entries("exported", &is.exported, &desired.exported, frontend, &mut steps);
        entries("reset_wishes", &is.reset_wishes, &desired.reset_wishes, frontend, &mut steps);
        entries("left_out", &is.left_out, &desired.left_out, ToString::to_string, &mut steps);
        entries("frontends", &is.frontends, &desired.frontends, frontend, &mut steps);
        entries("services", &is.services, &desired.services, frontend, &mut steps);
        steps
    }

    /// None while not everything is known to be in the kernel.
    pub(crate) fn fills(&self) -> Option<Vec<MapFill>> {
        let inner = self.lock();
        let (plan, _) = inner.applied.as_ref()?;
        let mut fills = fills(&plan.datapath);
        fills.extend(inner.loaded.lru().unwrap_or_default().iter().map(MapFill::of_lru));
        Some(fills)
    }

    /// Whether a connection is over by the datapath's own rule; one of another namespace only when a pod of this node has it.
    /// What cannot be told is not over.
    pub(crate) fn is_over(&self, connection: &Connection, of_pod: bool) -> bool {
        let maps = &self.lock().loaded.maps;
        (!of_pod || maps.is_local_pod(connection.local)) && maps.is_over(connection).unwrap_or(false)
    }

    pub(crate) fn counters(&self) -> Result<Vec<(Reason, u64)>> {
        Ok(self.lock().loaded.maps.counters()?)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic left half-done, the next sync sees.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load_config(mounts: &Mounts, config: &Config) -> LoadConfig {
    // Where nothing enters from outside, nothing is remembered of it.
    let entered = if config.uplinks.is_empty() { LruSizes::LEAST } else { config.lru.entered };
    LoadConfig {
        bpffs: mounts.bpffs.clone(),
        directory: config.bpf_dir.clone(),
        device: config.device.to_string(),
        cgroup2: mounts.cgroup2.clone(),
        tc: TcKind::of_this_kernel(),
        lru: LruSizes { entered, ..config.lru },
    }
}

/// Nobody else's: not the real one's, nor that of an agent with another device.
fn probe_config(mounts: &Mounts, config: &Config) -> LoadConfig {
    let real = load_config(mounts, config);
    LoadConfig { directory: format!("{}-probe-{}", real.directory, real.device), ..real }
}

/// What is a pod's is no edge, whatever the last look took it for.
fn attachments(desired: &DesiredDatapath, edge: &Edge) -> Attachments {
    let pods: BTreeSet<u32> = desired.endpoints.values().map(|endpoint| endpoint.ifindex).collect();
    let translated = desired.endpoints.values().filter(|endpoint| endpoint.flags & ENDPOINT_TRANSLATED != 0);
    Attachments {
        tunnel: Some(desired.config.tunnel_ifindex).filter(|index| *index != 0),
        translated: translated.map(|endpoint| endpoint.ifindex).collect(),
        edge: edge.all.difference(&pods).copied().collect(),
        underlay: edge.underlay.difference(&pods).copied().collect(),
        pods,
        uplinks: desired.uplinks.clone(),
    }
}

fn frontend(key: &ServiceKey) -> String {
    format!("{}:{}/{}", key.addr, key.port, key.proto)
}

fn programs(is: &Attachments, wanted: &Attachments, steps: &mut Vec<Step>) {
    let sets = |of: &Attachments| {
        let tunnel: BTreeSet<u32> = of.tunnel.into_iter().collect();
        [
            ("tunnel_in, tunnel_out", tunnel),
            ("pod_from", of.pods.clone()),
            ("pod_to", of.translated.clone()),
            ("underlay_in", of.underlay.clone()),
            ("guard_in, guard_out", of.edge.clone()),
            ("uplink_in, uplink_out", of.uplinks.clone()),
        ]
    };
    for ((name, is), (_, wanted)) in sets(is).into_iter().zip(sets(wanted)) {
        let attach = wanted.difference(&is).map(|index| format!("attach {name} to interface {index}"));
        let detach = is.difference(&wanted).map(|index| format!("detach {name} from interface {index}"));
        steps.extend(attach.chain(detach).map(|text| Step { part: "program", text }));
    }
}

fn entries<K: Ord, V: PartialEq + fmt::Debug>(
    map: &str,
    is: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    show: impl Fn(&K) -> String,
    steps: &mut Vec<Step>,
) {
    let write = wanted.iter().filter(|(key, value)| is.get(key) != Some(value));
    let write = write.map(|(key, value)| format!("write {map} {}: {value:?}", show(key)));
    let remove = is.keys().filter(|key| !wanted.contains_key(key));
    let remove = remove.map(|key| format!("remove {map} {}", show(key)));
    steps.extend(write.chain(remove).map(|text| Step { part: "map", text }));
}
