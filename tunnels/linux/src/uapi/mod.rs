//! The cross-platform WireGuard UAPI on a unix socket: what `wg` and `wireguard-control` speak to the engine.
//!
//! <https://www.wireguard.com/xplatform/>

mod text;

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hawser_tunnels::DeviceName;
use nix::errno::Errno;

pub(crate) use text::public_key;
pub(crate) use text::{PeerSnapshot, Snapshot};
pub use text::{SetDevice, SetPeer, parse_set};

use crate::engine::{Asked, EngineError, Shared, give, wait};

/// Where `wg` looks; it knows no other place.
const DIRECTORY: &str = "/var/run/wireguard";

/// A client that says nothing for this long is hung up on: one is served at a time.
const PATIENCE: Duration = Duration::from_secs(1);

/// 64 bytes for each of a hundred thousand prefixes.
const LARGEST_REQUEST: usize = 8 << 20;

pub(crate) fn path(device: &DeviceName) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{device}.sock"))
}

pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// The name is a successor's now.
    given: AtomicBool,
}

impl Listener {
    /// Takes over the socket of an engine that died; refuses that of one that lives.
    pub(crate) fn bind(device: &DeviceName) -> Result<Self, EngineError> {
        let path = path(device);
        let listen = |source| EngineError::Listen { path: path.display().to_string(), source };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY).map_err(listen)?;
        if UnixStream::connect(&path).is_ok() {
            return Err(EngineError::Served { device: device.clone(), path: path.display().to_string() });
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listen(error)),
            _ => {}
        }
        let socket = UnixListener::bind(&path).map_err(listen)?;
        // The private key can be read here.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(listen)?;
        socket.set_nonblocking(true).map_err(listen)?;
        Ok(Self { socket, path, given: AtomicBool::new(false) })
    }

    pub(crate) fn run(&self, shared: &Shared, wake: &io::PipeReader) {
        while shared.running() {
            if !wait(&[self.socket.as_fd()], wake, None)[0] {
                continue;
            }
            if let Ok((stream, _)) = self.socket.accept()
                && let Err(error) = self.serve(&stream, shared, wake)
            {
                tracing::debug!(path = %self.path.display(), %error, "a UAPI client left early");
            }
        }
    }

    /// Answers request after request until the client hangs up, or has taken the engine over.
    fn serve(&self, stream: &UnixStream, shared: &Shared, wake: &io::PipeReader) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut pending = Vec::new();
        loop {
            let Some(request) = next_request(stream, &mut pending, shared, wake)? else { return Ok(()) };
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            if let Some(asked) = Asked::of(&request, shared) {
                tracing::info!(path = %self.path.display(), ?asked, "a successor takes over");
                // The name is the successor's from here on.
                let _ = fs::remove_file(&self.path);
                self.given.store(true, Ordering::Release);
                return give(stream, shared, asked);
            }
            let answer = answer(&request, shared);
            (&mut &*stream).write_all(answer.as_bytes())?;
            stream.set_nonblocking(true)?;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.given.load(Ordering::Acquire) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Everything up to an empty line; none once the client has hung up or fallen silent.
fn next_request(
    stream: &UnixStream,
    pending: &mut Vec<u8>,
    shared: &Shared,
    wake: &io::PipeReader,
) -> io::Result<Option<String>> {
    let mut chunk = [0; 4096];
    let mut searched = 0;
    let mut patience = Instant::now() + PATIENCE;
    loop {
        if let Some(end) = pending[searched..].windows(2).position(|pair| pair == b"\n\n") {
            let rest = pending.split_off(searched + end + 2);
            let request = std::mem::replace(pending, rest);
            return String::from_utf8(request).map(Some).map_err(|_| io::ErrorKind::InvalidData.into());
        }
        searched = pending.len().saturating_sub(1);
        if pending.len() > LARGEST_REQUEST || !shared.running() {
            return Ok(None);
        }
        if !wait(&[stream.as_fd()], wake, Some(PATIENCE))[0] {
            if Instant::now() >= patience {
                return Ok(None);
            }
            continue;
        }
        patience = Instant::now() + PATIENCE;
        match nix::unistd::read(stream, &mut chunk) {
            Ok(0) => return Ok(None),
            Ok(length) => pending.extend_from_slice(&chunk[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn answer(request: &str, shared: &Shared) -> String {
    let done = match request.split_once('\n') {
        Some(("get=1", "\n")) => return shared.snapshot().to_string(),
        Some(("set=1", lines)) => parse_set(lines).and_then(|set| shared.set(set)),
        _ => Err(Errno::EINVAL),
    };
    let number = done.map_or_else(|error| error as i32, |()| 0);
    format!("errno={number}\n\n")
}
