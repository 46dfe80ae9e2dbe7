//! Writers that do not trust each other.

use super::Repository;
use crate::Result;
use crate::id::PackName;

impl Repository {
    /// Says whether writers trust each other; remembered in the catalog. If they do not, a chunk, node or root is offered to a writer only if
    /// that writer stored it, or a holder of the keys has verified it.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub async fn set_strict(&self, strict: bool) -> Result<()> {
        self.with_catalog(move |catalog| catalog.set_strict(strict)).await
    }

    pub(super) async fn vouched(&self, packs: &[PackName]) -> Result<u64> {
        if !self.is_ours() {
            return Ok(0);
        }
        self.ownership.still_ours(&self.backend).await?;
        let packs = packs.to_vec();
        self.with_catalog(move |catalog| catalog.mark_verified(&packs)).await
    }
}
