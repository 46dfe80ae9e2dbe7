//! The option of every verb that writes to a repository.

use clap::Args;
use underlay_store::repository::Access;

/// Whether to write although another host owns the repository.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Owning {
    /// Become the repository's owner, though another host is. Only if that host is gone for good
    #[arg(long)]
    take_over: bool,
}

impl Owning {
    /// For a verb that writes.
    pub fn writing(self) -> Access {
        if self.take_over { Access::TakeOver } else { Access::Write }
    }

    /// For one that does not if `dry_run`.
    pub fn writing_unless(self, dry_run: bool) -> Access {
        if dry_run { Access::Read } else { self.writing() }
    }
}
