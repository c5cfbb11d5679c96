//! Packets as bytes, and maps in memory, behind the hook's view.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use hawser_ebpf_abi::{
    Addr, Config, EXPORTED_CLOSING, Endpoint, EnterBegun, EnterKey, Entered, Exported, FlowKey, IP_REMOTE,
    IpEntry, Nat, NatBegun, NatKey, Plain, Port, PrefixKey, Reason, ServiceKey,
};
use hawser_ebpf_logic::choice::Choice;
use hawser_ebpf_logic::enter::Uplink;
use hawser_ebpf_logic::mss::{Clamp, update_checksum};
use hawser_ebpf_logic::nat::{Change, Sender};
use hawser_ebpf_logic::packet::{ETH_P_IP, Ip, Packet, Transport};
use hawser_ebpf_logic::reflect::Control;
use hawser_ebpf_logic::refuse::Refusal;
use hawser_ebpf_logic::reset::{Reset, TCP_LEN, is_repetition};
use hawser_ebpf_logic::verdict::Hook;

/// A packet from its network header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Packet for Bytes {
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let bytes = self.0.get(offset as usize..)?.get(..size_of::<T>())?;
        // SAFETY: as many bytes as the type has, and every bit pattern is a value of a Plain type.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

pub(crate) fn ipv4(src: &str, dst: &str, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, proto, 0, 0];
    packet.extend(src.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend(dst.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend(payload);
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet
}

pub(crate) fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8) -> Vec<u8> {
    ipv4(src, dst, 6, &tcp_segment(sport, dport, flags, &[2, 4, 0x05, 0xb4]))
}

/// A TCP header with options (padded to words) and no data; the checksum covers the segment alone.
pub(crate) fn tcp_segment(sport: u16, dport: u16, flags: u8, options: &[u8]) -> Vec<u8> {
    let words = 5 + options.len().div_ceil(4);
    let mut segment = vec![0; words * 4];
    segment[0..2].copy_from_slice(&sport.to_be_bytes());
    segment[2..4].copy_from_slice(&dport.to_be_bytes());
    segment[4..8].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    segment[12] = (words as u8) << 4;
    segment[13] = flags;
    segment[20..20 + options.len()].copy_from_slice(options);
    let sum = checksum(&segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

pub(crate) fn udp(src: &str, sport: u16, dst: &str, dport: u16) -> Vec<u8> {
    let mut datagram = [sport.to_be_bytes(), dport.to_be_bytes(), [0, 12], [0, 0]].concat();
    datagram.extend(b"ping");
    ipv4(src, dst, 17, &datagram)
}

pub(crate) fn icmp(src: &str, dst: &str, kind: u8, id: u16, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(quoted);
    ipv4(src, dst, 1, &message)
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A node: its maps, and the packet it looks at. Effects are written down.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) ifindex: u32,
    pub(crate) mark: u32,
    pub(crate) gso_size: u32,
    pub(crate) ethertype: u16,
    pub(crate) ipcache: BTreeMap<PrefixKey, IpEntry>,
    pub(crate) endpoints: BTreeMap<Addr, Endpoint>,
    pub(crate) exported: BTreeSet<ServiceKey>,
    /// All of them.
    pub(crate) closing: bool,
    pub(crate) flows: RefCell<BTreeMap<FlowKey, u32>>,
    pub(crate) cluster_words: BTreeMap<u16, u32>,
    pub(crate) node_words: BTreeMap<u32, u32>,
    pub(crate) reset_wishes: BTreeMap<ServiceKey, u32>,
    pub(crate) ticks: u32,
    pub(crate) association: u32,
    pub(crate) packet: RefCell<Bytes>,
    pub(crate) notes: RefCell<Vec<Reason>>,
    pub(crate) turned: RefCell<Vec<(Ip, Transport, Control, Control)>>,
    /// What is chosen for flows to these services, and who asked last.
    pub(crate) choices: BTreeMap<ServiceKey, Choice>,
    pub(crate) asked: Cell<Option<Sender>>,
    pub(crate) nat: RefCell<BTreeMap<NatKey, Nat>>,
    pub(crate) begun: Cell<Option<NatBegun>>,
    pub(crate) frontends: BTreeMap<ServiceKey, ServiceKey>,
    pub(crate) entered: RefCell<BTreeMap<EnterKey, Entered>>,
    pub(crate) begun_entered: Cell<Option<EnterBegun>>,
    pub(crate) masquerades: Cell<u32>,
}

pub(crate) fn addr(ip: &str) -> Addr {
    ip.parse::<IpAddr>().unwrap().into()
}

impl Node {
    /// Pods 10.1.0.5 (interface 5) and 10.1.0.6 (interface 6); remote pods 10.2.0.0/16, remote node 240.2.0.1.
    pub(crate) fn new() -> Self {
        let remote = |cluster| IpEntry { identity: 9, node: 1, cluster, flags: IP_REMOTE };
        let ipcache = [("10.2.0.0", 16), ("240.2.0.1", 32)];
        let endpoint = |ifindex| Endpoint { ifindex, ..Endpoint::default() };
        Self {
            config: Config {
                tunnel_ifindex: 77,
                tunnel_mtu: 1420,
                own_mesh_v4: addr("240.1.0.1"),
                own_mesh_v6: addr("fd68:6177:7365:1::1"),
                ..Config::new(1)
            },
            ifindex: 5,
            mark: 0,
            gso_size: 0,
            ethertype: ETH_P_IP,
            ipcache: ipcache
                .iter()
                .map(|(ip, len)| (PrefixKey::new(ip.parse().unwrap(), *len).unwrap(), remote(2)))
                .collect(),
            endpoints: [(addr("10.1.0.5"), endpoint(5)), (addr("10.1.0.6"), endpoint(6))].into(),
            exported: BTreeSet::new(),
            closing: false,
            flows: RefCell::default(),
            cluster_words: BTreeMap::new(),
            node_words: BTreeMap::new(),
            reset_wishes: BTreeMap::new(),
            ticks: 1_000_000,
            association: 0,
            packet: RefCell::new(Bytes(Vec::new())),
            notes: RefCell::default(),
            turned: RefCell::default(),
            choices: BTreeMap::new(),
            asked: Cell::default(),
            nat: RefCell::default(),
            begun: Cell::default(),
            frontends: BTreeMap::new(),
            entered: RefCell::default(),
            begun_entered: Cell::default(),
            masquerades: Cell::default(),
        }
    }

    pub(crate) fn sees(&self, packet: Vec<u8>) -> &Self {
        *self.packet.borrow_mut() = Bytes(packet);
        self.notes.borrow_mut().clear();
        self
    }
}

impl Packet for Node {
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        self.packet.borrow().load(offset)
    }
}

