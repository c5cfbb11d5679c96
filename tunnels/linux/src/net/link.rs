//! The device and the addresses on it.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;

use hawser_tunnels::{DeviceName, Family};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoXfrm, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, Stats64,
};

use super::netlink::Netlink;
use super::{address_family, unless};

/// What a device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's WireGuard.
    Wireguard,
    Tun,
    /// The kernel's IPsec: an interface of the policies and states with this id.
    Xfrm {
        id: u32,
    },
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wireguard => f.write_str("a WireGuard device of the kernel"),
            Self::Tun => f.write_str("a TUN, as WireGuard in user space has"),
            Self::Xfrm { id } => write!(f, "an IPsec interface of the kernel (if_id {id})"),
            Self::Other(kind) => write!(f, "a device of kind {kind:?}"),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) kind: Kind,
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) counted: Stats64,
}

pub(super) fn find(netlink: &mut Netlink, name: &DeviceName) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    let found = match netlink.get(RouteNetlinkMessage::GetLink(message)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        found => found?,
    };
    Ok(found.into_iter().find_map(|message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return None };
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let up = link.header.flags.contains(LinkFlags::Up);
        let counted = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(counted) => Some(*counted),
            _ => None,
        });
        let kind = kind(&link);
        Some(Link {
            kind,
            index: link.header.index,
            up,
            mtu: mtu.unwrap_or(0),
            counted: counted.unwrap_or_default(),
        })
    }))
}

fn kind(link: &LinkMessage) -> Kind {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let infos: Vec<_> = infos.flatten().collect();
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    let id = || {
        infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Xfrm(data)) => data.iter().find_map(|data| match data {
                InfoXfrm::IfId(id) => Some(*id),
                _ => None,
            }),
            _ => None,
        })
    };
    match kind {
        Some(InfoKind::Xfrm) => Kind::Xfrm { id: id().unwrap_or(0) },
        Some(InfoKind::Wireguard) => Kind::Wireguard,
        Some(InfoKind::Tun) => Kind::Tun,
        Some(other) => Kind::Other(other.to_string()),
        None => Kind::Other("none".to_owned()),
    }
}

/// An XFRM interface: what enters it leaves by the policies with this id, or not at all. One that is there already stays.
pub(super) fn create_xfrm(netlink: &mut Netlink, name: &DeviceName, id: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    let data = InfoData::Xfrm(vec![InfoXfrm::IfId(id)]);
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Xfrm), LinkInfo::Data(data)]));
    let created = netlink.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
    unless(created, &[libc::EEXIST])
}

pub(super) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    unless(netlink.request(RouteNetlinkMessage::DelLink(message), 0), &[libc::ENODEV])
}

pub(super) fn set_up(netlink: &mut Netlink, index: u32, mtu: u16) -> io::Result<()> {
    // A tunnel has no use for link-local addresses, and their chatter would be counted as drops. Without IPv6 in the
    // kernel there is nothing to turn off.
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let mut quiet = LinkMessage::default();
    quiet.header.index = index;
    quiet.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
    let refused = netlink.request(RouteNetlinkMessage::SetLink(quiet), 0);
    unless(refused, &[libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EINVAL])?;

    // What does not know it (kernels before 4.16) sends a superpacket in two messages instead of one.
    let mut whole = LinkMessage::default();
    whole.header.index = index;
    whole.attributes.push(LinkAttribute::GsoMaxSize(gso_max_size(mtu)));
    unless(netlink.request(RouteNetlinkMessage::SetLink(whole), 0), &[libc::EOPNOTSUPP, libc::EINVAL])?;

    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Mtu(mtu.into()));
    netlink.request(RouteNetlinkMessage::SetLink(message), 0)
}

/// The largest superpacket whose segments, encrypted, are one UDP message: at an MTU of 1420 that is 45 of them
/// (`tunnel-engine.md`).
fn gso_max_size(mtu: u16) -> u32 {
    /// Of an IPv4 UDP message.
    const MESSAGE: u32 = 65507;
    /// Around a packet in a data message.
    const OVERHEAD: u32 = 32;
    /// Inner headers with the usual options.
    const HEADERS: u32 = 60;
    let mtu = u32::from(mtu);
    (MESSAGE / (mtu + OVERHEAD)).min(64) * mtu.saturating_sub(HEADERS)
}

/// Without link-local ones.
pub(super) fn addresses(netlink: &mut Netlink, index: u32) -> io::Result<BTreeSet<IpAddr>> {
    let mut filter = AddressMessage::default();
    filter.header.index = index;
    let found = netlink.dump(&RouteNetlinkMessage::GetAddress(filter))?;
    Ok(found
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            if message.header.index != index || message.header.scope != AddressScope::Universe {
                return None;
            }
            // IPv4 puts its own end into LOCAL; IPv6 has only ADDRESS unless there is a peer.
            let of = |local| {
                message.attributes.iter().find_map(move |attribute| match attribute {
                    AddressAttribute::Local(address) if local => Some(*address),
                    AddressAttribute::Address(address) if !local => Some(*address),
                    _ => None,
                })
            };
            of(true).or_else(|| of(false))
        })
        .collect())
}

pub(super) fn add_address(netlink: &mut Netlink, index: u32, address: IpAddr) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
    unless(netlink.request(message, NLM_F_CREATE | NLM_F_EXCL), &[libc::EEXIST])
}

pub(super) fn remove_address(netlink: &mut Netlink, index: u32, address: IpAddr) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
    unless(netlink.request(message, 0), &[libc::EADDRNOTAVAIL])
}

fn address_message(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    if address.is_ipv6() {
        // Usable at once: nobody else can be on this link, so there is nothing to detect.
        message.header.flags = AddressHeaderFlags::Nodad;
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}
