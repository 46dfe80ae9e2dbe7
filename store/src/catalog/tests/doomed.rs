//! Packs that somebody has decided to delete.

use super::*;
use crate::pack::PackId;

/// Whoever keeps a pack, or the right to store it, cannot make others rely on what the next owner deletes.
#[test]
fn the_name_of_a_removed_pack_does_not_come_back() {
    let catalog = catalog();
    let removed = pack(1, PackKind::Data, &[1]);
    catalog.open_session(session(1), "vm", 0).unwrap();
    catalog.bury(&[removed.name]).unwrap();
    let refused = |result: Result<()>| {
        assert!(
            matches!(&result, Err(Error::Invalid { rule, .. }) if rule.contains("removed")),
            "{result:?}"
        );
    };
    refused(catalog.expect_pack(session(1), &PackId::new(PackKind::Data, removed.name), 0));
    refused(catalog.add_pack(session(1), &removed));
    assert_eq!(catalog.have_chunks(session(1), &[chunk(1)], 0).unwrap(), [false]);
    assert!(catalog.expected_packs().unwrap().is_empty());
}
