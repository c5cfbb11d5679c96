//! WireGuard, or ESP in UDP, in user space: peers and their sessions ([`crate::noise`], [`crate::esp`]) between a persistent
//! TUN and a marked UDP port.
//!
//! ```text
//! threads `tun0..` TUN queue ──lookup destination──> peer ──cut──seal──> batch ──sendmmsg──> underlay
//! threads `udp0..` underlay ──recvmmsg──> index ──> session ──open──> lookup source ──join──> TUN
//! thread `timers`  every 250 ms: handshakes, keepalives, expiry
//! thread `uapi`    one client at a time; a whole `set` under one lock
//! ```
//! One read or write of the TUN is up to 64 KiB of a TCP stream ([`crate::offload`]), and one message on the underlay is
//! as many datagrams as `UDP_SEGMENT` and `UDP_GRO` allow; where the kernel or a device does neither, each goes alone.
//!
//! No allocation, no copy but the cutting and no lock per packet: the configuration, the table of sessions, a peer's way
//! and a session's replay window are locked once for each batch or run. Locks are taken in this order: configuration,
//! a peer's control, then its way or the table.

mod associate;
mod carry;
mod client;
mod context;
mod counters;
mod handover;
mod handshake;
mod lanes;
mod mmsg;
mod path_mtu;
mod peer;
mod receive;
mod sessions;
mod sockets;
mod state;
#[cfg(test)]
mod tests;
mod timers;
mod transmit;
mod waiting;

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{JoinHandle, available_parallelism};
use std::time::{Duration, Instant};

use hawser_model::PublicKey;
use hawser_tunnels::{DeviceName, Sa};
use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::PrivateKey;
use crate::clock::Millis;
use crate::tun::Tun;
use crate::uapi::{self, SetDevice, Snapshot};
pub use associate::{AssociateError, MOST_INBOUND};
pub use carry::Protocol;
use counters::{Counters, Reason};
use handover::Taken;
pub(crate) use handover::{Asked, give};
pub use lanes::MOST_LANES;
use lanes::Totals;
use mmsg::SendBatch;
use peer::Context;
use sessions::Sessions;
use sockets::{Face, Sockets};
use state::State;
use waiting::Streams;
pub(crate) use waiting::wait;

/// The largest MTU of the TUN: jumbo frames less the overhead fit, and buffers stay small.
pub const MAX_MTU: u16 = 9000;

/// A predecessor that has let go has closed its descriptors by then.
const LETS_GO: Duration = Duration::from_secs(5);

/// More queues than this have shown no gain.
const MOST_QUEUES: usize = 8;

/// What an engine starts with; the rest comes by UAPI.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    pub device: DeviceName,
    pub key: PrivateKey,
    /// 0 takes a free one.
    pub port: u16,
    /// Of the lanes beyond the first, in which peers that have them, too, are spoken to in parallel; [`MOST_LANES`] at most.
    /// Not of ESP, which has one.
    pub more_ports: Vec<u16>,
    /// `SO_MARK` of the engine's own packets; 0 is none.
    pub mark: u32,
    pub mtu: u16,
    /// Go on with the device, the port and the sessions of an engine that serves this device now; it carries nothing from
    /// then on. One that hands over in a way that is not understood lets go all the same: sessions are then made anew.
    pub take_over: bool,
    pub protocol: Protocol,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "cannot open the TUN device {device}: {source}. fix: run as root, `modprobe tun`; if {device} is of another kind or another process holds it, choose another name"
    )]
    Tun { device: DeviceName, source: io::Error },
    #[error(
        "cannot bind UDP port {port} for {device}: {source}. fix: stop what holds it (`ss -ulpn sport = :{port}`) or configure another port"
    )]
    Bind { device: DeviceName, port: u16, source: io::Error },
    #[error(
        "another process answers {path}: it already serves {device}. fix: stop it or choose another device name"
    )]
    Served { device: DeviceName, path: String },
    #[error("cannot listen on {path}: {source}. fix: run as root")]
    Listen { path: String, source: io::Error },
    #[error("cannot start the threads of {device}: {source}")]
    Threads { device: DeviceName, source: io::Error },
    #[error(
        "no random numbers for the handshakes of {device}. fix: see what getrandom(2) says on this machine"
    )]
    Random { device: DeviceName },
}

/// A running engine. Dropping it stops the threads and closes the TUN, which stays.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "engine of {}", self.shared.device)
    }
}

