//! Two ends of a tunnel and the wire between them, with a clock that the test turns: sessions are made, renewed and ended
//! as WireGuard's paper says (§6), and nothing is left of them.

mod lanes;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::carry::Way;
use super::counters::{Counters, Reason};
use super::handshake;
use super::mmsg::SendBatch;
use super::peer::{Context, Peer};
use super::sessions::{Held, Sessions};
use super::sockets::{Line, Sockets};
use super::state::State;
use super::transmit::LARGEST_DATAGRAM;
use crate::PrivateKey;
use crate::clock::Millis;
use crate::noise::{DATA_HEADER, Kind, TAG, kind, receiver};
use crate::uapi::SetPeer;

const START: Millis = Millis(1_000_000);
const SECOND: Duration = Duration::from_secs(1);
/// As the timers' thread does it.
const TICK: Duration = Duration::from_millis(250);

struct End {
    state: State,
    sessions: Arc<Sessions>,
    peer: Arc<Peer>,
    out: SendBatch,
    sockets: Sockets,
    counters: Counters,
    /// Packets that came through.
    got: Vec<Vec<u8>>,
    keepalives: usize,
    refused: Vec<Reason>,
}

impl End {
    fn new(own: u8, peer: u8, at: &str) -> Self {
        let key = |seed| PrivateKey::from_bytes([seed; 32]).unwrap();
        let sessions = Arc::<Sessions>::default();
        let mut state = State::new(key(own), 0, Arc::clone(&sessions)).unwrap();
        let public_key = key(peer).public();
        let set = format!("public_key={}\nendpoint={at}\n", hex(public_key.as_bytes()));
        set_peer(&mut state, &set);
        Self {
            peer: Arc::clone(&state.peers[&public_key]),
            state,
            sessions,
            out: SendBatch::new(LARGEST_DATAGRAM),
            sockets: Sockets::bind(0, 0).expect("this test needs root"),
            counters: Counters::default(),
            got: Vec::new(),
            keepalives: 0,
            refused: Vec::new(),
        }
    }

