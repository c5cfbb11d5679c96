//! The objects of a cluster as `kubectl get -o yaml` prints them.

use std::fmt::Write as _;

use crate::plan::{ClusterPlan, NAMESPACE, NodePlan, POD_PORT, PodPlan, SERVICE, SERVICE_PORT};

const CREATED: &str = "2026-11-20T08:00:00Z";

/// What scenarios change about `shop/cart` and those who ask it.
#[derive(Clone, Debug)]
pub(crate) struct Cart {
    /// `hawser.io/affinity`, when set.
    pub(crate) affinity: Option<String>,
    /// False: the deployment is scaled to zero.
    pub(crate) endpoints: bool,
    /// Its pods terminate: not ready, serving all the same.
    pub(crate) terminating: bool,
    /// False: the annotation `hawser.io/global` is absent.
    pub(crate) global: bool,
    /// Pods that only ask are left out of the socket load balancer.
    pub(crate) clients_left_out: bool,
    /// `type: NodePort`, and its port.
    pub(crate) node_port: Option<u16>,
}

impl Default for Cart {
    fn default() -> Self {
        Self {
            affinity: None,
            endpoints: true,
            terminating: false,
            global: true,
            clients_left_out: false,
            node_port: None,
        }
    }
}

/// Stable, and different for every object.
fn uid(cluster: &ClusterPlan, kind: u8, number: u8) -> String {
    format!("{:08x}-5f2e-4c1b-9d3a-{kind:04x}{number:08x}", 0x7a1c_0000u32 + u32::from(cluster.id))
}

/// `kubectl get <kind> -o yaml`, without a name.
fn list(items: impl Iterator<Item = String>) -> String {
    let mut out = String::from("apiVersion: v1\nitems:\n");
    for item in items {
        for (number, line) in item.lines().enumerate() {
            let _ = writeln!(out, "{}{line}", if number == 0 { "- " } else { "  " });
        }
    }
    out.push_str("kind: List\nmetadata:\n  resourceVersion: \"\"\n");
    out
}

pub(crate) fn namespaces(cluster: &ClusterPlan) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Namespace\n\
         metadata:\n\
         \x20 creationTimestamp: \"{CREATED}\"\n\
         \x20 labels:\n\
         \x20   kubernetes.io/metadata.name: {NAMESPACE}\n\
         \x20 name: {NAMESPACE}\n\
         \x20 resourceVersion: \"612\"\n\
         \x20 uid: {uid}\n\
         spec:\n\
         \x20 finalizers:\n\
         \x20 - kubernetes\n\
         status:\n\
         \x20 phase: Active\n",
        uid = uid(cluster, 1, 1)
    )
}

pub(crate) fn nodes(cluster: &ClusterPlan) -> String {
    list(cluster.nodes.iter().zip(1..).map(|(node, number)| node_object(cluster, node, number)))
}

fn node_object(cluster: &ClusterPlan, node: &NodePlan, number: u8) -> String {
    format!(
        "apiVersion: v1
kind: Node
metadata:
  annotations:
    node.alpha.kubernetes.io/ttl: \"0\"
    volumes.kubernetes.io/controller-managed-attach-detach: \"true\"
  creationTimestamp: \"{CREATED}\"
  labels:
    beta.kubernetes.io/arch: amd64
    beta.kubernetes.io/os: linux
    kubernetes.io/arch: amd64
    kubernetes.io/hostname: {name}
    kubernetes.io/os: linux
    topology.kubernetes.io/region: {region}
  name: {name}
  resourceVersion: \"{version}\"
  uid: {uid}
spec:
  podCIDR: {cidr}
  podCIDRs:
  - {cidr}
status:
  addresses:
  - address: {address}
    type: InternalIP
  - address: {name}
    type: Hostname
  allocatable:
    cpu: \"2\"
    memory: 8036292Ki
    pods: \"110\"
  conditions:
  - lastHeartbeatTime: \"{CREATED}\"
    lastTransitionTime: \"{CREATED}\"
    message: kubelet is posting ready status
    reason: KubeletReady
    status: \"True\"
    type: Ready
  daemonEndpoints:
    kubeletEndpoint:
      Port: 10250
  nodeInfo:
    architecture: amd64
    kubeletVersion: v1.36.1
    operatingSystem: linux
",
        name = node.name,
        region = cluster.name,
        version = 800 + u32::from(number),
        uid = uid(cluster, 2, number),
        cidr = node.pod_cidr,
        address = node.address,
    )
}

pub(crate) fn pods(cluster: &ClusterPlan, cart: &Cart) -> String {
    let object = |((node, pod), number): ((&NodePlan, &PodPlan), u8)| {
        pod_object(cluster, node, pod, number, cart.clients_left_out && !pod.serves)
    };
    list(cluster.pods().zip(1..).map(object))
}

