//! `exports:` of cluster.yaml, taken over while the server runs: another filter is another view, which its readers list.
//!
//! Everything else there counts after a restart.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Views;
use crate::config::Config;

/// How often the file is read. A mounted ConfigMap changes by a link to another directory, so it is not watched.
const LOOK: Duration = Duration::from_secs(1);

/// Follows the file until told to stop. Cost: reading it, and parsing it when it is another one.
pub async fn follow_file(config: Arc<Config>, views: Views, stop: CancellationToken) {
    let mut seen = None;
    loop {
        let text = std::fs::read_to_string(&config.file).map_err(|error| error.to_string());
        if seen.as_ref() != Some(&text) {
            look(&config, &views, &text);
            seen = Some(text);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn look(config: &Config, views: &Views, text: &Result<String, String>) {
    let file = config.file.display();
    let read = match text {
        Ok(text) => Config::parse(&config.file, text).map_err(|error| error.to_string()),
        Err(error) => Err(format!("cannot read {file}: {error}; fix: put it back")),
    };
    let read = match read {
        Ok(read) => read,
        Err(why) => {
            let problem = format!("{why} (until then the exports before it count)");
            tracing::error!(problem, "the configuration on disk cannot be taken over");
            return views.note(Some(problem));
        }
    };
    views.note(None);
    // The flag may say what the file does not.
    let same = Config { exports: config.exports.clone(), metrics: config.metrics, ..read.clone() };
    if same != *config {
        tracing::warn!(
            file = %file,
            "the configuration on disk is another one; what is not under exports counts after a restart; fix: restart this server"
        );
    }
    let changed = views.set(read.exports);
    if !changed.is_empty() {
        tracing::info!(file = %file, peers = changed.join(", "), "other export filters count");
    }
}