impl Hook for Node {
    fn config(&self) -> Config {
        self.config
    }

    fn ethertype(&self) -> u16 {
        self.ethertype
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn packet_len(&self) -> u32 {
        self.packet.borrow().0.len() as u32
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn ip_entry(&self, addr: &Addr) -> Option<IpEntry> {
        let longest = if addr.is_v4() { 32 } else { 128 };
        (0..=longest).rev().find_map(|len| self.ipcache.get(&PrefixKey::new(addr.ip(), len)?).copied())
    }

    fn endpoint(&self, addr: &Addr) -> Option<Endpoint> {
        self.endpoints.get(addr).copied()
    }

    fn exported(&self, key: &ServiceKey) -> Option<Exported> {
        let flags = if self.closing { EXPORTED_CLOSING } else { 0 };
        self.exported.contains(key).then_some(Exported { flags })
    }

    fn knows_flow(&self, key: &FlowKey) -> bool {
        self.flows.borrow().contains_key(key)
    }

    fn flow_began(&self, key: &FlowKey) -> Option<u32> {
        self.flows.borrow().get(key).copied()
    }

    fn cluster_word(&self, cluster: u16) -> u32 {
        self.cluster_words.get(&cluster).copied().unwrap_or(0)
    }

    fn node_word(&self, slot: u32) -> u32 {
        self.node_words.get(&slot).copied().unwrap_or(0)
    }

    fn reset_wish(&self, backend: &ServiceKey) -> Option<u32> {
        self.reset_wishes.get(backend).copied()
    }

    fn ticks(&self) -> u32 {
        self.ticks
    }

    fn association(&self) -> u32 {
        self.association
    }

    fn remember_flow(&self, key: &FlowKey, first: bool) -> bool {
        let mut flows = self.flows.borrow_mut();
        match first {
            true if flows.get(key).is_some_and(|began| is_repetition(*began, self.ticks)) => {}
            true => drop(flows.insert(*key, self.ticks)),
            false => drop(flows.entry(*key).or_insert(0)),
        }
        true
    }

    fn turn_into_reset(&self, ip: &Ip, reset: &Reset) -> bool {
        end(&mut self.packet.borrow_mut().0, ip, reset);
        true
    }

    fn turn_into_refusal(&self, ip: &Ip, refusal: &Refusal) -> bool {
        let packet = &mut self.packet.borrow_mut().0;
        packet.truncate((ip.l4 + refusal.quoted) as usize);
        let head: Vec<u8> = refusal.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        packet.splice(..0, head[..refusal.len as usize].iter().copied());
        true
    }

    fn rewrite_mss(&self, ip: &Ip, clamp: &Clamp) {
        apply(&mut self.packet.borrow_mut().0, ip.l4, clamp);
    }

    fn turn(&self, ip: &Ip, udp: &Transport, asked: &Control, answer: &Control) {
        self.turned.borrow_mut().push((*ip, *udp, *asked, *answer));
    }

    fn note(&self, reason: Reason) {
        self.notes.borrow_mut().push(reason);
    }

    fn assign(&self, service: &ServiceKey, sender: &Sender) -> Choice {
        self.asked.set(Some(*sender));
        self.choices.get(service).copied().unwrap_or(Choice::Untouched(Reason::ConnectOther))
    }

    fn nat(&self, key: &NatKey) -> Option<Nat> {
        self.nat.borrow().get(key).copied()
    }

    fn write_nat(&self, key: &NatKey, nat: &Nat) -> bool {
        self.nat.borrow_mut().insert(*key, *nat);
        true
    }

    fn readdress(&self, ip: &Ip, _: &Transport, change: &Change) -> bool {
        readdress(&mut self.packet.borrow_mut().0, 0, ip, change);
        true
    }

    fn readdress_quoted(&self, error: &Ip, quoted: &Ip, _: Port, change: &Change, outer: bool) -> bool {
        let packet = &mut self.packet.borrow_mut().0;
        readdress(packet, error.l4 as usize + 8, quoted, change);
        if outer {
            write_address(packet, 0, &Change { is_destination: !change.is_destination, ..*change });
        }
        true
    }

    fn keep(&self, begun: &NatBegun) {
        self.begun.set(Some(*begun));
    }

    fn begun(&self) -> Option<NatBegun> {
        self.begun.get()
    }
}

impl Uplink for Node {
    fn frontend(&self, key: &ServiceKey) -> Option<ServiceKey> {
        self.frontends.get(key).copied()
    }

    fn entered(&self, key: &EnterKey) -> Option<Entered> {
        self.entered.borrow().get(key).copied()
    }

    fn write_entered(&self, key: &EnterKey, to: &Entered, new: bool) -> bool {
        let mut entered = self.entered.borrow_mut();
        if new && entered.contains_key(key) {
            return false;
        }
        entered.insert(*key, *to);
        true
    }

    fn forget_entered(&self, key: &EnterKey) {
        self.entered.borrow_mut().remove(key);
    }

    fn touch_entered(&self, key: &EnterKey, without: u32, with: u32) {
        if let Some(found) = self.entered.borrow_mut().get_mut(key) {
            found.seen = self.ticks;
            found.state = found.state & !without | with;
        }
    }

    fn keep_entered(&self, begun: &EnterBegun) {
        self.begun_entered.set(Some(*begun));
    }

    fn begun_entered(&self) -> Option<EnterBegun> {
        self.begun_entered.get()
    }

    fn send_entered_to(&self, addr: Addr, port: Port) {
        let begun = self.begun_entered.get().unwrap();
        let to = Entered { dst: addr, dst_port: port, ..begun.to };
        self.begun_entered.set(Some(EnterBegun { to, ..begun }));
    }

    fn masquerade(&self, mark: u32) {
        self.masquerades.set(mark);
    }
}

/// What the kernel's helpers do with a change, but for checksums: real sockets look at those.
fn readdress(packet: &mut [u8], header: usize, ip: &Ip, change: &Change) {
    write_address(packet, header, change);
    let at = ip.l4 as usize + if change.is_destination { 2 } else { 0 };
    packet[at..at + 2].copy_from_slice(&change.port.wire().to_ne_bytes());
}

fn write_address(packet: &mut [u8], header: usize, change: &Change) {
    let octets = change.addr.octets();
    let (first, octets) = if change.addr.is_v4() { (12, &octets[12..]) } else { (8, &octets[..]) };
    let at = header + first + if change.is_destination { octets.len() } else { 0 };
    packet[at..at + octets.len()].copy_from_slice(octets);
}

/// What the kernel's helpers do with a reset.
fn end(packet: &mut Vec<u8>, ip: &Ip, reset: &Reset) {
    let (l4, at) = (ip.l4 as usize, reset.ip_len_at as usize);
    packet.truncate(l4 + TCP_LEN as usize);
    packet[l4..].copy_from_slice(reset.tcp.as_bytes());
    packet[at..at + 2].copy_from_slice(&reset.ip_len.to_ne_bytes());
    let (first, len) = if ip.src.is_v4() { (12, 4) } else { (8, 16) };
    let (from, to) = packet[first..].split_at_mut(len);
    from.swap_with_slice(&mut to[..len]);
    if ip.src.is_v4() {
        packet[10..12].copy_from_slice(&reset.ip_checksum.to_ne_bytes());
    }
}

/// What the kernel's helpers do with a clamp.
pub(crate) fn apply(packet: &mut [u8], l4: u32, clamp: &Clamp) {
    let (at, sum) = (clamp.at as usize, l4 as usize + 16);
    packet[at..at + 2].copy_from_slice(&clamp.new.to_ne_bytes());
    let old = u16::from_ne_bytes([packet[sum], packet[sum + 1]]);
    let new = update_checksum(old, clamp.sum_old, clamp.sum_new);
    packet[sum..sum + 2].copy_from_slice(&new.to_ne_bytes());
}
