//! Sessions: what must hold before a snapshot is committed.

mod proof;

pub(crate) use proof::{Facts, prove};
