//! States and policies of one interface id, by XFRM netlink. What has another id, or none, is not seen, so it is never
//! changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use hawser_tunnels::{EspKey, Family, Mark};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_xfrm::policy::{DelGetMessage as PolicyId, ModifyMessage as PolicyMessage};
use netlink_packet_xfrm::state::{DelGetMessage as StateId, GetDumpMessage, ModifyMessage as StateMessage};
use netlink_packet_xfrm::{
    Address, AlgAead, EncapTmpl, ReplayEsn, Selector, UserMapping, UserPolicyId, UserPolicyInfo, UserSaId,
    UserTemplate, XFRM_ALG_AEAD_NAME_LEN, XFRM_MODE_TUNNEL, XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK,
    XFRM_POLICY_FWD, XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_STATE_AF_UNSPEC, XFRM_STATE_ESN,
    XFRMNLGRP_MAPPING, XfrmAttrs, XfrmMessage,
};

use crate::net::{Events, Netlink, unless};

const NETLINK_XFRM: isize = 6;
const ESP: u8 = 50;
/// `linux/udp.h`: RFC 3948.
pub(super) const UDP_ENCAP_ESPINUDP: u16 = 2;
const AES_GCM: &[u8] = b"rfc4106(gcm(aes))";
const TAG_BITS: u32 = 128;
/// Packets that may overtake each other; as many as the kernel takes (`XFRMA_REPLAY_ESN_MAX`).
pub(super) const REPLAY_WINDOW: u32 = 4096;
/// A prefix's policies, and behind all of them the one that blocks.
const PRIORITY: u32 = 1000;
const LAST: u32 = u32::MAX;
/// Counters that are left out when a state is put elsewhere: what the old one still sends meanwhile has smaller ones.
const COUNTERS_LEFT_OUT: u64 = 1 << 22;

pub(super) const DIRECTIONS: [u8; 3] = [XFRM_POLICY_IN, XFRM_POLICY_FWD, OUT];
pub(super) const OUT: u8 = XFRM_POLICY_OUT;

/// The kernel, and what is known of it: read as a whole by [`Xfrm::refresh`], and followed through every change of ours, so
/// that one more peer costs no look at all the others.
pub(super) struct Xfrm {
    netlink: Netlink<XfrmMessage>,
    id: u32,
    states: BTreeMap<u32, State>,
    policies: Policies,
}

/// A state as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) place: Place,
    /// Of packets that it carried.
    pub(super) bytes: u64,
    /// Seconds since 1970; 0 before its first packet.
    pub(super) first_used: u64,
}

/// A policy that allows: what leaves goes by this state alone, what comes in came by one of this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// 0 of an incoming one.
    pub(super) spi: u32,
    pub(super) reqid: u32,
    /// From where to where, of an outgoing one.
    pub(super) ends: Option<(IpAddr, IpAddr)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    by_prefix: BTreeMap<(IpNet, u8), Policy>,
    /// Of outgoing ones.
    by_spi: HashMap<u32, BTreeSet<IpNet>>,
    /// Whether everything else is blocked, in each direction and family.
    pub(super) blocked: bool,
}

impl Policies {
    pub(super) fn get(&self, prefix: IpNet, direction: u8) -> Option<&Policy> {
        self.by_prefix.get(&(prefix, direction))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (IpNet, u8)> + '_ {
        self.by_prefix.keys().copied()
    }

    /// Prefixes that leave by a state.
    pub(super) fn of(&self, spi: u32) -> impl Iterator<Item = IpNet> + '_ {
        self.by_spi.get(&spi).into_iter().flatten().copied()
    }

    fn put(&mut self, prefix: IpNet, direction: u8, policy: Policy) {
        self.forget(prefix, direction);
        if direction == OUT {
            self.by_spi.entry(policy.spi).or_default().insert(prefix);
        }
        self.by_prefix.insert((prefix, direction), policy);
    }

    fn forget(&mut self, prefix: IpNet, direction: u8) {
        if let Some(before) = self.by_prefix.remove(&(prefix, direction))
            && direction == OUT
            && let Some(prefixes) = self.by_spi.get_mut(&before.spi)
        {
            prefixes.remove(&prefix);
            if prefixes.is_empty() {
                self.by_spi.remove(&before.spi);
            }
        }
    }
}

/// Where a state goes and whom it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) reqid: u32,
    /// In UDP (RFC 3948), between these ports.
    pub(super) udp: Option<(u16, u16)>,
}

impl Place {
    /// The way back.
    pub(super) fn turned(self) -> Self {
        let udp = self.udp.map(|(source, destination)| (destination, source));
        Self { source: self.destination, destination: self.source, reqid: self.reqid, udp }
    }
}

