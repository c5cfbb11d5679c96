//! The product in the lab: files a user would write, the real binaries, bundles carried by hand.

use std::fs;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Cluster, Lab, Node, manifests};
use crate::binaries;
use crate::plan::{ClusterPlan, LabPlan};
use crate::process::{Process, output, said, tail};
use crate::status::{AgentStatus, ServiceView, operations};
use crate::wait;

const MANIFESTS: &str = "/etc/hawser/manifests";
/// Starting a process and its first answer. Long, because test machines are busy; polled, so it costs nothing.
pub(super) const START: Duration = Duration::from_secs(20);

/// What stands behind a cluster's API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Embedded,
    Etcd,
    /// Three replicas, each on a node of its own beside a member of an etcd of three.
    EtcdOfThree,
}

/// `kernel` or `userspace`: the lab's mesh encrypts with IPsec.
pub(super) const IPSEC: &str = "HAWSER_LAB_IPSEC";
const SECRET_FILE: &str = "/etc/hawser/ipsec.secret";
/// The lab's, on every node alike.
const SECRET: &str = "1 6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19\n";

impl Lab {
    /// Whether its meshes encrypt with IPsec.
    pub fn over_ipsec(&self) -> bool {
        self.clusters.iter().any(|cluster| cluster.ipsec.is_some())
    }

    /// `hawser ipsec <verb>` on one node, and then its file on every node, as an operator brings it.
    pub fn change_secret(&self, verb: &str) -> Result<()> {
        let first = &self.clusters[0].nodes[0];
        first.hawser_ok(&["ipsec", verb, SECRET_FILE])?;
        let text = first.place.read(SECRET_FILE)?;
        self.nodes().try_for_each(|(_, node)| node.place.write(SECRET_FILE, &text))
    }

    /// Act 1: every cluster's API server and agents, not connected to each other.
    pub fn start_product(&mut self, store: Store) -> Result<()> {
        self.start_product_with(|_| store)
    }

    /// The same, each cluster with a store of its own kind.
    pub fn start_product_with(&mut self, store: impl Fn(&ClusterPlan) -> Store) -> Result<()> {
        for cluster in &mut self.clusters {
            cluster.store = store(&cluster.plan);
            cluster.prepare()?;
            cluster.start_api_server()?;
        }
        for cluster in &mut self.clusters {
            cluster.wait_for_api_server()?;
            cluster.join_agents()?;
        }
        for (_, node) in self.nodes() {
            node.wait_for_agent()?;
        }
        self.check_alive()
    }

    /// A lab with the product in it, connected and carrying.
    pub fn connected(plan: LabPlan) -> Result<Self> {
        let mut lab = Self::build(plan)?;
        lab.start_product(Store::Embedded)?;
        lab.connect_all()?;
        lab.wait_until_connected(START)?;
        lab.wait_until_served()?;
        Ok(lab)
    }

    /// Until every agent lists every backend of `shop/cart` that there is, and has nothing left to do.
    pub fn wait_until_served(&mut self) -> Result<()> {
        self.wait("every agent lists every backend of shop/cart", START, |lab| {
            for (_, node) in lab.nodes() {
                let view = node.service_view()?;
                for cluster in &lab.clusters {
                    let due = if cluster.cart.endpoints { cluster.plan.nodes.len() } else { 0 };
                    let listed = view.backends_of(&cluster.plan.name);
                    if listed != due {
                        bail!("{} lists {listed} of {due} backends of {}", node.name(), cluster.plan.name);
                    }
                }
                node.settled()?;
            }
            Ok(())
        })
    }

    /// Act 2: every pair exchanges bundles, in both directions.
    pub fn connect_all(&self) -> Result<()> {
        for from in &self.clusters {
            for to in self.clusters.iter().filter(|to| to.plan.name != from.plan.name) {
                from.carry_bundle(to)?;
                to.hawser_ok(&["connect", &bundle_path(from)])?;
            }
        }
        Ok(())
    }

    /// Until every agent has every cluster synced and every tunnel alive.
    pub fn wait_until_connected(&mut self, patience: Duration) -> Result<()> {
        let clusters: Vec<(String, usize)> =
            self.clusters.iter().map(|c| (c.plan.name.clone(), c.nodes.len())).collect();
        self.wait("every agent sees every cluster synced and every tunnel up", patience, |lab| {
            for (cluster, node) in lab.nodes() {
                let status = node.status()?;
                status.is_whole(&cluster.plan.name, &clusters)?;
            }
            Ok(())
        })
    }

