//! A mesh of many nodes, of which few are spoken to: what a driver takes to be told of them all, of one pod more, and what the
//! first packet to one of them meets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hawser_model::{ClusterId, ClusterIdWidth, ClusterName, ClusterRef, NodeName, PublicKey};
use hawser_tunnels::{Desired, Device, DeviceName, Mark, Peer, PeerName, Settled, plan};
use hawser_tunnels_linux::{Choice, Driver, WireguardConfig, WireguardDriver};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::super::part::{self, Part, usage};
use super::super::result::Row;
use crate::place::Place;

/// Of 254 other clusters of 100 nodes each.
pub(super) const PEERS: u32 = 25_400;
/// A node's own addresses, and its pods' CIDRs.
pub(super) const PREFIXES: u32 = 8;
/// Where there is no CIDR for a node, each pod's address is a prefix.
const PODS: u32 = 10;
const MARK: Mark = Mark { value: 0x0048_0000, mask: 0x00ff_0000 };

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Size {
    peers: u32,
    prefixes: u32,
    /// Prefixes are single addresses.
    single: bool,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Took {
    /// From nothing to everything carried out: observed, planned, checked, applied.
    all: f64,
    /// One pod more, before the plan that asks for it: checked, applied.
    early: f64,
    /// Another pod, by a plan: what changed found, planned, checked, applied.
    change: f64,
    /// A look at everything, and the plan that finds nothing to do.
    look: f64,
    /// MiB of all of it at most, the engine and the planner.
    peak: f64,
}

/// A few times on one side of the pair, in an engine and a table of its own.
pub(super) fn measure(place: &Place, quick: bool) -> Result<Vec<Row>> {
    let shrink = if quick { 100 } else { 1 };
    let of = |prefixes, single| -> Result<Took> {
        let size = Size { peers: PEERS / shrink, prefixes, single };
        Part::start_in(place, "tunnel-many", &size)?.hear()
    };
    let (cidrs, pods) = (of(PREFIXES, false)?, of(PODS, true)?);
    let row = |key: &str, value, goal| Row::plain(key, value, "ms", "lower", goal);
    Ok(vec![
        row("25,400 peers x 8 prefixes: configured", cidrs.all, Some(5000.0)),
        Row::plain("  peak memory, planner and engine", cidrs.peak, "MiB", "lower", None),
        row("254,000 prefixes of one address: configured", pods.all, None),
        row("  one pod added: checked, carried out", pods.early, Some(5.0)),
        row("  the plan that follows: what changed alone", pods.change, None),
        row("  a look at everything that finds nothing", pods.look, None),
    ])
}

pub(in super::super) fn run_part(args: &str) -> Result<()> {
    let size: Size = part::parse(args)?;
    let config = WireguardConfig {
        choice: Choice::Userspace,
        device: DeviceName::parse("many0")?,
        port: 0,
        more_ports: Vec::new(),
        mtu: 1420,
        mark: MARK,
        table: 18552,
        private_key: PathBuf::from("/run/hawser/many.key"),
        take_over: false,
    };
    let driver = WireguardDriver::start(config.clone()).context("starting the driver")?;
    let mut desired = desired(&driver, &config, size)?;
    let began = Instant::now();
    let (mut settled, _) = reconcile(&driver, &desired)?;
    let all = millis(began);

    let peer = &desired.peers[0];
    let pod = prefix(size, size.peers, 0)?;
    let began = Instant::now();
    let op = settled.ahead(&peer.name, peer.public_key, pod, &desired).context("nothing is in its way")?;
    driver.apply(&op)?;
    let early = millis(began);

    let before = desired.clone();
    desired.peers[0].allowed.extend([pod, prefix(size, size.peers, 1)?]);
    let began = Instant::now();
    let (ops, settled) = settled.follow(&before, &desired)?.context("nothing is contradicted")?;
    ops.iter().try_for_each(|op| driver.apply(op))?;
    let change = millis(began);
    ensure!(ops.len() == 1, "{ops:?}");
    drop((settled, before));

    let began = Instant::now();
    let (_, left) = reconcile(&driver, &desired)?;
    let look = millis(began);
    ensure!(left == 0, "{left} operations are left");
    driver.remove()?;
    let took = Took { all, early, change, look, peak: usage(std::process::id())?.peak_mib };
    println!("{}", serde_json::to_string(&took)?);
    Ok(())
}

/// What is settled then, and how many operations that took.
fn reconcile(driver: &dyn Driver, desired: &Desired) -> Result<(Settled, usize)> {
    let observed = driver.observe()?;
    let plan = plan(desired, &observed);
    ensure!(plan.problems.is_empty(), "{:?}", plan.problems.first());
    let settled = Settled::after(&plan, &observed, desired)?;
    drop(observed);
    plan.ops.iter().try_for_each(|op| driver.apply(op))?;
    Ok((settled, plan.ops.len()))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn desired(driver: &WireguardDriver, config: &WireguardConfig, size: Size) -> Result<Desired> {
    let peers = (0..size.peers).map(|peer| {
        let id = ClusterId::new(peer / 100 + 1, ClusterIdWidth::Bits9)?;
        let cluster = ClusterRef { name: ClusterName::parse(&format!("c{}", peer / 100))?, id };
        let allowed = (0..size.prefixes).map(|at| prefix(size, peer, at)).collect::<Result<BTreeSet<_>>>()?;
        Ok(Peer {
            name: PeerName { cluster, node: NodeName::parse(&format!("node-{}", peer % 100))? },
            public_key: key(peer)?,
            endpoint: (Ipv4Addr::from(0xac20_0000 | peer), 51871).into(),
            allowed,
            keepalive: None,
            more_ports: Vec::new(),
            boot_id: None,
            esp: None,
            via: None,
            slot: peer,
        })
    });
    Ok(Desired {
        device: Device {
            name: config.device.clone(),
            public_key: driver.public_key(),
            port: driver.port()?,
            mtu: config.mtu,
            mark: MARK,
        },
        addresses: [IpAddr::V4(Ipv4Addr::new(241, 255, 0, 1)), "fd01::1".parse()?].into(),
        peers: peers.collect::<Result<_>>()?,
        routes: ["10.0.0.0/8", "fd00::/16"].iter().map(|net| Ok(net.parse()?)).collect::<Result<_>>()?,
        guards: BTreeSet::new(),
    })
}

/// Any 32 bytes are a key; nobody has the other half.
pub(super) fn key(peer: u32) -> Result<PublicKey> {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&peer.to_le_bytes());
    Ok(PublicKey::new(bytes)?)
}

/// The prefix of a peer: no two are alike, and none lies in another.
fn prefix(size: Size, peer: u32, at: u32) -> Result<IpNet> {
    let number = peer * PODS.max(PREFIXES) + at;
    Ok(match (size.single, at % 2) {
        (true, _) => IpNet::new(Ipv4Addr::from(0x0a00_0000 | number).into(), 32)?,
        (false, 0) => IpNet::new(Ipv4Addr::from(0x0a00_0000 | number << 4).into(), 28)?,
        (false, _) => {
            let address = Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(number) << 64);
            IpNet::new(address.into(), 64)?
        }
    })
}
