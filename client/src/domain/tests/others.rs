//! Killed at every moment, and then somebody else changes the layers before underlay runs again.

use super::rig::Rig;
use super::world::{Interruption, Layout, World};
use crate::domain::{Quiesce, Strategy};

/// What somebody does, and its name.
type Deed = (&'static str, fn(&mut World));

fn while_it_is_off(world: &mut World, act: impl FnOnce(&mut World)) {
    world.stop();
    act(world);
    world.start();
}

const DEEDS: [Deed; 8] = [
    ("pulls all layers", |world| world.pull(true)),
    ("pulls all layers but the bottommost", |world| world.pull(false)),
    ("snapshots", World::snapshot),
    ("resizes", World::resize),
    ("commits while it is off", |world| while_it_is_off(world, World::commit_offline)),
    ("edits while it is off", |world| while_it_is_off(world, World::edit_offline)),
    ("edits below while it is off", |world| while_it_is_off(world, World::edit_below)),
    ("lets a merge go on, then edits below while it is off", |world| {
        world.jobs_go_on();
        while_it_is_off(world, World::edit_below);
    }),
];

fn interfered(strategy: Strategy) {
    for (name, deed) in DEEDS {
        for at in 0.. {
            let mut rig = Rig::new(Layout::default(), 77);
            rig.label = format!("{strategy:?}, killed at {at}, somebody {name}");
            for _ in 0..2 {
                rig.backup(strategy, Quiesce::IfPossible).unwrap().unwrap();
            }
            rig.interrupt(&[(at, Interruption::Kill)]);
            let ended = rig.backup(strategy, Quiesce::IfPossible).is_some();
            // A guest whose file systems are frozen cannot be shut down in order.
            if !rig.host.world().machine.frozen() {
                deed(&mut rig.host.world());
            }
            rig.check();
            rig.finish(strategy);
            if ended {
                break;
            }
        }
    }
}

#[test]
fn somebody_interferes_with_an_interrupted_rotation() {
    interfered(Strategy::Rotate);
}

#[test]
fn somebody_interferes_with_an_interrupted_pivot() {
    interfered(Strategy::Pivot);
}
