//! Follows peers behind a NAT. The kernel opens ESP in UDP wherever it comes from, says when that is not where a state has its
//! sender (`XFRM_MSG_MAPPING`, after the tag was found right), and goes on sending to where it was told: here it is told.

use std::io::{self, PipeReader, PipeWriter};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use hawser_model::{PublicKey, Time};
use netlink_packet_xfrm::UserMapping;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::kernel::{Mappings, address};
use super::ledger::Pair;
use super::{Core, Inner};

/// A thread in the driver's network namespace; it ends when this is dropped.
pub(super) struct Follower {
    _stop: PipeWriter,
}

impl Follower {
    pub(super) fn start(core: &Arc<Core>) -> io::Result<Self> {
        let mappings = Mappings::open()?;
        let (stopped, stop) = io::pipe()?;
        let core = Arc::downgrade(core);
        thread::Builder::new().name("hawser-xfrm".into()).spawn(move || run(mappings, &stopped, &core))?;
        Ok(Self { _stop: stop })
    }
}

fn run(mut mappings: Mappings, stopped: &PipeReader, core: &Weak<Core>) {
    loop {
        let mut ready = [
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(mappings.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Ok(_) if ready[0].any() == Some(false) => {}
            _ => return,
        }
        let Some(core) = core.upgrade() else { return };
        // What was lost in a flood (ENOBUFS) is said again by the next packet.
        for mapping in mappings.read().unwrap_or_default() {
            core.follow(&mapping);
        }
    }
}

impl Core {
    fn follow(&self, mapping: &UserMapping) {
        // Removed meanwhile.
        let Ok(mut inner) = self.lock() else { return };
        let inner = &mut *inner;
        let Some((key, from)) = inner.heard_from(mapping) else { return };
        let peer = inner.ledger.pairs.get(&key).map(|pair| pair.name.to_string()).unwrap_or_default();
        match self.lead(inner, key, from) {
            Ok(()) => tracing::info!(peer, %from, "IPsec: followed to where it is heard from"),
            Err(error) => {
                tracing::warn!(peer, %from, %error, "IPsec: not followed to where it is heard from");
                // It may be a predecessor's or a successor's doing; the next packet is looked at anew.
                let _ = inner.xfrm.refresh_states();
            }
        }
    }

    /// A NAT forgets who is silent. Called every few seconds.
    pub(super) fn keep_alive(&self, inner: &mut Inner, now: Time) {
        for (key, keepalive) in &mut inner.keepalives {
            let pair = inner.ledger.pairs.get(key).filter(|pair| pair.present && pair.stated.in_udp);
            let state = pair.and_then(Pair::spi_out).and_then(|spi| inner.xfrm.states().get(&spi));
            if let (Some(pair), Some(state), true) = (pair, state, keepalive.is_due(now)) {
                keepalive.last = Some(now);
                // One that is not sent is like one that is lost.
                let _ = self.encap.keep_alive(SocketAddr::new(state.place.destination, pair.port));
            }
        }
    }
}

impl Inner {
    /// Whose association it was, and where it was heard from; none where that is known, or not ours.
    fn heard_from(&self, mapping: &UserMapping) -> Option<(PublicKey, SocketAddr)> {
        let spi = mapping.id.spi;
        let place = self.xfrm.states().get(&spi)?.place;
        let from = SocketAddr::new(address(&mapping.new_saddr, mapping.id.family)?, mapping.new_sport);
        let known = SocketAddr::new(place.source, place.udp?.0);
        let ours = address(&mapping.id.daddr, mapping.id.family) == Some(place.destination);
        let of = |pair: &Pair| pair.present && pair.into.values().any(|into| *into == spi);
        let key = self.ledger.pairs.iter().find(|(_, pair)| of(pair)).map(|(key, _)| *key)?;
        (ours && from != known).then_some((key, from))
    }
}

/// What is sent to a peer behind a NAT while nothing else is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalive {
    pub(super) seconds: u16,
    last: Option<Time>,
}

impl Keepalive {
    pub(super) fn every(seconds: u16) -> Self {
        Self { seconds, last: None }
    }

    /// A fifth early, for it is asked every few seconds only.
    fn is_due(&self, now: Time) -> bool {
        let every = Duration::from_secs(self.seconds.into()) * 4 / 5;
        self.last.is_none_or(|last| now.since(last) >= every)
    }
}
