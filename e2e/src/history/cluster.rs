//! The processes of a run: API servers with their CA and configuration, members of an etcd; killed, paused, restarted.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::binaries;
use crate::process::{Process, run, tail};
use crate::wait;

const START: Duration = Duration::from_secs(40);

/// One that nobody listens on now, on this lab's own loopback.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A process that comes back with the same command.
#[derive(Debug)]
pub struct Member {
    pub name: String,
    program: PathBuf,
    args: Vec<String>,
    logs: PathBuf,
    process: Option<Process>,
}

impl Member {
    pub fn new(name: &str, program: PathBuf, args: Vec<String>, logs: &Path) -> Self {
        Self { name: name.to_owned(), program, args, logs: logs.to_owned(), process: None }
    }

    pub fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env("NO_COLOR", "1");
        self.process = Some(Process::start(&self.name, command, &self.logs)?);
        Ok(())
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL, and gone for sure.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        kill(Pid::from_raw(process.id() as i32), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// An error when it ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::check_alive)
    }

    fn log(&self) -> String {
        self.process.as_ref().map(|process| tail(process.log())).unwrap_or_default()
    }
}

/// What an API server is started with.
#[derive(Debug)]
pub struct ServerPlan<'a> {
    /// Of the replica; the process and its directory are called so.
    pub name: &'a str,
    pub cluster: &'a str,
    pub id: u16,
    /// Where peers reach it: wires, not itself.
    pub advertise: Vec<SocketAddr>,
    pub store: String,
    pub pki: &'a Path,
}

/// One API server process.
#[derive(Debug)]
pub struct Server {
    pub member: Member,
    pub address: SocketAddr,
    pub cluster: String,
    pub pki: PathBuf,
    clock: PathBuf,
}

impl Server {
    /// Writes its files below `dir`; nothing runs yet.
    pub fn prepare(dir: &Path, address: SocketAddr, plan: &ServerPlan<'_>, logs: &Path) -> Result<Self> {
        let dir = dir.join(plan.name);
        fs::create_dir_all(dir.join("manifests")).context("making a server's directory")?;
        let (cluster, id, at) = (plan.cluster, plan.id, dir.display());
        let urls: Vec<String> = plan.advertise.iter().map(|wire| format!("\"https://{wire}\"")).collect();
        let config = format!(
            "cluster: {{ name: {cluster}, id: {id} }}\nlisten: {address}\nadvertise: [{}]\n\
             podCIDRs: [\"10.{id}.0.0/16\"]\nnodeCIDRs: [\"172.16.{id}.0/24\"]\n\
             source: {{ dir: {at}/manifests }}\nstore: {}\nmirrors: {at}/mirrors\npki: {}\n",
            urls.join(", "),
            plan.store,
            plan.pki.display(),
        );
        fs::write(dir.join("cluster.yaml"), config).context("writing cluster.yaml")?;
        let clock = dir.join("clock");
        fs::write(&clock, "0\n").context("writing the clock")?;
        let args = vec![
            "--config".to_owned(),
            dir.join("cluster.yaml").display().to_string(),
            "--test-clock".to_owned(),
            clock.display().to_string(),
        ];
        let member = Member::new(plan.name, binaries::find("clustermesh-apiserver")?, args, logs);
        let (cluster, pki) = (cluster.to_owned(), plan.pki.to_owned());
        Ok(Self { member, address, cluster, pki, clock })
    }

    /// Its clock is off by so much from now on.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        let new = self.clock.with_extension("new");
        fs::write(&new, format!("{seconds}\n")).context("writing the clock")?;
        fs::rename(&new, &self.clock).context("setting the clock")
    }

    pub fn hawser(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(binaries::find("hawser")?);
        command.args(["--server", &format!("https://{}", self.address), "--pki"]).arg(&self.pki).args(args);
        run(&mut command)
    }

    /// Until it answers its administrator.
    pub fn wait(&mut self) -> Result<()> {
        let name = self.member.name.clone();
        let answered = wait::until(&format!("{name} answers"), START, || match self.member.check_alive() {
            Err(dead) => Ok(Err(dead)),
            Ok(()) => self.hawser(&["status", "-o", "json"]).map(Ok),
        });
        answered.with_context(|| self.member.log())??;
        Ok(())
    }
}

