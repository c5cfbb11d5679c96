//! One peer: its sessions, its handshake, where it is, and what waits for it.
//!
//! Packets touch only `path` (read once per batch) and `activity` (atomics); everything that is rare is `control`,
//! behind one lock. Sessions are made before they are broken: one is sent by, and a packet of an older or of the next one
//! is taken, too.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use hawser_model::PublicKey;
use zeroize::Zeroizing;

use super::associate::Associations;
use super::carry::{Protocol, Way};
pub(crate) use super::context::Context;
use super::counters::Reason;
use super::handover::export;
use super::handshake::Pending;
use super::lanes::Lanes;
use super::path_mtu::PathMtu;
use super::sessions::Sessions;
use super::sockets::Line;
use crate::PrivateKey;
use crate::clock::Millis;
use crate::esp;
use crate::noise::cookie::Jar;
use crate::noise::handshake::Stamp;
use crate::noise::primitives::{Forged, Key, agree};
use crate::noise::session::Session;
use crate::noise::{
    DATA_HEADER, DATA_OVERHEAD, KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT,
};

/// Sessions that are only received by. Two ends that ask at the same time leave two a time, and each may still be the one
/// that the other end sends by.
const OLDER: usize = 3;

/// Packets that wait for a session. The oldest goes first when there are more: what is new is still wanted.
const QUEUE: usize = 128;

pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    /// Which of our ports it is spoken to by.
    pub(super) lane: u8,
    pub(super) lanes: Lanes,
    control: Mutex<Control>,
    /// None: packets wait. Written under the lock of `control`.
    path: RwLock<Option<Arc<Path>>>,
    /// The largest packet that its path is known to carry; at least the base.
    pub(super) carries: AtomicU16,
    activity: Activity,
}

/// All that a packet needs on its way out.
pub(crate) struct Path {
    pub(crate) way: Way,
    pub(crate) to: Line,
}

/// Written per batch, read by the timers. Times are milliseconds; zero is never.
#[derive(Default)]
struct Activity {
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
    /// Anything authenticated.
    sent: AtomicU64,
    received: AtomicU64,
    /// Packets of users.
    used: AtomicU64,
    /// Since when packets have been sent and nothing at all has come back.
    unanswered: AtomicU64,
    /// Since when packets have come and nothing at all was sent back.
    owed: AtomicU64,
}

pub(crate) struct Control {
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) keepalive: Option<u16>,
    pub(crate) last_handshake: Option<SystemTime>,
    preshared: Key,
    /// What both static keys agree on, and which own one that is; none until it is needed.
    statics: Option<(PublicKey, Key)>,
    pub(super) jar: Jar,
    pub(super) pending: Option<Box<Pending>>,
    /// Of the last initiation of ours, and of the peer's.
    pub(super) stamped: Stamp,
    pub(super) newest: Stamp,
    pub(super) asked: Millis,
    pub(super) was_asked: Millis,
    current: Option<Arc<Session>>,
    older: VecDeque<Arc<Session>>,
    /// Made by the peer's handshake; used once a packet of it shows that the peer has it.
    next: Option<Arc<Session>>,
    queue: VecDeque<Box<[u8]>>,
    pub(super) path_mtu: PathMtu,
    /// Of a peer that is spoken to by ESP: it has them instead of sessions.
    pub(super) esp: Option<Associations>,
    /// Somebody may still hold this peer, but it is none any more.
    removed: bool,
}

impl Peer {
    pub(crate) fn new(key: PublicKey, protocol: Protocol) -> Self {
        let control = Control {
            endpoint: None,
            keepalive: None,
            last_handshake: None,
            preshared: Zeroizing::default(),
            statics: None,
            jar: Jar::new(&key),
            pending: None,
            stamped: Stamp::default(),
            newest: Stamp::default(),
            asked: Millis::default(),
            was_asked: Millis::default(),
            current: None,
            older: VecDeque::new(),
            next: None,
            queue: VecDeque::new(),
            path_mtu: PathMtu::default(),
            esp: (protocol == Protocol::Esp).then(Associations::default),
            removed: false,
        };
        Self {
            key,
            lane: 0,
            lanes: Lanes::default(),
            control: Mutex::new(control),
            path: RwLock::default(),
            // Of ESP nobody asks: the device's MTU is taken at its word.
            carries: AtomicU16::new(if protocol == Protocol::Esp { u16::MAX } else { 0 }),
            activity: Activity::default(),
        }
    }

