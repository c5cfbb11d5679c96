//! Which pods are left out of the socket load balancer: a proxy in the pod must see the service's address, or the pod's sockets live
//! in another kernel.

use crate::fields;

/// `"false"`: leave it out; `"true"`: do not, whatever is found.
pub const SOCKET_LB: &str = "hawser.io/socket-lb";

/// Sidecars that route by the address which their program asked for.
const PROXIES: [&str; 2] = ["istio-proxy", "linkerd-proxy"];

/// Whether it is left out, and a wish that says neither.
pub(crate) fn of(pod: &fields::Pod) -> (bool, Option<Box<str>>) {
    let annotation = |name| pod.metadata.annotations.as_ref().and_then(|all| all.get(name));
    match annotation(SOCKET_LB) {
        Some("false") => (true, None),
        Some("true") => (false, None),
        unknown => (is_found(pod), unknown.map(Into::into)),
    }
}

fn is_found(pod: &fields::Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let istio = annotations.is_some_and(|all| {
        all.contains_key("sidecar.istio.io/status")
            || all.get("ambient.istio.io/redirection") == Some("enabled")
    });
    let labels = pod.metadata.labels.as_ref();
    let virtual_machine = labels.is_some_and(|all| all.get("kubevirt.io") == Some("virt-launcher"));
    let Some(spec) = &pod.spec else { return istio || virtual_machine };
    // A native sidecar is an init container that goes on.
    let containers = spec.containers.iter().chain(&spec.init_containers).flatten();
    let proxy = containers.map(|container| container.name.as_str()).any(|name| PROXIES.contains(&name));
    istio || virtual_machine || proxy || spec.runtime_class_name.as_deref().is_some_and(is_another_kernel)
}

fn is_another_kernel(runtime_class: &str) -> bool {
    runtime_class.starts_with("kata") || ["gvisor", "runsc"].iter().any(|name| runtime_class.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(yaml: &str) -> (bool, Option<Box<str>>) {
        of(&serde_saphyr::from_str::<fields::Pod>(yaml).unwrap())
    }

    fn is_out(yaml: &str) -> bool {
        found(yaml) == (true, None)
    }

    #[test]
    fn a_pod_with_a_proxy_or_with_another_kernel_is_left_out() {
        assert!(is_out("metadata: {annotations: {sidecar.istio.io/status: '{}'}}"));
        assert!(is_out("metadata: {annotations: {ambient.istio.io/redirection: enabled}}"));
        assert!(is_out("metadata: {labels: {kubevirt.io: virt-launcher}}"));
        assert!(is_out("spec: {containers: [{name: app}, {name: istio-proxy}]}"));
        assert!(is_out("spec: {initContainers: [{name: linkerd-proxy}]}"));
        for class in ["kata", "kata-qemu", "gvisor", "runsc-kvm"] {
            assert!(is_out(&format!("spec: {{runtimeClassName: {class}}}")), "{class}");
        }
    }

    #[test]
    fn an_ordinary_pod_is_not_and_what_its_annotation_says_counts_more_than_what_is_found() {
        assert_eq!(found("spec: {containers: [{name: app}], runtimeClassName: nvidia}"), (false, None));
        assert_eq!(found("metadata: {labels: {kubevirt.io: virt-api}}"), (false, None));
        assert!(is_out("metadata: {annotations: {hawser.io/socket-lb: 'false'}}"));
        let both = "metadata: {annotations: {hawser.io/socket-lb: 'true', sidecar.istio.io/status: '{}'}}";
        assert_eq!(found(both), (false, None));
        let unknown = "metadata: {annotations: {hawser.io/socket-lb: 'no', sidecar.istio.io/status: '{}'}}";
        assert_eq!(found(unknown), (true, Some("no".into())), "told, and never a guess");
    }
}
