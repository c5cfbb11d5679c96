//! A fake Kubernetes API server: list and watch as the API conventions say, plain HTTP on loopback, misbehaving when told.
//!
//! It stands in for what cannot be had on a test machine. It keeps the conventions: kinds, versions, `Status`, paging of
//! one version, bookmarks, selectors, conflicts. It knows no admission, no authentication and no schema.
#![allow(unreachable_pub, missing_debug_implementations, reason = "shared by test binaries")]
#![expect(dead_code, reason = "each of the test binaries that share it uses another part of it")]

mod http;
mod store;
mod token_review;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use store::{Filter, resource_of};
pub use token_review::FakeToken;

/// How it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An HTTP error with a `Status`; `Retry-After` where one is told.
    Refuse { code: u16, retry_after: Option<u64> },
    /// 410 as the answer itself.
    Gone,
    /// The connection is cut in the middle of the answer.
    Cut,
    /// Byte by byte.
    Slow,
    /// A watch: a line that is no JSON.
    Garbage,
    /// A watch: an ERROR event with 410.
    ErrorGone,
    /// A watch: an ERROR event with 500.
    ErrorInternal,
    /// A watch: every event twice.
    Twice,
    /// A watch: ends at once, as after its timeout.
    End,
}

/// Misbehaves at random, of a seed.
struct Chaos {
    random: StdRng,
    /// Of 100 requests.
    rate: u32,
}

#[derive(Default)]
struct Inner {
    store: store::Store,
    tokens: BTreeMap<String, FakeToken>,
    /// The next request whose path ends so.
    planned: Vec<(String, Fault)>,
    chaos: Option<Chaos>,
    /// The method, path and query of every request.
    requests: Vec<String>,
    /// An answer to every request while it is there.
    down: Option<u16>,
}

/// Its state, shared with its connections.
#[derive(Clone)]
struct Shared {
    inner: Arc<Mutex<Inner>>,
    /// Changes with the store.
    changed: watch::Sender<u64>,
    /// Changes when all watches are cut.
    cut: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics while it holds it")
    }
}

pub struct FakeApiServer {
    shared: Shared,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl FakeApiServer {
    pub async fn start() -> Self {
        let shared =
            Shared { inner: Arc::default(), changed: watch::Sender::new(0), cut: watch::Sender::new(0) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let address = listener.local_addr().expect("its address");
        let accepting = tokio::spawn(http::serve(listener, shared.clone()));
        Self { shared, address, accepting }
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: fake\n\
             clusters:\n- name: fake\n  cluster: {{ server: \"http://{}\" }}\n\
             users:\n- name: nobody\n  user: {{}}\n\
             contexts:\n- name: fake\n  context: {{ cluster: fake, user: nobody }}\n",
            self.address
        )
    }

    fn change<R>(&self, change: impl FnOnce(&mut store::Store) -> R) -> R {
        let mut inner = self.shared.lock();
        let result = change(&mut inner.store);
        let revision = inner.store.revision;
        drop(inner);
        self.shared.changed.send_replace(revision);
        result
    }

    /// As `kubectl apply` of an object in full.
    pub fn apply(&self, object: Value) {
        self.change(|store| _ = store.apply(object));
    }

    /// Whether it was there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let name = (namespace.to_owned(), name.to_owned());
        self.change(|store| store.delete(resource_of(kind), &name, None).is_ok())
    }

    /// Forgets what was: watches from before and lists in their middle are told 410.
    pub fn compact(&self) {
        self.change(store::Store::compact);
    }

    /// Cuts every watch, as a restart of the server or of a load balancer does.
    pub fn cut_watches(&self) {
        self.shared.cut.send_modify(|cuts| *cuts += 1);
    }

    /// The next request for this path misbehaves so.
    pub fn plan(&self, path: &str, fault: Fault) {
        self.shared.lock().planned.push((path.to_owned(), fault));
    }

    /// About so many of 100 requests misbehave, until told 0.
    pub fn misbehave(&self, seed: u64, rate: u32) {
        let chaos = Chaos { random: StdRng::seed_from_u64(seed), rate };
        self.shared.lock().chaos = (rate > 0).then_some(chaos);
    }

    /// Every request is answered with this code, until told none.
    pub fn down(&self, code: Option<u16>) {
        self.shared.lock().down = code;
    }

    /// A token that a TokenReview knows.
    pub fn token(&self, text: &str, token: FakeToken) {
        self.shared.lock().tokens.insert(text.to_owned(), token);
    }

    /// What was asked so far: `GET /api/v1/pods?limit=500`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().requests.clone()
    }

    /// Everything of a kind that these selectors match.
    pub fn objects(&self, kind: &str, fields: &str, labels: &str) -> Vec<Arc<Value>> {
        let filter = Filter::parse(fields, labels).expect("a selector");
        let inner = self.shared.lock();
        let of_kind = inner.store.objects.iter().filter(|((resource, _), _)| resource.kind == kind);
        of_kind.map(|(_, object)| Arc::clone(object)).filter(|object| filter.matches(object)).collect()
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut_watches();
    }
}

impl Inner {
    /// How this request is to be misanswered.
    fn fault(&mut self, path: &str, watch: bool) -> Option<Fault> {
        let for_watch = |fault: Fault| {
            use Fault::{End, ErrorGone, ErrorInternal, Garbage, Twice};
            matches!(fault, Garbage | ErrorGone | ErrorInternal | Twice | End)
        };
        let planned = self
            .planned
            .iter()
            .position(|(p, fault)| path.ends_with(p.as_str()) && (watch || !for_watch(*fault)));
        if let Some(at) = planned {
            return Some(self.planned.remove(at).1);
        }
        let chaos = self.chaos.as_mut()?;
        if chaos.random.random_range(0..100) >= chaos.rate {
            return None;
        }
        let kinds = if watch { 11 } else { 6 };
        Some(match chaos.random.random_range(0..kinds) {
            0 => Fault::Refuse { code: 429, retry_after: Some(0) },
            1 => Fault::Refuse { code: 503, retry_after: None },
            2 => Fault::Refuse { code: 500, retry_after: None },
            3 => Fault::Gone,
            4 => Fault::Cut,
            5 => Fault::Slow,
            6 => Fault::Garbage,
            7 => Fault::ErrorGone,
            8 => Fault::ErrorInternal,
            9 => Fault::Twice,
            _ => Fault::End,
        })
    }
}
