//! A domain whose memory is kept: it goes on with the layers it knew.

use super::rig::Rig;
use super::world::{Interruption, Layout};
use crate::domain::{Quiesce, Strategy};

#[test]
fn layers_that_a_saved_memory_knows_are_left_alone() {
    let mut refused = 0;
    for at in 0.. {
        let rig = Rig::new(Layout::default(), 77);
        rig.interrupt(&[(at, Interruption::Kill)]);
        if rig.backup(Strategy::Pivot, Quiesce::IfPossible).is_some() {
            break;
        }
        let layers = {
            let mut world = rig.host.world();
            world.stop();
            world.saved = true;
            world.machine.persistent()
        };
        refused += usize::from(rig.recover().unwrap().is_err());
        {
            let mut world = rig.host.world();
            assert_eq!(world.machine.persistent(), layers, "killed at {at}");
            world.start();
            world.saved = false;
        }
        rig.finish(Strategy::Pivot);
        assert!(rig.is_given_back(), "killed at {at}");
    }
    assert!(refused > 0, "nothing was in the way");
}