    fn with<T>(&mut self, now: Millis, act: impl FnOnce(&Arc<Peer>, &mut Context<'_>) -> T) -> T {
        let Self { state, sessions, peer, out, sockets, counters, .. } = self;
        act(peer, &mut Context { own: &state.key, sessions, out, sockets, counters, now })
    }

    fn send(&mut self, packet: &[u8], now: Millis) {
        self.with(now, |peer, context| peer.enqueue(context, packet));
    }

    fn receive(&mut self, datagram: &mut [u8], at: SocketAddr, now: Millis) {
        self.receive_by(datagram, Line { lane: 0, at }, now);
    }

    fn receive_by(&mut self, datagram: &mut [u8], from: Line, now: Millis) {
        let kind = kind(datagram).unwrap();
        if kind != Kind::Data {
            let Self { state, sessions, out, sockets, counters, .. } = self;
            let mut context = Context { own: &state.key, sessions, out, sockets, counters, now };
            let received = handshake::receive(state, &mut context, kind, datagram, from);
            return self.refused.extend(received.err());
        }
        let index = receiver(datagram, kind);
        let session = self.sessions.read().get(&index).and_then(|entry| match &entry.held {
            Held::Wireguard(session) => Some((Arc::clone(&entry.peer), Arc::clone(session))),
            _ => None,
        });
        let (lane, session) =
            session.filter(|(_, session)| !session.is_over(now)).expect("a session that is here");
        let counter = session.open(datagram).unwrap();
        session.admit(&[counter], |counter| *counter, |_, fresh| assert!(fresh));
        let packet = &datagram[DATA_HEADER..datagram.len() - TAG];
        if packet.is_empty() {
            self.keepalives += 1;
        } else {
            self.got.push(packet.to_vec());
        }
        let (length, data) = (datagram.len(), !packet.is_empty());
        self.with(now, |_, context| {
            lane.note_received(length, data, now);
            lane.heard(context, &session, from.at);
        });
    }

    /// The index of the session that packets go out by.
    fn current(&self, now: Millis) -> Option<u32> {
        Self::session_of(&self.peer, now)
    }

    fn session_of(lane: &Arc<Peer>, now: Millis) -> Option<u32> {
        lane.path(now).map(|path| match &path.way {
            Way::Wireguard(session) => session.local,
            Way::Esp(_) => panic!("these ends speak WireGuard"),
        })
    }

    fn count(&self, reason: &str) -> u64 {
        self.counters.list().into_iter().find(|(name, _)| *name == reason).unwrap().1
    }
}

fn set_peer(state: &mut State, text: &str) {
    let set: Vec<SetPeer> = crate::parse_set(text).unwrap().peers;
    set.iter().for_each(|peer| state.set_peer(peer));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Pair {
    ends: [End; 2],
    at: [SocketAddr; 2],
    now: Millis,
    /// Messages that crossed, by kind.
    crossed: [usize; 3],
}

impl Pair {
    fn new() -> Self {
        let at = ["192.0.2.1:1", "192.0.2.2:2"];
        let ends = [End::new(1, 2, at[1]), End::new(2, 1, at[0])];
        Self { ends, at: at.map(|at| at.parse().unwrap()), now: START, crossed: [0; 3] }
    }

    /// With a session that the first end has asked for.
    fn connected() -> Self {
        let mut pair = Self::new();
        pair.send(0, b"first");
        pair.exchange();
        assert_eq!(pair.ends[1].got, [b"first"]);
        pair
    }

    fn send(&mut self, from: usize, packet: &[u8]) {
        self.ends[from].send(packet, self.now);
    }

    /// Carries messages until there are none.
    fn exchange(&mut self) {
        loop {
            let sent = [0, 1].map(|end| self.ends[end].out.take());
            if sent.iter().all(Vec::is_empty) {
                return;
            }
            for (from, messages) in sent.into_iter().enumerate() {
                for (to, mut message) in messages {
                    self.crossed[match kind(&message).unwrap() {
                        Kind::Initiation => 0,
                        Kind::Data => 2,
                        _ => 1,
                    }] += 1;
                    let at =
                        SocketAddr::new(self.at[from].ip(), self.at[from].port() + 10 * u16::from(to.lane));
                    let from_line = Line { lane: to.lane, at };
                    self.ends[1 - from].receive_by(&mut message, from_line, self.now);
                }
            }
        }
    }

    /// Time passes, with ticks; `also` happens at each. What is sent is carried, unless the wire is cut.
    fn pass(&mut self, time: Duration, cut: bool, mut also: impl FnMut(&mut Self)) {
        let until = self.now + time;
        while self.now < until {
            self.now = self.now + TICK;
            let now = self.now;
            for end in &mut self.ends {
                end.with(now, |peer, context| peer.all().for_each(|lane| lane.tick(context)));
            }
            also(self);
            if cut {
                self.ends.iter_mut().for_each(|end| drop(end.out.take()));
            } else {
                self.exchange();
            }
        }
    }

    fn sessions(&self) -> [usize; 2] {
        [0, 1].map(|end| self.ends[end].sessions.read().len())
    }

    fn renewals(&self) -> usize {
        self.crossed[0]
    }
}

#[test]
fn a_used_session_is_renewed_every_two_minutes_by_one_end_and_no_packet_waits_for_it() {
    let mut pair = Pair::connected();
    let (mut sent, mut seen) = (1, BTreeSet::new());
    pair.pass(600 * SECOND, false, |pair| {
        seen.extend(pair.ends[0].current(pair.now));
        for end in [0, 1] {
            assert!(pair.ends[end].current(pair.now).is_some(), "never without a session");
            pair.send(end, b"one of many");
        }
        sent += 1;
    });
    assert_eq!(pair.ends[1].got.len(), sent);
    assert_eq!(pair.ends[0].got.len(), sent - 1);
    assert_eq!((pair.renewals(), seen.len()), (5, 5), "600 s are five sessions, and one end asks for them");
    assert!(pair.sessions().iter().all(|count| *count <= 2), "the current one and the one before");
    let [one, two] = &pair.ends;
    assert_eq!(one.current(pair.now).is_some(), two.current(pair.now).is_some());
}

#[test]
fn a_peer_that_only_listens_loses_no_session_either() {
    let mut pair = Pair::connected();
    let mut sent = 0;
    pair.pass(600 * SECOND, false, |pair| {
        assert!(pair.ends[1].current(pair.now).is_some(), "who did not ask for the session sends by it");
        pair.send(1, b"from the other end");
        sent += 1;
    });
    assert_eq!(pair.ends[0].got.len(), sent);
}

#[test]
fn an_idle_session_ends_and_leaves_nothing() {
    let mut pair = Pair::connected();
    pair.pass(181 * SECOND, false, |_| {});
    assert_eq!(pair.renewals(), 1, "nobody asked for another");
    assert_eq!(pair.sessions(), [0, 0]);
    assert!(pair.ends.iter().all(|end| end.current(pair.now).is_none()));
    pair.send(1, b"again");
    pair.exchange();
    assert_eq!(pair.ends[0].got, [b"again"]);
}

#[test]
fn idle_peers_do_not_answer_each_others_keepalives() {
    let mut pair = Pair::connected();
    let before = [0, 1].map(|end| pair.ends[end].keepalives);
    pair.pass(100 * SECOND, false, |_| {});
    let after = [0, 1].map(|end| pair.ends[end].keepalives);
    assert_eq!(after, [before[0] + 1, before[1]], "one, for the packet that had no answer");
}

#[test]
fn a_persistent_keepalive_keeps_to_its_interval_and_makes_the_session_too() {
    let mut pair = Pair::new();
    pair.ends[0].peer.lock().keepalive = Some(25);
    pair.pass(100 * SECOND, false, |_| {});
    assert!((3..=5).contains(&pair.ends[1].keepalives), "{}", pair.ends[1].keepalives);
    assert_eq!(pair.ends[0].keepalives, 0);
}

#[test]
fn a_peer_that_falls_silent_is_asked_again_after_fifteen_seconds() {
    let mut pair = Pair::connected();
    pair.pass(5 * SECOND, false, |_| {});
    let session = pair.ends[0].current(pair.now);
    pair.send(0, b"lost");
    pair.pass(16 * SECOND, true, |_| {});
    pair.pass(6 * SECOND, false, |_| {});
    assert_ne!(pair.ends[0].current(pair.now), session, "a new session");
}

#[test]
fn a_peer_that_is_gone_is_given_up_and_not_asked_again_until_there_is_a_packet_for_it() {
    let mut pair = Pair::connected();
    pair.pass(5 * SECOND, false, |_| {});
    pair.send(0, b"lost");
    // 15 s until it is missed, 90 s of asking.
    pair.pass(110 * SECOND, true, |_| {});
    let asked = pair.ends[0].peer.lock().asked;
    pair.pass(300 * SECOND, true, |_| {});
    assert_eq!(pair.ends[0].peer.lock().asked, asked, "not once in five minutes");
    pair.send(0, b"is anybody there");
    pair.exchange();
    assert_eq!(pair.ends[1].got.last().unwrap(), b"is anybody there");
}

#[test]
fn retries_are_spread_and_end_after_ninety_seconds() {
    let mut pair = Pair::new();
    pair.send(0, b"for nobody");
    pair.ends[0].out.take();
    let mut tries = Vec::new();
    pair.pass(89 * SECOND, true, |pair| {
        let now = pair.now;
        let control = pair.ends[0].peer.lock();
        let again = control.pending.as_ref().map(|pending| pending.again).unwrap();
        let waits = again.since(control.asked).as_millis();
        assert!((5000..5334).contains(&waits), "{waits}");
        if control.asked == now {
            tries.push(waits);
        }
    });
    assert!((15..=18).contains(&tries.len()), "{tries:?}");
    assert!(tries.iter().collect::<BTreeSet<_>>().len() > 5, "jitter on every try: {tries:?}");
    assert_eq!(pair.ends[0].count("unanswered"), 0);
    pair.pass(10 * SECOND, true, |_| {});
    assert_eq!((pair.ends[0].count("unanswered"), pair.sessions()), (1, [0, 0]));
    pair.send(0, b"and a new one tries again");
    pair.exchange();
    assert_eq!(pair.ends[1].got, [b"and a new one tries again"]);
}

#[test]
fn what_waits_for_a_session_is_bounded_and_arrives_in_order() {
    let mut pair = Pair::new();
    let packets: Vec<Vec<u8>> = (0..200u8).map(|n| vec![n]).collect();
    packets.iter().for_each(|packet| pair.send(0, packet));
    pair.exchange();
    assert_eq!(pair.ends[1].got, packets[72..], "the newest 128");
    assert_eq!(pair.ends[0].count("queue-full"), 72);
}

#[test]
fn both_ends_may_ask_at_once() {
    let mut pair = Pair::new();
    pair.send(0, b"to the second");
    pair.send(1, b"to the first");
    pair.exchange();
    pair.pass(400 * SECOND, false, |pair| {
        pair.send(0, b"on");
        pair.send(1, b"on");
    });
    assert_eq!(
        (pair.ends[0].got[0].as_slice(), pair.ends[1].got[0].as_slice()),
        (&b"to the first"[..], &b"to the second"[..])
    );
    assert_eq!(pair.ends[0].got.len(), pair.ends[1].got.len());
    assert_eq!(pair.ends[0].got.len(), 1601);
}

#[test]
fn a_session_that_the_peer_has_not_confirmed_is_not_used_and_the_old_one_stays() {
    let mut pair = Pair::connected();
    pair.pass(6 * SECOND, false, |_| {});
    let old = pair.ends[1].current(pair.now);
    let now = pair.now;
    pair.ends[0].with(now, |peer, context| peer.initiate(&mut peer.lock(), context));
    let (_, mut initiation) = pair.ends[0].out.take().remove(0);
    pair.ends[1].receive(&mut initiation, pair.at[0], now);
    assert_eq!(pair.ends[1].current(now), old, "made before it is broken");
    pair.ends[1].send(b"by the old one", now);
    let mut sent = pair.ends[1].out.take();
    let (_, mut data) = sent.pop().unwrap();
    pair.ends[0].receive(&mut data, pair.at[1], now);
    let (_, mut response) = sent.pop().unwrap();
    pair.ends[0].receive(&mut response, pair.at[1], now);
    pair.exchange();
    assert_eq!(pair.ends[0].got, [b"by the old one"]);
    assert_ne!(pair.ends[1].current(now), old, "the first packet of the new one confirms it");
}

#[test]
fn a_new_preshared_key_costs_no_session_and_counts_from_the_next_handshake() {
    let mut pair = Pair::connected();
    let session = pair.ends[0].current(pair.now);
    for (end, peer) in [(0, 2), (1, 1)] {
        let peer = PrivateKey::from_bytes([peer; 32]).unwrap().public();
        let set = format!("public_key={}\npreshared_key={}\n", hex(peer.as_bytes()), hex(&[9; 32]));
        set_peer(&mut pair.ends[end].state, &set);
    }
    pair.send(0, b"by the session that was");
    pair.exchange();
    assert_eq!(pair.ends[0].current(pair.now), session);
    pair.pass(130 * SECOND, false, |pair| pair.send(0, b"on"));
    assert_ne!(pair.ends[0].current(pair.now), session);
    assert_eq!(pair.ends[1].got.len(), 2 + 520);
}

#[test]
fn a_replayed_or_hasty_initiation_is_refused() {
    let mut pair = Pair::new();
    pair.send(0, b"first");
    let (_, initiation) = pair.ends[0].out.take().remove(0);
    let refuse = |pair: &mut Pair, message: &[u8]| {
        let (now, from) = (pair.now, pair.at[0]);
        let End { state, sessions, out, sockets, counters, .. } = &mut pair.ends[1];
        let mut context = Context { own: &state.key, sessions, out, sockets, counters, now };
        let from = Line { lane: 0, at: from };
        handshake::receive(state, &mut context, Kind::Initiation, message, from).is_err()
    };
    assert!(!refuse(&mut pair, &initiation));
    assert!(refuse(&mut pair, &initiation), "the same once more");
    pair.now = pair.now + 10 * SECOND;
    assert!(refuse(&mut pair, &initiation), "and later");
    let now = pair.now;
    let mut next = || {
        pair.ends[0].with(now, |peer, context| {
            peer.initiate(&mut peer.lock(), context);
            context.out.take().remove(0).1
        })
    };
    let (one, two) = (next(), next());
    assert!(!refuse(&mut pair, &one));
    assert!(refuse(&mut pair, &two), "another in the same instant");
}

#[test]
fn a_peer_that_was_removed_gets_no_session_whoever_still_holds_it() {
    let mut pair = Pair::connected();
    pair.send(1, b"queued with a session");
    let key = pair.ends[0].peer.key;
    pair.ends[0].state.remove(key);
    assert_eq!(pair.sessions()[0], 0);
    assert_eq!(pair.ends[0].current(pair.now), None);
    pair.send(0, b"to nobody");
    let now = pair.now + 10 * SECOND;
    pair.ends[0].with(now, |peer, context| peer.tick(context));
    assert!(pair.ends[0].out.take().is_empty());
    assert_eq!(pair.sessions()[0], 0);
}

#[test]
fn another_key_of_ours_ends_every_session_and_makes_new_ones() {
    let mut pair = Pair::connected();
    let key = PrivateKey::from_bytes([3; 32]).unwrap();
    let public = key.public();
    pair.ends[0].state.set_key(key).unwrap();
    assert_eq!(pair.sessions()[0], 0);
    let at = pair.at[0];
    set_peer(&mut pair.ends[1].state, &format!("public_key={}\nendpoint={at}\n", hex(public.as_bytes())));
    pair.ends[1].peer = Arc::clone(&pair.ends[1].state.peers[&public]);
    pair.now = pair.now + 6 * SECOND;
    pair.send(0, b"as another");
    pair.exchange();
    assert_eq!(pair.ends[1].got[1], b"as another");
}

#[test]
fn session_indices_are_random() {
    let (sessions, peer) = (Sessions::default(), End::new(1, 2, "192.0.2.1:1").peer);
    let indices: Vec<u32> = (0..1000).map(|_| sessions.reserve(&peer)).collect();
    assert_eq!(indices.iter().collect::<BTreeSet<_>>().len(), 1000);
    for bit in 0..32 {
        let set = indices.iter().filter(|index| **index >> bit & 1 == 1).count();
        assert!((350..650).contains(&set), "bit {bit} is set in {set} of 1000");
    }
    let steps = indices.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 1 << 16).count();
    assert!(steps < 10, "neighbours are far apart");
}
