//! A planned restart: the predecessor stops, and gives the TUN's queues, the sockets and its sessions to its successor over
//! the UAPI socket. What comes in between waits in the kernel's buffers, so no packet is lost.
//!
//! The predecessor never seals again once it has begun to give, whatever becomes of the successor: a counter is used by
//! one process alone. Text, line by line, so that versions understand each other: what a successor does not know, it
//! leaves.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hawser_model::PublicKey;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use zeroize::Zeroizing;

use super::Shared;
use super::carry::Protocol;
use super::lanes::MOST_LANES;
use super::sockets::{Face, Sockets};
use super::state::State;
use crate::PrivateKey;
use crate::clock::Millis;
use crate::noise::session::Session;
use crate::tun::Tun;
use crate::uapi::{SetDevice, parse_set, public_key};

/// Sessions of one protocol are none of the other's.
fn request(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Wireguard => "handover=2\n\n",
        Protocol::Esp => "handover=esp1\n\n",
    }
}

/// What a client of the UAPI socket asks who asks for everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// In the form of this version.
    Known,
    /// In another: it gets nothing but the place.
    Unknown,
}

impl Asked {
    pub(crate) fn of(asks: &str, shared: &Shared) -> Option<Self> {
        if asks == request(shared.protocol) {
            return Some(Self::Known);
        }
        asks.starts_with("handover=").then_some(Self::Unknown)
    }
}

/// A predecessor that has not stopped by then will not; one that has nothing more to say after this is gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// With 3 KiB for each session of tens of thousands of peers.
const LARGEST: u64 = 256 << 20;
/// Descriptors in one message: queues, and two sockets for each lane.
const MOST: usize = 32;
/// Between configuration and sessions.
const SESSIONS: &str = "sessions=1\n";

/// What a successor starts with.
pub(crate) struct Taken {
    pub(crate) tun: Tun,
    pub(crate) sockets: Sockets,
    config: SetDevice,
    sessions: Zeroizing<String>,
}

/// Gives everything away. The engine carries nothing afterwards, even when this fails.
pub(crate) fn give(stream: &UnixStream, shared: &Shared, asked: Asked) -> io::Result<()> {
    stop(shared)?;
    if asked == Asked::Known {
        send(stream, shared)?;
    }
    shared.given.store(true, Ordering::Release);
    Ok(())
}