impl Xfrm {
    /// Knows nothing until it is refreshed.
    pub(super) fn open(id: u32) -> io::Result<Self> {
        let netlink = Netlink::of(NETLINK_XFRM)?;
        Ok(Self { netlink, id, states: BTreeMap::new(), policies: Policies::default() })
    }

    /// Costs a dump of all states and policies of this namespace.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.refresh_states()?;
        let found = self.netlink.dump(&XfrmMessage::GetPolicy(PolicyId::default()))?;
        let mut policies = Policies::default();
        let mut blocks = 0;
        for message in found {
            let XfrmMessage::AddPolicy(policy) = message else { continue };
            if if_id(&policy.nlas) != self.id {
                continue;
            }
            let direction = policy.user_policy_info.direction;
            if policy.user_policy_info.action == XFRM_POLICY_BLOCK {
                blocks += 1;
            } else if let Some((prefix, is)) = read_policy(&policy) {
                policies.put(prefix, direction, is);
            }
        }
        policies.blocked = blocks == DIRECTIONS.len() * 2;
        self.policies = policies;
        Ok(())
    }

    /// Costs a dump of all states of this namespace.
    pub(super) fn refresh_states(&mut self) -> io::Result<()> {
        let found = self.netlink.dump(&XfrmMessage::GetDumpSa(GetDumpMessage::default()))?;
        let ours = found.iter().filter_map(|message| match message {
            XfrmMessage::AddSa(state) if if_id(&state.nlas) == self.id => read_state(state),
            _ => None,
        });
        self.states = ours.collect();
        Ok(())
    }

    /// By SPI.
    pub(super) fn states(&self) -> &BTreeMap<u32, State> {
        &self.states
    }

    pub(super) fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Sends with `mark` where it has one, so that what leaves is not routed into the mesh again.
    pub(super) fn add_state(
        &mut self,
        spi: u32,
        key: &EspKey,
        place: Place,
        mark: Option<Mark>,
    ) -> io::Result<()> {
        let mut state = StateMessage::default();
        let info = &mut state.user_sa_info;
        info.id.spi = spi;
        info.id.proto = ESP;
        info.mode = XFRM_MODE_TUNNEL;
        // Both families in one tunnel, and 64-bit sequence numbers.
        info.flags = XFRM_STATE_AF_UNSPEC | XFRM_STATE_ESN;
        let mut name = [0; XFRM_ALG_AEAD_NAME_LEN];
        name[..AES_GCM.len()].copy_from_slice(AES_GCM);
        let alg_key = key.material().to_vec();
        state.nlas = vec![
            XfrmAttrs::EncryptionAlgAead(AlgAead {
                alg_name: name,
                alg_key_len: (alg_key.len() * 8) as u32,
                alg_icv_len: TAG_BITS,
                alg_key,
            }),
            XfrmAttrs::ReplayStateEsn(ReplayEsn {
                bmp_len: REPLAY_WINDOW / 32,
                replay_window: REPLAY_WINDOW,
                bmp: vec![0; (REPLAY_WINDOW / 32) as usize],
                ..ReplayEsn::default()
            }),
            XfrmAttrs::IfId(self.id),
        ];
        if let Some(mark) = mark {
            state.nlas.extend([XfrmAttrs::MarkVal(mark.value), XfrmAttrs::MarkMask(mark.mask)]);
        }
        self.put_state(spi, state, place)
    }

    /// The same state elsewhere, with the same key: its counters and its window go on. One that is gone stays so.
    pub(super) fn move_state(&mut self, spi: u32, place: Place) -> io::Result<()> {
        let Some(before) = self.states.get(&spi).copied() else { return Ok(()) };
        let found = self.netlink.get(XfrmMessage::GetSa(state_id(spi, before.place.destination)))?;
        let found = found.into_iter().find_map(|message| match message {
            XfrmMessage::AddSa(state) => Some(state),
            _ => None,
        });
        let Some(mut message) = found else { return Ok(()) };
        let ports = before.place.udp.is_some() && place.udp.is_some();
        if ports && (Place { udp: place.udp, ..before.place }) == place {
            return self.change_ports(spi, message, place);
        }
        message.nlas.retain(|attribute| {
            !matches!(
                attribute,
                XfrmAttrs::LifetimeBytes(_) | XfrmAttrs::LastUsed(_) | XfrmAttrs::EncapsulationTemplate(_)
            )
        });
        for attribute in &mut message.nlas {
            if let XfrmAttrs::ReplayStateEsn(replay) = attribute {
                let sent = u64::from(replay.oseq_hi) << 32 | u64::from(replay.oseq);
                // One that only receives has sent nothing, and an own counter of its own means nothing.
                let next = if sent == 0 { 0 } else { sent + COUNTERS_LEFT_OUT };
                (replay.oseq_hi, replay.oseq) = ((next >> 32) as u32, next as u32);
            }
        }
        // Where it stands in the new one's way it goes first.
        let in_the_way = before.place.destination == place.destination;
        if in_the_way {
            self.delete_state(spi)?;
        }
        self.put_state(spi, message, place)?;
        if !in_the_way {
            self.request_delete(spi, before.place.destination)?;
        }
        Ok(())
    }

    /// In its place: nothing of its counters, its window, or its packets is lost.
    fn change_ports(&mut self, spi: u32, mut state: StateMessage, place: Place) -> io::Result<()> {
        for attribute in &mut state.nlas {
            if let (XfrmAttrs::EncapsulationTemplate(encap), Some((source, destination))) =
                (attribute, place.udp)
            {
                (encap.encap_sport, encap.encap_dport) = (source, destination);
            }
        }
        self.netlink.request(XfrmMessage::UpdateSa(state), 0)?;
        if let Some(known) = self.states.get_mut(&spi) {
            known.place = place;
        }
        Ok(())
    }

    fn put_state(&mut self, spi: u32, mut state: StateMessage, place: Place) -> io::Result<()> {
        let info = &mut state.user_sa_info;
        info.source(&place.source);
        info.destination(&place.destination);
        info.reqid = place.reqid;
        if let Some((encap_sport, encap_dport)) = place.udp {
            let encap_type = UDP_ENCAP_ESPINUDP;
            let encap = EncapTmpl { encap_type, encap_sport, encap_dport, ..EncapTmpl::default() };
            state.nlas.push(XfrmAttrs::EncapsulationTemplate(encap));
        }
        let (bytes, first_used) = (info.lifetime_cur.bytes, info.lifetime_cur.use_time);
        self.netlink.request(XfrmMessage::AddSa(state), NLM_F_CREATE | NLM_F_EXCL)?;
        self.states.insert(spi, State { place, bytes, first_used });
        Ok(())
    }

    pub(super) fn delete_state(&mut self, spi: u32) -> io::Result<()> {
        let Some(state) = self.states.get(&spi).copied() else { return Ok(()) };
        self.request_delete(spi, state.place.destination)?;
        self.states.remove(&spi);
        Ok(())
    }

    fn request_delete(&mut self, spi: u32, destination: IpAddr) -> io::Result<()> {
        let message = XfrmMessage::DeleteSa(state_id(spi, destination));
        unless(self.netlink.request(message, 0), &[libc::ESRCH])
    }

    /// What no other policy allows neither leaves nor comes in.
    pub(super) fn block(&mut self) -> io::Result<()> {
        for direction in DIRECTIONS {
            for everything in everything() {
                let policy = self.policy(everything, direction, XFRM_POLICY_BLOCK, LAST);
                self.netlink.request(XfrmMessage::UpdatePolicy(policy), 0)?;
            }
        }
        self.policies.blocked = true;
        Ok(())
    }

    pub(super) fn unblock(&mut self) -> io::Result<()> {
        for direction in DIRECTIONS {
            for everything in everything() {
                self.delete_policy(everything, direction)?;
            }
        }
        Ok(())
    }

    /// Gives a prefix to a peer, whoever had it: one step for each direction, what comes in first.
    pub(super) fn allow(&mut self, prefix: IpNet, spi_out: u32, tunnel: Place) -> io::Result<()> {
        for direction in DIRECTIONS {
            let out = direction == OUT;
            let is = Policy {
                spi: if out { spi_out } else { 0 },
                reqid: tunnel.reqid,
                ends: out.then_some((tunnel.source, tunnel.destination)),
            };
            if self.policies.get(prefix, direction) == Some(&is) {
                continue;
            }
            let mut policy = self.policy(prefix, direction, XFRM_POLICY_ALLOW, PRIORITY);
            let mut template = UserTemplate::default();
            template.protocol(ESP);
            template.mode(XFRM_MODE_TUNNEL);
            template.reqid(is.reqid);
            template.spi(is.spi);
            template.family = family_number(Family::of(tunnel.destination));
            if out {
                template.source(&tunnel.source);
                template.destination(&tunnel.destination);
            }
            policy.nlas.push(XfrmAttrs::Template(vec![template]));
            self.netlink.request(XfrmMessage::UpdatePolicy(policy), 0)?;
            self.policies.put(prefix, direction, is);
        }
        Ok(())
    }

    pub(super) fn delete_policy(&mut self, prefix: IpNet, direction: u8) -> io::Result<()> {
        let id = UserPolicyId { selector: selector(prefix, direction), index: 0, direction };
        let id = PolicyId { user_policy_id: id, nlas: vec![XfrmAttrs::IfId(self.id)] };
        unless(self.netlink.request(XfrmMessage::DeletePolicy(id), 0), &[libc::ENOENT])?;
        self.policies.forget(prefix, direction);
        Ok(())
    }

    /// In all directions, what leaves first.
    pub(super) fn deny(&mut self, prefix: IpNet) -> io::Result<()> {
        DIRECTIONS.iter().rev().try_for_each(|direction| self.delete_policy(prefix, *direction))
    }

    fn policy(&self, prefix: IpNet, direction: u8, action: u8, priority: u32) -> PolicyMessage {
        let user_policy_info = UserPolicyInfo {
            selector: selector(prefix, direction),
            priority,
            direction,
            action,
            ..UserPolicyInfo::default()
        };
        PolicyMessage { user_policy_info, nlas: vec![XfrmAttrs::IfId(self.id)] }
    }
}

