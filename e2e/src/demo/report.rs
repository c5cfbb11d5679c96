//! What the demo found, for people and for programs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::binaries;

/// What an act says when it held.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// One line each.
    pub(crate) lines: Vec<String>,
    pub(crate) details: Value,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Act {
    number: u8,
    title: &'static str,
    seconds: f64,
    held: bool,
    lines: Vec<String>,
    #[serde(skip_serializing_if = "Value::is_null")]
    details: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) store: &'static str,
    pub(crate) held: bool,
    pub(crate) seconds: f64,
    pub(crate) acts: Vec<Act>,
}

impl Act {
    pub(crate) fn new(number: u8, title: &'static str, took: Duration, outcome: Result<Facts>) -> Self {
        let seconds = (took.as_secs_f64() * 10.0).round() / 10.0;
        match outcome {
            Ok(Facts { lines, details }) => {
                Self { number, title, seconds, held: true, lines, details, why_not: None }
            }
            Err(error) => Self {
                number,
                title,
                seconds,
                held: false,
                lines: Vec::new(),
                details: Value::Null,
                why_not: Some(format!("{error:#}")),
            },
        }
    }

    pub(crate) fn held(&self) -> bool {
        self.held
    }

    pub(crate) fn print(&self) {
        let mark = if self.held { "held" } else { "DID NOT HOLD" };
        println!("act {}  {:<15} {:>5.1} s  {mark}", self.number, self.title, self.seconds);
        for line in self.lines.iter().chain(&self.why_not).flat_map(|text| text.lines()) {
            println!("         {line}");
        }
    }
}

impl Report {
    /// `target/demo/report.json`.
    pub(crate) fn write(&self) -> Result<PathBuf> {
        let dir = binaries::target_dir()?.join("demo");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join("report.json");
        let text = serde_json::to_string_pretty(self).context("encoding the report")?;
        fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