impl Engine {
    /// Opens the device and the port in this thread's network namespace, or takes them over, and starts to carry packets.
    pub fn start(mut settings: EngineSettings) -> Result<Self, EngineError> {
        let device = settings.device.clone();
        let (taken, patience) = take_over(&settings);
        let fresh = settings.key.clone();
        settings.key = key(&settings, taken.as_ref());
        let listener = patiently(patience, || uapi::Listener::bind(&device))?;
        let sessions = Arc::<Sessions>::default();
        let mut state = State::new(settings.key.clone(), settings.mark, Arc::clone(&sessions))
            .map_err(|_| EngineError::Random { device: device.clone() })?;
        state.protocol = settings.protocol;
        let (tun, sockets) = match taken {
            Some(taken) => {
                taken.restore(&mut state);
                state.mark = taken.mark();
                if sessions.spent().is_lossy() {
                    // What cannot be told to be new is not used: peers are met with another key.
                    tracing::warn!(%device, "how far associations had come is not known: they are made anew");
                    state.remove_all();
                    sessions.spent().forget();
                    sessions.set_note(Zeroizing::default());
                    settings.key = fresh;
                }
                (taken.tun, taken.sockets)
            }
            None => patiently(patience, || open(&settings))?,
        };
        let sockets = with_more(&settings, &sockets);
        let (queues, lanes) = (tun.queues().len(), sockets.lanes().len());
        for peer in state.peers.values() {
            // A predecessor may have had more.
            peer.spread(&peer.more_ports(), lanes - 1, &sessions);
        }
        let threads = |source| EngineError::Threads { device: device.clone(), source };
        let mut pipes = Vec::new();
        for _ in 0..queues + lanes + 2 {
            pipes.push(io::pipe().map_err(threads)?);
        }
        let (readers, wakers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        let shared = Arc::new(Shared {
            device: device.clone(),
            protocol: settings.protocol,
            tun: RwLock::new(Arc::new(tun)),
            queues,
            sockets: RwLock::new(Arc::new(sockets)),
            state: RwLock::new(state),
            sessions,
            counters: Counters::default(),
            streams: Streams::default(),
            mtu: AtomicUsize::new(settings.mtu.into()),
            running: AtomicBool::new(true),
            given: AtomicBool::new(false),
            carrying: AtomicUsize::new(0),
            wakers,
        });
        let mut engine = Self { shared, threads: Vec::new() };
        // A predecessor may have had another port or mark.
        let EngineSettings { key, port, mark, .. } = settings;
        let set = SetDevice {
            private_key: Some(key),
            port: Some(port).filter(|port| *port != 0),
            mark: Some(mark),
            ..SetDevice::default()
        };
        engine.shared.set(set).map_err(|errno| EngineError::Bind { device, port, source: errno.into() })?;
        engine.carry(readers, lanes, listener)?;
        Ok(engine)
    }

    /// A thread for each queue of the TUN and for each lane, and those beside them.
    fn carry(
        &mut self,
        readers: Vec<PipeReader>,
        lanes: usize,
        listener: uapi::Listener,
    ) -> Result<(), EngineError> {
        let mut readers = readers.into_iter();
        for queue in 0..self.shared.queues {
            let run = move |shared: &Shared, wake: &PipeReader| transmit::run(shared, queue, wake);
            self.spawn(&format!("tun{queue}"), readers.next(), carrying(run))?;
        }
        for lane in 0..lanes as u8 {
            let run = move |shared: &Shared, wake: &PipeReader| receive::run(shared, lane, wake);
            self.spawn(&format!("udp{lane}"), readers.next(), carrying(run))?;
        }
        self.spawn("timers", readers.next(), carrying(timers::run))?;
        self.spawn("uapi", readers.next(), move |shared, wake| listener.run(shared, wake))
    }

    /// A body returns when the engine stops. One that panics has lost a packet, not the node: it starts again.
    fn spawn(
        &mut self,
        name: &str,
        wake: Option<PipeReader>,
        body: impl Fn(&Shared, &PipeReader) + Send + 'static,
    ) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        let run = move |wake: PipeReader| {
            // Locks are taken up again after a panic, and all other state belongs to the body.
            while catch_unwind(AssertUnwindSafe(|| body(&shared, &wake))).is_err() {
                shared.counters.count(Reason::Panicked);
                tracing::error!(device = %shared.device, "an engine thread panicked and starts again: report this as a defect");
                shared.rest();
            }
        };
        let wake = wake.ok_or(io::ErrorKind::NotFound.into());
        let name = format!("{}-{name}", self.shared.device);
        let spawned = wake.and_then(|wake| std::thread::Builder::new().name(name).spawn(move || run(wake)));
        let device = self.shared.device.clone();
        self.threads.push(spawned.map_err(|source| EngineError::Threads { device, source })?);
        Ok(())
    }

