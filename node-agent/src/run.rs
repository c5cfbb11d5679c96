//! Start to stop: checks, joins, brings back what the last run had, and then drives. And the other verb: remove.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result};
use hawser_agent_core::{Agent, AgentConfig, HealthWords};
use hawser_ebpf_abi::size;
use hawser_tunnels::{Desired, Keyring};
use hawser_tunnels_linux::kernel_listens;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::config::Config;
use crate::datapath::Datapath;
use crate::driver::{Driver, End, Pulses, Sources};
use crate::follow::Followers;
use crate::interfaces::Looker;
use crate::memory::{self, Memory};
use crate::preflight;
use crate::probes::Probes;
use crate::reconcile::revive;
use crate::renewal::Renewal;
use crate::secrets::Secrets;
use crate::share::Sharing;
use crate::state::{StateDir, StateError};
use crate::tunnels::{Leftovers, Placed, Tunnels};
use crate::{join, local_api, place, succession, tunnels};

/// Runs until SIGTERM or SIGINT; then ends and leaves the kernel's state for the next start. One that was superseded waits
/// for the signal: who started it would start it again, and it would ask for the node back.
pub async fn run(config: Config) -> Result<()> {
    preflight::root()?;
    let mounts = preflight::mounts()?;
    preflight::kernel()?;
    let succeeds = succession::ask(&config.socket, config.device.as_str()).await?;
    if !succeeds && !kernel_listens(&config.device, config.port) {
        preflight::free_port(config.port)?;
    }
    // From here on something is changed: a node that cannot run us has been refused by now.
    let state = Arc::new(StateDir::open(&config.state)?);
    let probes = Probes::new(state.path(join::CERTIFICATE));
    let mut metrics = tokio::task::JoinSet::new();
    if let Some(address) = config.metrics {
        metrics.spawn(hawser_telemetry::serve(hawser_telemetry::bind(address).await?, probes.clone()));
    }
    let mut stop = stop_signal()?;
    let work = start(config, mounts, state, &probes, succeeds);
    let (driver, sources, mut beside) = tokio::select! {
        started = work => started?,
        _ = &mut stop => return Ok(()),
    };
    let (api, address) = (driver.config.socket.clone(), driver.agent.config().mesh_addresses());
    tracing::info!(node = %driver.config.node, socket = %api.display(), mesh = %address.ipv4, "running");
    let (tunnels, device) = (Arc::clone(&driver.tunnels), driver.config.device.clone());
    if let End::Superseded(asked) = driver.run(sources, &mut stop).await? {
        // The lock of the state directory and the ports with it.
        beside.tasks.shutdown().await;
        metrics.shutdown().await;
        succession::hand_over(asked, tunnels, device.as_str()).await?;
        tracing::info!("superseded; there is nothing left to do here but to be stopped");
        // However: the signal came, or nobody can send it any more.
        let _ = stop.await;
    }
    tracing::info!("stopped; tunnels, routes, maps and programs stay as they are");
    Ok(())
}

/// Tasks beside the loop; they end with it.
#[derive(Debug)]
struct Beside {
    _api: local_api::LocalApi,
    tasks: tokio::task::JoinSet<()>,
}

async fn start(
    config: Config,
    mounts: preflight::Mounts,
    state: Arc<StateDir>,
    probes: &Probes,
    succeeds: bool,
) -> Result<(Driver, Sources, Beside)> {
    let clock = Clock::start();
    let mut member = join::member(&config, &state, || Datapath::probe(&mounts, &config)).await?;
    // A device that is there has its program; on a new one nobody judges yet what comes in.
    let guarded = nix::net::if_::if_nametoindex(config.device.as_str()).is_ok();
    let Placed { end, mut report, place: here, ipsec } =
        tunnels::settle(&config, &mut member, &state, succeeds).await?;
    let kernel_ipsec = matches!(ipsec, Some((Tunnels::Ipsec(_), _)));
    let agent_config = place::agent_config(&config, &member.cluster, &here, end.public_key, kernel_ipsec)?;
    tracing::info!(cluster = %agent_config.cluster, index = %agent_config.index, "this node's place is known");
    // From here on the kernel is changed.
    let remembered = remembered(&state)?;
    let (tunnels, keyring) = carrier(ipsec, &config, &state, succeeds)?;
    if let Some(end) = &mut report.wireguard {
        end.more_ports = tunnels.more_ports().into_iter().map(u32::from).collect();
    }
    let known = remembered.tunnels(&agent_config);
    let datapath = steer(&mounts, &config, clock, &known, &tunnels, guarded)?;
    let own = agent_config.cluster.name.clone();
    let agent = resume(agent_config, &remembered, &known, &datapath, clock)?;
    let report_now = Arc::new(Notify::new());
    let sharing = Sharing::new(member.channel.clone(), config.node.clone(), agent.config().width);
    let (followers, heard) = Followers::new(member.channel.clone(), own, Arc::clone(&report_now));
    let (looker, links, appearing) = Looker::open()?;
    let (ask, questions) = mpsc::channel(64);
    let (told, reporting) = mpsc::channel(4);
    probes.started(ask.clone());
    let api = local_api::serve(&config.socket, ask)?;
    let mut tasks = tokio::task::JoinSet::new();
    let (trusts, heard_trusts) = mpsc::channel(4);
    let (report, stated) = watch::channel(report);
    let reporter = place::Reporter {
        channel: member.channel.clone(),
        dialer: member.dialer.clone(),
        report: stated,
        place: here,
        told: told.clone(),
        trusts,
        now: Arc::clone(&report_now),
    };
    if let Some((path, keyring)) = config.ipsec_secret.clone().zip(keyring) {
        let (tunnels, report_now, told) = (Arc::clone(&tunnels), Arc::clone(&report_now), told.clone());
        tasks.spawn(Secrets { path, keyring, tunnels, report, report_now, told }.run());
    }
    let renewal = Renewal { member, state: Arc::clone(&state), trusts: heard_trusts, report_now, told };
    tasks.spawn(reporter.run());
    tasks.spawn(renewal.run());
    let sources = Sources { heard, questions, links, appearing, reporting };
    let driver = Driver {
        config,
        clock,
        state,
        agent,
        followers,
        tunnels,
        known: Arc::default(),
        datapath,
        looker: Arc::new(looker),
        remembered,
        sharing,
        pulses: Pulses::of(&probes.watchdog),
    };
    Ok((driver, sources, Beside { _api: api, tasks }))
}

