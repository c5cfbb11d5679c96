//! What every kind of tunnel can do for the reconciler: be observed, be changed by one step, count, be removed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use hawser_model::{Epoch, Generation, PublicKey};
use hawser_tunnels::{DeviceName, Observed, Op, PeerName, Receiving, Sending, StillInUse};

use crate::{AssociateError, Choice, ConfigError, EngineError, KeyError, Kind};

/// A way to carry tunnels on this machine. All calls block on the kernel (milliseconds); call them from a thread that may.
pub trait Driver: Send + Sync {
    /// Reads everything back. Costs a dump of our table and of the device's peers.
    fn observe(&self) -> Result<Observed, DriverError>;

    /// Everything but the peers, of whom none is listed. Costs a dump of our table. None where there is only the whole look.
    fn glance(&self) -> Result<Option<Observed>, DriverError> {
        Ok(None)
    }

    /// Carries out one step. Doing it twice does no harm.
    fn apply(&self, op: &Op) -> Result<(), DriverError>;

    fn stats(&self) -> Result<Stats, DriverError>;

    /// Takes the device, our routes and our rules away. Every other call fails afterwards.
    /// Dropping the driver does not do this.
    fn remove(&self) -> Result<(), DriverError>;
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub peers: BTreeMap<PublicKey, PeerStats>,
    /// Packets that were not carried, by reason; every reason is listed, also at zero.
    pub drops: Vec<(&'static str, u64)>,
    /// Whether the kernel encrypts, or this process.
    pub in_kernel: bool,
    /// Of IPsec.
    pub keys: Option<KeysInUse>,
    /// Peers that were asked for and cannot have a tunnel, each with the reason.
    pub without: Vec<String>,
}

/// Which keys of IPsec there are at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeysInUse {
    pub receives: Vec<Generation>,
    /// Of those: what others have taken the place of.
    pub leaving: Vec<Generation>,
    /// How many peers are sent to by a secret.
    pub sends: BTreeMap<Epoch, usize>,
}

impl KeysInUse {
    pub(crate) fn of<'a>(receiving: &Receiving, peers: impl Iterator<Item = &'a Sending>) -> Self {
        let (receives, leaving) = (receiving.all().collect(), receiving.leaving().collect());
        let mut sends = BTreeMap::<_, usize>::new();
        for of in peers.filter_map(Sending::current) {
            *sends.entry(of.epoch).or_default() += 1;
        }
        Self { receives, leaving, sends }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    pub endpoint: Option<SocketAddr>,
    pub last_handshake: Option<SystemTime>,
    /// The largest packet that is sent to it; none where nobody finds that out.
    pub mtu: Option<u16>,
    /// That are open now; none where that is not known.
    pub sessions: Option<u32>,
    /// Bytes of UDP payload, as `wg show` counts them.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("cannot open a netlink socket: {source}. fix: run as root (CAP_NET_ADMIN)")]
    OpenNetlink { source: io::Error },
    #[error("the kernel refused to {doing}: {source}")]
    Netlink { doing: String, source: io::Error },
    #[error("{device} is {found}, and `wireguard: {}` asks for another. {}", choice.as_str(), way_out(found))]
    OtherKind { device: DeviceName, found: Kind, choice: Choice },
    #[error(
        "this kernel has no WireGuard (link kind \"wireguard\": EOPNOTSUPP). fix: load its module (`modprobe wireguard`), or set wireguard: auto"
    )]
    NoKernelWireguard,
    #[error("{device}'s WireGuard refused to {doing}: {source}")]
    Wireguard { device: DeviceName, doing: String, source: io::Error },
    #[error(
        "{device} is to use the key {wanted:?}, but this driver holds {held:?}. fix: publish the key of the driver's key file"
    )]
    ForeignKey { device: DeviceName, wanted: PublicKey, held: PublicKey },
    #[error(
        "this kernel has no IPsec ({source}). fix: load its modules (`modprobe -a xfrm_user xfrm_interface esp4 esp6`), or set encryption: wireguard in every cluster of the mesh"
    )]
    NoKernelIpsec { source: io::Error },
    #[error("{device} is {found}, and the mesh's encryption is ipsec. {}", way_out(found))]
    NotIpsec { device: DeviceName, found: Kind },
    #[error(
        "IPsec states of this boot are gone, and their counters with them; keys in Cilium's derivation would be used twice. fix: put a new secret into every node of the mesh, or restart this node (what was in use stands in {})",
        ledger.display()
    )]
    CountersLost { ledger: PathBuf },
    #[error(transparent)]
    Associate(#[from] AssociateError),
    #[error(
        "cannot open UDP port {port} for ESP in UDP: {source}. fix: stop what holds it (`ss -ulpn sport = :{port}`) or configure another port"
    )]
    EncapPort { port: u16, source: io::Error },
    #[error(
        "SPI {spi:#010x} of {peer} is another association's. fix: start either node's agent again after `hawser-node-agent --remove`, it begins with a new key"
    )]
    SpiTaken { peer: PeerName, spi: u32 },
    #[error(
        "the mesh secret of epoch {epoch} is another one than before, and its keys are in use. fix: count the epoch up with each new secret (`hawser ipsec rotate` does)"
    )]
    SecretChanged { epoch: Epoch },
    #[error(transparent)]
    StillInUse(#[from] StillInUse),
    #[error("no random numbers for the key of {device}. fix: see what getrandom(2) says on this machine")]
    NoRandom { device: DeviceName },
    #[error(
        "ESP in this process needs keys of its own at every start, and Cilium's derivation gives the same ones for a whole boot. fix: use Hawser's (`<epoch> <hex>`), or a kernel with IPsec"
    )]
    CiliumInUserspace,
    #[error("device {device} is gone. fix: let the next plan create it")]
    NoDevice { device: DeviceName },
    #[error("{device} has been removed by this driver. fix: start a new one")]
    Removed { device: DeviceName },
}

/// A device of a kind that we never make is somebody's, and stays.
fn way_out(found: &Kind) -> &'static str {
    match found {
        Kind::Wireguard | Kind::Tun | Kind::Xfrm { .. } => {
            "fix: run `hawser-node-agent --remove`, which takes it away, and start again; between kinds of WireGuard, wireguard: auto keeps it"
        }
        Kind::Other(_) => "It is not Hawser's. fix: name another device in agent.yaml",
    }
}
