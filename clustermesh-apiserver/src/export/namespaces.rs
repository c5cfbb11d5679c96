//! The labels of namespaces: no peer reads them, and every replica decides by them what peers are exported.

use std::sync::Arc;

use super::{Export, Part};
use crate::exports::{encode_namespace, namespace_key};
use crate::objects::Objects;

impl Export {
    pub(super) fn export_namespaces(objects: &Objects) -> Part {
        let labelled = |namespace: &Arc<hawser_sources::Namespace>| {
            (namespace_key(&namespace.name), encode_namespace(&namespace.labels.to_map()))
        };
        Part { entries: objects.namespaces.values().map(labelled).collect(), ..Part::default() }
    }
}
