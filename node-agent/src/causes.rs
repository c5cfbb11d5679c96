//! Errors for people: every cause once.

/// Outermost first. Many of our errors say their cause themselves; it is not said again.
pub fn chain(error: &anyhow::Error) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no key: {0}")]
    struct NoKey(#[source] std::io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::Error::from(NoKey(std::io::Error::other("the disk is full")));
        assert_eq!(chain(&error), "no key: the disk is full");
        assert_eq!(chain(&error.context("starting")), "starting: no key: the disk is full");
    }
}
