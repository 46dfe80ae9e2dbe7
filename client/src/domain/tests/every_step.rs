//! Killed at every moment there is, one after the other.

use super::rig::Rig;
use super::world::{Interruption, Layout};
use crate::domain::{Quiesce, Strategy};

/// What happens between being killed and being run again.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Nothing,
    /// The guest is shut down, and started after the recovery.
    Stops,
    /// The guest is shut down and started again.
    Restarts,
}

const MEANWHILE: [Meanwhile; 3] = [Meanwhile::Nothing, Meanwhile::Stops, Meanwhile::Restarts];

fn prepared(layout: Layout, strategy: Strategy, earlier: usize) -> Rig {
    let rig = Rig::new(layout, 77);
    for _ in 0..earlier {
        rig.backup(strategy, Quiesce::IfPossible).unwrap().unwrap();
    }
    rig
}

/// How many moments a backup has when nothing interrupts it.
fn moments(layout: Layout, strategy: Strategy, earlier: usize) -> usize {
    let rig = prepared(layout, strategy, earlier);
    rig.interrupt(&[]);
    rig.backup(strategy, Quiesce::IfPossible).unwrap().unwrap();
    rig.host.world().clock
}

fn layouts() -> impl Iterator<Item = (Layout, usize)> {
    let disks = [1, 2].into_iter();
    disks.flat_map(|disks| {
        [false, true].into_iter().flat_map(move |raw| {
            [0, 1, 2].map(|earlier| (Layout { disks, raw, ..Layout::default() }, earlier))
        })
    })
}

fn interrupted_everywhere(strategy: Strategy, what: Interruption) -> usize {
    let mut cases = 0;
    for (layout, earlier) in layouts() {
        for at in 0..moments(layout, strategy, earlier) {
            for meanwhile in MEANWHILE {
                let mut rig = prepared(layout, strategy, earlier);
                rig.label = format!("{strategy:?} {earlier} {what:?} {at} {meanwhile:?}");
                rig.interrupt(&[(at, what)]);
                let _ = rig.backup(strategy, Quiesce::IfPossible);
                if !matches!(meanwhile, Meanwhile::Nothing) {
                    rig.host.world().stop();
                }
                if matches!(meanwhile, Meanwhile::Restarts) {
                    rig.host.world().start();
                }
                rig.recover().unwrap().unwrap();
                if strategy == Strategy::Pivot {
                    assert!(rig.is_given_back());
                }
                rig.finish(strategy);
                cases += 1;
            }
        }
    }
    cases
}

#[test]
fn killed_at_every_moment_of_a_rotation() {
    let cases = interrupted_everywhere(Strategy::Rotate, Interruption::Kill);
    assert!(cases > 1000, "{cases}");
}

#[test]
fn killed_at_every_moment_of_a_pivot() {
    let cases = interrupted_everywhere(Strategy::Pivot, Interruption::Kill);
    assert!(cases > 1000, "{cases}");
}

const LESSER: [Interruption; 7] = [
    Interruption::HostCrash,
    Interruption::GuestStops,
    Interruption::GuestRestarts,
    Interruption::FailsBefore,
    Interruption::FailsAfter,
    Interruption::NotSaved,
    Interruption::Partly,
];

#[test]
fn something_goes_wrong_at_every_moment_of_a_rotation() {
    for what in LESSER {
        interrupted_everywhere(Strategy::Rotate, what);
    }
}

#[test]
fn something_goes_wrong_at_every_moment_of_a_pivot() {
    for what in LESSER {
        interrupted_everywhere(Strategy::Pivot, what);
    }
}
