//! What only the kernel knows: the host side of each pod's interface, the tunnel device, the devices of the underlay.
//!
//! Cost of a look: a dump of links and addresses, one route look-up per pod of this node, and for pods behind a bridge
//! one dump of its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::{StreamExt, TryStreamExt};
use hawser_agent_core::Interfaces;
use hawser_tunnels::DeviceName;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::mpsc;

use crate::config::Underlay;

/// Links that came up and are not guarded yet.
const APPEARING: usize = 1_024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    #[error("cannot open a netlink socket: {0}. fix: run as root (CAP_NET_ADMIN)")]
    Open(#[from] std::io::Error),
    #[error("the kernel did not list links, addresses or routes: {0}")]
    Netlink(#[from] rtnetlink::Error),
    #[error(
        "the look at links, addresses and routes ended early, and is tried again: {0}. fix: report this, it is a bug"
    )]
    Ended(tokio::task::JoinError),
}

/// Where the node meets what is neither its tunnel nor its pods, by interface index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edge {
    /// Where other machines of the underlay are.
    pub underlay: BTreeSet<u32>,
    /// Every device that is up, but for loopback: by any of them something could leave beside the tunnel.
    pub all: BTreeSet<u32>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub interfaces: Interfaces,
    pub edge: Edge,
    /// Names of devices for traffic from outside that are not there, or are no Ethernet.
    pub no_uplinks: Vec<String>,
    /// Pods whose interface is not there (yet).
    pub missing: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
struct Link {
    name: String,
    kind: Option<InfoKind>,
    loopback: bool,
    up: bool,
    ethernet: bool,
}

/// A netlink socket of this network namespace.
#[derive(Debug)]
pub(crate) struct Looker {
    handle: Handle,
}

