//! The tunnels of this node, in the encryption of its mesh, and what the node is known by in them.

use std::sync::Arc;

use anyhow::{Context, Result};
use hawser_api::agent::ReportRequest;
use hawser_model::{
    BootId, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Encryption, Epoch, EspEnd, PublicKey,
};
use hawser_tunnels::{Derivation, Keyring, Observed, Op, PeerName, Wear};
use hawser_tunnels_linux::{
    Choice, Driver, DriverError, IpsecConfig, IpsecDriver, IpsecLeftovers, PrivateKey, Stats,
    UserIpsecDriver, WireguardConfig, WireguardDriver, kernel_listens,
};

use crate::config::{Config, Ipsec};
use crate::join::Member;
use crate::state::{PlaceFile, StateDir};
use crate::{place, secrets};

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
    /// For parallel sessions: what this node can tell its peers.
    pub(crate) fn more_ports(&self) -> Vec<u16> {
        match self {
            Self::Wireguard(driver) => driver.more_ports(),
            Self::Ipsec(_) | Self::UserIpsec(_) => Vec::new(),
        }
    }

    /// Of IPsec: takes up what the keyring has by now, and says by which keys peers may send from then on.
    pub(crate) fn tend(&self, keyring: &Keyring) -> Option<Result<EspEnd, DriverError>> {
        match self {
            Self::Wireguard(_) => None,
            Self::Ipsec(driver) => Some(driver.tend(keyring)),
            Self::UserIpsec(driver) => Some(driver.tend(keyring)),
        }
    }

    fn driver(&self) -> &dyn Driver {
        match self {
            Self::Wireguard(driver) => driver.as_ref(),
            Self::Ipsec(driver) => driver.as_ref(),
            Self::UserIpsec(driver) => driver.as_ref(),
        }
    }

    /// Whether it finds out itself what a path carries beyond the base.
    pub(crate) fn finds_mtu(&self) -> bool {
        matches!(self, Self::Wireguard(driver) if driver.finds_mtu())
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

    fn glance(&self) -> Result<Option<Observed>, DriverError> {
        self.driver().glance()
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
    pub esp: Option<EspEnd>,
}

/// Its end, what it reports, its place, and IPsec's tunnels: their key lives and dies with counters, so it is known only once
/// they have begun or were found.
pub(crate) struct Placed {
    pub end: OwnEnd,
    pub report: ReportRequest,
    pub place: PlaceFile,
    pub ipsec: Option<(Tunnels, Keyring)>,
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
                (OwnEnd { epoch: Epoch::FIRST, public_key: key.public(), esp: None }, None)
            }
            Encryption::Ipsec => {
                let (end, tunnels, keyring) = start_ipsec(config, member, state, take_over)?;
                (end, Some((tunnels, keyring)))
            }
        };
        let report = place::report_of(config, end, &likely_ports(config, encryption))?;
        let place = place::learn(member, state, &report).await?;
        if place.encryption() == encryption {
            return Ok(Placed { end, report, place, ipsec });
        }
        encryption = place.encryption();
        tracing::info!(%encryption, "the mesh's encryption is known");
    }
}

/// Those that a node will have which had them before: what it really has is said as soon as its tunnels have begun.
fn likely_ports(config: &Config, encryption: Encryption) -> Vec<u16> {
    let in_kernel = config.wireguard == Choice::Kernel || kernel_listens(&config.device, config.port);
    if encryption == Encryption::Ipsec || in_kernel { Vec::new() } else { config.more_ports() }
}

fn start_ipsec(
    config: &Config,
    member: &Member,
    state: &StateDir,
    take_over: bool,
) -> Result<(OwnEnd, Tunnels, Keyring)> {
    let path = config.ipsec_secret.as_ref().context(
        "the mesh's encryption is ipsec, and agent.yaml names no ipsecSecret. fix: put the mesh's secret on this node and \
         name its file; or set encryption: wireguard in the cluster.yaml of every cluster of the mesh",
    )?;
    let keyring = secrets::read(path)?;
    if config.ipsec == Ipsec::Userspace
        && keyring.iter().any(|secret| secret.derivation() == Derivation::Cilium)
    {
        anyhow::bail!(
            "ipsecSecret {} is in Cilium's form, whose keys are the same for a whole boot, and agent.yaml says ipsec: userspace, which \
             needs keys of its own at every start. fix: set ipsec: kernel, or put a secret of Hawser's form there \
             (`hawser ipsec secret`)",
            path.display()
        );
    }
    let cluster = ClusterRef {
        name: ClusterName::parse(&member.cluster.cluster)?,
        id: ClusterId::new(member.cluster.cluster_id, ClusterIdWidth::Bits9)?,
    };
    let ipsec = IpsecConfig {
        device: config.device.clone(),
        port: config.port,
        mtu: config.mtu_of(Encryption::Ipsec),
        mark: config.mark,
        table: config.table,
        name: PeerName { cluster, node: config.node.clone() },
        boot_id: BootId::parse(&place::boot_id()?)?,
        keyring: keyring.clone(),
        wear: Wear::DEFAULT,
        ledger: state.path(IPSEC_LEDGER),
    };
    let started = match config.ipsec {
        Ipsec::Kernel => IpsecDriver::start(ipsec)
            .and_then(|driver| Ok((driver.public_key(), driver.end()?, Tunnels::Ipsec(Box::new(driver))))),
        Ipsec::Userspace => UserIpsecDriver::start(ipsec, take_over)
            .map(|driver| (driver.public_key(), driver.end(), Tunnels::UserIpsec(Box::new(driver)))),
    };
    let (public_key, esp, tunnels) =
        started.with_context(|| format!("starting the tunnels of {}", config.device))?;
    let epoch = esp.receives().last().map_or(Epoch::FIRST, |of| of.epoch);
    Ok((OwnEnd { epoch, public_key, esp: Some(esp) }, tunnels, keyring))
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
        more_ports: config.more_ports(),
        mtu: config.mtu_of(Encryption::Wireguard),
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
