//! The underlay repository: chunks, packs, trees, snapshots and the catalog that says where things are.
//!
//! `docs/format.md` draws every byte, `docs/architecture.md` the rooms. This crate knows no terminal, no HTTP and no
//! disk-image format.

pub mod authority;
pub mod backend;
pub mod catalog;
pub mod check;
pub mod cut;
pub mod digest;
pub mod document;
pub mod error;
pub mod gc;
pub mod hexadecimal;
pub mod id;
pub mod key;
pub mod names;
pub mod pack;
pub mod progress;
pub mod repository;
pub mod restore;
#[doc(hidden)]
pub mod sabotage;
pub mod session;
pub mod snapshot;
pub mod tree;
pub mod wire;

pub use error::{Error, Result};
