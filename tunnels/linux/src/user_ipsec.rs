//! IPsec in this process, for kernels without it: the WireGuard driver around an engine that speaks ESP in UDP, and the keys
//! that the mesh secret gives.
//!
//! No number is used twice under a key: keys are made of both ends' public keys, and this end has a new one whenever its
//! numbers begin anew, so with every process that no predecessor has handed its engine over to. Nothing of it is on disk.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hawser_model::{BootId, PublicKey};
use hawser_tunnels::{Derivation, End, Observed, Op, PeerName};
use zeroize::Zeroizing;

use crate::driver::{Driver, DriverError, Stats};
use crate::net::{Kind, Net};
use crate::noise::primitives::{agree, random};
use crate::wireguard::{check_limits, netlink_error};
use crate::{Choice, IpsecConfig, PrivateKey, Protocol, WireguardConfig, WireguardDriver};

/// What [`IpsecDriver`](crate::IpsecDriver) is where the kernel has no ESP. Peers of this kind reach each other over
/// [`IpsecConfig::port`].
#[derive(Debug)]
pub struct UserIpsecDriver {
    inner: WireguardDriver,
    config: IpsecConfig,
    /// Peers whose associations this process has derived, and their slots.
    slots: Mutex<HashMap<PublicKey, u32>>,
}

/// Of a peer that a predecessor has left, which may have had another secret: the plan adds it once more. No peer has it.
const UNKNOWN: u32 = u32::MAX;

impl UserIpsecDriver {
    /// As [`WireguardDriver::start`]. With `take_over` the associations of a predecessor go on, and its key stays.
    pub fn start(config: IpsecConfig, take_over: bool) -> Result<Self, DriverError> {
        check_limits(config.mtu, config.mark, config.table)?;
        // Its keys are made of boot ids alone.
        if config.secret.derivation() == Derivation::Cilium {
            return Err(DriverError::CiliumInUserspace);
        }
        let device = config.device.clone();
        let found = Net::open(device.clone(), config.table)
            .map_err(|source| DriverError::OpenNetlink { source })?
            .link()
            .map_err(netlink_error("show the device"))?;
        if let Some(found) = found.map(|link| link.kind).filter(|kind| *kind != Kind::Tun) {
            return Err(DriverError::NotIpsec { device, found });
        }
        let wireguard = WireguardConfig {
            choice: Choice::Userspace,
            device: device.clone(),
            port: config.port,
            mtu: config.mtu,
            mark: config.mark,
            table: config.table,
            private_key: Default::default(),
            take_over,
        };
        let key = random().ok().map(Zeroizing::new).and_then(|bytes| PrivateKey::from_bytes(*bytes));
        let key = key.ok_or(DriverError::NoRandom { device })?;
        let inner = WireguardDriver::start_with(wireguard, key, Protocol::Esp)?;
        Ok(Self { inner, config, slots: Mutex::default() })
    }

    /// What peers must know us by: another one after each start that took nothing over.
    pub fn public_key(&self) -> PublicKey {
        self.inner.public_key()
    }

    /// The UDP port in use, also when the configuration left it to the kernel.
    pub fn port(&self) -> Result<u16, DriverError> {
        self.inner.port()
    }

    /// Whether a successor has what this process had.
    pub fn is_given(&self) -> bool {
        self.inner.is_given()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<PublicKey, u32>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Derived by both ends alike. One peer's misfortune keeps no other waiting.
    fn associate(
        &self,
        name: &PeerName,
        key: &PublicKey,
        boot_id: Option<&BootId>,
    ) -> Result<(), DriverError> {
        // Only Cilium's derivation asks for addresses.
        let address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let own = End {
            name: &self.config.name,
            public_key: &self.public_key(),
            boot_id: Some(&self.config.boot_id),
            address,
        };
        let peer = End { name, public_key: key, boot_id, address };
        // A key that gives no secret proves nothing; the mesh secret still keeps everybody else out.
        let shared = agree(self.inner.private_key().secret(), key.as_bytes()).unwrap_or_default();
        let secret = &self.config.secret;
        let (outbound, inbound) =
            (secret.association(&shared, own, peer), secret.association(&shared, peer, own));
        match self.inner.associate(key, &outbound, &inbound) {
            Err(DriverError::Associate(error)) => {
                tracing::error!(peer = %name, %error, "no IPsec tunnel");
                Ok(())
            }
            done => done,
        }
    }
}

impl Driver for UserIpsecDriver {
    fn observe(&self) -> Result<Observed, DriverError> {
        let mut observed = self.inner.observe()?;
        let slots = self.slots();
        for (key, peer) in &mut observed.peers {
            peer.slot = Some(slots.get(key).copied().unwrap_or(UNKNOWN));
        }
        Ok(observed)
    }

    fn apply(&self, op: &Op) -> Result<(), DriverError> {
        self.inner.apply(op)?;
        match op {
            Op::AddPeer { peer, public_key, boot_id, slot, .. } => {
                self.associate(peer, public_key, boot_id.as_ref())?;
                self.slots().insert(*public_key, *slot);
            }
            Op::RemovePeer { public_key } => {
                self.slots().remove(public_key);
            }
            _ => {}
        }
        Ok(())
    }

    fn stats(&self) -> Result<Stats, DriverError> {
        self.inner.stats()
    }

    fn remove(&self) -> Result<(), DriverError> {
        self.inner.remove()
    }
}
