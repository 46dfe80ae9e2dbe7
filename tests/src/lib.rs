//! tests
pub mod images;
