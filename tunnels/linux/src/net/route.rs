//! Routes into the mesh, and the `unreachable` ones behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use hawser_tunnels::Family;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};

use super::netlink::Netlink;
use super::{GUARD_METRIC, MAIN, PROTOCOL, ROUTE_METRIC, Routes, address_family, header_table, unless};

/// A route of ours.
struct Route {
    prefix: IpNet,
    kind: RouteType,
    metric: u32,
    out: Option<u32>,
    source: Option<IpAddr>,
}

/// Costs a walk of the main table in the kernel, which tells of ours alone.
pub(super) fn list(netlink: &mut Netlink, device: Option<u32>) -> io::Result<Routes> {
    let mut routes = Routes { devices: BTreeMap::new(), guards: BTreeSet::new() };
    for family in [Family::V4, Family::V6] {
        for Route { prefix, kind, metric, out, source } in ours(netlink, MAIN, family)? {
            match kind {
                RouteType::Unreachable if metric == GUARD_METRIC => drop(routes.guards.insert(prefix)),
                RouteType::Unicast if metric == ROUTE_METRIC && out == device => {
                    routes.devices.insert(prefix, source);
                }
                _ => {}
            }
        }
    }
    Ok(routes)
}

/// Takes all of ours out of a table.
pub(super) fn clear(netlink: &mut Netlink, table: u32, family: Family) -> io::Result<()> {
    for Route { prefix, kind, metric, .. } in ours(netlink, table, family)? {
        delete(netlink, message(table, prefix, kind, metric))?;
    }
    Ok(())
}

/// By our protocol.
fn ours(netlink: &mut Netlink, table: u32, family: Family) -> io::Result<Vec<Route>> {
    let mut filter = RouteMessage::default();
    filter.header.address_family = address_family(family);
    filter.header.table = header_table(table);
    filter.header.protocol = PROTOCOL;
    filter.attributes.push(RouteAttribute::Table(table));
    let found = match netlink.dump(&RouteNetlinkMessage::GetRoute(filter)) {
        // A table without routes does not exist, and neither may a family.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => {
            return Ok(Vec::new());
        }
        found => found?,
    };
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => read(&route, family, table),
            _ => None,
        })
        .collect())
}

fn read(route: &RouteMessage, family: Family, table: u32) -> Option<Route> {
    let mut of_table = u32::from(route.header.table);
    let (mut destination, mut source, mut out, mut metric) = (unspecified(family), None, None, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => of_table = *number,
            RouteAttribute::Destination(address) => destination = ip(address).unwrap_or(destination),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => out = Some(*index),
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    let prefix = IpNet::new(destination, route.header.destination_prefix_length).ok()?;
    let ours = of_table == table && route.header.protocol == PROTOCOL;
    ours.then_some(Route { prefix, kind: route.header.kind, metric, out, source })
}

/// One of ours is replaced in one step. Somebody else's with this prefix and metric is not: that is an error (EEXIST).
pub(super) fn set(netlink: &mut Netlink, prefix: IpNet, device: u32, source: IpAddr) -> io::Result<()> {
    let mut route = message(MAIN, prefix, RouteType::Unicast, ROUTE_METRIC);
    route.attributes.push(RouteAttribute::Oif(device));
    route.attributes.push(RouteAttribute::PrefSource(route_address(source)));
    let route = RouteNetlinkMessage::NewRoute(route);
    match netlink.request(route.clone(), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error)
            if error.raw_os_error() == Some(libc::EEXIST)
                && list(netlink, Some(device))?.devices.contains_key(&prefix) =>
        {
            netlink.request(route, NLM_F_CREATE | NLM_F_REPLACE)
        }
        added => added,
    }
}

pub(super) fn remove(netlink: &mut Netlink, prefix: IpNet) -> io::Result<()> {
    delete(netlink, message(MAIN, prefix, RouteType::Unicast, ROUTE_METRIC))
}

pub(super) fn add_guard(netlink: &mut Netlink, prefix: IpNet) -> io::Result<()> {
    let route = message(MAIN, prefix, RouteType::Unreachable, GUARD_METRIC);
    let added = netlink.request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL);
    unless(added, &[libc::EEXIST])
}

pub(super) fn remove_guard(netlink: &mut Netlink, prefix: IpNet) -> io::Result<()> {
    delete(netlink, message(MAIN, prefix, RouteType::Unreachable, GUARD_METRIC))
}

fn delete(netlink: &mut Netlink, route: RouteMessage) -> io::Result<()> {
    unless(netlink.request(RouteNetlinkMessage::DelRoute(route), 0), &[libc::ESRCH, libc::ENOENT])
}

fn message(table: u32, prefix: IpNet, kind: RouteType, metric: u32) -> RouteMessage {
    let family = Family::of_net(&prefix);
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(family);
    route.header.destination_prefix_length = prefix.prefix_len();
    route.header.table = header_table(table);
    route.header.protocol = PROTOCOL;
    // An IPv4 route without a gateway ends on its link; IPv6 knows no scopes.
    let to_device = kind == RouteType::Unicast && family == Family::V4;
    route.header.scope = if to_device { RouteScope::Link } else { RouteScope::Universe };
    route.header.kind = kind;
    route.attributes.push(RouteAttribute::Table(table));
    route.attributes.push(RouteAttribute::Destination(route_address(prefix.network())));
    route.attributes.push(RouteAttribute::Priority(metric));
    route
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}
