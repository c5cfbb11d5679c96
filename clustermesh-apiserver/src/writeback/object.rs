//! Our slices as Kubernetes objects, and back.

use std::collections::BTreeMap;

use hawser_model::{
    AddressFamily, ClusterName, EndpointSlice as ModelSlice, PortName, Protocol, ServiceKey, ServicePort,
};
use hawser_sources::SOURCE_CLUSTER_LABEL;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::plan::{self, Endpoints, Group, Held, Slice};

/// Whose slice it is: the EndpointSlice controller and every other mesh leave it alone, as we leave theirs.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-mesh-controller.hawser.io";
/// MCS-API's, beside the label of the source cluster.
const MULTICLUSTER_SERVICE: &str = "multicluster.kubernetes.io/service-name";

/// The object to write; at a version when it is there already.
pub fn object(slice: &Slice, version: Option<&str>) -> EndpointSlice {
    let Group { service, cluster, family, ports } = &slice.group;
    let labels = [
        (MANAGED_BY, MANAGER),
        (ModelSlice::SERVICE_LABEL, service.name()),
        (MULTICLUSTER_SERVICE, service.name()),
        (SOURCE_CLUSTER_LABEL, cluster.as_str()),
    ];
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Service".into(),
        name: service.name().into(),
        uid: slice.owner.clone(),
        controller: Some(true),
        // It would take the right to change the Service's finalizers.
        block_owner_deletion: None,
    };
    let endpoint = |(ip, known): (&std::net::IpAddr, &plan::Endpoint)| Endpoint {
        addresses: vec![ip.to_string()],
        // KEP-1672: what ends is never ready, and serves for as long as it is stated.
        conditions: Some(EndpointConditions {
            ready: Some(!known.draining),
            serving: Some(true),
            terminating: Some(known.draining),
        }),
        hostname: known.hostname.clone(),
        ..Default::default()
    };
    let port = |(name, port): (&PortName, &ServicePort)| EndpointPort {
        name: Some(name.as_str().into()),
        port: Some(port.port.into()),
        protocol: Some(port.protocol.as_str().into()),
        app_protocol: None,
    };
    EndpointSlice {
        address_type: match family {
            AddressFamily::V4 => "IPv4".into(),
            AddressFamily::V6 => "IPv6".into(),
        },
        endpoints: Some(slice.endpoints.iter().map(endpoint).collect()),
        metadata: ObjectMeta {
            name: Some(slice.name.clone()),
            namespace: Some(service.namespace().into()),
            resource_version: version.map(str::to_owned),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        ports: Some(ports.iter().map(port).collect()),
    }
}

/// What an object says. One that we would not have written so has no slice: it goes, and a right one comes.
pub fn held(object: &EndpointSlice) -> Held {
    let meta = &object.metadata;
    Held {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        version: meta.resource_version.clone().unwrap_or_default(),
        slice: read(object),
    }
}

fn read(object: &EndpointSlice) -> Option<Slice> {
    let meta = &object.metadata;
    let label = |name: &str| meta.labels.as_ref()?.get(name);
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|owner| owner.kind == "Service")?.uid.clone();
    let mut ports = BTreeMap::new();
    for port in object.ports.iter().flatten() {
        let name = PortName::parse(port.name.as_deref().unwrap_or_default()).ok()?;
        let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP")).ok()?;
        ports.insert(name, ServicePort { protocol, port: u16::try_from(port.port?).ok()? });
    }
    let mut endpoints = Endpoints::new();
    for endpoint in object.endpoints.iter().flatten() {
        let [address] = endpoint.addresses.as_slice() else { return None };
        let draining =
            endpoint.conditions.as_ref().and_then(|conditions| conditions.terminating) == Some(true);
        let known = plan::Endpoint { hostname: endpoint.hostname.clone(), draining };
        endpoints.insert(address.parse().ok()?, known);
    }
    let group = Group {
        service: ServiceKey::new(meta.namespace.as_deref()?, label(ModelSlice::SERVICE_LABEL)?).ok()?,
        cluster: ClusterName::parse(label(SOURCE_CLUSTER_LABEL)?).ok()?,
        family: match object.address_type.as_str() {
            "IPv4" => AddressFamily::V4,
            "IPv6" => AddressFamily::V6,
            _ => return None,
        },
        ports,
    };
    let slice = Slice { name: meta.name.clone()?, owner, group, endpoints };
    // Somebody edited it: labels, conditions, another address.
    let ours = self::object(&slice, None);
    let ours_meta = &ours.metadata;
    let right = ours.endpoints == object.endpoints
        && ours.ports == object.ports
        && ours_meta.labels == meta.labels
        && ours_meta.owner_references == meta.owner_references;
    right.then_some(slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_the_same_and_an_edited_one_does_not() {
        let ports = BTreeMap::from([(
            PortName::parse("").unwrap(),
            ServicePort { protocol: Protocol::Udp, port: 53 },
        )]);
        let group = Group {
            service: ServiceKey::new("shop", "cart").unwrap(),
            cluster: ClusterName::parse("eu-west").unwrap(),
            family: AddressFamily::V6,
            ports,
        };
        let ready = plan::Endpoint { hostname: Some("cart-0".into()), draining: false };
        let ending = plan::Endpoint { hostname: None, draining: true };
        let endpoints = Endpoints::from([
            ("fd00:10:2::1".parse().unwrap(), ready),
            ("fd00:10:2::2".parse().unwrap(), ending),
        ]);
        let slice = Slice { name: "cart-eu-west-1".into(), owner: "uid-1".into(), group, endpoints };
        let mut object = object(&slice, Some("9"));
        object.metadata.uid = Some("its own".into());
        let read = held(&object);
        assert_eq!((read.version.as_str(), read.slice.as_ref()), ("9", Some(&slice)));
        let conditions = |at: usize| {
            let endpoint = &object.endpoints.as_ref().unwrap()[at];
            let conditions = endpoint.conditions.as_ref().unwrap();
            [conditions.ready, conditions.serving, conditions.terminating].map(Option::unwrap)
        };
        assert_eq!(conditions(0), [true, true, false]);
        assert_eq!(conditions(1), [false, true, true], "serving and terminating, not ready");
        let edited = |change: fn(&mut EndpointSlice)| {
            let mut object = object.clone();
            change(&mut object);
            held(&object).slice
        };
        assert_eq!(edited(|o| o.endpoints.as_mut().unwrap()[0].conditions = None), None);
        assert_eq!(edited(|o| o.address_type = "FQDN".into()), None);
        assert_eq!(edited(|o| _ = o.metadata.labels.as_mut().unwrap().remove(SOURCE_CLUSTER_LABEL)), None);
        assert_eq!(edited(|o| o.metadata.owner_references = None), None);
    }
}
