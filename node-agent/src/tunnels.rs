//! The tunnels of this node, in the encryption of its mesh, and what the node is known by in them.

use std::sync::Arc;

use anyhow::{Context, Result};
use hawser_api::agent::ReportRequest;
use hawser_model::{
    BootId, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Encryption, Epoch, PublicKey,
};
use hawser_tunnels::{MeshSecret, Observed, Op, PeerName};
use hawser_tunnels_linux::{
    Choice, Driver, DriverError, IpsecConfig, IpsecDriver, IpsecLeftovers, PrivateKey, Stats,
    UserIpsecDriver, WireguardConfig, WireguardDriver,
};
use zeroize::Zeroizing;

use crate::config::{Config, Ipsec};
use crate::join::Member;
use crate::place;
use crate::state::{PlaceFile, StateDir};

const WIREGUARD_KEY: &str = "wireguard.key";
const IPSEC_LEDGER: &str = "ipsec.state";

/// Either kind, behind one face.
#[derive(Debug)]
pub(crate) enum Tunnels {
    Wireguard(Box<WireguardDriver>),
    /// In the kernel.
    Ipsec(Box<IpsecDriver>),
    /// In this process.
    UserIpsec(Box<UserIpsecDriver>),
}

impl Tunnels {
    fn driver(&self) -> &dyn Driver {
        match self {
            Self::Wireguard(driver) => driver.as_ref(),
            Self::Ipsec(driver) => driver.as_ref(),
            Self::UserIpsec(driver) => driver.as_ref(),
        }
    }

    /// Whether a successor carries: always so where the kernel does.
    pub(crate) fn is_given(&self) -> bool {
        match self {
            Self::Wireguard(driver) => driver.is_given(),
            Self::UserIpsec(driver) => driver.is_given(),
            Self::Ipsec(_) => true,
        }
    }
}

impl Driver for Tunnels {
    fn observe(&self) -> Result<Observed, DriverError> {
        self.driver().observe()
    }

    fn apply(&self, op: &Op) -> Result<(), DriverError> {
        self.driver().apply(op)
    }

    fn stats(&self) -> Result<Stats, DriverError> {
        self.driver().stats()
    }

    fn remove(&self) -> Result<(), DriverError> {
        self.driver().remove()
    }
}

/// What this node states of its end of the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnEnd {
    pub epoch: Epoch,
    pub public_key: PublicKey,
}

/// Its end, what it reports, its place, and IPsec's tunnels: their key lives and dies with counters, so it is known only once
/// they have begun or were found.
pub(crate) struct Placed {
    pub end: OwnEnd,
    pub report: ReportRequest,
    pub place: PlaceFile,
    pub ipsec: Option<Tunnels>,
}

/// Learns the place, and with it the mesh's encryption. A restart knows it already, so that peers hear of no other key in
/// between.
pub(crate) async fn settle(
    config: &Config,
    member: &mut Member,
    state: &Arc<StateDir>,
    take_over: bool,
) -> Result<Placed> {
    let mut encryption = member.cluster.place.as_ref().map_or(Encryption::Wireguard, PlaceFile::encryption);
    loop {
        let (end, ipsec) = match encryption {
            Encryption::Wireguard => {
                let key = PrivateKey::load_or_create(&state.path(WIREGUARD_KEY))?;
                (OwnEnd { epoch: Epoch::FIRST, public_key: key.public() }, None)
            }
            Encryption::Ipsec => {
                let (end, tunnels) = start_ipsec(config, member, state, take_over)?;
                (end, Some(tunnels))
            }
        };
        let report = place::report_of(config, end)?;
        let place = place::learn(member, state, &report).await?;
        if place.encryption() == encryption {
            return Ok(Placed { end, report, place, ipsec });
        }
        encryption = place.encryption();
        tracing::info!(%encryption, "the mesh's encryption is known");
    }
}

