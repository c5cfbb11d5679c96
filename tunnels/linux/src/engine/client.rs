//! What a driver in the same process asks and tells the engine: what the UAPI says to others, without text and sockets.

use std::io;

use super::lanes::Totals;
use super::{Engine, read};
use crate::PeerStats;
use crate::clock::Millis;
use crate::uapi::{SetDevice, SetPeer};
use crate::wg::{PeerView, View};

impl Engine {
    /// A whole `set` under one lock, as over the UAPI. O(what it names).
    pub(crate) fn set(&self, set: SetDevice) -> io::Result<()> {
        self.shared.set(set).map_err(io::Error::from)
    }

    pub(crate) fn set_peer(&self, peer: SetPeer) -> io::Result<()> {
        self.set(SetDevice { peers: vec![peer], ..SetDevice::default() })
    }

    /// Everything, with every prefix if they are asked for. O(peers), or O(peers + prefixes).
    pub(crate) fn view(&self, prefixes: bool) -> View {
        let (mut view, now) = (self.view_of_device(), Millis::now());
        let state = read(&self.shared.state);
        let peers = state.peers.iter().map(|(key, peer)| {
            let Totals { last_handshake, rx_bytes, tx_bytes, sessions } = peer.totals(now);
            let control = peer.lock();
            let (endpoint, sessions) = (control.endpoint, Some(sessions));
            let mtu = u16::try_from(peer.mtu(self.shared.mtu())).ok();
            let stats = PeerStats { endpoint, last_handshake, mtu, sessions, rx_bytes, tx_bytes };
            let allowed = if prefixes { state.owned(key) } else { Default::default() };
            let more_ports = Some(peer.more_ports());
            (*key, PeerView { allowed, keepalive: control.keepalive, more_ports, stats })
        });
        view.peers = peers.collect();
        view
    }

    /// Without its peers.
    pub(crate) fn view_of_device(&self) -> View {
        let state = read(&self.shared.state);
        let (public_key, port) = (Some(state.key.public()), self.shared.sockets().port());
        View { public_key, port, mark: state.mark, ..View::default() }
    }
}
