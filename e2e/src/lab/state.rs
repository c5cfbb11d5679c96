//! `places.json` in the run directory: how to get in from outside, for `hawser-lab enter` and for people.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Lab;
use crate::place::Place;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceEntry {
    /// `cluster/node`, `cluster/node/pod` or `stranger`.
    pub name: String,
    /// Of the process that holds the namespaces, as seen outside of the lab.
    pub host_pid: u32,
    pub cgroup: PathBuf,
}

impl PlaceEntry {
    fn of(place: &Place) -> Self {
        Self {
            name: place.name().to_owned(),
            host_pid: place.host_pid(),
            cgroup: place.cgroup().to_path_buf(),
        }
    }
}

impl Lab {
    pub fn places(&self) -> Vec<PlaceEntry> {
        let mut places = vec![PlaceEntry::of(&self.stranger)];
        for (_, node) in self.nodes() {
            places.push(PlaceEntry::of(&node.place));
            places.extend(node.pods.iter().map(|pod| PlaceEntry::of(&pod.place)));
        }
        places
    }

    pub(super) fn write_state(&self) -> Result<()> {
        let path = self.inside.dir.join("places.json");
        let text = serde_json::to_string_pretty(&self.places()).context("encoding places.json")?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}
