//! See docs/src/architecture/index.md.
fn main() {}
