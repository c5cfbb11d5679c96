//! Taking IPsec away: what a driver made, whether one runs or not.

use std::io;

use hawser_tunnels::DeviceName;

use super::kernel::Xfrm;
use crate::driver::DriverError;
use crate::net::{Kind, Net};
use crate::wireguard::netlink_error;

/// No peer may send or be sent to.
pub(super) fn shut(xfrm: &mut Xfrm) -> io::Result<()> {
    let all: Vec<_> = xfrm.policies().all().collect();
    all.into_iter().try_for_each(|(prefix, direction)| xfrm.delete_policy(prefix, direction))
}

/// Everything with our id, but what blocks.
pub(super) fn clear(xfrm: &mut Xfrm) -> io::Result<()> {
    shut(xfrm)?;
    let all: Vec<_> = xfrm.states().keys().copied().collect();
    all.into_iter().try_for_each(|spi| xfrm.delete_state(spi))
}

pub(super) fn remove(net: &mut Net, xfrm: &mut Xfrm) -> Result<(), DriverError> {
    net.delete_link().map_err(netlink_error("delete the device"))?;
    xfrm.refresh().map_err(netlink_error("list IPsec states and policies"))?;
    clear(xfrm).map_err(netlink_error("delete IPsec states and policies"))?;
    xfrm.unblock().map_err(netlink_error("delete IPsec policies"))?;
    net.remove_former().map_err(netlink_error("remove the rules and routes of an earlier version"))?;
    for prefix in net.routes(None).map_err(netlink_error("list routes"))?.guards {
        net.remove_guard(prefix).map_err(netlink_error(format!("remove guard {prefix}")))?;
    }
    Ok(())
}

/// What a driver left, for whoever takes it away without the mesh's secret.
pub struct IpsecLeftovers {
    net: Net,
    xfrm: Xfrm,
}

impl std::fmt::Debug for IpsecLeftovers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("what IPsec left")
    }
}

impl IpsecLeftovers {
    /// None where the device is not ours of IPsec.
    pub fn find(device: &DeviceName, table: u32) -> Result<Option<Self>, DriverError> {
        let open = Net::open(device.clone(), table);
        let mut net = open.map_err(|source| DriverError::OpenNetlink { source })?;
        let link = net.link().map_err(netlink_error("show the device"))?;
        if link.is_none_or(|link| link.kind != Kind::Xfrm { id: table }) {
            return Ok(None);
        }
        let mut xfrm = Xfrm::open(table).map_err(|source| DriverError::NoKernelIpsec { source })?;
        xfrm.refresh().map_err(netlink_error("list IPsec states and policies"))?;
        Ok(Some(Self { net, xfrm }))
    }

    pub fn take_peers(&mut self) -> Result<(), DriverError> {
        shut(&mut self.xfrm).map_err(netlink_error("delete IPsec policies"))
    }

    /// As [`Driver::remove`](crate::Driver::remove).
    pub fn remove(&mut self) -> Result<(), DriverError> {
        remove(&mut self.net, &mut self.xfrm)
    }
}
