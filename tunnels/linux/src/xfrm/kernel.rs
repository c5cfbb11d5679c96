//! States and policies of one interface id, by XFRM netlink. What has another id, or none, is not seen, so it is never
//! changed.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use hawser_tunnels::{EspKey, Family, Mark};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_xfrm::policy::{DelGetMessage as PolicyId, ModifyMessage as PolicyMessage};
use netlink_packet_xfrm::state::{DelGetMessage as StateId, GetDumpMessage, ModifyMessage as StateMessage};
use netlink_packet_xfrm::{
    Address, AlgAead, ReplayEsn, Selector, UserPolicyId, UserPolicyInfo, UserSaId, UserTemplate,
    XFRM_ALG_AEAD_NAME_LEN, XFRM_MODE_TUNNEL, XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK, XFRM_POLICY_FWD,
    XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_STATE_AF_UNSPEC, XFRM_STATE_ESN, XfrmAttrs, XfrmMessage,
};

use super::ledger::Pair;
use crate::net::{Netlink, unless};

const NETLINK_XFRM: isize = 6;
const ESP: u8 = 50;
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

pub(super) struct Xfrm {
    netlink: Netlink<XfrmMessage>,
    id: u32,
}

/// A state as the kernel has it.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) reqid: u32,
    /// Of packets that it carried.
    pub(super) bytes: u64,
    /// Seconds since 1970; 0 before its first packet.
    pub(super) first_used: u64,
    message: StateMessage,
}

/// A policy that allows: what matches it travels by this state alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) spi: u32,
    /// Of an outgoing one.
    pub(super) tunnel: Option<Place>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    pub(super) by_prefix: BTreeMap<(IpNet, u8), Policy>,
    /// Whether everything else is blocked, in each direction and family.
    pub(super) blocked: bool,
}

/// Where a state goes and whom it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) reqid: u32,
}

impl Xfrm {
    pub(super) fn open(id: u32) -> io::Result<Self> {
        Ok(Self { netlink: Netlink::of(NETLINK_XFRM)?, id })
    }

    /// By SPI. Costs a dump of all states of this namespace.
    pub(super) fn states(&mut self) -> io::Result<BTreeMap<u32, State>> {
        let found = self.netlink.dump(&XfrmMessage::GetDumpSa(GetDumpMessage::default()))?;
        let ours = found.into_iter().filter_map(|message| match message {
            XfrmMessage::AddSa(state) if if_id(&state.nlas) == self.id => read_state(state),
            _ => None,
        });
        Ok(ours.collect())
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
        self.put_state(state, place)
    }

    /// The same state elsewhere, with the same key: its counters and its window go on. The old one stays unless it stands in
    /// the new one's way; [`Self::delete_state`] takes it.
    pub(super) fn move_state(&mut self, spi: u32, state: &State, place: Place) -> io::Result<()> {
        let mut message = state.message.clone();
        message
            .nlas
            .retain(|attribute| !matches!(attribute, XfrmAttrs::LifetimeBytes(_) | XfrmAttrs::LastUsed(_)));
        for attribute in &mut message.nlas {
            if let XfrmAttrs::ReplayStateEsn(replay) = attribute {
                let sent = u64::from(replay.oseq_hi) << 32 | u64::from(replay.oseq);
                // One that only receives has sent nothing, and an own counter of its own means nothing.
                let next = if sent == 0 { 0 } else { sent + COUNTERS_LEFT_OUT };
                (replay.oseq_hi, replay.oseq) = ((next >> 32) as u32, next as u32);
            }
        }
        if state.destination == place.destination {
            self.delete_state(spi, state.destination)?;
        }
        self.put_state(message, place)
    }

