//! Taste as a test: files and functions keep their size, every file says its one idea, nothing is left lying about.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::verdict;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LEFTOVERS: &[&str] =
    &["FIX\u{4d}E", "XX\u{58}", "TO\u{44}O", "#[ign\u{6f}re", "allow(dead_\u{63}ode", "allow(unus\u{65}d"];

pub(crate) fn check(root: &Path) -> Result<String> {
    let mut problems = Vec::new();
    let files = crate::files(root, ".rs")?;
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        look_at(&name, &fs::read_to_string(file)?, &mut problems);
    }
    verdict("tidy", &problems, format!("tidy: {} files", files.len()))
}

fn look_at(name: &str, text: &str, problems: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > FILE_LINES_MAX {
        problems.push(format!("{name}: {} lines; split it by idea at {FILE_LINES_MAX}", lines.len()));
    }
    if !lines.first().is_some_and(|line| line.starts_with("//!")) {
        problems.push(format!("{name}: does not begin by saying its one idea (`//! ...`)"));
    }
    for (number, line) in lines.iter().enumerate() {
        for mark in LEFTOVERS.iter().filter(|mark| line.contains(**mark)) {
            problems.push(format!("{name}:{}: {mark} was left behind", number + 1));
        }
    }
    functions(name, &lines, problems);
}

/// rustfmt puts a function's closing brace at its own indentation, so counting needs no parser.
fn functions(name: &str, lines: &[&str], problems: &mut Vec<String>) {
    let mut open: Option<(usize, usize, &str)> = None;
    for (number, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if let Some((start, at, title)) = open {
            if indent == at && line.trim_start().starts_with('}') {
                let length = number - start + 1;
                if length > FUNCTION_LINES_MAX {
                    problems.push(format!(
                        "{name}:{}: {title} is {length} lines; {FUNCTION_LINES_MAX} fit a screen",
                        start + 1
                    ));
                }
                open = None;
            }
        } else if is_function(line) && !line.trim_end().ends_with(';') && !line.trim_end().ends_with('}') {
            open = Some((number, indent, line.trim()));
        }
    }
}

fn is_function(line: &str) -> bool {
    let mut words = line.split_whitespace();
    words.by_ref().take(6).take_while(|word| !word.starts_with("//")).any(|word| word == "fn")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        look_at("x.rs", text, &mut problems);
        problems
    }

    #[test]
    fn a_long_function_is_named() {
        let body = "    let x = 1;\n".repeat(80);
        let found = problems(&format!("//! Idea.\nfn long() {{\n{body}}}\nfn short() {{\n}}\n"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("x.rs:2: fn long() { is 82 lines"), "{found:?}");
    }

    #[test]
    fn a_file_without_an_idea_is_named() {
        assert_eq!(problems("fn main() {}\n").len(), 1);
        assert_eq!(problems("//! Idea.\nfn main() {}\n").len(), 0);
    }
}
