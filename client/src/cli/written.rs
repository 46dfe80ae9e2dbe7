//! What became of restored disks.

use std::path::PathBuf;

use serde_json::json;
use underlay_store::snapshot::Disk;

use super::report::Failure;
use crate::restore::{Hole, OutputFormat, RestoreStatistics};

/// A disk, and where it goes.
pub(super) struct Target<'a> {
    pub disk: &'a Disk,
    pub path: PathBuf,
    pub format: OutputFormat,
}

/// What became of it.
pub(super) struct Written<'a> {
    pub target: Target<'a>,
    pub result: Result<RestoreStatistics, Failure>,
    /// What could not be had, if holes are allowed.
    pub holes: Vec<Hole>,
}

impl Written<'_> {
    pub fn document(&self) -> serde_json::Value {
        let mut document = json!({
            "disk": self.target.disk.name,
            "path": self.target.path.display().to_string(),
            "size": self.target.disk.root.size,
        });
        match &self.result {
            Ok(statistics) => {
                document["statistics"] = json!(statistics);
                if !self.holes.is_empty() {
                    document["holes"] = json!(self.holes);
                }
            }
            Err(failure) => document["error"] = json!(failure.line()),
        }
        document
    }
}
