//! A backup by bitmap that is interrupted at every moment, and what others do before underlay runs again.

use super::bitmaps::Ending;
use super::images::Bitmap;
use super::rig::Rig;
use super::world::{Interruption, Layout, World};
use crate::domain::{Approach, Quiesce, Strategy};

/// What somebody does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Nothing,
    KillsQemu,
    Restarts,
    RebootsHard,
    Undefines,
    /// Other files, with other content, and with bitmaps of the same names.
    ReplacesDisks,
    RemovesBitmaps,
    /// Under their names: those that are read by, or their witnesses.
    MakesBitmapsAgain {
        witnesses: bool,
    },
    BacksUpByPivot,
}

const DEEDS: [Deed; 10] = [
    Deed::Nothing,
    Deed::KillsQemu,
    Deed::Restarts,
    Deed::RebootsHard,
    Deed::Undefines,
    Deed::ReplacesDisks,
    Deed::RemovesBitmaps,
    Deed::MakesBitmapsAgain { witnesses: false },
    Deed::MakesBitmapsAgain { witnesses: true },
    Deed::BacksUpByPivot,
];

impl Deed {
    /// Whether the bitmaps that were believed can be believed still.
    fn keeps_bitmaps(self) -> bool {
        matches!(
            self,
            Self::Nothing | Self::Restarts | Self::RebootsHard | Self::MakesBitmapsAgain { witnesses: true }
        )
    }
}

impl World {
    /// Other files take the place of all disks of a stopped domain, with bitmaps that know nothing.
    fn replace_disks(&mut self) {
        self.stop();
        self.sequence += 1;
        for (target, layers) in self.machine.persistent() {
            let image = self.images.replace(&layers[0].path);
            image.data.extend([(0, self.sequence), (2, self.sequence * 10 + 7)]);
            image.bitmaps.values_mut().for_each(|bitmap| bitmap.dirty.clear());
            let content = self.images.view(&self.images.chain(&layers[0].path));
            self.guest.insert(target, content);
        }
        self.history.insert(self.sequence, self.guest.clone());
        self.start();
    }

    /// All bitmaps of the last disk of a stopped domain are removed.
    fn remove_all_bitmaps(&mut self) {
        self.stop();
        let (_, layers) = self.machine.persistent().pop().expect("there is a disk");
        self.images.files.get_mut(&layers[0].path).expect("it is there").bitmaps.clear();
        self.start();
    }

    /// Bitmaps of a stopped domain are removed and made again.
    fn make_bitmaps_again(&mut self, witnesses: bool) {
        self.stop();
        for (_, layers) in self.machine.persistent() {
            let image = self.images.files.get_mut(&layers[0].path).expect("it is there");
            let again = image.bitmaps.iter_mut().filter(|(name, _)| name.ends_with("-witness") == witnesses);
            again.for_each(|(_, bitmap)| *bitmap = Bitmap { stored: true, ..Bitmap::default() });
        }
        self.start();
    }

    /// `virsh undefine` of a stopped domain; whether libvirt does so.
    fn undefine(&mut self) -> bool {
        self.stop();
        let may_be = self.known_checkpoints.is_empty();
        if may_be {
            self.machine.inactive = None;
        }
        may_be
    }
}

fn prepared(layout: Layout) -> Rig {
    let rig = Rig::new(layout, 77);
    for _ in 0..2 {
        rig.backup(Approach::Bitmap, Quiesce::IfPossible).unwrap().unwrap();
        rig.host.world().guest_writes();
    }
    rig
}

