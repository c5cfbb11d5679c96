//! Which pods the mesh would reach though a NetworkPolicy of this cluster means to guard them.
//!
//! Hawser does not enforce NetworkPolicy yet, and the cluster's own enforcer never sees mesh traffic: so connecting is
//! refused while such a pod is behind an exported global service, unless the operator says that is understood. A policy
//! that comes later closes nothing either, and is told as a problem.

use std::fmt;

use hawser_model::ServiceKey;

use crate::annotations::Wishes;
use crate::objects::Objects;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    pub service: ServiceKey,
    /// namespace/name
    pub pod: String,
    pub policy: String,
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {} behind service {} (NetworkPolicy {})", self.pod, self.service, self.policy)
    }
}

/// The first of them, and how many more there are.
pub fn named(exposures: &[Exposure]) -> String {
    const NAMED: usize = 3;
    let named: Vec<String> = exposures.iter().take(NAMED).map(ToString::to_string).collect();
    let named = named.join(", ");
    match exposures.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}, and {more} more"),
    }
}

/// Cost: nothing without a policy; else all pods once, and the backends of exported services times the policies of their namespace.
pub fn exposures(objects: &Objects) -> Vec<Exposure> {
    let mut found = Vec::new();
    if objects.policies.is_empty() {
        return found;
    }
    let pods = objects.pods_by_ip();
    for service in objects.services.values() {
        if !Wishes::read(&service.annotations.to_map()).0.exported() {
            continue;
        }
        let slices = objects.slices_of(&service.key);
        let addresses =
            slices.flat_map(|slice| &slice.endpoints).flat_map(|endpoint| endpoint.addresses.iter());
        let mut behind: Vec<_> = addresses.filter_map(|ip| pods.get(ip)).collect();
        behind.sort_by_key(|pod| &pod.name);
        behind.dedup_by_key(|pod| &pod.name);
        for pod in behind {
            let policies = objects.policies.values().filter(|policy| {
                policy.ingress && policy.namespace == pod.namespace && policy.pods.matches(&pod.labels)
            });
            found.extend(policies.map(|policy| Exposure {
                service: service.key.clone(),
                pod: format!("{}/{}", pod.namespace, pod.name),
                policy: format!("{}/{}", policy.namespace, policy.name),
            }));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_sources::{Change, Files};

    const SHOP: &str = include_str!("../sources/testdata/shop.yaml");

    fn found(text: &str) -> Vec<String> {
        let mut objects = Objects::default();
        for event in Files::default().apply(vec![("a.yaml".into(), Change::Text(text.into()))]) {
            objects.apply(event);
        }
        exposures(&objects).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_guarded_pod_behind_an_exported_service_is_exposed() {
        let words = "pod shop/cart-5d9-abcde behind service shop/cart (NetworkPolicy shop/only-shop)";
        assert_eq!(found(SHOP), [words]);
    }

    #[test]
    fn nothing_is_exposed_when_any_of_the_three_is_missing() {
        let unshared = "hawser.io/global: \"true\"\n      hawser.io/shared: \"false\"";
        for (from, to) in [
            ("hawser.io/global: \"true\"", unshared),
            ("app: cart\n    policyTypes", "app: till\n    policyTypes"),
            ("    - Ingress", "    - Egress"),
            ("name: only-shop\n    namespace: shop", "name: only-shop\n    namespace: other"),
            ("  - addresses:\n    - 10.1.0.9", "  - addresses:\n    - 10.1.0.10"),
        ] {
            assert_ne!(SHOP.replace(from, to), SHOP);
            assert_eq!(found(&SHOP.replace(from, to)), [""; 0], "{from} -> {to}");
        }
    }
}