    /// Polls `condition`, and gives up at once when a process of the product ends.
    pub fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        let outcome = wait::until(what, patience, || {
            if let Err(dead) = self.check_alive() {
                return Ok(Err(dead));
            }
            condition(self).map(Ok)
        });
        outcome?
    }
}

/// Where the bundle of `from` lies at the cluster it was made for.
fn bundle_path(from: &Cluster) -> String {
    format!("/etc/hawser/bundles/{}.yaml", from.plan.name)
}

impl Cluster {
    /// Configuration, PKI and manifests on node-1, where this cluster's API server runs, and where other replicas do.
    pub fn prepare(&mut self) -> Result<()> {
        self.write_config(&self.config())?;
        self.hawser_ok(&["ca", "init", "--cluster", &self.plan.name, "--id", &self.plan.id.to_string()])?;
        self.carry_pki()?;
        self.write_manifests()?;
        self.start_etcd()
    }

    /// Prepared, with an API server that answers, and no agent.
    pub fn found(&mut self) -> Result<()> {
        self.prepare()?;
        self.start_api_server()?;
        self.wait_for_api_server()
    }

    /// `/etc/hawser/cluster.yaml` as a user would write it.
    pub fn config(&self) -> String {
        let plan = &self.plan;
        format!(
            "cluster:\n  name: {name}\n  id: {id}\n\
             listen: 0.0.0.0:2379\n\
             advertise: [{urls}]\n\
             podCIDRs: [\"{pods}\"]\n\
             nodeCIDRs: [\"{nodes}\"]\n\
             source:\n  dir: {MANIFESTS}\n\
             store: {store}\nencryption: {encryption}\n",
            encryption = if self.ipsec.is_some() { "ipsec" } else { "auto" },
            name = plan.name,
            id = plan.id,
            urls = self.server_urls().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", "),
            pods = plan.pods,
            nodes = plan.region,
            store = self.store_url(),
        )
    }

    pub fn write_config(&self, text: &str) -> Result<()> {
        self.on_servers("/etc/hawser/cluster.yaml", text)
    }

    fn write_manifests(&self) -> Result<()> {
        self.on_servers(&format!("{MANIFESTS}/namespaces.yaml"), &manifests::namespaces(&self.plan))?;
        self.on_servers(&format!("{MANIFESTS}/nodes.yaml"), &manifests::nodes(&self.plan))?;
        self.write_pods()?;
        self.write_endpoints()?;
        self.write_service()
    }

    pub(super) fn write_pods(&self) -> Result<()> {
        self.on_servers(&format!("{MANIFESTS}/pods.yaml"), &manifests::pods(&self.plan, &self.cart))
    }

    pub(super) fn write_service(&self) -> Result<()> {
        let text = manifests::service(&self.plan, &self.cart);
        self.on_servers(&format!("{MANIFESTS}/service-cart.yaml"), &text)
    }

    pub(super) fn write_endpoints(&self) -> Result<()> {
        let text = manifests::endpoint_slices(&self.plan, &self.cart);
        self.on_servers(&format!("{MANIFESTS}/endpointslices.yaml"), &text)
    }

    /// All replicas.
    pub fn start_api_server(&mut self) -> Result<()> {
        (0..self.server_count()).try_for_each(|place| self.start_replica(place))
    }

    /// The one on node-1.
    ///
    /// # Panics
    /// When it was not started.
    pub fn api_server(&mut self) -> &mut Process {
        self.replica(0)
    }

    pub fn wait_for_api_server(&mut self) -> Result<()> {
        let name = self.plan.name.clone();
        wait::until(&format!("the API server of {name} answers"), START, || {
            if let Err(dead) = self.api_servers.values_mut().try_for_each(Process::check_alive) {
                return Ok(Err(dead));
            }
            // An agent there answers for its own half.
            let said: Value = serde_json::from_str(&self.hawser_ok(&["status", "-o", "json"])?)?;
            ensure!(said["apiServer"].is_object(), "only an agent answers");
            Ok(Ok(()))
        })??;
        Ok(())
    }

    /// A token and an agent for every node.
    pub fn join_agents(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            let node = self.nodes[index].plan.name.clone();
            let join = format!("/etc/hawser/{node}.join.yaml");
            self.hawser_ok(&["ca", "token", "--node", &node, "-o", &join])?;
            let text = self.nodes[0].place.read(&join)?;
            fs::remove_file(self.nodes[0].place.path(&join)).context("the carried join file")?;
            let node = &mut self.nodes[index];
            node.place.write("/etc/hawser/join.yaml", &text)?;
            let mut config = format!("node: {}\n", node.plan.name);
            if let Some(who) = &self.ipsec {
                config.push_str(&format!("ipsec: {who}\nipsecSecret: {SECRET_FILE}\n"));
                node.place.write(SECRET_FILE, SECRET)?;
            }
            node.place.write("/etc/hawser/agent.yaml", &config)?;
            node.start_agent()?;
        }
        Ok(())
    }

    /// Makes this cluster's bundle for `to` and carries it there, as an operator would.
    pub fn carry_bundle(&self, to: &Self) -> Result<()> {
        let out = format!("/etc/hawser/for-{}.yaml", to.plan.name);
        self.hawser_ok(&["ca", "bundle", "--for", &to.plan.name, "-o", &out])?;
        let text = self.nodes[0].place.read(&out)?;
        to.nodes[0].place.write(bundle_path(self), &text)
    }

    /// Runs `hawser` on node-1.
    pub fn hawser(&self, args: &[&str]) -> Result<Output> {
        self.nodes[0].hawser(args)
    }

    /// Runs `hawser` on node-1; an error quotes what it said.
    pub fn hawser_ok(&self, args: &[&str]) -> Result<String> {
        self.nodes[0].hawser_ok(args)
    }

    /// What the agents of this cluster hold of `shop/cart`, by node.
    pub fn service_views(&self) -> Result<Vec<ServiceView>> {
        self.nodes.iter().map(Node::service_view).collect()
    }
}