    fn put_state(&mut self, mut state: StateMessage, place: Place) -> io::Result<()> {
        let info = &mut state.user_sa_info;
        info.source(&place.source);
        info.destination(&place.destination);
        info.reqid = place.reqid;
        self.netlink.request(XfrmMessage::AddSa(state), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(super) fn delete_state(&mut self, spi: u32, destination: IpAddr) -> io::Result<()> {
        let family = family_number(Family::of(destination));
        let id = UserSaId { daddr: Address::from_ip(&destination), spi, family, proto: ESP };
        let id = StateId { user_sa_id: id, nlas: Vec::new() };
        unless(self.netlink.request(XfrmMessage::DeleteSa(id), 0), &[libc::ESRCH])
    }

    /// Costs a dump of all policies of this namespace.
    pub(super) fn policies(&mut self) -> io::Result<Policies> {
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
                policies.by_prefix.insert((prefix, direction), is);
            }
        }
        policies.blocked = blocks == DIRECTIONS.len() * 2;
        Ok(policies)
    }

    /// What no other policy allows neither leaves nor comes in.
    pub(super) fn block(&mut self) -> io::Result<()> {
        for direction in DIRECTIONS {
            for everything in everything() {
                let policy = self.policy(everything, direction, XFRM_POLICY_BLOCK, LAST);
                self.netlink.request(XfrmMessage::UpdatePolicy(policy), 0)?;
            }
        }
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
    pub(super) fn allow(&mut self, prefix: IpNet, pair: Pair, tunnel: Place) -> io::Result<()> {
        for direction in DIRECTIONS {
            let mut policy = self.policy(prefix, direction, XFRM_POLICY_ALLOW, PRIORITY);
            let mut template = UserTemplate::default();
            template.protocol(ESP);
            template.mode(XFRM_MODE_TUNNEL);
            template.reqid(tunnel.reqid);
            template.spi(if direction == XFRM_POLICY_OUT { pair.spi_out } else { pair.spi_in });
            template.family = family_number(Family::of(tunnel.destination));
            if direction == XFRM_POLICY_OUT {
                template.source(&tunnel.source);
                template.destination(&tunnel.destination);
            }
            policy.nlas.push(XfrmAttrs::Template(vec![template]));
            self.netlink.request(XfrmMessage::UpdatePolicy(policy), 0)?;
        }
        Ok(())
    }

    pub(super) fn delete_policy(&mut self, prefix: IpNet, direction: u8) -> io::Result<()> {
        let id = UserPolicyId { selector: selector(prefix, direction), index: 0, direction };
        let id = PolicyId { user_policy_id: id, nlas: vec![XfrmAttrs::IfId(self.id)] };
        unless(self.netlink.request(XfrmMessage::DeletePolicy(id), 0), &[libc::ENOENT])
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

fn read_state(message: StateMessage) -> Option<(u32, State)> {
    let info = &message.user_sa_info;
    let spi = info.id.spi;
    let state = State {
        source: address(&info.saddr, info.family)?,
        destination: address(&info.id.daddr, info.family)?,
        reqid: info.reqid,
        bytes: info.lifetime_cur.bytes,
        first_used: info.lifetime_cur.use_time,
        message,
    };
    Some((spi, state))
}

fn read_policy(message: &PolicyMessage) -> Option<(IpNet, Policy)> {
    let info = &message.user_policy_info;
    let selector = &info.selector;
    let out = info.direction == XFRM_POLICY_OUT;
    let (at, length) =
        if out { (&selector.daddr, selector.prefixlen_d) } else { (&selector.saddr, selector.prefixlen_s) };
    let prefix = IpNet::new(address(at, selector.family)?, length).ok()?;
    let template = message.nlas.iter().find_map(|attribute| match attribute {
        XfrmAttrs::Template(templates) => templates.first(),
        _ => None,
    })?;
    let tunnel = || {
        Some(Place {
            source: address(&template.saddr, template.family)?,
            destination: address(&template.id.daddr, template.family)?,
            reqid: template.reqid,
        })
    };
    Some((prefix, Policy { spi: template.id.spi, tunnel: if out { tunnel() } else { None } }))
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

fn address(address: &Address, family: u16) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(address.to_ipv4().into()),
        libc::AF_INET6 => Some(address.to_ipv6().into()),
        _ => None,
    }
}
