//! Planning what to read for a restore. Pure.

mod plan;

pub use plan::{PackRead, Wanted, coalesce, frame_range, plan_reads};
