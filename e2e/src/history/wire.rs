//! The network between two parties in the test's hand: a TCP proxy that can be cut, frozen and given another end.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Carries,
    /// Connections are closed and none is taken.
    Cut,
    /// Connections stay, and nothing passes: a partition as most networks make them.
    Frozen,
}

/// Lives until it is dropped.
#[derive(Debug)]
pub struct Wire {
    pub address: SocketAddr,
    flow: watch::Sender<Flow>,
    task: JoinHandle<()>,
}

impl Wire {
    pub async fn to(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (flow, receiver) = watch::channel(Flow::Carries);
        let task = tokio::spawn(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, upstream, receiver.clone()));
                }
            }
        });
        Ok(Self { address, flow, task })
    }

    pub fn cut(&self) {
        self.flow.send_replace(Flow::Cut);
    }

    pub fn freeze(&self) {
        self.flow.send_replace(Flow::Frozen);
    }

    pub fn heal(&self) {
        self.flow.send_replace(Flow::Carries);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, upstream: SocketAddr, mut flow: watch::Receiver<Flow>) {
    // A connection that is begun in a partition hangs, as its packets would.
    if flow.wait_for(|flow| *flow != Flow::Frozen).await.is_err() || *flow.borrow_and_update() == Flow::Cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
        _ = flow.wait_for(|flow| *flow != Flow::Carries) => {}
    }
    // What was on its way is gone with the connection, however long the partition lasts.
    let _ = flow.wait_for(|flow| *flow != Flow::Frozen).await;
}
