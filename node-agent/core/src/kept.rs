//! What the view keeps of an entry: what planners decide by, and no more. A mesh has hundreds of thousands of them on
//! every node, so names for people (pods, selectors, labels of services) stay with the API server.

use std::net::IpAddr;

use hawser_model::{Endpoint, IdentityId, PortMap, PortName, ServicePort, SharedService};

/// Of an [`Endpoint`], beside its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptEndpoint {
    /// The node it runs on; none when the publisher does not say.
    pub host: Option<IpAddr>,
    pub identity: IdentityId,
}

impl From<&Endpoint> for KeptEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self { host: endpoint.host, identity: endpoint.identity }
    }
}

/// Of a [`SharedService`], beside its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptService {
    /// False is read as "gone".
    pub shared: bool,
    pub backends: KeptBackends,
}

impl From<&SharedService> for KeptService {
    fn from(service: &SharedService) -> Self {
        Self { shared: service.shared, backends: KeptBackends::new(&service.backends) }
    }
}

/// A service's addresses, each once for each of its ports, in their order: one allocation instead of a map of maps.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeptBackends(Box<[(IpAddr, PortName, ServicePort)]>);

impl KeptBackends {
    /// Backends that name a port alike share the name.
    pub(crate) fn new(backends: &PortMap) -> Self {
        let mut names: Vec<PortName> = Vec::new();
        let mut shared = |name: &PortName| match names.iter().find(|known| *known == name) {
            Some(known) => known.clone(),
            None => {
                names.push(name.clone());
                name.clone()
            }
        };
        let all =
            backends.iter().flat_map(|(ip, ports)| ports.iter().map(move |(name, port)| (*ip, name, *port)));
        Self(all.map(|(ip, name, port)| (ip, shared(name), port)).collect())
    }

    /// Where the port of that name is served. O(backends).
    pub fn of_port(&self, name: &PortName) -> impl Iterator<Item = (IpAddr, ServicePort)> {
        self.0.iter().filter(move |(_, known, _)| known == name).map(|(ip, _, port)| (*ip, *port))
    }
}