fn stop(shared: &Shared) -> io::Result<()> {
    shared.running.store(false, Ordering::Release);
    shared.wake_all();
    let patience = Instant::now() + PATIENCE;
    while shared.carrying.load(Ordering::Acquire) > 0 {
        if Instant::now() > patience {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn send(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let (tun, sockets) = (shared.tun(), shared.sockets());
    let lanes = sockets.lanes();
    let mut fds: Vec<RawFd> = lanes.iter().flat_map(|face| face.both()).map(AsRawFd::as_raw_fd).collect();
    let families: Vec<String> = lanes.iter().map(|face| face.both().count().to_string()).collect();
    let mut text = Zeroizing::new(format!("sockets={}\n", families.join(",")));
    fds.extend(tun.queues().iter().map(AsRawFd::as_raw_fd));
    // As `wg showconf` and `wg setconf` have it: what only tells and does not set stays behind.
    let told = ["last_handshake_time", "tx_bytes", "rx_bytes", "errno"];
    let config = Zeroizing::new(shared.snapshot().to_string());
    let lines =
        config.lines().filter(|line| !line.is_empty() && !told.iter().any(|key| line.starts_with(key)));
    lines.for_each(|line| text.extend([line, "\n"]));
    text.push_str(SESSIONS);
    let note = shared.sessions.note();
    if !note.is_empty() {
        text.extend(["note=", note.as_str(), "\n"]);
    }
    shared.sessions.spent().export(&mut text);
    shared.state().peers.values().for_each(|peer| peer.export(&mut text));
    text.push('\n');
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(b"h")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    (&mut &*stream).write_all(text.as_bytes())
}

/// Asks whoever serves `path`; none when nobody does.
pub(crate) fn take(path: &Path, protocol: Protocol) -> io::Result<Option<Taken>> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    stream.write_all(request(protocol).as_bytes())?;
    let fds = receive_descriptors(&stream)?;
    let mut text = Zeroizing::new(String::new());
    (&stream).take(LARGEST).read_to_string(&mut text)?;
    parse(&text, fds).ok_or_else(|| io::ErrorKind::InvalidData.into()).map(Some)
}

fn receive_descriptors(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut first = [0];
    let mut room = cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(&mut first)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut room), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    // Without descriptors it is an answer of somebody who does not know the question.
    if fds.is_empty() { Err(io::ErrorKind::Unsupported.into()) } else { Ok(fds) }
}

fn parse(text: &str, mut fds: Vec<OwnedFd>) -> Option<Taken> {
    // Cut off, or of a predecessor that failed half-way.
    let text = text.strip_suffix('\n').filter(|text| text.ends_with('\n'))?;
    let (sockets, text) = text.strip_prefix("sockets=")?.split_once('\n')?;
    let (config, sessions) = text.split_once(SESSIONS)?;
    let families = sockets.split(',').map(|count| count.parse().ok().filter(|count| (1..=2).contains(count)));
    let families: Vec<usize> = families.collect::<Option<_>>()?;
    let count = families.iter().sum();
    if fds.len() <= count {
        return None;
    }
    let queues = fds.split_off(count).into_iter().map(File::from).collect();
    let mut sockets = fds.into_iter().map(UdpSocket::from);
    let mut face = |families: usize| {
        let (v4, v6) = (sockets.next()?, if families == 2 { Some(sockets.next()?) } else { None });
        Face::adopt(v4, v6).ok().map(Arc::new)
    };
    let lanes = families.into_iter().map(&mut face).collect::<Option<_>>()?;
    Some(Taken {
        tun: Tun::adopt(queues),
        sockets: Sockets::of_faces(lanes),
        config: parse_set(config).ok()?,
        sessions: Zeroizing::new(sessions.to_owned()),
    })
}

impl Taken {
    /// Peers as they were. A session that is over by now, or cannot be read, is made anew by the next packet.
    pub(crate) fn restore(&self, state: &mut State) {
        self.config.peers.iter().for_each(|peer| state.set_peer(peer));
        let now = Millis::now();
        // And the lane of it that is spoken of.
        let (mut peer, mut first) = (None, None);
        for line in self.sessions.lines() {
            match line.split_once('=') {
                Some(("peer", key)) => {
                    first = public_key(key).ok().and_then(|key: PublicKey| state.peers.get(&key).cloned());
                    peer = first.clone();
                }
                Some(("ports", ports)) => {
                    let ports: Vec<u16> = ports.split(' ').filter_map(|port| port.parse().ok()).collect();
                    first.iter().for_each(|first| first.spread(&ports, MOST_LANES, state.sessions()));
                }
                Some(("lane", lane)) => {
                    peer = first
                        .as_ref()
                        .zip(lane.parse().ok())
                        .and_then(|(first, lane)| first.lane(lane))
                        .cloned();
                }
                Some(("note", value)) => state.sessions().set_note(Zeroizing::new(value.to_owned())),
                Some(("spent", value)) => state.sessions().spent().import(value),
                Some((key, value)) => {
                    if let Some(peer) = &peer {
                        peer.import(state.sessions(), key, value, now);
                    }
                }
                None => {}
            }
        }
    }

    /// What the predecessor was known by.
    pub(crate) fn key(&self) -> Option<PrivateKey> {
        self.config.private_key.clone()
    }

    pub(crate) fn mark(&self) -> u32 {
        self.config.mark.unwrap_or(0)
    }
}

/// `<slot>=<session>`, for [`Peer::import`](super::peer::Peer).
pub(super) fn export(slot: &str, session: &Session, text: &mut Zeroizing<String>) {
    // To a string, which cannot fail.
    let _ = write!(text, "{slot}=");
    session.export(text);
    text.push('\n');
}
