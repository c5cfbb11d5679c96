//! What goes to standard output: lines, aligned tables, JSON; and how an error is said.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Refused before anything was changed; the process exits with 64.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Unlike `println!`, a closed pipe is not a panic.
pub(crate) fn line(text: &str) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("standard output"),
    }
}

pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Columns as wide as their widest cell, two spaces between.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        line(padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    print(&mut head.iter().copied())?;
    rows.iter().try_for_each(|row| print(&mut row.iter().map(String::as_str)))
}

/// A file of ours: readable by its owner alone when it holds a secret.
pub(crate) fn write(path: &Path, text: &str, secret: bool) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mode = if secret { 0o600 } else { 0o644 };
    let open = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    let mut file = open.with_context(|| format!("{} cannot be written", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("{} cannot be written", path.display()))
}

/// Puts a file in the place of one that others read: the old one or the new one is there, whole, whatever happens.
pub(crate) fn replace(path: &Path, text: &str, secret: bool) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    // With the mode that it is to have: one left by a crash may have another.
    let _ = std::fs::remove_file(beside);
    write(beside, text, secret)?;
    let done = || {
        std::fs::File::open(beside)?.sync_all()?;
        std::fs::rename(beside, path)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(dir)?.sync_all()
    };
    done().with_context(|| format!("{} cannot be replaced", path.display()))
}

/// Every cause once, outermost first.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !said.contains(&text) {
            if !said.is_empty() {
                said.push_str(": ");
            }
            said.push_str(&text);
        }
    }
    said
}

/// `4.2 s`, `3 min`; `never` for what did not happen.
pub(crate) fn ago(ms: i64) -> String {
    match ms {
        ms if ms < 0 => "never".into(),
        ms if ms < 1_000 => format!("{ms} ms"),
        ms if ms < 120_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        ms if ms < 7_200_000 => format!("{} min", ms / 60_000),
        ms if ms < 172_800_000 => format!("{} h", ms / 3_600_000),
        ms => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_say_them() {
        let said: Vec<_> = [-1, 12, 4_250, 180_000, 7_200_000, 200_000_000].into_iter().map(ago).collect();
        assert_eq!(said, ["never", "12 ms", "4.2 s", "3 min", "2 h", "2 d"]);
    }

    #[test]
    fn a_cause_is_said_once() {
        let error =
            anyhow::Error::from(Refused("the disk is full".into())).context("no CA: the disk is full");
        assert_eq!(chain(&error), "no CA: the disk is full");
    }
}
