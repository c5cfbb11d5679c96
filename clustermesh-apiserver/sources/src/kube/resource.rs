//! What is asked of the API server: the kinds, their paths, and what it may leave out.

use crate::Kind;

/// One kind of object, in all namespaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resource {
    pub kind: Kind,
    pub path: &'static str,
    /// Which objects, as the API server filters them (already percent-encoded).
    pub filter: &'static str,
    /// Metadata says everything that a mesh reads of it.
    pub metadata_only: bool,
}

impl Resource {
    /// In the order in which a person reads the RBAC rules (docs/src/reference/kubernetes.md lists the same).
    pub(crate) const ALL: [Self; 6] = [
        Self { metadata_only: true, ..Self::of(Kind::Namespace, "/api/v1/namespaces") },
        Self::of(Kind::Node, "/api/v1/nodes"),
        Self {
            // A pod that has ended has no address any more: leaving the filter is told as DELETED.
            filter: "fieldSelector=status.phase!%3DSucceeded%2Cstatus.phase!%3DFailed&",
            ..Self::of(Kind::Pod, "/api/v1/pods")
        },
        Self::of(Kind::Service, "/api/v1/services"),
        Self {
            // Of a Service, and not written by a mesh for another cluster's endpoints.
            filter: "labelSelector=kubernetes.io%2Fservice-name%2C!multicluster.kubernetes.io%2Fsource-cluster&",
            ..Self::of(Kind::EndpointSlice, "/apis/discovery.k8s.io/v1/endpointslices")
        },
        Self::of(Kind::NetworkPolicy, "/apis/networking.k8s.io/v1/networkpolicies"),
    ];

    /// Asked for where services are exported to a clusterset: who does not do that need not have the CRD.
    pub(crate) const SERVICE_EXPORTS: Self =
        Self::of(Kind::ServiceExport, "/apis/multicluster.x-k8s.io/v1beta1/serviceexports");

    const fn of(kind: Kind, path: &'static str) -> Self {
        Self { kind, path, filter: "", metadata_only: false }
    }

    /// `Accept` for a list, and for a watch.
    pub(crate) fn accept(&self, watch: bool) -> &'static str {
        match (self.metadata_only, watch) {
            (false, _) => "application/json",
            (true, false) => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            (true, true) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        }
    }
}
