//! client
pub mod image;
