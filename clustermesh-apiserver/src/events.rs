//! Kubernetes Events about Services and Nodes whose annotations are not understood: the one who wrote them looks there, not into our log.
//!
//! One Event an object and text, by a name made of both: a replica that leads next writes none again while the old one lasts. By
//! the replica that leads, at most one in [`PACE`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hawser_model::{NodeName, ServiceKey};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::leader::Leading;

const PACE: Duration = Duration::from_millis(200);
/// After a failed write.
const RETRY: Duration = Duration::from_secs(30);
/// Texts that are remembered to have been told; beyond, those that no longer hold are forgotten.
const MOST: usize = 10_000;
/// An Event's note has at most 1,024 bytes.
const NOTE: usize = 1_000;
const CONTROLLER: &str = "hawser.io/clustermesh-apiserver";

/// Whose annotations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Service(ServiceKey),
    Node(NodeName),
}

impl Subject {
    fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => "Service",
            Self::Node(_) => "Node",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Service(key) => key.name(),
            Self::Node(name) => name.as_str(),
        }
    }

    /// Kubernetes wants Events about what has no namespace in this one.
    fn event_namespace(&self) -> &str {
        self.namespace().unwrap_or("default")
    }

    fn namespace(&self) -> Option<&str> {
        match self {
            Self::Service(key) => Some(key.namespace()),
            Self::Node(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service {key}"),
            Self::Node(name) => write!(f, "node {name}"),
        }
    }
}

/// What is wrong with the annotations of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misread {
    pub uid: Arc<str>,
    pub texts: Vec<String>,
}

pub type AllMisread = Arc<BTreeMap<Subject, Misread>>;

pub struct Events {
    pub client: Client,
    /// This process, for the reader.
    pub instance: String,
    pub misread: watch::Receiver<AllMisread>,
    pub leading: Leading,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// Of one object's life, one text.
type Told = (Subject, Arc<str>, String);

impl Events {
    pub async fn run(mut self, stop: CancellationToken) {
        let mut told: BTreeSet<Told> = BTreeSet::new();
        loop {
            let next = match self.leading.borrow().is_some() {
                true => self.untold(&told),
                false => None,
            };
            let wait = match next {
                // Who is alone is told nothing more of who leads, and leads.
                None => None,
                Some(next) => match self.write(&next).await {
                    Ok(()) => {
                        told.insert(next);
                        Some(PACE)
                    }
                    Err(error) => {
                        let fix = "; fix: allow create on events.events.k8s.io";
                        let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
                        let fix = if forbidden { fix } else { "" };
                        tracing::warn!("an Event about {} cannot be written: {error}{fix}", next.0);
                        Some(RETRY)
                    }
                },
            };
            if told.len() > MOST {
                self.forget(&mut told);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause(wait) => {}
                Ok(()) = self.misread.changed(), if wait.is_none() => {}
                Ok(()) = self.leading.changed(), if wait.is_none() => {}
            }
        }
    }

    /// O(what is wrong).
    fn untold(&self, told: &BTreeSet<Told>) -> Option<Told> {
        let all = self.misread.borrow().clone();
        let texts = all.iter().flat_map(|(key, misread)| {
            misread.texts.iter().map(|text| (key.clone(), misread.uid.clone(), text.clone()))
        });
        let mut texts = texts;
        texts.find(|text| !told.contains(text))
    }

    fn forget(&self, told: &mut BTreeSet<Told>) {
        let all = self.misread.borrow().clone();
        told.retain(|(key, uid, text)| {
            all.get(key).is_some_and(|misread| misread.uid == *uid && misread.texts.contains(text))
        });
    }

    /// One that is there already was written before.
    async fn write(&self, told: &Told) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), told.0.event_namespace());
        match api.create(&PostParams::default(), &event(told, &self.instance)).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            // The namespace is ending, and its Service with it.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result.map(drop),
        }
    }
}

fn event((subject, uid, text): &Told, instance: &str) -> Event {
    let some = |text: &str| Some(text.to_owned());
    let name = format!("{}.{:016x}", subject.name(), fnv(&[uid.as_bytes(), text.as_bytes()]));
    let cut = text.floor_char_boundary(NOTE);
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: some(subject.event_namespace()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(k8s_openapi::jiff::Timestamp::now())),
        type_: some("Warning"),
        reason: some("AnnotationNotUnderstood"),
        action: some("Export"),
        note: some(&text[..cut]),
        reporting_controller: some(CONTROLLER),
        reporting_instance: some(&instance[..instance.floor_char_boundary(128)]),
        regarding: Some(ObjectReference {
            api_version: some("v1"),
            kind: some(subject.kind()),
            namespace: subject.namespace().map(str::to_owned),
            name: some(subject.name()),
            uid: some(uid),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

/// FNV-1a: the same in every replica and version.
fn fnv(parts: &[&[u8]]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| part.iter().chain(&[0]).fold(hash, fold))
}

async fn pause(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Told {
        (Subject::Service(ServiceKey::new("shop", "cart").unwrap()), "uid-1".into(), text.to_owned())
    }

    #[test]
    fn an_event_is_named_by_its_object_and_text_and_fits() {
        let name = |told: &Told| event(told, "pod").metadata.name.unwrap();
        assert_eq!(name(&told("a")), name(&told("a")));
        assert_ne!(name(&told("a")), name(&told("b")));
        assert!(name(&told("a")).starts_with("cart."));
        let long = event(&told(&"ä".repeat(2_000)), &"x".repeat(500));
        assert!(long.note.unwrap().len() <= 1_024 && long.reporting_instance.unwrap().len() <= 128);
    }

    #[test]
    fn an_event_about_a_node_lies_where_kubernetes_wants_it() {
        let node = Subject::Node(NodeName::parse("node-1").unwrap());
        let event = event(&(node, "uid-2".into(), "a".to_owned()), "pod");
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        let regarding = event.regarding.unwrap();
        assert_eq!((regarding.kind.as_deref(), regarding.namespace), (Some("Node"), None));
    }
}