fn start_ipsec(
    config: &Config,
    member: &Member,
    state: &StateDir,
    take_over: bool,
) -> Result<(OwnEnd, Tunnels)> {
    let path = config.ipsec_secret.as_ref().context(
        "the mesh's encryption is ipsec, and agent.yaml names no ipsecSecret. fix: put the mesh's secret on this node and \
         name its file; or set encryption: wireguard in the cluster.yaml of every cluster of the mesh",
    )?;
    let shown = path.display();
    let text = Zeroizing::new(std::fs::read_to_string(path).with_context(|| {
        format!("reading ipsecSecret {shown}. fix: put the mesh's secret there, the same on every node of every cluster")
    })?);
    let secret = MeshSecret::parse(&text).with_context(|| format!("ipsecSecret {shown}"))?;
    let epoch = secret.epoch();
    let cluster = ClusterRef {
        name: ClusterName::parse(&member.cluster.cluster)?,
        id: ClusterId::new(member.cluster.cluster_id, ClusterIdWidth::Bits9)?,
    };
    let ipsec = IpsecConfig {
        device: config.device.clone(),
        port: config.port,
        mtu: config.mtu,
        mark: config.mark,
        table: config.table,
        name: PeerName { cluster, node: config.node.clone() },
        boot_id: BootId::parse(&place::boot_id()?)?,
        secret,
        ledger: state.path(IPSEC_LEDGER),
    };
    let started = match config.ipsec {
        Ipsec::Kernel => {
            IpsecDriver::start(ipsec).map(|driver| (driver.public_key(), Tunnels::Ipsec(Box::new(driver))))
        }
        Ipsec::Userspace => UserIpsecDriver::start(ipsec, take_over)
            .map(|driver| (driver.public_key(), Tunnels::UserIpsec(Box::new(driver)))),
    };
    let (public_key, tunnels) =
        started.with_context(|| format!("starting the tunnels of {}", config.device))?;
    Ok((OwnEnd { epoch, public_key }, tunnels))
}

/// WireGuard's, of the kind that is asked for.
pub(crate) fn start_wireguard(
    config: &Config,
    state: &StateDir,
    choice: Choice,
    take_over: bool,
) -> Result<Tunnels> {
    let engine = WireguardConfig {
        choice,
        device: config.device.clone(),
        port: config.port,
        mtu: config.mtu,
        mark: config.mark,
        table: config.table,
        private_key: state.path(WIREGUARD_KEY),
        take_over,
    };
    let driver = WireguardDriver::start(engine);
    let driver = driver.with_context(|| format!("starting the tunnels of {}", config.device))?;
    Ok(Tunnels::Wireguard(Box::new(driver)))
}

/// What `--remove` finds.
pub(crate) enum Leftovers {
    Wireguard(Tunnels),
    Ipsec(Box<IpsecLeftovers>),
}

impl Leftovers {
    pub(crate) fn find(config: &Config, state: &StateDir) -> Result<Self> {
        let ipsec =
            IpsecLeftovers::find(&config.device, config.table).context("looking for IPsec's device")?;
        match ipsec {
            Some(ipsec) => Ok(Self::Ipsec(Box::new(ipsec))),
            // Of whatever kind it is.
            None => Ok(Self::Wireguard(start_wireguard(config, state, Choice::Auto, false)?)),
        }
    }

    pub(crate) fn take_peers(&mut self) -> Result<()> {
        match self {
            Self::Ipsec(left) => left.take_peers().context("taking the peers away"),
            Self::Wireguard(tunnels) => {
                for public_key in tunnels.observe().context("looking at the tunnels")?.peers.into_keys() {
                    tunnels.apply(&Op::RemovePeer { public_key }).context("taking the peers away")?;
                }
                Ok(())
            }
        }
    }

    pub(crate) fn remove(self) -> Result<(), DriverError> {
        match self {
            Self::Ipsec(mut left) => left.remove(),
            Self::Wireguard(tunnels) => tunnels.remove(),
        }
    }
}