fn pod_object(cluster: &ClusterPlan, node: &NodePlan, pod: &PodPlan, number: u8, left_out: bool) -> String {
    let app = if pod.serves { SERVICE } else { "client" };
    let annotations = if left_out { "  annotations:\n    hawser.io/socket-lb: \"false\"\n" } else { "" };
    format!(
        "apiVersion: v1
kind: Pod
metadata:
{annotations}  creationTimestamp: \"{CREATED}\"
  generateName: {app}-
  labels:
    app: {app}
    pod-template-hash: 7d9c5b6f4
  name: {name}
  namespace: {NAMESPACE}
  resourceVersion: \"{version}\"
  uid: {uid}
spec:
  containers:
  - image: registry.example/{app}:1
    imagePullPolicy: IfNotPresent
    name: {app}
    ports:
    - containerPort: {POD_PORT}
      name: http
      protocol: TCP
    resources: {{}}
  dnsPolicy: ClusterFirst
  nodeName: {node}
  restartPolicy: Always
  serviceAccount: default
  serviceAccountName: default
status:
  conditions:
  - lastProbeTime: null
    lastTransitionTime: \"{CREATED}\"
    status: \"True\"
    type: Ready
  hostIP: {host}
  hostIPs:
  - ip: {host}
  phase: Running
  podIP: {ip}
  podIPs:
  - ip: {ip}
  qosClass: BestEffort
  startTime: \"{CREATED}\"
",
        name = pod.name,
        version = 900 + u32::from(number),
        uid = uid(cluster, 3, number),
        node = node.name,
        host = node.address,
        ip = pod.address,
    )
}

pub(crate) fn service(cluster: &ClusterPlan, cart: &Cart) -> String {
    let mut annotations = String::new();
    if let Some(affinity) = &cart.affinity {
        let _ = writeln!(annotations, "    hawser.io/affinity: {affinity}");
    }
    if cart.global {
        annotations.push_str("    hawser.io/global: \"true\"\n");
    }
    let (kind, node_port) = match cart.node_port {
        Some(port) => ("NodePort", format!("    nodePort: {port}\n")),
        None => ("ClusterIP", String::new()),
    };
    if !annotations.is_empty() {
        annotations.insert_str(0, "  annotations:\n");
    }
    format!(
        "apiVersion: v1
kind: Service
metadata:
{annotations}  creationTimestamp: \"{CREATED}\"
  labels:
    app: {SERVICE}
  name: {SERVICE}
  namespace: {NAMESPACE}
  resourceVersion: \"1042\"
  uid: {uid}
spec:
  clusterIP: {ip}
  clusterIPs:
  - {ip}
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - name: http
{node_port}    port: {SERVICE_PORT}
    protocol: TCP
    targetPort: http
  selector:
    app: {SERVICE}
  sessionAffinity: None
  type: {kind}
status:
  loadBalancer: {{}}
",
        uid = uid(cluster, 4, 1),
        ip = cluster.service_ip(),
    )
}

/// One slice; of a deployment scaled to zero the controller leaves a placeholder without endpoints and ports.
pub(crate) fn endpoint_slices(cluster: &ClusterPlan, cart: &Cart) -> String {
    let mut endpoints = String::from("endpoints: null\n");
    let mut ports = String::from("ports: null\n");
    if cart.endpoints {
        endpoints = String::from("endpoints:\n");
        for ((node, pod), number) in cluster.pods().zip(1..).filter(|((_, pod), _)| pod.serves) {
            let _ = write!(
                endpoints,
                "- addresses:
  - {ip}
  conditions:
    ready: {ready}
    serving: true
    terminating: {terminating}
  nodeName: {node}
  targetRef:
    kind: Pod
    name: {name}
    namespace: {NAMESPACE}
    uid: {uid}
",
                ip = pod.address,
                ready = !cart.terminating,
                terminating = cart.terminating,
                node = node.name,
                name = pod.name,
                uid = uid(cluster, 3, number),
            );
        }
        ports = format!("ports:\n- name: http\n  port: {POD_PORT}\n  protocol: TCP\n");
    }
    list(std::iter::once(format!(
        "addressType: IPv4
apiVersion: discovery.k8s.io/v1
{endpoints}kind: EndpointSlice
metadata:
  annotations:
    endpoints.kubernetes.io/last-change-trigger-time: \"{CREATED}\"
  creationTimestamp: \"{CREATED}\"
  generateName: {SERVICE}-
  generation: 3
  labels:
    app: {SERVICE}
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    kubernetes.io/service-name: {SERVICE}
  name: {SERVICE}-x7k2p
  namespace: {NAMESPACE}
  ownerReferences:
  - apiVersion: v1
    blockOwnerDeletion: true
    controller: true
    kind: Service
    name: {SERVICE}
    uid: {service}
  resourceVersion: \"1051\"
  uid: {uid}
{ports}",
        service = uid(cluster, 4, 1),
        uid = uid(cluster, 5, 1),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LabPlan;

    #[test]
    fn a_list_indents_its_items() {
        assert_eq!(
            list(["a: 1\nb:\n  c: 2\n".to_owned()].into_iter()),
            "apiVersion: v1\nitems:\n- a: 1\n  b:\n    c: 2\nkind: List\nmetadata:\n  resourceVersion: \"\"\n"
        );
    }

    #[test]
    fn scaling_to_zero_leaves_a_placeholder_slice() {
        let plan = LabPlan::standard();
        let text = endpoint_slices(&plan.clusters[0], &Cart { endpoints: false, ..Cart::default() });
        assert!(text.contains("  endpoints: null\n") && text.contains("  ports: null\n"), "{text}");
        let text = endpoint_slices(&plan.clusters[0], &Cart::default());
        assert!(text.contains("    - 10.1.2.10\n"), "{text}");
    }

    #[test]
    fn the_annotation_is_where_kubectl_prints_it() {
        let plan = LabPlan::standard();
        let text =
            service(&plan.clusters[0], &Cart { affinity: Some("local".to_owned()), ..Cart::default() });
        let expected =
            "metadata:\n  annotations:\n    hawser.io/affinity: local\n    hawser.io/global: \"true\"\n";
        assert!(text.contains(expected), "{text}");
    }
}