    /// A further lane of the peer with this key.
    pub(super) fn in_lane(key: PublicKey, lane: u8) -> Self {
        Self { lane, ..Self::new(key, Protocol::Wireguard) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Control> {
        // A thread that panicked half-way leaves at worst one lost session, which the next handshake replaces.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts from the next handshake on; the session that is stays. Zero is none.
    pub(crate) fn set_preshared(&self, preshared: [u8; 32]) {
        self.lock().preshared = Zeroizing::new(preshared);
        self.branches().for_each(|lane| lane.set_preshared(preshared));
    }

    pub(crate) fn set_keepalive(&self, seconds: u16) {
        self.lock().keepalive = (seconds > 0).then_some(seconds);
        self.branches().for_each(|lane| lane.set_keepalive(seconds));
    }

    /// A handshake that is under way is tried there at the next tick: what was asked elsewhere may never be answered.
    pub(crate) fn set_endpoint(&self, endpoint: SocketAddr) {
        self.put_at(&mut self.lock(), Some(endpoint));
    }

    pub(super) fn put_at(&self, control: &mut Control, endpoint: Option<SocketAddr>) {
        if control.endpoint != endpoint
            && let Some(pending) = &mut control.pending
        {
            pending.again = Millis::default();
        }
        if self.moved(control, endpoint) {
            self.publish(control);
        }
    }

    pub(super) fn relocate(&self, control: &mut Control, endpoint: SocketAddr) {
        if self.moved(control, Some(endpoint)) {
            self.publish(control);
        }
    }

    /// Whether it was elsewhere before. Not published yet.
    pub(super) fn moved(&self, control: &mut Control, endpoint: Option<SocketAddr>) -> bool {
        let before = std::mem::replace(&mut control.endpoint, endpoint);
        if before.map(|at| at.ip()) != endpoint.map(|at| at.ip()) {
            self.lead(control);
            self.forget_path(control);
        }
        before != endpoint
    }

    /// Sessions end with the key that they were made with.
    pub(crate) fn forget_keys(&self, sessions: &Sessions) {
        self.end(&mut self.lock(), sessions);
        self.branches().for_each(|lane| lane.forget_keys(sessions));
    }

    pub(crate) fn remove(&self, sessions: &Sessions) {
        let mut control = self.lock();
        control.removed = true;
        control.queue.clear();
        self.end(&mut control, sessions);
        drop(control);
        self.branches().for_each(|lane| lane.remove(sessions));
    }

    fn end(&self, control: &mut Control, sessions: &Sessions) {
        control.statics = None;
        control.drop_pending(sessions);
        Self::dissolve(control, sessions);
        let all = [control.current.take(), control.next.take()].into_iter().flatten();
        all.chain(control.older.drain(..)).for_each(|session| sessions.remove(session.local));
        self.publish(control);
    }

    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.activity.rx_bytes.load(Ordering::Relaxed), self.activity.tx_bytes.load(Ordering::Relaxed))
    }

    /// The way to the peer, if there is one now.
    pub(crate) fn path(&self, now: Millis) -> Option<Arc<Path>> {
        let path = self.path.read().unwrap_or_else(PoisonError::into_inner);
        path.as_ref().filter(|path| !path.way.is_over(now)).cloned()
    }

    pub(super) fn publish(&self, control: &Control) {
        let way = match &control.esp {
            Some(esp) => esp.outbound.clone().map(Way::Esp),
            None => control.current.clone().map(Way::Wireguard),
        };
        let lane = self.lane;
        let path = way.zip(control.endpoint).map(|(way, at)| Arc::new(Path { way, to: Line { lane, at } }));
        *self.path.write().unwrap_or_else(PoisonError::into_inner) = path;
    }

    /// Whether no user has sent anything for so long.
    pub(super) fn is_idle(&self, patience: Duration, now: Millis) -> bool {
        now.since(Millis(self.activity.used.load(Ordering::Relaxed))) >= patience
    }

    /// After messages of `bytes` were put on their way.
    pub(crate) fn note_sent(&self, bytes: usize, data: bool, now: Millis) {
        let Activity { tx_bytes, sent, unanswered, owed, used, .. } = &self.activity;
        if data {
            used.store(now.0, Ordering::Relaxed);
        }
        tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        sent.store(now.0, Ordering::Relaxed);
        owed.store(0, Ordering::Relaxed);
        if data && unanswered.load(Ordering::Relaxed) == 0 {
            unanswered.store(now.0, Ordering::Relaxed);
        }
    }

    /// After authentic messages of `bytes` came in. A keepalive is not `data`, or two idle peers would answer each other
    /// for ever.
    pub(crate) fn note_received(&self, bytes: usize, data: bool, now: Millis) {
        let Activity { rx_bytes, received, unanswered, owed, .. } = &self.activity;
        rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        received.store(now.0, Ordering::Relaxed);
        unanswered.store(0, Ordering::Relaxed);
        if data && owed.load(Ordering::Relaxed) == 0 {
            owed.store(now.0, Ordering::Relaxed);
        }
    }

    /// Keeps a packet until there is a session, and asks for one.
    pub(crate) fn enqueue(self: &Arc<Self>, context: &mut Context<'_>, packet: &[u8]) {
        let mut control = self.lock();
        if control.endpoint.is_none() {
            return context.counters.count(Reason::NoEndpoint);
        }
        // Nobody can be asked for one.
        if control.esp.is_some() {
            return context.counters.count(Reason::NoSession);
        }
        // It may have come into being since the caller looked.
        if control.usable(context.now).is_some() {
            return self.seal(&control, context, packet);
        }
        if control.queue.len() >= QUEUE {
            control.queue.pop_front();
            context.counters.count(Reason::QueueFull);
        }
        control.queue.push_back(packet.into());
        if control.pending.is_none() && context.now.since(control.asked) >= REKEY_TIMEOUT {
            self.initiate(&mut control, context);
        }
    }

    /// One packet, or none for a keepalive, with the current session.
    fn seal(&self, control: &Control, context: &mut Context<'_>, packet: &[u8]) {
        self.seal_as(control, context, packet, !packet.is_empty());
    }

    /// Data keeps a session alive; what engines say to each other does not.
    pub(super) fn seal_as(&self, control: &Control, context: &mut Context<'_>, packet: &[u8], is_data: bool) {
        let Some((session, at)) = control.usable(context.now).zip(control.endpoint) else { return };
        let out = context.room();
        let length = packet.len() + DATA_OVERHEAD;
        let message = &mut out.space()[..length];
        message[DATA_HEADER..DATA_HEADER + packet.len()].copy_from_slice(packet);
        if session.seal(message).is_ok() {
            out.push(length, Line { lane: self.lane, at });
            self.note_sent(length, is_data, context.now);
        }
    }

    /// An authentic message came in over `session` from `from`: it confirms a session that the peer asked for, and says
    /// where the peer is (§2.1).
    pub(crate) fn heard(&self, context: &mut Context<'_>, session: &Session, from: SocketAddr) {
        let mut control = self.lock();
        if control.removed {
            return;
        }
        let moved = self.moved(&mut control, Some(from));
        if control.next.as_ref().is_some_and(|next| next.local == session.local) {
            session.confirm();
            let (before, next) = (control.current.take(), control.next.take());
            control.retire(before, context.sessions);
            control.current = next;
            control.drop_pending(context.sessions);
            self.established(&mut control, context);
        } else if moved {
            self.publish(&control);
        }
    }

    /// The peer has answered our handshake.
    pub(super) fn begin(&self, control: &mut Control, context: &mut Context<'_>, session: Arc<Session>) {
        // The peer has asked, too, and sends by what it asked for. We send by ours, and so each end renews its own.
        let (before, theirs) = (control.current.replace(session), control.next.take());
        control.retire(before, context.sessions);
        if let Some(theirs) = theirs {
            theirs.confirm();
            control.retire(Some(theirs), context.sessions);
        }
        if control.queue.is_empty() {
            // The peer waits for a packet before it uses the session.
            self.seal(control, context, &[]);
        }
        self.established(control, context);
    }

    /// The peer has asked, and was answered.
    pub(super) fn offer(&self, control: &mut Control, sessions: &Sessions, session: Arc<Session>) {
        if let Some(unused) = control.next.replace(session) {
            sessions.remove(unused.local);
        }
    }

    /// What waited goes before anything that comes later.
    fn established(&self, control: &mut Control, context: &mut Context<'_>) {
        control.last_handshake = Some(SystemTime::now());
        while let Some(packet) = control.queue.pop_front() {
            self.seal(control, context, &packet);
        }
        self.publish(control);
    }

    /// What a successor needs beside the configuration. Nobody may seal any more.
    pub(super) fn export(self: &Arc<Self>, text: &mut Zeroizing<String>) {
        text.extend(["peer=", hex(self.key.as_bytes()).as_str(), "\n"]);
        let ports = self.more_ports();
        if !ports.is_empty() {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            text.extend(["ports=", ports.join(" ").as_str(), "\n"]);
        }
        self.all().for_each(|lane| lane.export_sessions(text));
    }

    fn export_sessions(&self, text: &mut Zeroizing<String>) {
        let control = self.lock();
        let mut line = |key: &str, value: String| text.extend([key, "=", value.as_str(), "\n"]);
        if self.lane > 0 {
            line("lane", self.lane.to_string());
            control.endpoint.iter().for_each(|at| line("at", at.to_string()));
        }
        line("stamped", hex(control.stamped.bytes()));
        line("newest", hex(control.newest.bytes()));
        let since = control.last_handshake.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        line("handshake", since.unwrap_or_default().as_secs().to_string());
        let (rx, tx) = self.bytes();
        line("rx", rx.to_string());
        line("tx", tx.to_string());
        let slots = [("current", &control.current), ("next", &control.next)];
        slots
            .iter()
            .for_each(|(slot, session)| session.iter().for_each(|session| export(slot, session, text)));
        control.older.iter().for_each(|session| export("older", session, text));
        control.esp.iter().for_each(|esp| esp.export(text));
    }

    /// One line of what a predecessor exported.
    pub(super) fn import(self: &Arc<Self>, sessions: &Sessions, key: &str, value: &str, now: Millis) {
        let mut control = self.lock();
        let number = || value.parse::<u64>().unwrap_or(0);
        match key {
            "stamped" => control.stamped = stamp(value),
            "newest" => control.newest = stamp(value),
            "handshake" if number() > 0 => {
                control.last_handshake = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(number()));
            }
            "rx" => self.activity.rx_bytes.store(number(), Ordering::Relaxed),
            "tx" => self.activity.tx_bytes.store(number(), Ordering::Relaxed),
            // The first lane's is configuration.
            "at" => control.endpoint = value.parse().ok(),
            "current" | "next" | "older" => {
                let session = Session::import(value).filter(|session| !session.is_over(now)).map(Arc::new);
                let Some(session) = session.filter(|session| sessions.adopt(self, session)) else { return };
                match key {
                    "current" => control.current = Some(session),
                    "next" => control.next = Some(session),
                    _ => control.retire(Some(session), sessions),
                }
                self.publish(&control);
            }
            "esp-out" | "esp-in" => {
                let esp = control.esp.as_mut();
                if esp.and_then(|esp| esp.import(self, sessions, key, value)).is_none() {
                    sessions.spent().lose();
                }
                self.publish(&control);
            }
            _ => {}
        }
    }