/// IPsec where it was settled on, else WireGuard.
fn carrier(
    ipsec: Option<(Tunnels, Keyring)>,
    config: &Config,
    state: &StateDir,
    succeeds: bool,
) -> Result<(Arc<Tunnels>, Option<Keyring>)> {
    let (tunnels, keyring) = match ipsec {
        Some((ipsec, keyring)) => (ipsec, Some(keyring)),
        None => (tunnels::start_wireguard(config, state, config.wireguard, succeeds)?, None),
    };
    Ok((Arc::new(tunnels), keyring))
}

/// Tunnels and programs. `guarded`: the device was there before, and its program with it.
fn steer(
    mounts: &preflight::Mounts,
    config: &Config,
    clock: Clock,
    known: &Desired,
    tunnels: &Tunnels,
    guarded: bool,
) -> Result<Arc<Datapath>> {
    // The last run's programs steer packets still: the sooner there is a tunnel for them, the better.
    match guarded {
        true => bring_back(known, tunnels),
        false => bring_back(&Desired { peers: Vec::new(), ..known.clone() }, tunnels),
    }
    let datapath = Arc::new(Datapath::load(mounts, config, clock)?);
    tracing::info!("programs and maps are loaded");
    datapath.guard_tunnel(&config.device)?;
    // Their devices are looked for once the loop runs.
    for problem in datapath.guard(known, &BTreeSet::new()) {
        tracing::warn!(problem, "guarding the mesh's prefixes");
    }
    if !guarded {
        bring_back(known, tunnels);
    }
    Ok(datapath)
}

/// The core, with what the last run left behind.
fn resume(
    config: AgentConfig,
    remembered: &Memory,
    known: &Desired,
    datapath: &Datapath,
    clock: Clock,
) -> Result<Agent> {
    let slots = remembered.slots(size::NODES);
    let words = datapath.words(slots.iter().map(|(_, slot)| slot))?;
    let mut agent = Agent::new(config, slots, HealthWords::adopt(words), clock.now());
    agent.remember(known);
    agent.remember_draining(remembered.draining(clock.unix_ms(clock.now())), clock.now());
    Ok(agent)
}

fn bring_back(known: &Desired, tunnels: &Tunnels) {
    for problem in revive(known, tunnels) {
        tracing::warn!(problem, "bringing back the tunnels of the last run");
    }
}

/// A memory that cannot be read is none: it only makes a restart smoother.
fn remembered(state: &StateDir) -> Result<Memory> {
    match state.read_json(memory::FILE) {
        Ok(memory) => Ok(memory.unwrap_or_default()),
        Err(error @ StateError::Malformed { .. }) => {
            tracing::warn!("{error}");
            Ok(Memory::default())
        }
        Err(error) => Err(error.into()),
    }
}

fn stop_signal() -> Result<oneshot::Receiver<()>> {
    let (stop, stopped) = oneshot::channel();
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = stop.send(());
    });
    Ok(stopped)
}

/// `--remove`: takes programs, maps, tunnels, routes and rules away. The certificate and keys stay, so that the node can
/// come back without a new token.
pub async fn remove(config: Config) -> Result<()> {
    preflight::root()?;
    let mounts = preflight::mounts()?;
    let state = StateDir::open(&config.state)?;
    let mut tunnels = Leftovers::find(&config, &state)?;
    // Peers before programs: what they send would not be judged. Programs before the device: they steer packets to it.
    tunnels.take_peers()?;
    Datapath::remove(&mounts, &config)?;
    tunnels.remove().with_context(|| format!("removing {}", config.device))?;
    state.forget(memory::FILE)?;
    Ok(())
}
