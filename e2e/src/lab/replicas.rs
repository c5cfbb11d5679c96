//! Where a cluster's API servers and its etcd run: on node-1, or on three nodes, each beside a member.

use anyhow::{Context, Result};

use super::product::{START, Store};
use super::{Cluster, Node};
use crate::binaries;
use crate::process::{Process, run};
use crate::wait;

const ETCD: u16 = 12379;
const ETCD_PEER: u16 = 12380;
const PKI: [&str; 4] = ["ca.crt", "ca.key", "admin.crt", "admin.key"];

impl Cluster {
    pub(super) fn server_count(&self) -> usize {
        if self.store == Store::EtcdOfThree { 3 } else { 1 }
    }

    /// The nodes on which an API server runs.
    fn servers(&self) -> &[Node] {
        &self.nodes[..self.server_count()]
    }

    /// What others dial, by the place of the replica.
    pub fn server_urls(&self) -> impl Iterator<Item = String> {
        self.servers().iter().map(|node| format!("https://{}:2379", node.plan.address))
    }

    pub(super) fn store_url(&self) -> String {
        match self.store {
            Store::Embedded => "embedded:/var/lib/hawser/store".to_owned(),
            Store::Etcd => format!("etcd://127.0.0.1:{ETCD}"),
            Store::EtcdOfThree => format!("etcd://{}", self.members().join(",")),
        }
    }

    fn members(&self) -> Vec<String> {
        match self.store {
            Store::Embedded => Vec::new(),
            Store::Etcd => vec![format!("127.0.0.1:{ETCD}")],
            Store::EtcdOfThree => {
                self.servers().iter().map(|node| format!("{}:{ETCD}", node.plan.address)).collect()
            }
        }
    }

    /// The same file at every replica.
    pub(super) fn on_servers(&self, path: &str, text: &str) -> Result<()> {
        self.servers().iter().try_for_each(|node| node.place.write(path, text))
    }

    /// The CA that was made on node-1, as a Secret that all replicas mount.
    pub(super) fn carry_pki(&self) -> Result<()> {
        for file in PKI {
            let path = format!("/etc/hawser/pki/{file}");
            let text = self.nodes[0].place.read(&path)?;
            self.servers()[1..].iter().try_for_each(|node| node.place.write(&path, &text))?;
        }
        Ok(())
    }

    /// Every member there is to be, until they answer.
    pub(super) fn start_etcd(&mut self) -> Result<()> {
        let members = self.members();
        (0..members.len()).try_for_each(|place| self.start_member(place))?;
        if members.is_empty() {
            return Ok(());
        }
        wait::until(&format!("etcd of {} answers", self.plan.name), START, || {
            let mut ask = self.nodes[0].place.command("etcdctl");
            ask.env("ETCDCTL_API", "3").args(["--endpoints", &members.join(","), "endpoint", "health"]);
            run(&mut ask).map(drop)
        })
    }

    /// The member of etcd at that place, for the first time or again.
    pub fn start_member(&mut self, place: usize) -> Result<()> {
        let name = |place: usize| format!("member-{place}");
        let address = |place: usize| match self.store {
            Store::EtcdOfThree => self.nodes[place].plan.address.to_string(),
            _ => "127.0.0.1".to_owned(),
        };
        let client = format!("http://{}:{ETCD}", address(place));
        let peer = |place: usize| format!("http://{}:{ETCD_PEER}", address(place));
        let all = (0..self.server_count()).map(|place| format!("{}={}", name(place), peer(place)));
        let all = all.collect::<Vec<_>>().join(",");
        let mut command = self.nodes[place].place.command("etcd");
        command.args(["--name", &name(place), "--data-dir", "/var/lib/hawser/etcd", "--logger", "zap"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer(place), "--initial-advertise-peer-urls", &peer(place)]);
        command.args(["--initial-cluster", &all]);
        let label = format!("{}/{}/etcd", self.plan.name, self.nodes[place].plan.name);
        let process = Process::start(&label, command, &self.logs)?;
        self.etcd.insert(place, process);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill_member(&mut self, place: usize) -> Result<()> {
        self.etcd.remove(&place).context("no such member")?.kill()
    }

    /// SIGKILL.
    pub fn kill_replica(&mut self, place: usize) -> Result<()> {
        self.api_servers.remove(&place).context("no such replica")?.kill()
    }

    /// The API server on the node at that place, for the first time or again.
    pub fn start_replica(&mut self, place: usize) -> Result<()> {
        let name = match place {
            0 => format!("{}/clustermesh-apiserver", self.plan.name),
            _ => format!("{}/{}/clustermesh-apiserver", self.plan.name, self.nodes[place].plan.name),
        };
        let mut command = self.nodes[place].place.command(binaries::find("clustermesh-apiserver")?);
        command.args(["--config", "/etc/hawser/cluster.yaml"]);
        let process = Process::start(&name, command, &self.logs)?;
        self.api_servers.insert(place, process);
        Ok(())
    }

    /// # Panics
    /// When it was not started.
    pub(super) fn replica(&mut self, place: usize) -> &mut Process {
        self.api_servers.get_mut(&place).expect("a started API server")
    }

    /// Which replica exports, as the one on the node at `place` says.
    pub fn leader(&self, place: usize) -> Result<usize> {
        let url = self.server_urls().nth(place).context("no such replica")?;
        let said = self.hawser_ok(&["--server", &url, "status", "-o", "json"])?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let leader = said["apiServer"]["replica"]["leader"].as_str().context("no leader")?.to_owned();
        let leads = |node: &Node| leader.starts_with(&format!("{} (", node.plan.name));
        self.servers().iter().position(leads).with_context(|| format!("{leader:?} is none of the nodes"))
    }
}