    /// What is due without a packet: renewal, retries, keepalives, the end of sessions.
    pub(crate) fn tick(self: &Arc<Self>, context: &mut Context<'_>) {
        let mut control = self.lock();
        if control.removed {
            return;
        }
        let now = context.now;
        if control.esp.is_some() {
            return self.tick_esp(&control, context);
        }
        self.expire(&mut control, context);
        if self.lane > 0 && self.is_silent(now) {
            self.rest(&mut control, context.sessions);
        }
        match &control.pending {
            Some(pending) if now.since(pending.first) >= REKEY_ATTEMPT_TIME => {
                control.drop_pending(context.sessions);
                // Given up (§6.4): only the next packet asks again, not what went unanswered before.
                self.activity.unanswered.store(0, Ordering::Relaxed);
                while control.queue.pop_front().is_some() {
                    context.counters.count(Reason::Unanswered);
                }
            }
            Some(pending) if now >= pending.again => self.initiate(&mut control, context),
            Some(_) => {}
            None if self.wants_session(&control, now) => self.initiate(&mut control, context),
            None => {}
        }
        if self.owes_keepalive(&control, now) {
            if control.usable(now).is_some() {
                self.seal(&control, context, &[]);
            } else if control.pending.is_none() && now.since(control.asked) >= REKEY_TIMEOUT {
                self.initiate(&mut control, context);
            }
        }
    }