/// Whether the domain is still there.
fn happens(rig: &Rig, deed: Deed) -> bool {
    match deed {
        Deed::Nothing => {}
        Deed::KillsQemu => {
            let mut world = rig.host.world();
            world.end(Ending::Killed);
            world.start();
        }
        Deed::Restarts => {
            let mut world = rig.host.world();
            world.stop();
            world.start();
        }
        Deed::RebootsHard => {
            rig.host.world().nova_restarts();
            if rig.host.world().machine.process.is_none() {
                // libvirt knew checkpoints; not any more.
                rig.recover().unwrap().unwrap();
                rig.host.world().nova_restarts();
            }
            assert!(rig.host.world().machine.process.is_some(), "it cannot be started anew");
        }
        Deed::Undefines => {
            if !rig.host.world().undefine() {
                rig.recover().unwrap().unwrap();
                assert!(rig.host.world().undefine(), "it cannot be undefined");
            }
        }
        Deed::ReplacesDisks => rig.host.world().replace_disks(),
        Deed::RemovesBitmaps => rig.host.world().remove_all_bitmaps(),
        Deed::MakesBitmapsAgain { witnesses } => {
            rig.host.world().make_bitmaps_again(witnesses);
        }
        Deed::BacksUpByPivot => {
            let done = rig.backup(Strategy::Pivot, Quiesce::IfPossible).unwrap().unwrap();
            assert!(done.unfinished.is_none(), "{:?}", done.unfinished);
        }
    }
    rig.check();
    deed != Deed::Undefines
}

/// What must hold when somebody did something after an interruption.
fn comes_in_order(rig: &Rig, what: Interruption, deed: Deed, recovers: bool) {
    rig.host.world().guest_writes();
    if !happens(rig, deed) {
        rig.run(|lifecycle| lifecycle.recover(None)).unwrap().unwrap().into_iter().for_each(|done| {
            done.actions.unwrap();
        });
        return rig.host.world().expect_no_pull(None);
    }
    rig.host.world().guest_writes();
    if recovers {
        rig.recover().unwrap().unwrap();
        rig.host.world().guest_writes();
    }
    rig.host.world().start();
    let done = rig.backup(Approach::Bitmap, Quiesce::IfPossible).unwrap().unwrap();
    assert!(done.unfinished.is_none(), "{:?}", done.unfinished);
    let harmless = [
        Interruption::Kill,
        Interruption::GuestStops,
        Interruption::GuestRestarts,
        Interruption::NovaRestarts,
    ];
    if harmless.contains(&what) && deed.keeps_bitmaps() {
        assert_eq!(done.outcome.layers_read, 0, "whole disks were read, although their bitmaps are sound");
    }
    rig.finish(Approach::Bitmap);
}

/// Interrupts a backup at each of its moments; how many cases there were.
fn interrupted(what: Interruption, disks: usize, deeds: &[Deed], recovers: &[bool]) -> usize {
    let mut cases = 0;
    for deed in deeds {
        for recovers in recovers {
            for at in 0.. {
                let layout = Layout { disks, nova: true, ..Layout::default() };
                let mut rig = prepared(layout);
                rig.label = format!("{what:?} at {at}, then {deed:?}, recovers: {recovers}");
                rig.interrupt(&[(at, what)]);
                let _ = rig.backup(Approach::Bitmap, Quiesce::IfPossible);
                let reached = rig.host.world().clock > at;
                comes_in_order(&rig, what, *deed, *recovers);
                cases += 1;
                if !reached {
                    break;
                }
            }
        }
    }
    cases
}

#[test]
fn nothing_is_lost_whenever_it_is_killed_and_whatever_is_done_next() {
    let cases: usize =
        [1, 2].map(|disks| interrupted(Interruption::Kill, disks, &DEEDS, &[false, true])).iter().sum();
    assert!(cases > 2000, "{cases}");
}

#[test]
fn nothing_is_lost_whatever_goes_wrong_and_whatever_is_done_next() {
    let others = [
        Interruption::FailsBefore,
        Interruption::FailsAfter,
        Interruption::NotSaved,
        Interruption::Partly,
        Interruption::GuestStops,
        Interruption::GuestDies,
        Interruption::GuestRestarts,
        Interruption::HostCrash,
        Interruption::NovaRestarts,
    ];
    let cases: usize = others.map(|what| interrupted(what, 2, &DEEDS, &[false])).iter().sum();
    assert!(cases > 5000, "{cases}");
}
