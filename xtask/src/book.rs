//! The book: every page is in SUMMARY.md, and every relative link leads somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::verdict;

pub(crate) fn check(root: &Path) -> Result<String> {
    let source = root.join("docs/src");
    let mut problems = Vec::new();
    let mut listed = BTreeSet::new();
    let mut pages = crate::files(root, ".md")?;
    pages.retain(|page| page.starts_with(&source) || page.parent() == Some(root));
    for page in &pages {
        for target in links(&fs::read_to_string(page)?) {
            let path = page.parent().unwrap_or(root).join(&target);
            if !path.exists() {
                problems.push(format!("{}: link to {target} leads nowhere", show(root, page)));
            } else if page.ends_with("docs/src/SUMMARY.md") {
                listed.insert(path.canonicalize()?);
            }
        }
    }
    for page in pages.iter().filter(|page| page.starts_with(&source) && !page.ends_with("SUMMARY.md")) {
        if !listed.contains(&page.canonicalize()?) {
            problems.push(format!("{}: is not in docs/src/SUMMARY.md", show(root, page)));
        }
    }
    verdict("book", &problems, format!("book: {} pages, every link leads somewhere", pages.len()))
}

/// Targets of `[text](target)` that are files: no scheme, the anchor cut off.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in text.split("](").skip(1) {
        let target = rest.split(')').next().unwrap_or_default();
        let file = target.split('#').next().unwrap_or_default();
        if !file.is_empty() && !file.contains("://") && !file.contains(char::is_whitespace) {
            found.push(file.to_owned());
        }
    }
    found
}

fn show(root: &Path, page: &Path) -> String {
    page.strip_prefix(root).unwrap_or(page).display().to_string()
}
