//! Connections that are held while what they lead to goes: of clients that talk, of clients that wait, and of a pool. One thread each.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bench::part;

pub(super) const ROLE: &str = "held";
const STACK: usize = 128 * 1024;
/// Between two requests of one that talks.
const PAUSE: Duration = Duration::from_millis(100);
const CONNECT: Duration = Duration::from_secs(1);
/// Longer than any cut: nobody gives up by himself.
const FOREVER: Duration = Duration::from_secs(55);
const ANSWER_MOST: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hold {
    pub(super) target: SocketAddrV4,
    /// Of each kind.
    pub(super) talking: usize,
    pub(super) waiting: usize,
    pub(super) pooled: usize,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Tell {
    /// The next half of the pool is written to.
    Write,
    Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// One request after the other, and a new connection when this one has failed.
    Talking,
    /// It has asked once and reads on, as one that waits for events.
    Waiting,
    /// Idle until it is written to: after the reset, before the sweep.
    PooledEarly,
    /// After the sweep.
    PooledLate,
}

/// The first connection of each client. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) kind: Kind,
    pub(super) cluster: String,
    pub(super) node: String,
    /// When its client heard that it is over.
    pub(super) ended_ms: Option<f64>,
    /// Of the pool: from its write to the error.
    pub(super) heard_after_ms: Option<f64>,
    /// Of one that talks: its next answer, over another connection.
    pub(super) next_ms: Option<f64>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddrV4,
    held: Mutex<Vec<Held>>,
    /// Halves of the pool that may write.
    halves: Mutex<usize>,
    turn: Condvar,
}

/// Says true when all are connected, and reports when it is told to.
pub(super) fn hold(hold: &Hold) -> Result<()> {
    let shared = Arc::new(Shared {
        target: hold.target,
        held: Mutex::default(),
        halves: Mutex::default(),
        turn: Condvar::new(),
    });
    let kinds = std::iter::repeat_n(Kind::Talking, hold.talking)
        .chain(std::iter::repeat_n(Kind::Waiting, hold.waiting))
        .chain((0..hold.pooled).map(|n| if n % 2 == 0 { Kind::PooledEarly } else { Kind::PooledLate }));
    for kind in kinds {
        let (connection, (cluster, node)) = Connection::open(hold.target).context("the first connection")?;
        let held = Held { kind, cluster, node, ended_ms: None, heard_after_ms: None, next_ms: None };
        let at = shared.add(held);
        let shared = Arc::clone(&shared);
        thread::Builder::new().stack_size(STACK).spawn(move || shared.live(kind, at, connection))?;
    }
    part::say(&true)?;
    for line in io::stdin().lines() {
        match serde_json::from_str(&line?)? {
            Tell::Write => {
                *shared.halves.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                shared.turn.notify_all();
            }
            Tell::Report => {
                return part::say(&*shared.held.lock().unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
    Ok(())
}

impl Shared {
    fn add(&self, held: Held) -> usize {
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(held);
        all.len() - 1
    }

    fn note(&self, at: usize, write: impl FnOnce(&mut Held)) {
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = all.get_mut(at) {
            write(held);
        }
    }

    fn live(&self, kind: Kind, at: usize, mut connection: Connection) {
        match kind {
            Kind::Talking => self.talk(at, connection),
            Kind::Waiting => {
                let _ = connection.wait();
                self.note(at, |held| held.ended_ms = Some(unix()));
            }
            Kind::PooledEarly => self.write(at, connection, 1),
            Kind::PooledLate => self.write(at, connection, 2),
        }
    }

    fn talk(&self, at: usize, mut connection: Connection) {
        while connection.ask().is_ok() {
            thread::sleep(PAUSE);
        }
        self.note(at, |held| held.ended_ms = Some(unix()));
        loop {
            if Connection::open(self.target).is_ok() {
                return self.note(at, |held| held.next_ms = Some(unix()));
            }
            thread::sleep(PAUSE / 10);
        }
    }

    fn write(&self, at: usize, mut connection: Connection, half: usize) {
        let halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.turn.wait_while(halves, |halves| *halves < half));
        let began = Instant::now();
        if connection.ask().is_err() {
            let took = began.elapsed().as_secs_f64() * 1000.0;
            self.note(at, |held| (held.ended_ms, held.heard_after_ms) = (Some(unix()), Some(took)));
        }
    }
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    /// With its first answer: of which cluster and node.
    fn open(target: SocketAddrV4) -> io::Result<(Self, (String, String))> {
        let stream = TcpStream::connect_timeout(&target.into(), CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(CONNECT))?;
        let mut connection = Self(BufReader::new(stream));
        let answer = connection.ask()?;
        connection.0.get_ref().set_read_timeout(Some(FOREVER))?;
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        Ok((connection, (text("cluster"), text("node"))))
    }

    fn ask(&mut self) -> io::Result<Value> {
        self.0.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
                Some(_) => {}
                None if line.trim_end().is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; ANSWER_MOST.min(length)];
        self.0.read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Until it is over.
    fn wait(&mut self) -> io::Result<usize> {
        self.0.get_mut().read(&mut [0])
    }
}

fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1000.0)
}
