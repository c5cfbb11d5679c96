//! `clustermesh-apiserver repair`: says what of a damaged embedded store can be saved, and saves it when told to.

use std::path::{Path, PathBuf};

use hawser_etcd::durable::{Directory, RepairError, TakeError, salvage};

#[derive(Debug, thiserror::Error)]
pub enum RepairFailure {
    #[error("there is no directory {path}; fix: name the one of `store: embedded:DIR`")]
    Absent { path: PathBuf },
    #[error(transparent)]
    Take(#[from] TakeError),
    #[error(transparent)]
    Repair(#[from] RepairError),
}

/// What there was to do, and whether it was done.
#[derive(Debug)]
pub struct Outcome {
    pub report: String,
    /// There is damage, and it was not repaired because nobody said `--yes`.
    pub refused: bool,
}

/// Changes nothing without `yes`. Cost: the store in memory.
pub fn run(store: &Path, yes: bool, json: bool) -> Result<Outcome, RepairFailure> {
    if !store.is_dir() {
        return Err(RepairFailure::Absent { path: store.to_owned() });
    }
    let directory = Directory::take(store)?;
    let found = salvage(&directory)?;
    let (place, keys, revision) = (found.place.clone(), found.keys, found.revision);
    let lost: Vec<String> = found.damage.iter().map(ToString::to_string).collect();
    let refused = !lost.is_empty() && !yes;
    let kept = match lost.is_empty() || refused {
        true => Vec::new(),
        false => found.repair(&directory, rand::random())?,
    };
    let report = match json {
        true => serde_json::json!({
            "store": place, "lost": lost, "keys": keys, "revision": revision, "repaired": !kept.is_empty(), "kept": kept,
        })
        .to_string(),
        false => say(&place, &lost, keys, revision, &kept),
    };
    Ok(Outcome { report, refused })
}

fn say(place: &str, lost: &[String], keys: usize, revision: i64, kept: &[String]) -> String {
    if lost.is_empty() {
        return format!(
            "the store {place} is whole: {keys} keys at revision {revision}. Nothing was changed."
        );
    }
    let lost: String = lost.iter().map(|line| format!("  {line}\n")).collect();
    let saved = format!("{keys} keys can be read, up to revision {revision}");
    if kept.is_empty() {
        return format!(
            "the store {place} is damaged:\n{lost}{saved}. A key that was written in what is lost is then as it was before; one \
             that was deleted there is back.\nNothing was changed. fix: run this again with --yes"
        );
    }
    format!(
        "the store {place} was damaged:\n{lost}{saved}, and these are the store now, under a new lineage: peers and agents list \
         it anew by themselves.\nThe files as they were are kept beside it: {}",
        kept.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_etcd::durable::{Embedded, EmbeddedConfig};
    use hawser_etcd::server::Writer;
    use hawser_kvstore::{Op, Put};

    async fn damaged(dir: &Path) {
        let runtime = tokio::runtime::Handle::current();
        let store = Embedded::open(dir, "us-east", EmbeddedConfig::default(), &runtime).unwrap();
        for n in 0..5 {
            store.writer.write(Op::Put(Put::new(format!("k{n}"), "v"))).await.unwrap();
        }
        let log = dir.join("log-00000000000000000001");
        let mut bytes = std::fs::read(&log).unwrap();
        bytes[60] ^= 1;
        std::fs::write(log, bytes).unwrap();
    }

    #[tokio::test]
    async fn damage_is_told_first_and_repaired_when_somebody_says_yes() {
        let dir = tempfile::tempdir().unwrap();
        damaged(dir.path()).await;
        // The store's task has the lock until its queue is seen to be closed.
        let first = loop {
            match run(dir.path(), false, false) {
                Err(RepairFailure::Take(TakeError::InUse { .. })) => tokio::task::yield_now().await,
                other => break other.unwrap(),
            }
        };
        assert!(first.refused && first.report.contains("lost is revision 2"), "{}", first.report);
        assert!(first.report.contains("4 keys can be read, up to revision 6"), "{}", first.report);
        let second = run(dir.path(), true, false).unwrap();
        assert!(!second.refused && second.report.contains("kept beside it: damaged-"), "{}", second.report);
        let third = run(dir.path(), false, true).unwrap();
        assert!(!third.refused && third.report.contains("\"keys\":4"), "{}", third.report);
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("store");
        assert!(run(&absent, true, false).unwrap_err().to_string().contains("there is no directory"));
        assert!(!absent.exists());
    }
}
