//! The lab as a value: clusters, nodes and pods that scenarios act upon.

mod manifests;
mod product;
mod replicas;
mod state;
mod topology;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use product::Store;
pub use state::PlaceEntry;

use crate::binaries;
use crate::enclave::Inside;
use crate::place::Place;
use crate::plan::{ClusterPlan, LabPlan, NodePlan, POD_PORT, PRIVATE_PORT, PodPlan};
use crate::pod::client::{self, Report, Request, Running};
use crate::process::{self, Process};
use crate::wait;
use manifests::Cart;

const RECENT_LOGS: usize = 6;

/// A lab. Everything in it ends when it is dropped, or when PID 1 does.
#[derive(Debug)]
pub struct Lab {
    pub inside: Inside,
    pub clusters: Vec<Cluster>,
    /// A host in the first region that belongs to no cluster.
    pub stranger: Place,
}

#[derive(Debug)]
pub struct Cluster {
    pub plan: ClusterPlan,
    pub nodes: Vec<Node>,
    /// By the place of their node. One, unless the store is [`Store::EtcdOfThree`].
    api_servers: BTreeMap<usize, Process>,
    etcd: BTreeMap<usize, Process>,
    store: Store,
    /// Who does IPsec; without it the mesh encrypts with WireGuard.
    pub ipsec: Option<String>,
    cart: Cart,
    logs: PathBuf,
}

#[derive(Debug)]
pub struct Node {
    pub plan: NodePlan,
    pub place: Place,
    pub pods: Vec<Pod>,
    agent: Option<Process>,
    cluster: String,
    logs: PathBuf,
}

#[derive(Debug)]
pub struct Pod {
    pub plan: PodPlan,
    pub place: Place,
    server: Option<Process>,
}

impl Lab {
    /// The topology with the pods' servers running, and nothing of the product. Must run inside an enclave.
    pub fn build(plan: LabPlan) -> Result<Self> {
        let Some(inside) = Inside::current() else {
            bail!("a lab is built inside `hawser-lab inside`, and this is outside");
        };
        topology::build_router(&plan.clusters)?;
        let first = plan.clusters.first().context("a lab has a cluster")?;
        let stranger = Place::machine("stranger", "stranger", &inside.cgroup.join("stranger"))?;
        topology::build_stranger(&stranger, first)?;
        let clusters =
            plan.clusters.into_iter().map(|plan| Cluster::build(plan, &inside)).collect::<Result<_>>()?;
        let lab = Self { inside, clusters, stranger };
        lab.wait_for_servers()?;
        lab.write_state()?;
        Ok(lab)
    }

    /// # Panics
    /// When the plan has no such cluster.
    pub fn cluster(&self, name: &str) -> &Cluster {
        self.clusters.iter().find(|cluster| cluster.plan.name == name).expect("a cluster of the plan")
    }

    /// # Panics
    /// When the plan has no such cluster.
    pub fn cluster_mut(&mut self, name: &str) -> &mut Cluster {
        self.clusters.iter_mut().find(|cluster| cluster.plan.name == name).expect("a cluster of the plan")
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&Cluster, &Node)> {
        self.clusters.iter().flat_map(|cluster| cluster.nodes.iter().map(move |node| (cluster, node)))
    }

    /// The router drops everything between this cluster and the others.
    pub fn cut(&self, cluster: &str) -> Result<()> {
        topology::cut(&self.cluster(cluster).plan)
    }

    pub fn heal(&self, cluster: &str) -> Result<()> {
        topology::heal(&self.cluster(cluster).plan)
    }

    /// Fails when a process of the product has ended by itself, with the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        for cluster in &mut self.clusters {
            let agents = cluster.nodes.iter_mut().filter_map(|node| node.agent.as_mut());
            for process in cluster.api_servers.values_mut().chain(cluster.etcd.values_mut()).chain(agents) {
                process.check_alive()?;
            }
        }
        Ok(())
    }

    fn wait_for_servers(&self) -> Result<()> {
        for (_, node) in self.nodes() {
            for pod in node.pods.iter().filter(|pod| pod.plan.serves) {
                let what = format!("{} serves", pod.place.name());
                wait::until(&what, Duration::from_secs(10), || {
                    let url = format!("{}:{POD_PORT}", pod.plan.address);
                    let report = client::run(&pod.place, &Request::to(&url).requests(1))?;
                    report.all_ok()
                })?;
            }
        }
        Ok(())
    }
}

impl Cluster {
    fn build(plan: ClusterPlan, inside: &Inside) -> Result<Self> {
        let nodes = plan
            .nodes
            .iter()
            .map(|node| {
                Node::build(&plan, node.clone(), inside)
                    .with_context(|| format!("building {}/{}", plan.name, node.name))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            plan,
            nodes,
            api_servers: BTreeMap::new(),
            etcd: BTreeMap::new(),
            store: Store::Embedded,
            ipsec: std::env::var(product::IPSEC).ok(),
            cart: Cart::default(),
            logs: inside.dir.clone(),
        })
    }

