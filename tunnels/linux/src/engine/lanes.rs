//! One peer over several lanes: for each of our ports beyond the first, sessions of their own between the same two keys, so
//! that several threads open what one peer sends.
//!
//! A lane is a [`Peer`] that belongs to the one with its key, which has the prefixes and the first port. A flow keeps to its
//! lane, so its packets stay in order. A lane shakes hands when a packet wants it, bound to its number (a handshake of one
//! lane is none of another's); until it has, and whenever it falls silent, its flows go by the first port: a firewall
//! that lets only that one through costs speed and nothing else.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::peer::{Context, Control, Peer};
use super::sessions::Sessions;
use crate::clock::Millis;
use crate::noise::REKEY_TIMEOUT;

/// Lanes of a peer beyond the first.
pub const MOST_LANES: usize = 7;

/// Of one peer; a lane has none itself.
#[derive(Default)]
pub(super) struct Lanes {
    /// How many the peer has, and how many of them we have, too.
    stated: AtomicUsize,
    used: AtomicUsize,
    /// Where the peer has them; zero beyond `stated`.
    ports: [AtomicU16; MOST_LANES],
    /// Each is made when it is first wanted, and stays.
    made: [OnceLock<Arc<Peer>>; MOST_LANES],
}

#[derive(Default)]
pub(super) struct Totals {
    pub(super) last_handshake: Option<SystemTime>,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    /// Lanes that can be sent by now.
    pub(super) sessions: u32,
}

impl Lanes {
    fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    fn port(&self, index: usize) -> u16 {
        self.ports[index].load(Ordering::Acquire)
    }

    /// Those that are there, whether in use or not.
    fn made(&self) -> impl Iterator<Item = (usize, &Arc<Peer>)> {
        self.made.iter().enumerate().filter_map(|(index, lane)| Some((index, lane.get()?)))
    }
}

impl Peer {
    /// The lane that a flow keeps to. O(1), without a lock once it has been made.
    pub(super) fn lane_of(self: &Arc<Self>, flow: impl FnOnce() -> usize) -> &Arc<Self> {
        match self.lanes.used() {
            0 => self,
            used => self.lane((flow() % (used + 1)) as u8).unwrap_or(self),
        }
    }

    /// None of one that is not in use.
    pub(super) fn lane(self: &Arc<Self>, lane: u8) -> Option<&Arc<Self>> {
        let Some(index) = usize::from(lane).checked_sub(1) else { return Some(self) };
        if index >= self.lanes.used() {
            return None;
        }
        Some(self.lanes.made[index].get_or_init(|| Arc::new(self.branch(lane, self.lanes.port(index)))))
    }

    fn branch(&self, lane: u8, port: u16) -> Self {
        let control = self.lock();
        let branch = Self::in_lane(self.key, lane);
        control.lend(&mut branch.lock(), port);
        branch
    }

    /// This peer and its lanes that have ever been wanted.
    pub(super) fn all(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::once(self).chain(self.branches())
    }

    pub(super) fn branches(&self) -> impl Iterator<Item = &Arc<Self>> {
        self.lanes.made().map(|(_, lane)| lane)
    }

    /// From now on it has lanes at these ports beside its first one; in use are as many as we have, too. What is not among
    /// them any more ends at once, and its flows go by those that are.
    pub(super) fn spread(&self, ports: &[u16], ours: usize, sessions: &Sessions) {
        let ports = &ports[..ports.len().min(MOST_LANES)];
        let used = ports.len().min(ours);
        self.lanes.used.fetch_min(used, Ordering::AcqRel);
        self.lanes.stated.store(ports.len(), Ordering::Release);
        for (index, to) in self.lanes.ports.iter().enumerate() {
            to.store(ports.get(index).copied().unwrap_or(0), Ordering::Release);
        }
        let control = self.lock();
        for (index, lane) in self.lanes.made() {
            let port = self.lanes.port(index);
            if port == 0 || index >= used {
                lane.forget_keys(sessions);
            }
            lane.follow(&control, port);
        }
        self.lanes.used.store(used, Ordering::Release);
    }

    /// Where it has its lanes, whether we have as many or not.
    pub(super) fn more_ports(&self) -> Vec<u16> {
        (0..self.lanes.stated.load(Ordering::Acquire)).map(|index| self.lanes.port(index)).collect()
    }

    /// The peer moved to another machine's address: its lanes are there, too, at the ports it has stated.
    pub(super) fn lead(&self, control: &Control) {
        self.lanes.made().for_each(|(index, lane)| lane.follow(control, self.lanes.port(index)));
    }

    fn follow(&self, first: &Control, port: u16) {
        let mut control = self.lock();
        let at = first.endpoint.filter(|_| port > 0).map(|at| SocketAddr::new(at.ip(), port));
        control.keepalive = first.keepalive;
        self.put_at(&mut control, at);
    }

    /// Of all its lanes together, as one peer is shown.
    pub(super) fn totals(self: &Arc<Self>, now: Millis) -> Totals {
        let mut totals = Totals::default();
        for lane in self.all() {
            let (rx, tx) = lane.bytes();
            totals.rx_bytes += rx;
            totals.tx_bytes += tx;
            totals.last_handshake = totals.last_handshake.max(lane.lock().last_handshake);
            totals.sessions += u32::from(lane.path(now).is_some());
        }
        totals
    }

    /// Of a lane without a session: asks for one. What was to be sent by it goes by the first port meanwhile.
    pub(super) fn ask(self: &Arc<Self>, context: &mut Context<'_>) {
        let mut control = self.lock();
        if control.pending.is_none() && context.now.since(control.asked) >= REKEY_TIMEOUT {
            self.initiate(&mut control, context);
        }
    }
}
