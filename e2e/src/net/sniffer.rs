//! Threads that hand every frame of some interfaces to an observer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail};

use super::packet_socket::{Direction, PacketSocket};
use crate::place::Place;

/// Segments of up to 64 KiB appear whole where checksums and segmentation are left to the device.
const FRAME_BYTES_MAX: usize = 70_000;
const POLL_MS: i32 = 50;

/// Sees frames.
pub trait Observer: Send + 'static {
    fn see(&mut self, frame: &[u8]);
}

/// Frames as they are; for small captures.
impl Observer for Vec<Vec<u8>> {
    fn see(&mut self, frame: &[u8]) {
        self.push(frame.to_vec());
    }
}

#[derive(Debug)]
pub struct Sniffer<O> {
    observer: Arc<Mutex<O>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl<O: Observer> Sniffer<O> {
    /// On interfaces of `place`, or of the router without one. Frames that the host itself sends are left out.
    pub fn start(place: Option<&Place>, interfaces: &[String], observer: O) -> Result<Self> {
        let open = || interfaces.iter().map(|name| PacketSocket::open(name)).collect::<Result<Vec<_>>>();
        let sockets = place.map_or_else(open, |place| place.in_network(open))?;
        let (observer, stop) = (Arc::new(Mutex::new(observer)), Arc::new(AtomicBool::new(false)));
        let threads = sockets
            .into_iter()
            .map(|socket| {
                let (observer, stop) = (Arc::clone(&observer), Arc::clone(&stop));
                thread::spawn(move || watch(&socket, &observer, &stop))
            })
            .collect();
        Ok(Self { observer, stop, threads })
    }

    /// What was seen so far.
    pub fn look(&self) -> MutexGuard<'_, O> {
        self.observer.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends the capture. An error when frames were lost: then it proves nothing.
    pub fn stop(mut self) -> Result<O> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("the capture panicked"))??;
        }
        let observer = Arc::into_inner(self.observer).context("all threads of the capture ended")?;
        Ok(observer.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

fn watch<O: Observer>(socket: &PacketSocket, observer: &Mutex<O>, stop: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        // Read before the wait: what arrived before the order to stop is still taken.
        let stopping = stop.load(Ordering::Relaxed);
        match socket.receive(&mut buffer, POLL_MS).context("capturing")? {
            // A bridge's port sees its frames as somebody else's, unless the bridge has that port's address.
            Some((length, Direction::In | Direction::Passing)) => {
                let mut observer = observer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                observer.see(&buffer[..length]);
            }
            Some((_, Direction::Out)) => {}
            None if stopping => break,
            None => {}
        }
    }
    match socket.lost()? {
        0 => Ok(()),
        lost => bail!("the capture lost {lost} frames"),
    }
}
