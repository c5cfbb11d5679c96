//! What the view keeps of an entry: what planners decide by, and no more. A mesh has hundreds of thousands of them on
//! every node, so names for people (pods, selectors, labels of services) stay with the API server.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hawser_ebpf_abi::FewMap;
use hawser_model::{
    Endpoint, GlobalService, IdentityId, Outside, PortMap, PortName, Routing, ServicePort, SharedService,
};

/// Of an [`Endpoint`], beside its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptEndpoint {
    /// The node it runs on; none when the publisher does not say.
    pub host: Option<IpAddr>,
    pub identity: IdentityId,
    /// Of the own cluster only it counts.
    pub left_out: bool,
}

impl From<&Endpoint> for KeptEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self { host: endpoint.host, identity: endpoint.identity, left_out: endpoint.left_out }
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
        let backends =
            KeptBackends::new(&service.backends, |ip| service.draining.contains(ip), &service.zones);
        Self { shared: service.shared, backends }
    }
}

/// Of a [`GlobalService`], beside its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptGlobal {
    pub cluster_ips: Box<[IpAddr]>,
    pub ports: FewMap<PortName, ServicePort>,
    pub routing: Routing,
    pub shared: bool,
    pub outside: Outside,
    pub backends: KeptBackends,
}

impl From<&GlobalService> for KeptGlobal {
    fn from(service: &GlobalService) -> Self {
        Self {
            cluster_ips: service.cluster_ips.as_slice().into(),
            ports: service.ports.iter().map(|(name, port)| (name.clone(), *port)).collect(),
            routing: service.routing.clone(),
            shared: service.shared,
            outside: service.outside.clone(),
            backends: KeptBackends::new(
                &service.backends,
                |ip| service.draining.contains(ip),
                &service.zones,
            ),
        }
    }
}

/// A service's addresses, each once for each of its ports, in their order: one allocation instead of a map of maps.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeptBackends {
    all: Box<[KeptBackend]>,
    zones: Box<[Arc<str>]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptBackend {
    ip: IpAddr,
    name: PortName,
    port: ServicePort,
    draining: bool,
    /// An index; beyond the end: none known.
    zone: u8,
}

/// Where a port is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served<'a> {
    pub ip: IpAddr,
    pub port: ServicePort,
    /// Takes nothing new while another one is ready.
    pub draining: bool,
    pub zone: Option<&'a str>,
}

impl KeptBackends {
    /// Backends that name a port or a zone alike share the text.
    pub(crate) fn new(
        backends: &PortMap,
        draining: impl Fn(&IpAddr) -> bool,
        zone_of: &BTreeMap<IpAddr, String>,
    ) -> Self {
        let mut names: Vec<PortName> = Vec::new();
        let mut shared = |name: &PortName| match names.iter().find(|known| *known == name) {
            Some(known) => known.clone(),
            None => {
                names.push(name.clone());
                name.clone()
            }
        };
        let mut zones: Vec<Arc<str>> = Vec::new();
        let mut zone = |ip: &IpAddr| {
            let Some(text) = zone_of.get(ip).filter(|text| !text.is_empty()) else { return u8::MAX };
            let at = zones.iter().position(|known| **known == **text).unwrap_or(zones.len());
            match u8::try_from(at) {
                Ok(at) if at < u8::MAX => {
                    if usize::from(at) == zones.len() {
                        zones.push(text.as_str().into());
                    }
                    at
                }
                _ => u8::MAX,
            }
        };
        let mut all = Vec::with_capacity(backends.values().map(BTreeMap::len).sum());
        for (ip, ports) in backends {
            let (draining, zone) = (draining(ip), zone(ip));
            let kept = |(name, port): (&PortName, &ServicePort)| KeptBackend {
                ip: *ip,
                name: shared(name),
                port: *port,
                draining,
                zone,
            };
            all.extend(ports.iter().map(kept));
        }
        Self { all: all.into(), zones: zones.into() }
    }

    /// Where the port of that name is served. O(backends).
    pub fn of_port(&self, name: &PortName) -> impl Iterator<Item = Served<'_>> {
        let served = |kept: &KeptBackend| Served {
            ip: kept.ip,
            port: kept.port,
            draining: kept.draining,
            zone: self.zones.get(usize::from(kept.zone)).map(|zone| &**zone),
        };
        self.all.iter().filter(move |kept| kept.name == *name).map(served)
    }
}
