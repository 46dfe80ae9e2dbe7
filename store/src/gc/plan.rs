//! Which packs go, which are copied forward, which stay. Pure.

use crate::catalog::PackUse;

/// What to do with the packs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Nothing in them is alive.
    pub(crate) drop: Vec<PackUse>,
    /// Little of them is alive: that is copied to new packs, and then they go.
    pub(crate) copy: Vec<PackUse>,
    /// The rest.
    pub(crate) keep: Vec<PackUse>,
}

/// Plans a collection that leaves at most `max_unused` of the kept bytes unused (0.05 is 5 %), by copying forward first the packs
/// where a copied byte frees most. Packs that open sessions write, or may come to need, stay as they are.
pub(crate) fn plan(packs: Vec<PackUse>, max_unused: f64) -> Plan {
    let mut plan = Plan::default();
    let mut partly = Vec::new();
    for pack in packs {
        match (pack.held || pack.replaces, pack.live_entries) {
            (true, _) => plan.keep.push(pack),
            (false, 0) => plan.drop.push(pack),
            // Nothing damaged gets a new name.
            (false, live) if live < pack.entries && !pack.suspected => partly.push(pack),
            _ => plan.keep.push(pack),
        }
    }
    let kept: u64 = plan.keep.iter().chain(&partly).map(|pack| pack.live_bytes).sum();
    let mut unused: u64 = plan.keep.iter().chain(&partly).map(PackUse::unused).sum();
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let allowed = (kept as f64 * max_unused.max(0.0)) as u64;
    // The share of life, smallest first, without division: a/b < c/d as a*d < c*b.
    partly.sort_by(|a, b| {
        let share = |one: &PackUse, other: &PackUse| u128::from(one.live_bytes) * u128::from(other.size);
        share(a, b).cmp(&share(b, a)).then(a.name.cmp(&b.name))
    });
    for pack in partly {
        if unused > allowed {
            unused -= pack.unused();
            plan.copy.push(pack);
        } else {
            plan.keep.push(pack);
        }
    }
    plan
}

/// Groups packs, in their order, so that what is copied from each group is about `target` bytes.
pub(crate) fn groups(packs: &[PackUse], target: u64) -> Vec<&[PackUse]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, pack) in packs.iter().enumerate() {
        if at > start && bytes + pack.live_bytes > target {
            groups.push(&packs[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += pack.live_bytes;
    }
    if start < packs.len() {
        groups.push(&packs[start..]);
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::PackState;
    use crate::id::PackName;
    use crate::pack::PackKind;

    fn pack(name: u8, live: u64, entries: u64, held: bool) -> PackUse {
        PackUse {
            name: PackName::new([name; 32]),
            kind: PackKind::Data,
            size: entries * 100 + 50,
            entries,
            live_entries: live,
            live_bytes: live * 100,
            state: PackState::Live,
            held,
            replaces: false,
            suspected: false,
            origin: crate::catalog::Origin::Unknown,
        }
    }

    fn names(packs: &[PackUse]) -> Vec<u8> {
        packs.iter().map(|pack| pack.name.as_bytes()[0]).collect()
    }

    #[test]
    fn the_emptiest_are_copied_until_the_budget_is_met() {
        let packs = vec![
            pack(1, 0, 10, false),
            pack(2, 1, 10, false),
            pack(3, 5, 10, false),
            pack(4, 9, 10, false),
            pack(5, 10, 10, false),
            pack(6, 0, 10, true),
        ];
        let all = plan(packs.clone(), 0.0);
        assert_eq!((names(&all.drop), names(&all.copy)), (vec![1], vec![2, 3, 4]));
        assert_eq!(names(&all.keep), [5, 6], "what a session writes stays, dead or not");
        let some = plan(packs.clone(), 0.8);
        assert_eq!((names(&some.copy), names(&some.keep)), (vec![2], vec![5, 6, 3, 4]));
        let none = plan(packs, 1000.0);
        assert_eq!(
            (names(&none.drop), none.copy.len()),
            (vec![1], 0),
            "what is dead goes whatever the budget"
        );
    }

    proptest! {
        #[test]
        fn nothing_alive_is_dropped_and_the_budget_holds(
            packs in prop::collection::vec((0..20_u64, 1..20_u64, any::<bool>()), 0..40),
            budget in 0.0..1.0_f64,
        ) {
            let packs: Vec<PackUse> = packs
                .into_iter()
                .enumerate()
                .map(|(name, (live, entries, held))| pack(name as u8, live.min(entries), entries, held))
                .collect();
            let plan = plan(packs.clone(), budget);
            prop_assert_eq!(plan.drop.len() + plan.copy.len() + plan.keep.len(), packs.len());
            prop_assert!(plan.drop.iter().all(|pack| pack.live_entries == 0 && !pack.held));
            prop_assert!(plan.copy.iter().all(|pack| pack.live_entries > 0 && !pack.held));
            let partly_kept = plan.keep.iter().any(|p| !p.held && p.live_entries < p.entries);
            if partly_kept {
                let unused: u64 = plan.keep.iter().map(PackUse::unused).sum();
                let live: u64 = plan.keep.iter().chain(&plan.copy).map(|pack| pack.live_bytes).sum();
                prop_assert!(unused as f64 <= live as f64 * budget + 1.0);
            }
            let copied: usize = groups(&plan.copy, 500).iter().map(|group| group.len()).sum();
            prop_assert_eq!(copied, plan.copy.len());
            for group in groups(&plan.copy, 500) {
                let bytes: u64 = group.iter().map(|pack| pack.live_bytes).sum();
                prop_assert!(group.len() == 1 || bytes <= 500);
            }
        }
    }
}