    /// # Panics
    /// When the plan has no such node.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.plan.name == name).expect("a node of the plan")
    }

    /// # Panics
    /// When the plan has no such node.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.plan.name == name).expect("a node of the plan")
    }

    /// # Panics
    /// When the plan has no such pod.
    pub fn pod(&self, name: &str) -> &Pod {
        let mut pods = self.nodes.iter().flat_map(|node| &node.pods);
        pods.find(|pod| pod.plan.name == name).expect("a pod of the plan")
    }

    /// The server of a pod ends, as when the pod does.
    ///
    /// # Panics
    /// When the plan has no such pod, or it serves nothing.
    pub fn kill_server(&mut self, pod: &str) -> Result<()> {
        let mut pods = self.nodes.iter_mut().flat_map(|node| &mut node.pods);
        let pod = pods.find(|found| found.plan.name == pod).expect("a pod of the plan");
        pod.server.as_mut().expect("a pod that serves").kill()
    }

    /// `shop/cart` as this cluster's clients know it.
    pub fn service_address(&self) -> String {
        format!("{}:{}", self.plan.service_ip(), crate::plan::SERVICE_PORT)
    }

    /// `kubectl annotate service cart hawser.io/affinity=...`; `None` removes it.
    pub fn set_affinity(&mut self, affinity: Option<&str>) -> Result<()> {
        self.cart.affinity = affinity.map(str::to_owned);
        self.write_service()
    }

    /// `kubectl annotate service cart hawser.io/global=true`, or its removal.
    pub fn set_global(&mut self, global: bool) -> Result<()> {
        self.cart.global = global;
        self.write_service()
    }

    /// `kubectl annotate pod client hawser.io/socket-lb=false`, or its removal.
    pub fn set_clients_left_out(&mut self, left_out: bool) -> Result<()> {
        self.cart.clients_left_out = left_out;
        self.write_pods()
    }

    /// `kubectl patch service cart` to a NodePort; `None` makes it a ClusterIP again.
    pub fn set_node_port(&mut self, port: Option<u16>) -> Result<()> {
        self.cart.node_port = port;
        self.write_service()
    }

    /// Scales the deployment behind `shop/cart` to zero or back. The pods' servers go on: connections drain.
    pub fn set_endpoints(&mut self, endpoints: bool) -> Result<()> {
        self.cart.endpoints = endpoints;
        self.write_endpoints()
    }

    /// The pods behind `shop/cart` are deleted, and have not ended yet; or it was not so.
    pub fn set_terminating(&mut self, terminating: bool) -> Result<()> {
        self.cart.terminating = terminating;
        self.write_endpoints()
    }
}

impl Node {
    fn build(cluster: &ClusterPlan, plan: NodePlan, inside: &Inside) -> Result<Self> {
        let name = format!("{}/{}", cluster.name, plan.name);
        let cgroup = inside.cgroup.join(format!("{}-{}", cluster.name, plan.name));
        let place = Place::machine(&name, &plan.name, &cgroup)?;
        topology::build_node(&place, cluster, &plan)?;
        let pods = plan
            .pods
            .iter()
            .map(|pod| Pod::build(cluster, &plan, pod.clone(), &place, inside))
            .collect::<Result<_>>()?;
        Ok(Self { plan, place, pods, agent: None, cluster: cluster.name.clone(), logs: inside.dir.clone() })
    }

    pub fn name(&self) -> &str {
        self.place.name()
    }

    /// Of the node's uplink: what a neighbour on its network sends to.
    pub fn mac(&self) -> Result<[u8; 6]> {
        let text =
            fs::read_to_string(self.place.path("/sys/class/net/eth0/address")).context("eth0's MAC")?;
        let bytes: Vec<u8> = text
            .trim()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()
            .with_context(|| format!("a MAC: {text}"))?;
        bytes.try_into().map_err(|_| anyhow::anyhow!("a MAC has six bytes: {text}"))
    }
}

impl Pod {
    fn build(
        cluster: &ClusterPlan,
        node: &NodePlan,
        plan: PodPlan,
        machine: &Place,
        inside: &Inside,
    ) -> Result<Self> {
        let place = machine.pod(&plan.name)?;
        topology::build_pod(machine, &place, &plan)?;
        let mut pod = Self { plan, place, server: None };
        if pod.plan.serves {
            let mut command = pod.place.command(binaries::find("hawser-lab")?);
            command
                .args(["pod-server", "--cluster", &cluster.name, "--node", &node.name])
                .args(["--pod", &pod.plan.name, "--port", &POD_PORT.to_string()])
                .args(["--port", &PRIVATE_PORT.to_string()]);
            pod.server = Some(Process::start(pod.place.name(), command, &inside.dir)?);
        }
        Ok(pod)
    }

    /// Makes requests from here and waits for their end.
    pub fn ask(&self, request: &Request) -> Result<Report> {
        client::run(&self.place, request)
    }

    /// Makes requests from here until told to stop.
    pub fn keep_asking(&self, request: &Request) -> Result<Running> {
        client::start(&self.place, request)
    }

    /// The server's log: one line a request.
    pub fn server_log(&self) -> Result<String> {
        let server = self.server.as_ref().with_context(|| format!("{} serves nothing", self.place.name()))?;
        fs::read_to_string(server.log()).with_context(|| format!("reading {}", server.log().display()))
    }
}

/// The ends of the product's logs that were written last, for a failure that names no culprit.
pub fn recent_logs(dir: &Path) -> String {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut logs: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name().display().to_string();
            ["agent.log", "apiserver.log", "etcd.log"].iter().any(|product| name.ends_with(product))
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    logs.sort();
    let newest = logs.iter().rev().take(RECENT_LOGS);
    newest.map(|(_, path)| process::tail(path)).collect::<Vec<_>>().join("\n")
}
