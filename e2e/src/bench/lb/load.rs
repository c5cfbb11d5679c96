//! A client and a server that do nothing but what is counted: one thread each, one loop over `poll`, no log.
//!
//! A request is one small message and so is its answer. The client keeps so many connections at work for so long.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use serde::{Deserialize, Serialize};

use crate::bench::part;

const REQUEST: [u8; 64] = [b'q'; 64];
const ANSWER: [u8; 128] = [b'a'; 128];
/// On a machine at work; silence for longer is a failure.
const PATIENCE_MS: u16 = 5_000;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Serve {
    pub(super) port: u16,
}

/// What the client is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Connect, one request, close; so many at a time.
    Connections { target: SocketAddrV4, at_once: usize, ms: u64 },
    /// One request after the other over the same connections.
    Requests { target: SocketAddrV4, at_once: usize, ms: u64 },
    /// `connect()` of new UDP sockets, one by one.
    Connects { target: SocketAddrV4, count: usize },
}

/// Requests that were answered, and from the first connect to the last answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Ran {
    pub(super) done: u64,
    pub(super) ns: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Took {
    pub(super) p50_ns: f64,
    pub(super) p99_ns: f64,
}

/// Answers TCP and, for those who look whether they are heard, UDP. Until killed.
pub(super) fn serve(args: &Serve) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, args.port)).context("listening")?;
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, args.port)).context("listening to UDP")?;
    listener.set_nonblocking(true)?;
    part::say(&true)?;
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut buffer = [0; 256];
    loop {
        let fds = [listener.as_fd(), datagrams.as_fd()];
        let fds = fds.into_iter().chain(streams.iter().map(|stream| stream.as_fd()));
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::NONE).context("poll")?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        // From the end, so that what takes a gone one's place was looked at.
        for at in (0..streams.len()).rev().filter(|at| ready[at + 2]) {
            let stream = &mut streams[at];
            let answered = match stream.read(&mut buffer) {
                Ok(0) | Err(_) => false,
                Ok(_) => stream.write_all(&ANSWER).is_ok(),
            };
            if !answered {
                streams.swap_remove(at);
            }
        }
        if ready[1]
            && let Ok((_, from)) = datagrams.recv_from(&mut buffer)
        {
            // Whoever asked may be gone.
            let _ = datagrams.send_to(&ANSWER, from);
        }
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
    }
}

/// Does what it is told, one thing after the other.
pub(super) fn ask() -> Result<()> {
    for line in io::stdin().lines() {
        match serde_json::from_str(&line?)? {
            Ask::Connections { target, at_once, ms } => {
                part::say(&Loop::new(target, false, ms).run(at_once)?)?;
            }
            Ask::Requests { target, at_once, ms } => part::say(&Loop::new(target, true, ms).run(at_once)?)?,
            Ask::Connects { target, count } => part::say(&connects(target, count)?)?,
        }
    }
    Ok(())
}

struct Slot {
    stream: TcpStream,
    /// The request is on its way.
    sent: bool,
}

struct Loop {
    target: SocketAddrV4,
    keep: bool,
    until: Instant,
    done: u64,
}

impl Loop {
    fn new(target: SocketAddrV4, keep: bool, ms: u64) -> Self {
        Self { target, keep, until: Instant::now() + Duration::from_millis(ms), done: 0 }
    }

    fn run(mut self, at_once: usize) -> Result<Ran> {
        let began = Instant::now();
        let mut slots = (0..at_once).map(|_| self.open()).collect::<Result<Vec<_>>>()?;
        while !slots.is_empty() {
            let wanted = |slot: &Slot| if slot.sent { PollFlags::POLLIN } else { PollFlags::POLLOUT };
            let mut fds: Vec<_> =
                slots.iter().map(|slot| PollFd::new(slot.stream.as_fd(), wanted(slot))).collect();
            ensure!(poll(&mut fds, PATIENCE_MS)? > 0, "{} answers nothing", self.target);
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            for at in (0..slots.len()).rev().filter(|at| ready[*at]) {
                if !self.turn(&mut slots[at])? {
                    slots.swap_remove(at);
                }
            }
        }
        let ns = u64::try_from(began.elapsed().as_nanos())?;
        ensure!(self.done > 0, "nothing was asked of {}", self.target);
        Ok(Ran { done: self.done, ns })
    }

    /// False when the time is over and the connection is done.
    fn turn(&mut self, slot: &mut Slot) -> Result<bool> {
        if !slot.sent {
            self.send(slot)?;
            return Ok(true);
        }
        let mut buffer = [0; 256];
        match slot.stream.read(&mut buffer) {
            Ok(count) if buffer[..count] == ANSWER => {}
            Ok(count) => bail!("{} answered {count} bytes", self.target),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error).with_context(|| format!("asking {}", self.target)),
        }
        if self.done == 0 {
            let peer = slot.stream.peer_addr()?;
            ensure!(
                peer == SocketAddr::V4(self.target),
                "asked {}, and getpeername says {peer}",
                self.target
            );
        }
        self.done += 1;
        if Instant::now() >= self.until {
            return Ok(false);
        }
        match self.keep {
            true => self.send(slot)?,
            false => *slot = self.open()?,
        }
        Ok(true)
    }

    fn open(&self) -> Result<Slot> {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(self.target)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => bail!("connecting to {}: {error}", self.target),
        }
        let stream = TcpStream::from(fd);
        stream.set_nodelay(true)?;
        let mut slot = Slot { stream, sent: false };
        self.send(&mut slot)?;
        Ok(slot)
    }

    /// As soon as the connection is there, which on one machine it often is at once.
    fn send(&self, slot: &mut Slot) -> Result<()> {
        slot.sent = match slot.stream.write(&REQUEST) {
            Ok(count) => count == REQUEST.len(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => return Err(error).with_context(|| format!("asking {}", self.target)),
        };
        Ok(())
    }
}

/// Each socket is new, as a pin of an old one would spare the choice.
fn connects(target: SocketAddrV4, count: usize) -> Result<Took> {
    let heard = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    heard.connect(target)?;
    heard.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS.into())))?;
    heard.send(&REQUEST)?;
    heard.recv(&mut [0; 256]).with_context(|| format!("{target} answers no datagram"))?;
    let to = SockaddrIn::from(target);
    let mut nanos = Vec::with_capacity(count);
    for _ in 0..count {
        let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
        let began = Instant::now();
        connect(fd.as_raw_fd(), &to)?;
        nanos.push(began.elapsed().as_nanos() as f64);
    }
    nanos.sort_by(f64::total_cmp);
    let at = |share: usize| nanos[(nanos.len() * share / 100).min(nanos.len() - 1)];
    Ok(Took { p50_ns: at(50), p99_ns: at(99) })
}
