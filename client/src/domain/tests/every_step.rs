//! Killed at every moment there is, one after the other.

use std::collections::BTreeSet;

use super::rig::Rig;
use super::world::{Interruption, Layout};
use crate::domain::{Approach, Quiesce, Step};

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

fn prepared(layout: Layout, approach: Approach, earlier: usize) -> Rig {
    let rig = Rig::new(layout, 77);
    for _ in 0..earlier {
        rig.backup(approach, Quiesce::IfPossible).unwrap().unwrap();
    }
    rig
}

/// How many moments a backup has when nothing interrupts it.
fn moments(layout: Layout, approach: Approach, earlier: usize) -> usize {
    let rig = prepared(layout, approach, earlier);
    rig.interrupt(&[]);
    rig.backup(approach, Quiesce::IfPossible).unwrap().unwrap();
    rig.host.world().clock
}

fn layouts() -> impl Iterator<Item = (Layout, usize)> {
    let disks = [1, 2].into_iter();
    disks.flat_map(|disks| {
        [false, true]
            .into_iter()
            .flat_map(move |raw| [0, 1].map(|earlier| (Layout { disks, raw, ..Layout::default() }, earlier)))
    })
}

/// Interrupts a backup at each of its moments; how many cases there were, and what steps were taken.
fn interrupted(
    approach: Approach,
    what: Interruption,
    layout: Layout,
    earlier: usize,
    meanwhile: &[Meanwhile],
) -> (usize, BTreeSet<Step>) {
    let (mut cases, mut taken) = (0, BTreeSet::new());
    for at in 0..moments(layout, approach, earlier) {
        for meanwhile in meanwhile {
            let mut rig = prepared(layout, approach, earlier);
            rig.label = format!("{approach:?} {earlier} {what:?} {at} {meanwhile:?}");
            rig.interrupt(&[(at, what)]);
            let _ = rig.backup(approach, Quiesce::IfPossible);
            if !matches!(meanwhile, Meanwhile::Nothing) {
                rig.host.world().stop();
            }
            if matches!(meanwhile, Meanwhile::Restarts) {
                rig.host.world().start();
            }
            rig.recover().unwrap().unwrap();
            if approach == Approach::Pivot {
                assert!(rig.is_given_back());
            }
            rig.finish(approach);
            cases += 1;
            taken.append(&mut rig.host.world().taken);
        }
    }
    (cases, taken)
}

fn killed_everywhere(approach: Approach) -> usize {
    layouts()
        .filter(|(layout, _)| !layout.raw || approach != Approach::Bitmap)
        .map(|(layout, earlier)| interrupted(approach, Interruption::Kill, layout, earlier, &MEANWHILE).0)
        .sum()
}

#[test]
fn killed_at_every_moment_of_a_rotation() {
    let cases = killed_everywhere(Approach::Rotate);
    assert!(cases > 1000, "{cases}");
}

#[test]
fn killed_at_every_moment_of_a_pivot() {
    let cases = killed_everywhere(Approach::Pivot);
    assert!(cases > 1000, "{cases}");
}

#[test]
fn killed_at_every_moment_of_a_backup_by_bitmap() {
    let cases = killed_everywhere(Approach::Bitmap);
    assert!(cases > 500, "{cases}");
}

/// What goes wrong in other ways.
fn something_goes_wrong(approach: Approach) {
    let others = [
        Interruption::HostCrash,
        Interruption::GuestStops,
        Interruption::GuestDies,
        Interruption::GuestRestarts,
        Interruption::FailsBefore,
        Interruption::FailsAfter,
        Interruption::NotSaved,
        Interruption::Partly,
    ];
    for what in others {
        let layout = Layout { disks: 2, ..Layout::default() };
        interrupted(approach, what, layout, 1, &[Meanwhile::Nothing, Meanwhile::Stops]);
    }
}

#[test]
fn something_goes_wrong_at_every_moment_of_a_rotation() {
    something_goes_wrong(Approach::Rotate);
}

#[test]
fn something_goes_wrong_at_every_moment_of_a_pivot() {
    something_goes_wrong(Approach::Pivot);
}

#[test]
fn something_goes_wrong_at_every_moment_of_a_backup_by_bitmap() {
    something_goes_wrong(Approach::Bitmap);
}

#[test]
fn nova_restarts_its_domain_at_every_moment() {
    let layout = Layout { disks: 2, nova: true, ..Layout::default() };
    interrupted(Approach::Pivot, Interruption::NovaRestarts, layout, 1, &MEANWHILE);
    interrupted(Approach::Bitmap, Interruption::NovaRestarts, layout, 1, &MEANWHILE);
}

/// Killed, and its recovery killed as well, at every pair of moments.
fn killed_twice(approach: Approach) -> usize {
    let layout = Layout::default();
    let mut cases = 0;
    for first in 0..moments(layout, approach, 1) {
        for second in 0.. {
            let mut rig = prepared(layout, approach, 1);
            rig.label = format!("{approach:?} {first} {second}");
            rig.interrupt(&[(first, Interruption::Kill)]);
            assert!(rig.backup(approach, Quiesce::IfPossible).is_none());
            if first % 2 == 1 {
                rig.host.world().stop();
            }
            rig.interrupt(&[(second, Interruption::Kill)]);
            let recovered = rig.recover();
            rig.finish(approach);
            cases += 1;
            if recovered.is_some() {
                break;
            }
        }
    }
    cases
}

#[test]
fn killed_again_at_every_moment_of_the_recovery() {
    let cases = [Approach::Rotate, Approach::Pivot, Approach::Bitmap].map(killed_twice).iter().sum::<usize>();
    assert!(cases > 1000, "{cases}");
}

/// The next one, until there is none: a new step that is not in here does not compile.
fn next(step: Step) -> Option<Step> {
    match step {
        Step::Record => Some(Step::Freeze),
        Step::Freeze => Some(Step::Quiesce),
        Step::Quiesce => Some(Step::Thaw),
        Step::Thaw => Some(Step::Capture),
        Step::Capture => Some(Step::Commit),
        Step::Commit => Some(Step::CommitActive),
        Step::CommitActive => Some(Step::Pivot),
        Step::Pivot => Some(Step::CommitStopped),
        Step::CommitStopped => Some(Step::BeginCheckpoint),
        Step::BeginCheckpoint => Some(Step::BeginPull),
        Step::BeginPull => Some(Step::EndPull),
        Step::EndPull => Some(Step::ForgetCheckpoint),
        Step::ForgetCheckpoint => Some(Step::KnowCheckpoint),
        Step::KnowCheckpoint => Some(Step::RemoveCheckpoint),
        Step::RemoveCheckpoint => Some(Step::Define),
        Step::Define => Some(Step::Remember),
        Step::Remember => Some(Step::Remove),
        Step::Remove => Some(Step::SetAside),
        Step::SetAside => None,
        // The double's guests always have room, and its files no bitmaps but by libvirt: `real_domain_bitmap` takes these.
        Step::Resume | Step::RemoveBitmap => None,
    }
}

#[test]
fn these_runs_take_every_step() {
    let layout = Layout::default();
    let mut taken = BTreeSet::new();
    for approach in [Approach::Rotate, Approach::Pivot, Approach::Bitmap] {
        for what in [Interruption::Kill, Interruption::NotSaved, Interruption::FailsAfter] {
            taken.extend(interrupted(approach, what, layout, 1, &MEANWHILE).1);
        }
    }
    let all = std::iter::successors(Some(Step::Record), |step| next(*step));
    assert!(all.eq(taken.into_iter()), "not all steps were taken");
}
