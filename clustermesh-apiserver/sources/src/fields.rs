//! The fields of Kubernetes' objects that a mesh reads, as the API writes them, and nothing else.
//!
//! Everything is optional: the API server's JSON says `null` for an empty list. What is not named here (managed fields,
//! images, conditions) is skipped by the parser without being held.

use serde::Deserialize;

use crate::Pairs;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Meta {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub labels: Option<Pairs>,
    pub annotations: Option<Pairs>,
    pub creation_timestamp: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Namespace {
    #[serde(default)]
    pub metadata: Meta,
}

#[derive(Deserialize)]
pub(crate) struct Node {
    #[serde(default)]
    pub metadata: Meta,
    pub spec: Option<NodeSpec>,
    pub status: Option<NodeStatus>,
}

#[derive(Default, Deserialize)]
pub(crate) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeStatus {
    pub addresses: Option<Vec<NodeAddress>>,
    pub node_info: Option<NodeInfo>,
}

#[derive(Deserialize)]
pub(crate) struct NodeAddress {
    #[serde(rename = "type", default)]
    pub type_: String,
    #[serde(default)]
    pub address: String,
}

#[derive(Deserialize)]
pub(crate) struct NodeInfo {
    #[serde(rename = "bootID", default)]
    pub boot_id: String,
}

#[derive(Deserialize)]
pub(crate) struct Pod {
    #[serde(default)]
    pub metadata: Meta,
    pub spec: Option<PodSpec>,
    pub status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    pub node_name: Option<String>,
    pub service_account_name: Option<String>,
    pub service_account: Option<String>,
    pub host_network: Option<bool>,
    pub runtime_class_name: Option<String>,
    pub containers: Option<Vec<Container>>,
    pub init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
pub(crate) struct Container {
    #[serde(default)]
    pub name: String,
}

#[derive(Default, Deserialize)]
pub(crate) struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

#[derive(Deserialize)]
pub(crate) struct PodIp {
    #[serde(default)]
    pub ip: String,
}

#[derive(Deserialize)]
pub(crate) struct Service {
    #[serde(default)]
    pub metadata: Meta,
    pub spec: Option<ServiceSpec>,
    pub status: Option<ServiceStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    pub load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize)]
pub(crate) struct LoadBalancer {
    pub ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize)]
pub(crate) struct Ingress {
    pub ip: Option<String>,
    #[serde(rename = "ipMode")]
    pub ip_mode: Option<String>,
}

#[derive(Default, Deserialize)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub type_: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<String>>,
    pub ports: Option<Vec<ServicePort>>,
    pub selector: Option<Pairs>,
    #[serde(rename = "sessionAffinity")]
    pub session_affinity: Option<String>,
    #[serde(rename = "sessionAffinityConfig")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    #[serde(rename = "ipFamilies")]
    pub ip_families: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<Vec<String>>,
    #[serde(rename = "externalTrafficPolicy")]
    pub external_traffic_policy: Option<String>,
    #[serde(rename = "loadBalancerSourceRanges")]
    pub load_balancer_source_ranges: Option<Vec<String>>,
    #[serde(rename = "internalTrafficPolicy")]
    pub internal_traffic_policy: Option<String>,
    #[serde(rename = "trafficDistribution")]
    pub traffic_distribution: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClientIp {
    pub timeout_seconds: Option<u32>,
}

#[derive(Deserialize)]
pub(crate) struct ServiceExport {
    #[serde(default)]
    pub metadata: Meta,
    pub spec: Option<ServiceExportSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceExportSpec {
    pub exported_labels: Option<Pairs>,
    pub exported_annotations: Option<Pairs>,
}

#[derive(Deserialize)]
pub(crate) struct ServicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    #[serde(rename = "appProtocol")]
    pub app_protocol: Option<String>,
    #[serde(default)]
    pub port: i32,
    #[serde(rename = "nodePort", default)]
    pub node_port: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    #[serde(default)]
    pub metadata: Meta,
    #[serde(default)]
    pub address_type: String,
    pub endpoints: Option<Vec<Endpoint>>,
    pub ports: Option<Vec<EndpointPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    pub addresses: Option<Vec<String>>,
    pub conditions: Option<Conditions>,
    pub hints: Option<Hints>,
    pub hostname: Option<String>,
    pub node_name: Option<String>,
    pub zone: Option<String>,
}

#[derive(Default, Deserialize)]
pub(crate) struct Conditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hints {
    pub for_zones: Option<Vec<Zone>>,
}

#[derive(Deserialize)]
pub(crate) struct Zone {
    #[serde(default)]
    pub name: String,
}

#[derive(Deserialize)]
pub(crate) struct EndpointPort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i32>,
}

#[derive(Deserialize)]
pub(crate) struct NetworkPolicy {
    #[serde(default)]
    pub metadata: Meta,
    pub spec: Option<NetworkPolicySpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetworkPolicySpec {
    pub pod_selector: Option<LabelSelector>,
    pub policy_types: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LabelSelector {
    pub match_labels: Option<Pairs>,
    pub match_expressions: Option<Vec<Requirement>>,
}

#[derive(Deserialize)]
pub(crate) struct Requirement {
    #[serde(default)]
    pub key: String,
    #[serde(default)]
    pub operator: String,
    pub values: Option<Vec<String>>,
}
