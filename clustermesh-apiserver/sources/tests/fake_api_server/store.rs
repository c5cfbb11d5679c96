//! What the fake holds: objects by kind, one counter of versions, a history that can be compacted, and selectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

/// A resource as its path names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    pub plural: &'static str,
    pub kind: &'static str,
    pub group_version: &'static str,
    pub namespaced: bool,
}

const fn resource(
    plural: &'static str,
    kind: &'static str,
    group_version: &'static str,
    namespaced: bool,
) -> Resource {
    Resource { plural, kind, group_version, namespaced }
}

pub const RESOURCES: [Resource; 8] = [
    resource("namespaces", "Namespace", "v1", false),
    resource("nodes", "Node", "v1", false),
    resource("pods", "Pod", "v1", true),
    resource("services", "Service", "v1", true),
    resource("endpointslices", "EndpointSlice", "discovery.k8s.io/v1", true),
    resource("networkpolicies", "NetworkPolicy", "networking.k8s.io/v1", true),
    resource("serviceexports", "ServiceExport", "multicluster.x-k8s.io/v1beta1", true),
    resource("events", "Event", "events.k8s.io/v1", true),
];

pub fn resource_of(kind: &str) -> Resource {
    RESOURCES.into_iter().find(|resource| resource.kind == kind).expect("a kind that the fake has")
}

/// Namespace (empty where the kind has none) and name.
pub type Name = (String, String);

pub struct Change {
    pub revision: u64,
    pub resource: Resource,
    pub before: Option<Arc<Value>>,
    /// None: deleted.
    pub after: Option<Arc<Value>>,
}

/// `meta/v1.Status` of a refusal.
pub struct Refusal {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub retry_after: Option<u64>,
}

impl Refusal {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry_after: None }
    }

    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(seconds) = self.retry_after {
            status["details"] = json!({ "retryAfterSeconds": seconds });
        }
        status
    }
}

/// The rest of a list that was begun, all of one version.
pub struct Rest {
    pub revision: u64,
    pub items: Vec<Arc<Value>>,
}

/// Part of a list: its version, its items, the token for what is left and how many that are.
pub type Page = (u64, Vec<Arc<Value>>, Option<(String, usize)>);

#[derive(Default)]
pub struct Store {
    pub revision: u64,
    /// Versions up to this one are not to be had any more.
    pub compacted: u64,
    pub objects: BTreeMap<(Resource, Name), Arc<Value>>,
    pub history: Vec<Change>,
    pub rests: BTreeMap<String, Rest>,
    uids: u64,
    tokens: u64,
}

impl Store {
    fn change(&mut self, resource: Resource, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        self.history.push(Change { revision: self.revision, resource, before, after });
    }

