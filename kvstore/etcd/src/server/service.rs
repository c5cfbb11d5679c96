//! The server as a set of routes, and the choice of keyspace before any of them runs.

use super::authorize::{Access, AccessRequest, Authorize};
use super::cluster::ClusterService;
use super::keyspaces::{KeyspaceHandle, Keyspaces};
use super::kv::KvService;
use super::lease::LeaseService;
use super::status;
use super::watch::WatchService;
use crate::pb;
use futures::future::{BoxFuture, Either};
use hawser_kvstore::{Keyspace, Revision};
use http::{Method, StatusCode};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

/// What clients are told we are: the etcd whose behaviour this server follows.
pub const ETCD_VERSION: &str = "3.5.17";
/// etcd's `--max-request-bytes`.
pub(crate) const MAX_REQUEST: usize = 3 << 19;
/// What a message may have beyond that before it is not even decoded, as in etcd.
pub(crate) const MAX_MESSAGE: usize = MAX_REQUEST + (512 << 10);
/// "Hawser". There is one member: whichever replica answers is the same server to a client.
pub(crate) const MEMBER_ID: u64 = 0x4861_7773_6572;
pub(crate) const RAFT_TERM: u64 = 1;

/// Suffixes of an authority that names a cluster.
const AUTHORITIES: [&str; 2] = [".mesh.hawser.io", ".mesh.cilium.io"];
const CLUSTER_METADATA: &str = "hawser-cluster";

/// The etcd v3 API over [`Keyspaces`]. Cloning it counts references.
#[derive(Clone)]
pub struct EtcdServer {
    keyspaces: Keyspaces,
    shared: Arc<Shared>,
    health: Health,
}

/// What every service of the server needs.
pub(crate) struct Shared {
    authorize: Arc<dyn Authorize>,
    /// Told by `MemberList` as the client URLs.
    pub(crate) advertise: Vec<String>,
}

/// Why nobody should be sent to this server; none when all is well.
type Health = Arc<dyn Fn() -> Option<String> + Send + Sync>;

impl EtcdServer {
    /// `advertise` is what clients may dial to reach this server.
    pub fn new(keyspaces: Keyspaces, authorize: Arc<dyn Authorize>, advertise: Vec<String>) -> Self {
        let shared = Arc::new(Shared { authorize, advertise });
        Self { keyspaces, shared, health: Arc::new(|| None) }
    }

    /// What `GET /health` answers: why not, in few words that anybody may read. Without it the server is healthy while it answers.
    #[must_use]
    pub fn with_health(self, unhealthy: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        Self { health: Arc::new(unhealthy), ..self }
    }

    /// The etcd services and `GET /version`, next to whatever `routes` has.
    pub fn add_to(&self, routes: Routes) -> Routes {
        let shared = || Arc::clone(&self.shared);
        let mut routes = routes
            .add_service(self.keyed(
                pb::kv_server::KvServer::new(KvService(shared())).max_decoding_message_size(MAX_MESSAGE),
            ))
            .add_service(
                self.keyed(
                    pb::lease_server::LeaseServer::new(LeaseService(shared()))
                        .max_decoding_message_size(MAX_MESSAGE),
                ),
            )
            .add_service(self.keyed(pb::cluster_server::ClusterServer::new(ClusterService(shared()))))
            .add_service(self.keyed(pb::maintenance_server::MaintenanceServer::new(ClusterService(shared()))))
            .add_service(self.keyed(WatchService(shared())));
        let router = routes.axum_router_mut();
        let unhealthy = Arc::clone(&self.health);
        let health = move |request| std::future::ready(health(&request, unhealthy()));
        *router = std::mem::take(router)
            .route_service("/version", tower::service_fn(version))
            .route_service("/health", tower::service_fn(health));
        routes
    }

    pub fn routes(&self) -> Routes {
        self.add_to(Routes::default())
    }

    fn keyed<S>(&self, service: S) -> Keyed<S> {
        Keyed { keyspaces: self.keyspaces.clone(), authorize: Arc::clone(&self.shared.authorize), service }
    }
}

impl fmt::Debug for EtcdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdServer").field("keyspaces", &self.keyspaces).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn authorize(
        &self,
        caller: &http::Extensions,
        keyspace: &KeyspaceHandle,
        rpc: &'static str,
        access: Access<'_>,
    ) -> Result<(), Status> {
        let request = AccessRequest { caller, keyspace: keyspace.name(), rpc, access };
        self.authorize.authorize(request).map_err(status::denied)
    }
}