impl Node {
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = self.place.command(binaries::find("hawser-node-agent")?);
        command.args(["--config", "/etc/hawser/agent.yaml"]);
        self.agent = Some(Process::start(&format!("{}/agent", self.name()), command, &self.logs)?);
        Ok(())
    }

    /// Starts another agent beside the one that runs, as a planned restart does; gives the one that ran.
    ///
    /// # Panics
    /// When there was none.
    pub fn succeed_agent(&mut self) -> Result<Process> {
        let before = self.agent.take().expect("a started agent");
        self.start_agent()?;
        Ok(before)
    }

    /// # Panics
    /// When it was not started.
    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().expect("a started agent")
    }

    /// Its agent ends so, and is not missed.
    pub fn lose_agent(&mut self, end: impl FnOnce(&mut Process) -> Result<()>) -> Result<()> {
        end(self.agent())?;
        self.agent = None;
        Ok(())
    }

    pub fn wait_for_agent(&self) -> Result<()> {
        wait::until(&format!("the agent of {} answers", self.name()), START, || self.status().map(drop))
            .with_context(|| self.agent.as_ref().map(|agent| tail(agent.log())).unwrap_or_default())
    }

    pub fn hawser(&self, args: &[&str]) -> Result<Output> {
        output(self.place.command(binaries::find("hawser")?).args(args))
    }

    pub fn hawser_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.hawser(args)?;
        if !output.status.success() {
            bail!(
                "`hawser {}` on {}/{}: {}\n{}",
                args.join(" "),
                self.cluster,
                self.plan.name,
                output.status,
                said(&output)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `hawser status -o json` of this node's agent.
    pub fn status(&self) -> Result<AgentStatus> {
        AgentStatus::parse(&self.hawser_ok(&["status", "-o", "json"])?)
    }

    /// `hawser service get shop/cart -o json` of this node's agent.
    pub fn service_view(&self) -> Result<ServiceView> {
        ServiceView::parse(&self.hawser_ok(&["service", "get", "shop/cart", "-o", "json"])?)
    }

    /// An error while the agent has operations left to do, or problems.
    pub fn settled(&self) -> Result<()> {
        let left = operations(&self.hawser_ok(&["plan", "-o", "json"])?)?;
        if let Some(first) = left.first() {
            bail!("{} has {} operations left, the first: {first}", self.name(), left.len());
        }
        let problems = self.status()?.problems;
        if let Some(first) = problems.first() {
            bail!("{} has a problem: {first}", self.name());
        }
        Ok(())
    }

    /// `hawser status` for people.
    pub fn status_table(&self) -> Result<String> {
        self.hawser_ok(&["status"])
    }
}