/// Peers that are heard from elsewhere, as the kernel finds out; those of others, too.
pub(super) struct Mappings(Events<XfrmMessage>);

impl Mappings {
    /// In this thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        Events::of(NETLINK_XFRM, XFRMNLGRP_MAPPING).map(Self)
    }

    /// Those that have come; waits for none.
    pub(super) fn read(&mut self) -> io::Result<Vec<UserMapping>> {
        let of = |message| match message {
            XfrmMessage::Mapping(mapping) => Some(mapping.map),
            _ => None,
        };
        Ok(self.0.read()?.into_iter().filter_map(of).collect())
    }
}

impl AsFd for Mappings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn everything() -> [IpNet; 2] {
    [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()]
}

/// A peer's prefix is where packets go, or where they come from.
fn selector(prefix: IpNet, direction: u8) -> Selector {
    let mut selector = Selector { family: family_number(Family::of_net(&prefix)), ..Selector::default() };
    let address = Address::from_ip(&prefix.network());
    if direction == XFRM_POLICY_OUT {
        (selector.daddr, selector.prefixlen_d) = (address, prefix.prefix_len());
    } else {
        (selector.saddr, selector.prefixlen_s) = (address, prefix.prefix_len());
    }
    selector
}

fn state_id(spi: u32, destination: IpAddr) -> StateId {
    let family = family_number(Family::of(destination));
    let user_sa_id = UserSaId { daddr: Address::from_ip(&destination), spi, family, proto: ESP };
    StateId { user_sa_id, nlas: Vec::new() }
}

