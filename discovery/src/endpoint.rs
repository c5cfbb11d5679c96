//! Where a node's tunnel goes: one of the addresses that its cluster states, or the one that the node was heard from.
//!
//! ```text
//! stated, best first:  A  B  C            heard from X (WireGuard's roaming): X holds as long as it answers
//! silent for 6 s:      A ─> B ─> C ─> A ...   twice as long after every round, a minute at most
//! silent at B or X:    begins at A again
//! ```
//! A path that answers is never left: WireGuard has one endpoint a peer, so trying another one costs the packets of the
//! first. The better one is tried again when the present one falls silent, and when the agent starts anew.

use std::net::SocketAddr;
use std::time::Duration;

use hawser_model::Time;

/// A path that does not answer is left after this long. WireGuard repeats a handshake every 5 s, so each gets one.
pub const PATIENCE: Duration = Duration::from_secs(6);
/// As long when nothing answers anywhere.
pub const PATIENCE_MOST: Duration = Duration::from_secs(60);
/// So many of a node's addresses are tried; what it states beyond them is not.
pub const MOST_ENDPOINTS: usize = 8;

/// What the engine says of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSeen {
    /// Where it was heard from last, or was put.
    pub endpoint: Option<SocketAddr>,
    /// Octets, handshakes too.
    pub received: u64,
    /// A handshake was finished lately: there is, or just was, a session.
    pub session: bool,
}

/// The choice for one node. Deterministic; each call is O(endpoints stated).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointChoice {
    stated: Vec<SocketAddr>,
    at: SocketAddr,
    up: bool,
    /// When it was chosen, or answered last, or was given up by liveness.
    since: Time,
    /// Endpoints that were left since something answered.
    left: u32,
    received: u64,
}

impl EndpointChoice {
    /// `stated` in the order of preference. `remembered` is where an earlier run had it, heard from or chosen. None when there
    /// is neither.
    pub fn new(mut stated: Vec<SocketAddr>, remembered: Option<SocketAddr>, now: Time) -> Option<Self> {
        stated.truncate(MOST_ENDPOINTS);
        let at = remembered.or_else(|| stated.first().copied())?;
        Some(Self { stated, at, up: false, since: now, left: 0, received: 0 })
    }

    pub fn endpoint(&self) -> SocketAddr {
        self.at
    }

    /// Best first.
    pub fn stated(&self) -> &[SocketAddr] {
        &self.stated
    }

    /// It was heard from an address that nobody stated: there is a NAT before it, and the NAT forgets who is silent.
    pub fn has_roamed(&self) -> bool {
        !self.stated.contains(&self.at)
    }

    /// Other addresses than before: one that is no longer stated is left at once, one that was never stated is not.
    pub fn handle_stated(&mut self, mut stated: Vec<SocketAddr>, now: Time) {
        stated.truncate(MOST_ENDPOINTS);
        if self.stated == stated {
            return;
        }
        let withdrawn = self.stated.contains(&self.at) && !stated.contains(&self.at);
        self.stated = stated;
        if let Some(first) = self.stated.first().filter(|_| withdrawn) {
            (self.at, self.since, self.left) = (*first, now, 0);
        }
    }

    /// Liveness: whether probes through the tunnel are answered.
    pub fn handle_verdict(&mut self, up: bool, now: Time) {
        if self.up != up {
            (self.up, self.since, self.left) = (up, now, 0);
        }
    }

    /// What the engine says now. True when another endpoint is chosen.
    ///
    /// Octets count, not the verdict alone: a node that liveness holds down because it flaps is not silent. Without a
    /// session they are the node's own handshakes, whose answers do not arrive: that is no path.
    pub fn handle_seen(&mut self, seen: PeerSeen, now: Time) -> bool {
        let grown = seen.received != std::mem::replace(&mut self.received, seen.received);
        if grown && seen.received > 0 && seen.session {
            (self.since, self.left) = (now, 0);
            let from = seen.endpoint.unwrap_or(self.at);
            return std::mem::replace(&mut self.at, from) != from;
        }
        let due = self.poll_deadline().is_some_and(|at| at <= now);
        if due {
            self.leave(now);
        }
        due
    }

    /// When the engine has to be looked at: it is silent, and there is something else to try.
    pub fn poll_deadline(&self) -> Option<Time> {
        let others = self.stated.iter().any(|endpoint| *endpoint != self.at);
        (!self.up && others).then(|| self.since + self.patience())
    }

    fn patience(&self) -> Duration {
        let rounds = self.left / u32::try_from(self.stated.len()).unwrap_or(u32::MAX).max(1);
        (PATIENCE * 2u32.saturating_pow(rounds.min(8))).min(PATIENCE_MOST)
    }

    fn leave(&mut self, now: Time) {
        let next = match self.stated.iter().position(|endpoint| *endpoint == self.at) {
            // What is best comes first, whatever it was that fell silent.
            Some(at) if at > 0 && self.left == 0 => 0,
            Some(at) => (at + 1) % self.stated.len(),
            None => 0,
        };
        if let Some(endpoint) = self.stated.get(next) {
            (self.at, self.since, self.left) = (*endpoint, now, self.left.saturating_add(1));
        }
    }
}
