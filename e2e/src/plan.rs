//! The lab on paper: clusters, nodes, pods and their addresses, as values.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The service that every scenario talks to.
pub const NAMESPACE: &str = "shop";
pub const SERVICE: &str = "cart";
pub const SERVICE_PORT: u16 = 80;
/// The port behind the service, and one that no service exports.
pub const POD_PORT: u16 = 8080;
pub const PRIVATE_PORT: u16 = 9090;

#[derive(Clone, Debug)]
pub struct LabPlan {
    pub clusters: Vec<ClusterPlan>,
}

#[derive(Clone, Debug)]
pub struct ClusterPlan {
    pub name: String,
    pub id: u8,
    pub pods: Ipv4Net,
    pub region: Ipv4Net,
    pub nodes: Vec<NodePlan>,
}

#[derive(Clone, Debug)]
pub struct NodePlan {
    pub name: String,
    pub address: Ipv4Addr,
    pub pod_cidr: Ipv4Net,
    pub pods: Vec<PodPlan>,
}

#[derive(Clone, Debug)]
pub struct PodPlan {
    pub name: String,
    pub address: Ipv4Addr,
    /// Serves `shop/cart`; the others only ask.
    pub serves: bool,
}

impl LabPlan {
    /// Three regions, two nodes each; one backend a node, one client a cluster.
    pub fn standard() -> Self {
        Self::regions(&["us-east", "eu-west", "ap-south"], 2)
    }

    /// Clusters with ids 1, 2, ... in the given order.
    pub fn regions(names: &[&str], nodes: u8) -> Self {
        let clusters = names.iter().zip(1..).map(|(name, id)| ClusterPlan::new(name, id, nodes)).collect();
        Self { clusters }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.clusters.iter().map(|cluster| cluster.name.as_str())
    }
}

impl ClusterPlan {
    pub fn new(name: &str, id: u8, nodes: u8) -> Self {
        let nodes = (1..=nodes).map(|n| NodePlan::new(id, n)).collect();
        Self {
            name: name.to_owned(),
            id,
            pods: net([10, id, 0, 0], 16),
            region: net([172, 16, id, 0], 24),
            nodes,
        }
    }

    /// The router's address in this region.
    pub fn gateway(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.region.network().octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// A host of the region that belongs to no cluster.
    pub fn stranger(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.region.network().octets();
        Ipv4Addr::new(a, b, c, 66)
    }

    /// Of `shop/cart`: cluster IPs are each cluster's own affair and may repeat; these do not, to tell them apart.
    pub fn service_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 20, self.id, 10)
    }

    /// The bridge that is this region's network in the router; interface names have 15 characters.
    pub fn bridge(&self) -> String {
        format!("br-{}", self.name).chars().take(15).collect()
    }

    pub fn pods(&self) -> impl Iterator<Item = (&NodePlan, &PodPlan)> {
        self.nodes.iter().flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }
}

impl NodePlan {
    fn new(cluster: u8, number: u8) -> Self {
        let pod = |name: String, last, serves| PodPlan {
            name,
            address: Ipv4Addr::new(10, cluster, number, last),
            serves,
        };
        let mut pods = vec![pod(format!("cart-{}", number - 1), 10, true)];
        if number == 1 {
            pods.push(pod("client".to_owned(), 20, false));
        }
        Self {
            name: format!("node-{number}"),
            address: Ipv4Addr::new(172, 16, cluster, 10 + number),
            pod_cidr: net([10, cluster, number, 0], 24),
            pods,
        }
    }
}

impl PodPlan {
    /// The node's end of the pod's veth, named as Calico names it.
    pub fn host_interface(&self) -> String {
        format!("cali{}", self.name).chars().take(15).collect()
    }
}

fn net(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from(octets), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_regions_of_two_nodes_with_a_backend_on_each() {
        let plan = LabPlan::standard();
        assert_eq!(plan.names().collect::<Vec<_>>(), ["us-east", "eu-west", "ap-south"]);
        let backends = plan.clusters.iter().flat_map(ClusterPlan::pods).filter(|(_, pod)| pod.serves).count();
        assert_eq!(backends, 6);
        let eu = &plan.clusters[1];
        assert_eq!(eu.nodes[1].address.to_string(), "172.16.2.12");
        assert_eq!(eu.nodes[1].pods[0].address.to_string(), "10.2.2.10");
        assert!(eu.pods.contains(&eu.nodes[1].pod_cidr));
    }
}