fn read_state(message: &StateMessage) -> Option<(u32, State)> {
    let info = &message.user_sa_info;
    let udp = message.nlas.iter().find_map(|attribute| match attribute {
        XfrmAttrs::EncapsulationTemplate(encap) => Some((encap.encap_sport, encap.encap_dport)),
        _ => None,
    });
    let place = Place {
        source: address(&info.saddr, info.family)?,
        destination: address(&info.id.daddr, info.family)?,
        reqid: info.reqid,
        udp,
    };
    let (bytes, first_used) = (info.lifetime_cur.bytes, info.lifetime_cur.use_time);
    Some((info.id.spi, State { place, bytes, first_used }))
}

fn read_policy(message: &PolicyMessage) -> Option<(IpNet, Policy)> {
    let info = &message.user_policy_info;
    let selector = &info.selector;
    let out = info.direction == OUT;
    let (at, length) =
        if out { (&selector.daddr, selector.prefixlen_d) } else { (&selector.saddr, selector.prefixlen_s) };
    let prefix = IpNet::new(address(at, selector.family)?, length).ok()?;
    let template = message.nlas.iter().find_map(|attribute| match attribute {
        XfrmAttrs::Template(templates) => templates.first(),
        _ => None,
    })?;
    let end = |address_of| address(address_of, template.family);
    let ends = if out { Some((end(&template.saddr)?, end(&template.id.daddr)?)) } else { None };
    Some((prefix, Policy { spi: template.id.spi, reqid: template.reqid, ends }))
}

fn if_id(attributes: &[XfrmAttrs]) -> u32 {
    let id = attributes.iter().find_map(|attribute| match attribute {
        XfrmAttrs::IfId(id) => Some(*id),
        _ => None,
    });
    id.unwrap_or(0)
}

fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => libc::AF_INET as u16,
        Family::V6 => libc::AF_INET6 as u16,
    }
}

pub(super) fn address(address: &Address, family: u16) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(address.to_ipv4().into()),
        libc::AF_INET6 => Some(address.to_ipv6().into()),
        _ => None,
    }
}
