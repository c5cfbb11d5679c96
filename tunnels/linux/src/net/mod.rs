//! The kernel's part of a tunnel: link, addresses, routes, rules. Every change is one request, every request is
//! harmless when repeated, and only what carries our protocol number is ever removed.

mod link;
mod netlink;
mod route;
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use hawser_tunnels::{DeviceName, Family, Rule};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteProtocol;

pub use link::Kind;
pub(crate) use link::Link;
pub(crate) use netlink::{Events, Netlink};

/// Who made a route or rule (`rtm_protocol`, `FRA_PROTOCOL`): 'H'. `ip route` prints it as `proto 72`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(72);
/// The main table: with a table and a rule of our own the kernel would look up every packet's route by the long way, other pods' too.
const MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// In front of what others usually have of the same prefix (NetworkManager's begin at 100).
const ROUTE_METRIC: u32 = 72;
/// Worse than any route to the device, so it counts only when there is none.
const GUARD_METRIC: u32 = 10_000;
const _: () = assert!(GUARD_METRIC > ROUTE_METRIC);

pub(crate) struct Net {
    netlink: Netlink,
    device: DeviceName,
    /// Where an earlier version had its routes.
    former: u32,
}

pub(crate) struct Routes {
    pub(crate) devices: BTreeMap<IpNet, Option<IpAddr>>,
    pub(crate) guards: BTreeSet<IpNet>,
}

impl Net {
    pub(crate) fn open(device: DeviceName, former: u32) -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()?, device, former })
    }

    pub(crate) fn link(&mut self) -> io::Result<Option<Link>> {
        link::find(&mut self.netlink, &self.device)
    }

    /// What the kernel's device counts (`wg_xmit`, `wg_receive`: drivers/net/wireguard): without a reason each, but counted.
    pub(crate) fn drops(&mut self) -> io::Result<Vec<(&'static str, u64)>> {
        let counted = self.link()?.map(|link| link.counted).unwrap_or_default();
        Ok(vec![
            ("kernel-tx-errors", counted.tx_errors),
            ("kernel-tx-dropped", counted.tx_dropped),
            ("kernel-rx-errors", counted.rx_errors),
            ("kernel-rx-dropped", counted.rx_dropped),
        ])
    }

    /// Harmless where it is there; one of another kind with its name is not seen to be.
    pub(crate) fn create_xfrm(&mut self, id: u32) -> io::Result<()> {
        link::create_xfrm(&mut self.netlink, &self.device, id)
    }

    pub(crate) fn delete_link(&mut self) -> io::Result<()> {
        match self.link()? {
            Some(link) => link::delete(&mut self.netlink, link.index),
            None => Ok(()),
        }
    }

    pub(crate) fn set_up(&mut self, mtu: u16) -> io::Result<()> {
        let index = self.index()?;
        link::set_up(&mut self.netlink, index, mtu)
    }

    pub(crate) fn addresses(&mut self, link: &Link) -> io::Result<BTreeSet<IpAddr>> {
        link::addresses(&mut self.netlink, link.index)
    }

    pub(crate) fn add_address(&mut self, address: IpAddr) -> io::Result<()> {
        let index = self.index()?;
        link::add_address(&mut self.netlink, index, address)
    }

    pub(crate) fn remove_address(&mut self, address: IpAddr) -> io::Result<()> {
        let index = self.index()?;
        link::remove_address(&mut self.netlink, index, address)
    }

    pub(crate) fn routes(&mut self, link: Option<&Link>) -> io::Result<Routes> {
        route::list(&mut self.netlink, link.map(|link| link.index))
    }

    pub(crate) fn set_route(&mut self, prefix: IpNet, source: IpAddr) -> io::Result<()> {
        let index = self.index()?;
        route::set(&mut self.netlink, prefix, index, source)
    }

    pub(crate) fn remove_route(&mut self, prefix: IpNet) -> io::Result<()> {
        route::remove(&mut self.netlink, prefix)
    }

    pub(crate) fn add_guard(&mut self, prefix: IpNet) -> io::Result<()> {
        route::add_guard(&mut self.netlink, prefix)
    }

    pub(crate) fn remove_guard(&mut self, prefix: IpNet) -> io::Result<()> {
        route::remove_guard(&mut self.netlink, prefix)
    }

    /// An earlier version's.
    pub(crate) fn rules(&mut self) -> io::Result<BTreeSet<Rule>> {
        rule::list(&mut self.netlink, self.former)
    }

    /// And what it led to.
    pub(crate) fn remove_rule(&mut self, rule: &Rule) -> io::Result<()> {
        rule::remove(&mut self.netlink, rule)?;
        route::clear(&mut self.netlink, rule.table, rule.family)
    }

    /// Everything of an earlier version.
    pub(crate) fn remove_former(&mut self) -> io::Result<()> {
        for rule in self.rules()? {
            self.remove_rule(&rule)?;
        }
        [Family::V4, Family::V6]
            .into_iter()
            .try_for_each(|family| route::clear(&mut self.netlink, self.former, family))
    }

    fn index(&mut self) -> io::Result<u32> {
        self.link()?.map(|link| link.index).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// A table's number in a message header, which has eight bits for it; the attribute has the whole.
fn header_table(table: u32) -> u8 {
    u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC)
}

/// What is asked for is already so.
pub(crate) fn unless(result: io::Result<()>, harmless: &[i32]) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|number| harmless.contains(&number)) => Ok(()),
        result => result,
    }
}
