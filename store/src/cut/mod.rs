//! cut

pub mod parameters;
