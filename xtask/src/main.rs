//! Checks that the house keeps its shape: `cargo xtask layers | tidy | book`.

mod book;
mod layers;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <check>

  layers   arrows between crates point down, cores import nothing that does IO, and the graph is xtask/layers.golden
           (UPDATE_EXPECT=1 rewrites the golden file)
  tidy     files and functions keep their size, every file says its one idea
  book     every page of docs/ is in SUMMARY.md and every link leads somewhere
";

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let result = match std::env::args().nth(1).as_deref() {
        Some("layers") => layers::check(root),
        Some("tidy") => tidy::check(root),
        Some("book") => book::check(root),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One line per problem, or the sentence that says all is well.
fn verdict(what: &str, problems: &[String], done: String) -> anyhow::Result<String> {
    if problems.is_empty() {
        return Ok(done);
    }
    anyhow::bail!("{what}: {} problem(s)\n{}", problems.len(), problems.join("\n"))
}

/// The files git tracks or would track, below `root`, whose name ends with `suffix`.
fn files(root: &Path, suffix: &str) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()?;
    anyhow::ensure!(output.status.success(), "git ls-files failed in {}", root.display());
    let names = String::from_utf8(output.stdout)?;
    let mut files: Vec<_> =
        names.lines().filter(|name| name.ends_with(suffix)).map(|name| root.join(name)).collect();
    files.retain(|file| file.exists());
    files.sort();
    files.dedup();
    Ok(files)
}
