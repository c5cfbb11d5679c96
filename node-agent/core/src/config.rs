//! Who this node is and how its tunnels are to be made: fixed while the process runs.

use hawser_model::{
    ClusterId, ClusterIdWidth, ClusterRef, MeshAddresses, MeshPlan, NodeIndex, NodeName, ResetAfter,
};
use hawser_model::{Encryption, PublicKey};
use hawser_tunnels::{DeviceName, Mark};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    pub cluster: ClusterRef,
    pub node: NodeName,
    pub index: NodeIndex,
    pub width: ClusterIdWidth,
    pub mesh: MeshPlan,
    pub device: DeviceName,
    pub public_key: PublicKey,
    /// Of the whole mesh.
    pub encryption: Encryption,
    /// The kernel's IPsec: what comes in says by its request id which node sent it.
    pub kernel_ipsec: bool,
    /// By which netfilter hides clients outside behind this node's address; 0 = it does not.
    pub masquerade_mark: u32,
    pub port: u16,
    pub mtu: u16,
    pub mark: Mark,
    /// Liveness probes leave from here.
    pub probe_port: u16,
    /// Established connections to what is down are ended so long after the verdict, unless their service wishes otherwise.
    pub reset_after: ResetAfter,
}

impl AgentConfig {
    pub fn mesh_addresses(&self) -> MeshAddresses {
        self.mesh.addresses(self.cluster.id, self.index, &self.node)
    }

    /// All mesh addresses a cluster's nodes can have.
    pub fn mesh_ranges(&self, cluster: ClusterId) -> [ipnet::IpNet; 2] {
        let id = u32::from(cluster.get());
        let v4 = u32::from(self.mesh.ipv4().network()) | id << 16;
        let v6 = u128::from(self.mesh.ula().network()) | u128::from(id) << 64;
        [ipnet::Ipv4Net::new_assert(v4.into(), 16).into(), ipnet::Ipv6Net::new_assert(v6.into(), 64).into()]
    }
}
