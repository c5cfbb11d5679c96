//! One side: the agent's probing task and our engine, as in an agent, and nothing else.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hawser_discovery::{LivenessConfig, NodeId, Reflector, Shared, Sharers};
use hawser_discovery_net::{Prober, ProberConfig, spawn_prober};
use hawser_model::{ClusterHealth, ClusterId, ClusterIdWidth, NodeIndex, NodeName, Time};
use hawser_tunnels::DeviceName;
use hawser_tunnels_linux::{Engine, EngineSettings, PrivateKey, Protocol};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::super::part;

/// As an agent asks; and as often as its API server and its tunnels tell it.
const PROBE_PORT: u16 = 51872;
const TOLD: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Size {
    pub(super) side: u8,
    pub(super) device: String,
    pub(super) tunnel: bool,
    pub(super) port: u16,
    pub(super) mtu: u16,
    pub(super) clusters: u32,
    pub(super) nodes: u32,
    pub(super) sharers: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Order {
    /// The addresses are there.
    Begin,
    Use {
        nodes: u32,
    },
    Count,
    /// Ask nobody any more.
    Rest,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) sent: u64,
    pub(super) replies: u64,
    pub(super) up: u32,
    pub(super) watched: u32,
    pub(super) shared: u32,
    pub(super) others: u32,
    pub(super) interval_of_others_s: f64,
}

/// Of a side itself.
pub(super) fn own(side: u8) -> Ipv4Addr {
    Ipv4Addr::new(240 + side, 0, 0, 1)
}

pub(in super::super) fn run_part(args: &str) -> Result<()> {
    let size: Size = part::parse(args)?;
    let settings = || -> Result<EngineSettings> {
        Ok(EngineSettings {
            device: DeviceName::parse(&size.device)?,
            key: PrivateKey::load_or_create(&PathBuf::from("/run/hawser/probes.key"))?,
            port: size.port,
            more_ports: Vec::new(),
            mark: 0,
            mtu: size.mtu,
            take_over: false,
            protocol: Protocol::Wireguard,
        })
    };
    let _engine = match size.tunnel {
        true => Some(Engine::start(settings()?).context("starting the engine")?),
        false => None,
    };
    // As the agent's.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(runtime.spawn(serve(size)))?
}

async fn serve(size: Size) -> Result<()> {
    let nodes = nodes(&size)?;
    let mut orders = part::told();
    part::say(&"ready")?;
    orders.recv().await.context("to begin")?;
    let started = Instant::now();
    let config = ProberConfig {
        address: own(size.side),
        port: PROBE_PORT,
        device: Some(size.device.clone()),
        liveness: LivenessConfig { mtu: Some(size.mtu), ..LivenessConfig::default() },
        clock: Arc::new(move || Time::from_duration(started.elapsed())),
        seed: rand::random(),
    };
    let (prober, mut verdicts) = spawn_prober(config)?;
    tokio::spawn(async move { while verdicts.recv().await.is_some() {} });
    prober.set_peers(nodes.clone()).await?;
    let (using, used) = watch::channel(0);
    tokio::spawn(tell(prober.clone(), nodes.keys().copied().collect(), used, size.sharers));
    part::say(&Counted::default())?;
    while let Some(order) = orders.recv().await {
        match serde_json::from_value(order)? {
            Order::Use { nodes } => drop(using.send_replace(nodes)),
            Order::Rest => prober.set_peers(BTreeMap::new()).await?,
            Order::Begin | Order::Count => {}
        }
        part::say(&count(&prober).await?)?;
    }
    Ok(())
}

/// What the agent's loop is told: what is used, and by whom the watching is divided.
async fn tell(
    prober: Prober,
    nodes: Vec<NodeId>,
    mut used: watch::Receiver<u32>,
    sharers: u32,
) -> Result<()> {
    let names = (0..sharers).map(|n| NodeName::parse(&format!("node-{n}")));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let mut tick = tokio::time::interval(TOLD);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = used.changed() => changed?,
        }
        let many = usize::try_from(*used.borrow_and_update())?;
        prober.used(nodes.iter().take(many).copied().collect()).await?;
        let sharers = Sharers::new(names.first().context("a name")?, &names);
        prober.shared(Shared { sharers, ..Shared::default() }).await?;
    }
}

async fn count(prober: &Prober) -> Result<Counted> {
    let seen = prober.snapshot().await?;
    let up = seen.nodes.values().filter(|node| node.verdict == ClusterHealth::Up).count();
    let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
    let mut counted = Counted {
        sent: seen.counters.sent,
        replies: seen.counters.replies,
        up: count(up),
        ..Counted::default()
    };
    if let Some(budget) = seen.budget {
        (counted.watched, counted.shared) = (count(budget.watched.len()), count(budget.shared.len()));
        counted.others = count(budget.others);
        counted.interval_of_others_s = budget.interval_of_others.as_secs_f64();
    }
    Ok(counted)
}

/// At the other side. One whole cluster after the other, so that those in use are of few.
fn nodes(size: &Size) -> Result<BTreeMap<NodeId, Reflector>> {
    let other = 240 + (3 - size.side);
    let mut nodes = BTreeMap::new();
    for cluster in 1..=size.clusters {
        for index in 1..=size.nodes {
            let node = NodeId {
                cluster: ClusterId::new(cluster, ClusterIdWidth::Bits9)?,
                index: NodeIndex::new(index).context("an index")?,
            };
            let address = Ipv4Addr::new(other, u8::try_from(cluster)?, 1, u8::try_from(index)?);
            nodes.insert(node, Reflector { address, mtu: Some(size.mtu) });
        }
    }
    Ok(nodes)
}