/// The header of every reply. `cluster_id` is the keyspace's own, so that a client notices another lineage.
pub(crate) fn header(keyspace: &Keyspace, revision: Revision) -> pb::ResponseHeader {
    pb::ResponseHeader {
        cluster_id: keyspace.identity().cluster_id,
        member_id: MEMBER_ID,
        revision,
        raft_term: RAFT_TERM,
    }
}

/// The keyspace that [`Keyed`] found for the request.
pub(crate) fn keyspace_of(extensions: &http::Extensions) -> Result<KeyspaceHandle, Status> {
    extensions.get::<KeyspaceHandle>().cloned().ok_or_else(|| Status::internal("no keyspace was chosen"))
}

/// Chooses the keyspace (contracts.md, "Which keyspace a request means"), or the caller's view of it, and leaves it in the
/// request's extensions.
#[derive(Clone)]
pub(crate) struct Keyed<S> {
    keyspaces: Keyspaces,
    authorize: Arc<dyn Authorize>,
    service: S,
}

impl<S: NamedService> NamedService for Keyed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Keyed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let keyspace = match choose(&self.keyspaces, &*self.authorize, &request) {
            Ok(keyspace) => keyspace,
            Err(status) => return Either::Right(Box::pin(std::future::ready(Ok(status.into_http())))),
        };
        let Some(view) = self.authorize.view(request.extensions(), &keyspace) else {
            request.extensions_mut().insert(keyspace);
            return Either::Left(self.service.call(request));
        };
        let mut service = self.service.clone();
        Either::Right(Box::pin(async move {
            let Some(keyspace) = view.ready().await else {
                let name = keyspace.name();
                let status = Status::unavailable(format!("what {name} exports cannot be served now"));
                return Ok(status.into_http());
            };
            request.extensions_mut().insert(keyspace);
            service.call(request).await
        }))
    }
}

fn choose<B>(
    keyspaces: &Keyspaces,
    authorize: &dyn Authorize,
    request: &http::Request<B>,
) -> Result<KeyspaceHandle, Status> {
    let cluster = match authorize.keyspace(request.extensions()).or_else(|| cluster_of_authority(request)) {
        Some(cluster) => Some(cluster),
        None => request
            .headers()
            .get(CLUSTER_METADATA)
            .map(|name| {
                name.to_str().map_err(|_| Status::invalid_argument("hawser-cluster is not a cluster's name"))
            })
            .transpose()?,
    };
    let Some(cluster) = cluster else { return Ok(keyspaces.own().clone()) };
    keyspaces.get(cluster).ok_or_else(|| {
        let own = keyspaces.own().name();
        Status::not_found(format!(
            "cluster {cluster:?} is not known to the API server of {own}: it is neither {own} nor a connected cluster"
        ))
    })
}

/// HTTP/2 has the authority in the URI, HTTP/1.1 in the `Host` header.
fn cluster_of_authority<B>(request: &http::Request<B>) -> Option<&str> {
    let authority = match request.uri().authority() {
        Some(authority) => authority.host(),
        None => {
            let host = request.headers().get(http::header::HOST)?.to_str().ok()?;
            host.rsplit_once(':').map_or(host, |(host, _port)| host)
        }
    };
    AUTHORITIES.iter().find_map(|suffix| authority.strip_suffix(suffix)).filter(|name| !name.contains('.'))
}

/// What `etcdctl` and Cilium's troubleshooting read over plain HTTP/1.1.
async fn version<B>(request: http::Request<B>) -> Result<http::Response<Body>, Infallible> {
    let json = format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"3.5.0"}}"#);
    Ok(page(&request, StatusCode::OK, json))
}

/// As etcd's, for probes and load balancers in front of it.
fn health<B>(
    request: &http::Request<B>,
    unhealthy: Option<String>,
) -> Result<http::Response<Body>, Infallible> {
    let code = if unhealthy.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let (health, reason) = (unhealthy.is_none().to_string(), unhealthy.unwrap_or_default());
    // Strings both, in etcd's order; the reason is ours and holds nothing to escape.
    let reason = reason.replace(['"', '\\'], "'");
    Ok(page(request, code, format!(r#"{{"health":"{health}","reason":"{reason}"}}"#)))
}

fn page<B>(request: &http::Request<B>, code: StatusCode, json: String) -> http::Response<Body> {
    if request.method() != Method::GET {
        let mut refused = http::Response::new(Body::empty());
        *refused.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return refused;
    }
    let mut response = http::Response::new(Body::new(http_body_util::Full::new(json.into())));
    *response.status_mut() = code;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}
