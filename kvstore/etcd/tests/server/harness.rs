//! Servers on loopback, a real etcd next to them, and `etcdctl`.

use hawser_etcd::server::{
    AllowAll, Authorize, EtcdServer, KeyspaceHandle, Keyspaces, MemoryWriter, SharedKeyspace,
};
use hawser_kvstore::{Identity, Keyspace, Limits};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;

/// A server for as long as the value lives.
pub(crate) struct TestServer {
    pub(crate) addr: SocketAddr,
    pub(crate) keyspaces: Keyspaces,
    task: tokio::task::JoinHandle<()>,
}

impl TestServer {
    /// Serves one in-memory keyspace, `us-east`, to everybody.
    pub(crate) async fn start() -> Self {
        Self::serving(memory("us-east", Limits::default()), Arc::new(AllowAll)).await
    }

    pub(crate) async fn serving(own: KeyspaceHandle, authorize: Arc<dyn Authorize>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let keyspaces = Keyspaces::new(own);
        let server = EtcdServer::new(keyspaces.clone(), authorize, vec![format!("http://{addr}")]);
        let serving = tonic::transport::Server::builder()
            .accept_http1(true)
            .add_routes(server.routes())
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { addr, keyspaces, task }
    }

    pub(crate) fn own(&self) -> &KeyspaceHandle {
        self.keyspaces.own()
    }

    pub(crate) async fn channel(&self) -> tonic::transport::Channel {
        self.endpoint().connect().await.unwrap()
    }

    /// A channel whose requests carry `authority`, whatever was dialled.
    pub(crate) async fn channel_to(&self, authority: &str) -> tonic::transport::Channel {
        let origin = format!("http://{authority}").parse().unwrap();
        self.endpoint().origin(origin).connect().await.unwrap()
    }

    fn endpoint(&self) -> tonic::transport::Endpoint {
        tonic::transport::Endpoint::from_shared(format!("http://{}", self.addr)).unwrap()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn memory(cluster: &str, limits: Limits) -> KeyspaceHandle {
    let keyspace = SharedKeyspace::new(Keyspace::new(Identity::new(cluster, 1, 0), limits));
    KeyspaceHandle::new(cluster, keyspace.clone(), MemoryWriter::spawn(keyspace))
}

/// A real etcd with an empty store, ended with the value.
pub(crate) struct RealEtcd {
    pub(crate) addr: SocketAddr,
    child: Child,
    _data: TempDir,
}

impl RealEtcd {
    pub(crate) fn start() -> Self {
        let data = TempDir::new().unwrap();
        let free_port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (addr, peer) = (free_port(), free_port());
        let (client, peer) = (format!("http://{addr}"), format!("http://{peer}"));
        let child = Command::new("etcd")
            .args(["--name", "us-east", "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("us-east={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("/usr/bin/etcd cannot be run. fix: apt-get install etcd-server");
        let etcd = Self { addr, child, _data: data };
        let up = |_| etcdctl(addr, &["endpoint", "status"]).status.success();
        assert!((0..100).any(up), "etcd does not answer at {addr}");
        etcd
    }
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn etcdctl_command(endpoint: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoint.to_string()).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

const MISSING: &str = "etcdctl cannot be run. fix: apt-get install etcd-client";

/// Blocks; call it where the server has other threads to run on.
pub(crate) fn etcdctl(endpoint: SocketAddr, args: &[&str]) -> Output {
    etcdctl_command(endpoint, args).output().expect(MISSING)
}

pub(crate) fn etcdctl_with_input(endpoint: SocketAddr, args: &[&str], input: &str) -> Output {
    let mut child = etcdctl_command(endpoint, args).stdin(Stdio::piped()).spawn().expect(MISSING);
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A running `etcdctl` whose output is read as it comes; ended with the value.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(endpoint: SocketAddr, args: &[&str]) -> Self {
        let mut command = etcdctl_command(endpoint, args);
        Self(command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect(MISSING))
    }

    pub(crate) fn type_line(&mut self, line: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        std::io::Write::write_all(stdin, format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits for that many lines.
    pub(crate) fn lines(&mut self, count: usize) -> Vec<String> {
        use std::io::BufRead;
        let stdout = self.0.stdout.take().unwrap();
        let lines: Vec<_> = std::io::BufReader::new(stdout).lines().take(count).map(Result::unwrap).collect();
        assert_eq!(lines.len(), count, "etcdctl ended after {lines:?}");
        lines
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
