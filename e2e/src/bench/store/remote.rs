//! What stands between the mirror and one remote: nothing, a wire that trickles, or one that is dead.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// How the wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Good,
    /// 5 KB/s each way, in small pieces: less than the remote has to say.
    Slow,
    /// Connections are taken and stay, and nothing comes through.
    Dead,
}

const PIECE: usize = 256;
const PAUSE: Duration = Duration::from_millis(50);

/// A proxy to the origins on a thread of its own; ends with the value.
#[derive(Debug)]
pub(super) struct Middle {
    pub(super) address: SocketAddr,
    wire: Arc<AtomicU8>,
    _runtime: Runtime,
}

impl Middle {
    pub(super) fn start(to: SocketAddr, wire: Wire) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let wire = Arc::new(AtomicU8::new(wire as u8));
        let state = Arc::clone(&wire);
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let _ = near.set_nodelay(true);
                    let _ = far.set_nodelay(true);
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = carry(near_in, far_out, &state) => {}
                        () = carry(far_in, near_out, &state) => {}
                    }
                });
            }
        });
        Ok(Self { address, wire, _runtime: runtime })
    }

    pub(super) fn set(&self, wire: Wire) {
        self.wire.store(wire as u8, Ordering::Relaxed);
    }
}

/// Until either end goes. What the wire was when bytes came in is how they go out.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, wire: &AtomicU8) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let most = match wire.load(Ordering::Relaxed) {
            dead if dead == Wire::Dead as u8 => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            slow if slow == Wire::Slow as u8 => {
                tokio::time::sleep(PAUSE).await;
                PIECE
            }
            _ => buffer.len(),
        };
        // Looks at the wire again now and then, however quiet it is.
        let read = tokio::time::timeout(PAUSE, from.read(&mut buffer[..most])).await;
        match read {
            Err(_) => {}
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