impl Looker {
    /// Also says, through the receivers, when links, addresses or routes changed, many changes in one word; and of every link that
    /// changed and is up which it is, unless there are too many at once: then the next look finds them.
    pub(crate) fn open() -> Result<(Self, mpsc::Receiver<()>, mpsc::Receiver<u32>), LookError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, mut messages) = new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        let (changed, changes) = mpsc::channel(1);
        let (appeared, appearing) = mpsc::channel(APPEARING);
        tokio::spawn(async move {
            while let Some((message, _)) = messages.next().await {
                if let Some(index) = link_that_is_up(message.payload) {
                    // A full channel is the next look's affair.
                    let _ = appeared.try_send(index);
                }
                if let Err(mpsc::error::TrySendError::Closed(())) = changed.try_send(()) {
                    return;
                }
            }
        });
        Ok((Self { handle }, changes, appearing))
    }

    pub(crate) async fn look(
        &self,
        pods: &BTreeSet<IpAddr>,
        device: &DeviceName,
        underlay: &Underlay,
        uplinks: &[DeviceName],
    ) -> Result<Found, LookError> {
        let links = self.links().await?;
        let mut found = Found::default();
        found.interfaces.tunnel = index_of(&links, device.as_str()).unwrap_or(0);
        for name in uplinks {
            // The programs there know Ethernet's header.
            let index = index_of(&links, name.as_str()).filter(|index| links[index].ethernet);
            match index {
                Some(index) => drop(found.interfaces.uplinks.insert(index)),
                None => found.no_uplinks.push(name.to_string()),
            }
        }
        for pod in pods {
            match self.interface_of(*pod, &links).await? {
                Some(index) if index != found.interfaces.tunnel => {
                    found.interfaces.pods.insert(*pod, index);
                }
                _ => found.missing.push(*pod),
            }
        }
        let own = |link: &Link| link.loopback || link.name == device.as_str();
        let edge = links.iter().filter(|(_, link)| link.up && !own(link));
        found.edge.all = edge.map(|(index, _)| *index).collect();
        found.edge.underlay = match underlay {
            Underlay::Devices(names) => {
                names.iter().filter_map(|name| index_of(&links, name.as_str())).collect()
            }
            Underlay::Auto => {
                let pods: BTreeSet<u32> = found.interfaces.pods.values().copied().collect();
                let uplink = |index: &u32| {
                    let link =
                        links.get(index).filter(|link| is_uplink(link) && link.name != device.as_str());
                    link.is_some() && !pods.contains(index)
                };
                self.with_global_address().await?.into_iter().filter(uplink).collect()
            }
        };
        Ok(found)
    }

    async fn links(&self) -> Result<BTreeMap<u32, Link>, LookError> {
        let messages: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
        Ok(messages.into_iter().map(|message| (message.header.index, link(message))).collect())
    }

    async fn with_global_address(&self) -> Result<BTreeSet<u32>, LookError> {
        let messages = self.handle.address().get().execute().try_collect::<Vec<_>>().await?;
        let global = messages.iter().filter(|m| m.header.scope == AddressScope::Universe);
        Ok(global.map(|message| message.header.index).collect())
    }

    /// The interface a packet to this pod leaves the host through: the pod's own, or its port on a bridge. None when the
    /// way leads over a gateway, for then it is no pod of this node.
    async fn interface_of(&self, pod: IpAddr, links: &BTreeMap<u32, Link>) -> Result<Option<u32>, LookError> {
        let Some(route) = self.route_to(pod).await? else { return Ok(None) };
        let direct = route.header.kind == RouteType::Unicast
            && !route
                .attributes
                .iter()
                .any(|a| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
        let out = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) if direct => Some(*index),
            _ => None,
        });
        let Some(out) = out else { return Ok(None) };
        match links.get(&out).and_then(|link| link.kind.as_ref()) {
            Some(InfoKind::Bridge) => self.bridge_port(out, pod).await,
            _ => Ok(Some(out)),
        }
    }

    async fn route_to(&self, pod: IpAddr) -> Result<Option<RouteMessage>, LookError> {
        let message = match pod {
            IpAddr::V4(v4) => {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(v4, 32).build()
            }
            IpAddr::V6(v6) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(v6, 128).build()
            }
        };
        let mut routes = std::pin::pin!(self.handle.route().get(message).execute());
        match routes.next().await {
            // The kernel's word for "no way there" is an error of the request.
            None | Some(Err(rtnetlink::Error::NetlinkError(_))) => Ok(None),
            Some(route) => Ok(Some(route?)),
        }
    }

    /// Where the bridge learned the pod's hardware address.
    async fn bridge_port(&self, bridge: u32, pod: IpAddr) -> Result<Option<u32>, LookError> {
        let family = if pod.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let on_bridge = |m: &NeighbourMessage| m.header.ifindex == bridge && destination(m) == Some(pod);
        let neighbours = self.neighbours(family).await?;
        let Some(hardware) = neighbours.iter().find(|m| on_bridge(m)).and_then(hardware_address) else {
            return Ok(None);
        };
        let learned = |m: &&NeighbourMessage| {
            let of_bridge = m.attributes.contains(&NeighbourAttribute::Controller(bridge));
            of_bridge && m.header.ifindex != bridge && hardware_address(m) == Some(hardware)
        };
        let table = self.neighbours(AddressFamily::Bridge).await?;
        Ok(table.iter().find(learned).map(|message| message.header.ifindex))
    }

    async fn neighbours(&self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, LookError> {
        Ok(self.handle.neighbours().get().set_address_family(family).execute().try_collect().await?)
    }
}

/// Which link it is, when the message is about one that is up.
fn link_that_is_up(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<u32> {
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            let flags = link.header.flags;
            (flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback))
                .then_some(link.header.index)
        }
        _ => None,
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        kind: None,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        up: message.header.flags.contains(LinkFlags::Up),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn index_of(links: &BTreeMap<u32, Link>, name: &str) -> Option<u32> {
    links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index)
}

/// Physical devices have no kind. Tunnels, bridges and dummies carry what has come over an uplink already.
fn is_uplink(link: &Link) -> bool {
    let kind = matches!(
        link.kind,
        None | Some(InfoKind::Veth | InfoKind::Bond | InfoKind::Vlan | InfoKind::Team | InfoKind::MacVlan)
    );
    kind && !link.loopback
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

fn hardware_address(message: &NeighbourMessage) -> Option<&[u8]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => Some(address.as_slice()),
        _ => None,
    })
}
