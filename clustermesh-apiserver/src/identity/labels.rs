//! Which labels make an identity: Cilium's default filter (`pkg/labelsfilter/filter.go`), so that equal pods are equal
//! in both worlds.

use hawser_model::{ClusterName, Labels};
use hawser_sources::{Pairs, Pod};

/// How a rule finds its text in a key. The length of what it matched decides between rules.
enum Rule {
    /// At the start of the key.
    Prefix(&'static str),
    /// Anywhere; it matches from the start of the key to the end of its last occurrence.
    Within(&'static str),
    /// At the start of the key, and then it matches the whole key.
    All(&'static str),
}

impl Rule {
    fn matched(&self, key: &str) -> Option<usize> {
        match self {
            Self::Prefix(text) => key.starts_with(text).then_some(text.len()),
            Self::Within(text) => key.rfind(text).map(|at| at + text.len()),
            Self::All(text) => key.starts_with(text).then_some(key.len()),
        }
    }
}

const INCLUDE: [Rule; 4] = [
    Rule::Prefix(Labels::NAMESPACE_KEY),
    Rule::Prefix("io.cilium.k8s.namespace.labels"),
    Rule::Prefix("app.kubernetes.io"),
    Rule::Prefix(Labels::CLUSTER_KEY),
];

const IGNORE: [Rule; 15] = [
    Rule::Prefix("io.kubernetes"),
    Rule::Prefix("kubernetes.io"),
    Rule::Prefix("statefulset.kubernetes.io/pod-name"),
    Rule::Prefix("apps.kubernetes.io/pod-index"),
    Rule::Prefix("batch.kubernetes.io/job-completion-index"),
    Rule::Prefix("batch.kubernetes.io/controller-uid"),
    Rule::Within("beta.kubernetes.io"),
    Rule::Prefix("k8s.io"),
    Rule::Prefix("pod-template-generation"),
    Rule::Prefix("pod-template-hash"),
    Rule::Prefix("controller-revision-hash"),
    Rule::All("annotation"),
    Rule::Prefix("controller-uid"),
    Rule::Prefix("etcd_node"),
    Rule::Prefix("topology.kubernetes.io"),
];

/// The longest include beats the shortest ignore; what no rule knows is relevant.
fn relevant(key: &str) -> bool {
    let included = INCLUDE.iter().filter_map(|rule| rule.matched(key)).max().unwrap_or(0);
    let ignored = IGNORE.iter().filter_map(|rule| rule.matched(key)).min();
    ignored.is_none_or(|ignored| included > ignored)
}

/// What only the cluster itself may say of a pod, and a pod's own labels may not.
fn reserved(key: &str) -> bool {
    key.starts_with("io.cilium.k8s.") || key == Labels::NAMESPACE_KEY
}

/// The labels of a pod's identity: its own, its namespace's, and what the cluster vouches for.
pub fn identity_labels(cluster: &ClusterName, namespace: &Pairs, pod: &Pod) -> Labels {
    let mut labels = Labels::default();
    let mut add = |key: &str, value: &str| {
        if relevant(key) {
            labels.insert(Labels::K8S, key, value);
        }
    };
    for (key, value) in pod.labels.iter().filter(|(key, _)| !reserved(key)) {
        add(key, value);
    }
    for (key, value) in namespace.iter() {
        add(&format!("{}{key}", Labels::NAMESPACE_LABEL_PREFIX), value);
    }
    add(Labels::NAMESPACE_KEY, &pod.namespace);
    if !pod.service_account.is_empty() {
        add(Labels::SERVICE_ACCOUNT_KEY, &pod.service_account);
    }
    add(Labels::CLUSTER_KEY, cluster.as_str());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_sources::PodPhase;

    fn map(pairs: &[(&str, &str)]) -> Pairs {
        pairs.iter().copied().collect()
    }

    fn pod(labels: &[(&str, &str)]) -> Pod {
        Pod {
            namespace: "shop".into(),
            name: "cart-1".into(),
            labels: map(labels),
            ips: Vec::new(),
            node: None,
            service_account: "default".into(),
            host_network: false,
            phase: PodPhase::Running,
            left_out: false,
            unknown_socket_lb: None,
        }
    }

    #[test]
    fn an_identity_reads_as_cilium_writes_it() {
        let cluster = ClusterName::parse("hawser-a").unwrap();
        let namespace = map(&[("kubernetes.io/metadata.name", "shop")]);
        let pod = pod(&[("app", "cart"), ("pod-template-hash", "5d9")]);
        // cilium-facts.md §1.5
        assert_eq!(
            identity_labels(&cluster, &namespace, &pod).to_string(),
            "k8s:app=cart;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;\
             k8s:io.cilium.k8s.policy.cluster=hawser-a;k8s:io.cilium.k8s.policy.serviceaccount=default;\
             k8s:io.kubernetes.pod.namespace=shop;"
        );
    }

    #[test]
    fn noise_is_left_out_and_meaning_is_kept() {
        for key in ["app", "app.kubernetes.io/name", "team", "batch.kubernetes.io/job-name", "x.k8s.io/y"] {
            assert!(relevant(key), "{key}");
        }
        for key in [
            "kubernetes.io/hostname",
            "k8s.io/x",
            "pod-template-hash",
            "controller-revision-hash",
            "statefulset.kubernetes.io/pod-name",
            "apps.kubernetes.io/pod-index",
            "topology.kubernetes.io/zone",
            "failure-domain.beta.kubernetes.io/zone",
            "annotation.x",
            "io.cilium.k8s.namespace.labels.failure-domain.beta.kubernetes.io/zone",
        ] {
            assert!(!relevant(key), "{key}");
        }
    }

    #[test]
    fn a_pod_cannot_speak_for_another_cluster_or_namespace() {
        let cluster = ClusterName::parse("us-east").unwrap();
        let pod = pod(&[
            (Labels::CLUSTER_KEY, "eu-west"),
            (Labels::NAMESPACE_KEY, "kube-system"),
            (Labels::SERVICE_ACCOUNT_KEY, "admin"),
            ("io.cilium.k8s.namespace.labels.trusted", "yes"),
        ]);
        let labels = identity_labels(&cluster, &Pairs::default(), &pod);
        assert_eq!(labels.cluster(), Some("us-east"));
        assert_eq!(labels.get(Labels::NAMESPACE_KEY).unwrap().value, "shop");
        assert_eq!(labels.get(Labels::SERVICE_ACCOUNT_KEY).unwrap().value, "default");
        assert_eq!(labels.len(), 3);
    }
}