    /// ESP has no timers but the NAT's (RFC 3948 §2.3).
    fn tick_esp(&self, control: &Control, context: &mut Context<'_>) {
        let idle = context.now.since(Millis(self.activity.sent.load(Ordering::Relaxed)));
        let due = control.keepalive.is_some_and(|seconds| idle >= Duration::from_secs(seconds.into()));
        if let Some(to) = control.endpoint.filter(|_| due) {
            context.put(&[esp::KEEPALIVE], Line { lane: 0, at: to });
            self.note_sent(1, false, context.now);
        }
    }

    /// Nothing has come back for so long that something would have.
    fn is_silent(&self, now: Millis) -> bool {
        let since = self.activity.unanswered.load(Ordering::Relaxed);
        since > 0 && now.since(Millis(since)) >= KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
    }

    /// A lane that has fallen silent: it is sent by again when a handshake has come through. What still comes in is taken.
    fn rest(&self, control: &mut Control, sessions: &Sessions) {
        let silent = control.current.take();
        if silent.is_some() {
            control.retire(silent, sessions);
            self.publish(control);
        }
        self.activity.unanswered.store(0, Ordering::Relaxed);
    }

    fn expire(&self, control: &mut Control, context: &Context<'_>) {
        let over = |session: &mut Arc<Session>| session.is_over(context.now);
        let ended = control.current.take_if(over);
        let is_current = ended.is_some();
        for gone in [ended, control.next.take_if(over)].into_iter().flatten() {
            context.sessions.remove(gone.local);
        }
        while let Some(gone) = control.older.pop_front_if(over) {
            context.sessions.remove(gone.local);
        }
        if is_current {
            self.publish(control);
        }
    }

