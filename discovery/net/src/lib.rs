//! See docs/src/architecture/index.md.
