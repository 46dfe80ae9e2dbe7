//! client

pub mod restore;