/// `hawser ca init` for a cluster, in a directory of its own.
pub fn make_ca(pki: &Path, cluster: &str, id: u16) -> Result<()> {
    let mut command = Command::new(binaries::find("hawser")?);
    command.arg("--pki").arg(pki).args(["ca", "init", "--cluster", cluster, "--id", &id.to_string()]);
    run(&mut command).map(drop)
}

/// Both admit each other, as two operators would.
pub fn connect(one: &Server, other: &Server, dir: &Path) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        let bundle = dir.join(format!("{}-for-{}.yaml", from.cluster, to.cluster));
        let path = bundle.display().to_string();
        from.hawser(&["ca", "bundle", "--for", &to.cluster, "-o", &path])?;
        to.hawser(&["connect", &path])?;
    }
    Ok(())
}

/// A member of a real etcd.
#[derive(Debug)]
pub struct EtcdMember {
    pub member: Member,
    pub client: SocketAddr,
}

/// Members that know each other; nothing runs yet.
pub fn etcd(count: usize, dir: &Path, logs: &Path) -> Result<Vec<EtcdMember>> {
    let addresses = (0..count).map(|_| Ok((free_address()?, free_address()?))).collect::<Result<Vec<_>>>()?;
    let peers: Vec<String> =
        addresses.iter().enumerate().map(|(i, (_, peer))| format!("etcd-{i}=http://{peer}")).collect();
    let member = |(i, (client, peer)): (usize, &(SocketAddr, SocketAddr))| {
        let name = format!("etcd-{i}");
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let data = dir.join(&name).display().to_string();
        let args = [
            ["--name", &name],
            ["--data-dir", &data],
            ["--logger", "zap"],
            ["--heartbeat-interval", "100"],
            ["--election-timeout", "1000"],
            ["--listen-client-urls", &client_url],
            ["--advertise-client-urls", &client_url],
            ["--listen-peer-urls", &peer_url],
            ["--initial-advertise-peer-urls", &peer_url],
            ["--initial-cluster", &peers.join(",")],
        ];
        let args = args.as_flattened().iter().map(|arg| (*arg).to_owned()).collect();
        EtcdMember { member: Member::new(&name, "etcd".into(), args, logs), client: *client }
    };
    Ok(addresses.iter().enumerate().map(member).collect())
}

/// Until a quorum answers.
pub fn wait_for_etcd(members: &[EtcdMember]) -> Result<()> {
    let endpoints: Vec<String> = members.iter().map(|member| member.client.to_string()).collect();
    wait::until("etcd answers", START, || {
        let mut ask = Command::new("etcdctl");
        ask.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints.join(","), "endpoint", "health"]);
        run(&mut ask)
    })
    .map(drop)
}

/// The member that leads just now; none during an election.
pub fn etcd_leader(members: &[EtcdMember]) -> Option<usize> {
    members.iter().position(|member| {
        let mut ask = Command::new("etcdctl");
        ask.env("ETCDCTL_API", "3").args([
            "--endpoints",
            &member.client.to_string(),
            "--command-timeout",
            "1s",
        ]);
        let said = run(ask.args(["endpoint", "status", "-w", "json"])).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        let status = &status[0]["Status"];
        status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
    })
}

/// The replica that exports just now; none between two of them.
pub fn exporter(members: &[EtcdMember], replicas: &[Server]) -> Option<usize> {
    let endpoints: Vec<String> = members.iter().map(|member| member.client.to_string()).collect();
    let mut ask = Command::new("etcdctl");
    ask.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints.join(","), "--command-timeout", "2s"]);
    let leader = run(ask.args(["get", "--print-value-only", "hawser/private/leader"])).ok()?;
    replicas.iter().position(|server| leader.contains(&format!("({})", server.address)))
}

/// The lab's own loopback.
pub fn raise_loopback() -> Result<()> {
    run(Command::new("ip").args(["link", "set", "lo", "up"])).map(drop)
}

/// An error that names the first that ended by itself.
pub fn check_alive<'a>(members: impl Iterator<Item = &'a mut Member>) -> Result<()> {
    for member in members {
        if let Err(dead) = member.check_alive() {
            bail!("{}: {dead:#}", member.name);
        }
    }
    Ok(())
}
