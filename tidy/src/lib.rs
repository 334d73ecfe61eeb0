//! Nothing at run time: this crate exists for its tests, which read the source tree.
//!
//! Owns: the rules that no compiler checks (`tests/tidy.rs`, `tests/licences.rs`).
//! Not here: formatting (rustfmt) and lints (clippy); `make test` runs all of them.
