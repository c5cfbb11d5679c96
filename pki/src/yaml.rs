//! The small YAML files that people carry between machines: read under a budget, written with every text quoted.

use serde::de::DeserializeOwned;

/// Bundles and join files are a few KiB; a certificate and some addresses.
pub(crate) const MAX_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    #[error("it is {len} bytes long, more than {MAX_BYTES}")]
    TooLarge { len: usize },
    #[error("line {line}: {reason}")]
    Syntax { line: u64, reason: String },
}

/// One document without anchors or aliases, which have no use in these files and a bad name for growing.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    if text.len() > MAX_BYTES {
        return Err(YamlError::TooLarge { len: text.len() });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 8, max_aliases: 0, max_anchors: 0, max_documents: 1 },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let reason: String = error.to_string().chars().take(200).collect();
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        YamlError::Syntax { line, reason }
    })
}

/// `"text"`, because `null`, `1e3` and `yes` are fine names for a cluster.
pub(crate) fn quoted(text: impl ToString) -> String {
    // JSON's strings are YAML's double-quoted scalars (YAML 1.2 §1.3).
    serde_json::Value::String(text.to_string()).to_string()
}

/// `["a", "b"]`
pub(crate) fn flow<T: std::fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(quoted).collect();
    format!("[{}]", items.join(", "))
}

/// A block literal's lines, indented by two.
pub(crate) fn block(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
