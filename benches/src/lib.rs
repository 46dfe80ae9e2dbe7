//! The comparison of underlay with what people would use instead, and with what this machine can do at best.
//!
//! `cargo xtask bench` runs it. Everything it needs it makes or fetches by itself and keeps in the cache of the test kit.

pub mod bench;
pub mod data;
pub mod measure;
pub mod parts;
pub mod report;
pub mod results;
pub mod tools;