    /// How many packets were not carried, by reason.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        self.shared.counters.list()
    }

    /// What a peer of an ESP engine is sent by, and by what it is received. An association that is there already goes on as
    /// it is; what is not named here any more goes last. One that comes back goes on behind where it was.
    pub fn associate(
        &self,
        peer: &PublicKey,
        outbound: Option<&Sa>,
        inbound: &[Sa],
    ) -> Result<(), AssociateError> {
        let state = self.shared.state();
        let unknown = AssociateError::UnknownPeer { peer: *peer };
        state.peers.get(peer).ok_or(unknown)?.associate(&self.shared.sessions, outbound, inbound)
    }

    /// This peer has lanes at these ports beside its first: flows spread over as many as both ends have. O(1).
    pub fn spread(&self, peer: &PublicKey, ports: &[u16]) {
        let state = self.shared.state();
        if let Some(peer) = state.peers.get(peer) {
            peer.spread(ports, self.shared.sockets().lanes().len() - 1, &self.shared.sessions);
        }
    }

    pub fn peers(&self) -> Vec<PublicKey> {
        self.shared.state().peers.keys().copied().collect()
    }

    /// Those of [`EngineSettings::more_ports`] that could be had, in their order: what peers may be told.
    pub fn more_ports(&self) -> Vec<u16> {
        self.shared.sockets().more_ports()
    }

    /// The newest number that each association has received, by SPI. O(peers).
    pub fn received(&self) -> HashMap<u32, u64> {
        let state = self.shared.state();
        state.peers.values().flat_map(|peer| peer.received()).collect()
    }

    /// Whatever a successor of this engine is to find again.
    pub fn set_note(&self, note: Zeroizing<String>) {
        self.shared.sessions.set_note(note);
    }

    /// What the predecessor noted last; nothing unless its key goes on, too.
    pub fn note(&self) -> Zeroizing<String> {
        self.shared.sessions.note()
    }

    /// The predecessor's, where one has handed an ESP engine over.
    pub fn key(&self) -> PrivateKey {
        self.shared.state().key.clone()
    }

    pub fn port(&self) -> u16 {
        self.shared.sockets().port()
    }

    /// Whether a successor has what this engine had.
    pub fn is_given(&self) -> bool {
        self.shared.given.load(Ordering::Acquire)
    }

    /// Tells the engine the MTU that the device has now.
    pub fn set_mtu(&self, mtu: u16) {
        self.shared.mtu.store(mtu.into(), Ordering::Relaxed);
    }

    /// Opens the device anew if somebody deleted it.
    pub fn reopen_if_gone(&self) -> Result<(), EngineError> {
        if self.shared.tun().is_attached() {
            return Ok(());
        }
        let device = self.shared.device.clone();
        let tun =
            Tun::open(&device, self.shared.queues).map_err(|source| EngineError::Tun { device, source })?;
        *write(&self.shared.tun) = Arc::new(tun);
        self.shared.wake_all();
        Ok(())
    }

    /// Stops, and takes the device away; one that a successor has now is left to it.
    pub fn remove(self) -> Result<(), EngineError> {
        if !self.shared.running() {
            return Ok(());
        }
        let (tun, device) = (self.shared.tun(), self.shared.device.clone());
        drop(self);
        match tun.set_persistent(false) {
            // Deleted by somebody already.
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Ok(()),
            Err(source) => Err(EngineError::Tun { device, source }),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.running.store(false, Ordering::Release);
        self.shared.wake_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Of an ESP engine the predecessor's: associations, whose numbers go on, are made of it.
fn key(settings: &EngineSettings, taken: Option<&Taken>) -> PrivateKey {
    let taken = taken.filter(|_| settings.protocol == Protocol::Esp).and_then(Taken::key);
    taken.unwrap_or_else(|| settings.key.clone())
}

/// What a predecessor gives, and until when one that let go may still be closing what it held.
fn take_over(settings: &EngineSettings) -> (Option<handover::Taken>, Option<Instant>) {
    if !settings.take_over {
        return (None, None);
    }
    match handover::take(&uapi::path(&settings.device), settings.protocol) {
        Ok(taken) => (taken, None),
        Err(error) => {
            let device = &settings.device;
            tracing::warn!(%device, %error, "the predecessor's sessions cannot be taken over: they are made anew");
            (None, Some(Instant::now() + LETS_GO))
        }
    }
}

fn patiently<T>(
    until: Option<Instant>,
    mut attempt: impl FnMut() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    loop {
        match attempt() {
            Err(_) if until.is_some_and(|until| Instant::now() < until) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

fn open(settings: &EngineSettings) -> Result<(Tun, Sockets), EngineError> {
    let EngineSettings { device, port, mark, .. } = settings;
    let (device, port) = (device.clone(), *port);
    let sockets = Sockets::bind(port, *mark).map_err(|source| EngineError::Bind {
        device: device.clone(),
        port,
        source,
    })?;
    let queues = available_parallelism().map_or(1, NonZero::get).min(MOST_QUEUES);
    let tun = Tun::open(&device, queues).map_err(|source| EngineError::Tun { device, source })?;
    Ok((tun, sockets))
}

/// A lane that cannot be had is one less.
fn with_more(settings: &EngineSettings, sockets: &Sockets) -> Sockets {
    let EngineSettings { device, more_ports, mark, protocol, .. } = settings;
    let wanted: &[u16] = match protocol {
        Protocol::Wireguard => &more_ports[..more_ports.len().min(MOST_LANES)],
        Protocol::Esp => &[],
    };
    sockets.with_more(wanted, *mark, |port, error| {
        tracing::warn!(
            %device, port, %error,
            "a port for parallel sessions cannot be had: peers get one session less. fix: stop what holds it (`ss -ulpn`)"
        );
    })
}

/// A body that a successor waits for the end of: it seals, opens, or uses the device.
fn carrying(
    body: impl Fn(&Shared, &PipeReader) + Send + 'static,
) -> impl Fn(&Shared, &PipeReader) + Send + 'static {
    move |shared, wake| {
        shared.carrying.fetch_add(1, Ordering::AcqRel);
        let ended = catch_unwind(AssertUnwindSafe(|| body(shared, wake)));
        shared.carrying.fetch_sub(1, Ordering::AcqRel);
        if let Err(panic) = ended {
            resume_unwind(panic);
        }
    }
}

/// What the threads share.
pub(crate) struct Shared {
    device: DeviceName,
    protocol: Protocol,
    tun: RwLock<Arc<Tun>>,
    /// How many threads read the TUN.
    queues: usize,
    sockets: RwLock<Arc<Sockets>>,
    state: RwLock<State>,
    sessions: Arc<Sessions>,
    counters: Counters,
    streams: Streams,
    mtu: AtomicUsize,
    running: AtomicBool,
    /// To a successor.
    given: AtomicBool,
    /// Threads that carry packets now.
    carrying: AtomicUsize,
    /// One for each thread: a byte makes it look around.
    wakers: Vec<PipeWriter>,
}

impl Shared {
    pub(crate) fn running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    fn tun(&self) -> Arc<Tun> {
        Arc::clone(&read(&self.tun))
    }

    fn sockets(&self) -> Arc<Sockets> {
        Arc::clone(&read(&self.sockets))
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        read(&self.state)
    }

    fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    fn context<'a>(
        &'a self,
        own: &'a PrivateKey,
        out: &'a mut SendBatch,
        sockets: &'a Sockets,
        now: Millis,
    ) -> Context<'a> {
        Context { own, sessions: &self.sessions, out, sockets, counters: &self.counters, now }
    }

    fn wake_all(&self) {
        self.wakers.iter().for_each(|mut waker| drop(waker.write(&[0])));
    }

    /// After an error that would come again at once.
    fn rest(&self) {
        std::thread::sleep(Duration::from_millis(100));
    }

    /// Carries out a whole UAPI `set`, or none of it: what can fail comes first.
    pub(crate) fn set(&self, set: SetDevice) -> Result<(), Errno> {
        let mut state = write(&self.state);
        let sockets = self.sockets();
        let mark = set.mark.unwrap_or(state.mark);
        match set.port {
            Some(port) if port != sockets.port() => {
                let bound = Face::bind(port, mark).map_err(|error| errno(&error))?;
                *write(&self.sockets) = Arc::new(sockets.with_first(bound));
                self.wake_all();
            }
            _ if mark != state.mark => sockets.set_mark(mark).map_err(|error| errno(&error))?,
            _ => {}
        }
        state.mark = mark;
        if let Some(key) = set.private_key {
            state.set_key(key).map_err(|_| Errno::EIO)?;
        }
        if set.replace_peers {
            state.remove_all();
        }
        set.peers.iter().for_each(|peer| state.set_peer(peer));
        Ok(())
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let (state, now) = (self.state(), Millis::now());
        let peers = state.peers.values().map(|peer| {
            let Totals { last_handshake, rx_bytes, tx_bytes, .. } = peer.totals(now);
            let control = peer.lock();
            uapi::PeerSnapshot {
                public_key: peer.key,
                preshared_key: control.preshared(),
                endpoint: control.endpoint,
                last_handshake,
                rx_bytes,
                tx_bytes,
                keepalive: control.keepalive,
                allowed: state.owned(&peer.key),
            }
        });
        let peers = peers.collect();
        Snapshot { private_key: state.key.clone(), port: self.sockets().port(), mark: state.mark, peers }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
