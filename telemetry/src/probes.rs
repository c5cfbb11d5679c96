//! `/livez` and `/readyz` as text: one line a check, as kube-apiserver's `?verbose` has it.

use std::fmt::Write as _;

/// One thing that was looked at. The reason is for the person on call: what it is, and since when or why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    /// What is worth knowing of it, or why it is not as it should be.
    pub state: Result<String, String>,
}

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: Ok(detail.into()) }
    }

    pub fn bad(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, state: Err(why.into()) }
    }

    pub fn is_ok(&self) -> bool {
        self.state.is_ok()
    }
}

/// Whether all are well, and the lines that say so. `page` is `readyz` or `livez`.
pub fn report(page: &str, checks: &[Check]) -> (bool, String) {
    let well = checks.iter().all(Check::is_ok);
    let mut text = String::new();
    for Check { name, state } in checks {
        // Writing to a string cannot fail.
        let _ = match state {
            Ok(detail) if detail.is_empty() => writeln!(text, "[+]{name} ok"),
            Ok(detail) => writeln!(text, "[+]{name} ok: {}", line(detail)),
            Err(why) => writeln!(text, "[-]{name} {}", line(why)),
        };
    }
    let _ = writeln!(text, "{page} check {}", if well { "passed" } else { "failed" });
    (well, text)
}

/// A reason may quote another cluster: it stays one line, and short.
fn line(text: &str) -> String {
    const LONGEST: usize = 500;
    text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_its_line_and_one_failure_fails_the_page() {
        let checks = [Check::ok("store", ""), Check::bad("source", "not synced: a.yaml\n[+]forged ok")];
        let (well, text) = report("readyz", &checks);
        assert!(!well);
        assert_eq!(text, "[+]store ok\n[-]source not synced: a.yaml [+]forged ok\nreadyz check failed\n");
        let (well, text) = report("livez", &[Check::ok("exporter", "idle")]);
        assert!(well);
        assert_eq!(text, "[+]exporter ok: idle\nlivez check passed\n");
    }
}