    /// As `kubectl apply`: there afterwards, whether it was before or not.
    pub fn apply(&mut self, mut object: Value) -> Arc<Value> {
        let resource = resource_of(object["kind"].as_str().expect("a kind"));
        self.revision += 1;
        let name = name_of(&object);
        let before = self.objects.get(&(resource, name.clone())).cloned();
        let uid = match &before {
            Some(before) => before["metadata"]["uid"].clone(),
            None => {
                self.uids += 1;
                json!(format!("00000000-0000-4000-8000-{:012}", self.uids))
            }
        };
        let meta = &mut object["metadata"];
        meta["uid"] = uid;
        meta["resourceVersion"] = json!(self.revision.to_string());
        meta["creationTimestamp"] = json!("2026-11-20T21:44:55Z");
        meta["managedFields"] = json!([{
            "manager": "fake", "operation": "Update", "apiVersion": resource.group_version,
            "fieldsType": "FieldsV1", "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app": {} } } },
        }]);
        let object = Arc::new(object);
        self.objects.insert((resource, name), Arc::clone(&object));
        self.change(resource, before, Some(Arc::clone(&object)));
        object
    }

    pub fn create(&mut self, mut object: Value) -> Result<Arc<Value>, Refusal> {
        let resource = resource_of(object["kind"].as_str().unwrap_or_default());
        if object["metadata"]["name"].as_str().is_none() {
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
            object["metadata"]["name"] = json!(format!("{prefix}{:05}", self.revision));
        }
        let key = (resource, name_of(&object));
        if self.objects.contains_key(&key) {
            let message = format!("{} {:?} already exists", resource.plural, key.1.1);
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        Ok(self.apply(object))
    }

    pub fn update(&mut self, object: Value) -> Result<Arc<Value>, Refusal> {
        let resource = resource_of(object["kind"].as_str().unwrap_or_default());
        let held = self.get(resource, &name_of(&object))?;
        check_version(resource, &held, object["metadata"]["resourceVersion"].as_str())?;
        Ok(self.apply(object))
    }

    pub fn get(&self, resource: Resource, name: &Name) -> Result<Arc<Value>, Refusal> {
        let held = self.objects.get(&(resource, name.clone())).cloned();
        held.ok_or_else(|| {
            Refusal::new(404, "NotFound", format!("{} {:?} not found", resource.plural, name.1))
        })
    }

    /// `version`: only if it is still this one.
    pub fn delete(
        &mut self,
        resource: Resource,
        name: &Name,
        version: Option<&str>,
    ) -> Result<Arc<Value>, Refusal> {
        let held = self.get(resource, name)?;
        check_version(resource, &held, version)?;
        self.objects.remove(&(resource, name.clone()));
        self.revision += 1;
        self.change(resource, Some(Arc::clone(&held)), None);
        Ok(held)
    }

    /// Forgets what was: watches from before it and lists in their middle are told 410.
    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
        self.rests.clear();
    }

    /// A list, or the next part of one.
    pub fn list(
        &mut self,
        resource: Resource,
        namespace: Option<&str>,
        filter: &Filter,
        limit: usize,
        token: Option<&str>,
    ) -> Result<Page, Refusal> {
        let rest = match token {
            Some(token) => self.rests.remove(token).ok_or_else(|| {
                let message =
                    "The provided continue parameter is too old to display a consistent list result.";
                Refusal::new(410, "Expired", message)
            })?,
            None => {
                let all = self.objects.iter().filter(|((r, (ns, _)), object)| {
                    *r == resource
                        && namespace.is_none_or(|wanted| wanted == ns.as_str())
                        && filter.matches(object)
                });
                Rest { revision: self.revision, items: all.map(|(_, object)| Arc::clone(object)).collect() }
            }
        };
        let Rest { revision, mut items } = rest;
        if items.len() <= limit {
            return Ok((revision, items, None));
        }
        let left = items.split_off(limit);
        let count = left.len();
        self.tokens += 1;
        let next = format!("eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ.{}", self.tokens);
        self.rests.insert(next.clone(), Rest { revision, items: left });
        // Asked again with the same token, it says the same again: an answer may be lost.
        if let Some(token) = token {
            let mut whole = items.clone();
            whole.extend(self.rests[&next].items.iter().cloned());
            self.rests.insert(token.to_owned(), Rest { revision, items: whole });
        }
        Ok((revision, items, Some((next, count))))
    }
}

fn check_version(resource: Resource, held: &Value, wanted: Option<&str>) -> Result<(), Refusal> {
    match (wanted, held["metadata"]["resourceVersion"].as_str()) {
        (Some(wanted), Some(held)) if wanted != held => {
            let message = format!(
                "Operation cannot be fulfilled on {}: the object has been modified; please apply your changes to the \
                 latest version and try again",
                resource.plural
            );
            Err(Refusal::new(409, "Conflict", message))
        }
        _ => Ok(()),
    }
}

pub fn name_of(object: &Value) -> Name {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// A field or label selector, as much of it as anybody here sends.
#[derive(Default)]
pub struct Filter {
    fields: Vec<(String, String, bool)>,
    labels: Vec<LabelTerm>,
}

enum LabelTerm {
    Exists(String),
    Absent(String),
    Is(String, String, bool),
}

impl Filter {
    /// None: what a real server would refuse, or what the fake does not know.
    pub fn parse(fields: &str, labels: &str) -> Option<Self> {
        let mut filter = Self::default();
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            let (field, value, equal) = comparison(term)?;
            if !matches!(field, "status.phase" | "metadata.name" | "metadata.namespace" | "spec.nodeName") {
                return None;
            }
            filter.fields.push((field.replace('.', "/"), value.to_owned(), equal));
        }
        for term in labels.split(',').filter(|term| !term.is_empty()) {
            filter.labels.push(match (comparison(term), term.strip_prefix('!')) {
                (Some((label, value, equal)), _) => LabelTerm::Is(label.into(), value.into(), equal),
                (None, Some(label)) => LabelTerm::Absent(label.into()),
                (None, None) if !term.contains([' ', '(']) => LabelTerm::Exists(term.into()),
                (None, None) => return None,
            });
        }
        Some(filter)
    }

    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.fields.iter().all(|(field, value, equal)| {
            let held = object.pointer(&format!("/{field}")).and_then(Value::as_str).unwrap_or_default();
            (held == value) == *equal
        }) && self.labels.iter().all(|term| match term {
            LabelTerm::Exists(label) => labels.get(label).is_some(),
            LabelTerm::Absent(label) => labels.get(label).is_none(),
            LabelTerm::Is(label, value, equal) => {
                (labels.get(label).and_then(Value::as_str) == Some(value)) == *equal
            }
        })
    }
}

fn comparison(term: &str) -> Option<(&str, &str, bool)> {
    if let Some((field, value)) = term.split_once("!=") {
        return Some((field, value, false));
    }
    let (field, value) = term.split_once("==").or_else(|| term.split_once('='))?;
    Some((field, value, true))
}