    fn wants_session(&self, control: &Control, now: Millis) -> bool {
        if control.endpoint.is_none() || now.since(control.asked) < REKEY_TIMEOUT {
            return false;
        }
        let at = |time: &AtomicU64| Some(Millis(time.load(Ordering::Relaxed))).filter(|time| time.0 > 0);
        let renew = control.current.as_ref().is_some_and(|session| {
            let sent = at(&self.activity.sent).is_some_and(|sent| session.is_old(sent));
            // So late that a peer which only listens would lose the session (§6.2).
            let late = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
            let received = at(&self.activity.received).is_some_and(|at| at.since(session.made) >= late);
            session.is_worn() || session.initiator && (sent || received)
        });
        self.is_silent(now) || renew || !control.queue.is_empty()
    }

    fn owes_keepalive(&self, control: &Control, now: Millis) -> bool {
        let owed = self.activity.owed.load(Ordering::Relaxed);
        let passive =
            owed > 0 && now.since(Millis(owed)) >= KEEPALIVE_TIMEOUT && control.usable(now).is_some();
        let idle = now.since(Millis(self.activity.sent.load(Ordering::Relaxed)));
        // It keeps a lane open, and makes none.
        let kept = self.lane == 0 || control.usable(now).is_some();
        let due = |seconds: u16| idle >= Duration::from_secs(seconds.into());
        let persistent = kept && control.keepalive.is_some_and(due);
        control.endpoint.is_some() && (passive || persistent)
    }
}

impl Control {
    pub(super) fn usable(&self, now: Millis) -> Option<&Arc<Session>> {
        self.current.as_ref().filter(|session| !session.is_over(now))
    }

    pub(crate) fn preshared(&self) -> Option<[u8; 32]> {
        Some(*self.preshared).filter(|key| *key != [0; 32])
    }

    /// What a lane has of the peer it belongs to.
    pub(super) fn lend(&self, lane: &mut Self, port: u16) {
        lane.endpoint = self.endpoint.filter(|_| port > 0).map(|at| SocketAddr::new(at.ip(), port));
        (lane.keepalive, lane.removed) = (self.keepalive, self.removed);
        lane.preshared = self.preshared.clone();
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed
    }

    /// Both keys of a handshake: what the static ones agree on (one curve operation, once) and the preshared one.
    pub(super) fn keys(&mut self, own: &PrivateKey, peer: &PublicKey) -> Result<(Key, Key), Forged> {
        if self.statics.as_ref().is_none_or(|(of, _)| *of != own.public()) {
            self.statics = Some((own.public(), agree(own.secret(), peer.as_bytes())?));
        }
        let (_, statics) = self.statics.as_ref().ok_or(Forged)?;
        Ok((statics.clone(), self.preshared.clone()))
    }

    fn retire(&mut self, session: Option<Arc<Session>>, sessions: &Sessions) {
        self.older.extend(session);
        while self.older.len() > OLDER {
            if let Some(gone) = self.older.pop_front() {
                sessions.remove(gone.local);
            }
        }
    }

    pub(super) fn drop_pending(&mut self, sessions: &Sessions) {
        if let Some(pending) = self.pending.take() {
            sessions.remove(pending.initiated.index);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One that cannot be read is older than every other.
fn stamp(text: &str) -> Stamp {
    let byte =
        |at: usize| text.get(2 * at..2 * at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    Stamp::from_bytes(std::array::from_fn(|at| byte(at).unwrap_or(0)))
}
