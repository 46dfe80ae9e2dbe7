//! Runs backups and recoveries against the double, and checks what must hold after each.

use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use underlay_store::progress::Progress;

use super::bitmaps::with_witness;
use super::host::{Host, Killed};
use super::machine::{Mood, NAME, UUID};
use super::world::{BASE, Interruption, Layout, World};
use crate::domain::record::DomainRecord;
use crate::domain::{Approach, DomainError, DomainOutcome, Hands, Lifecycle, Patience, Quiesce, Wishes};

/// Nobody has to wait for the double.
const PATIENCE: Patience = Patience {
    agent: Duration::ZERO,
    quiesce: Duration::ZERO,
    thaw: Duration::ZERO,
    job: Duration::from_secs(60),
    close: Duration::ZERO,
    poll: Duration::ZERO,
    watch: Duration::from_secs(60),
};

/// Keeps what a user would be told.
#[derive(Default)]
pub(super) struct Notices(pub Mutex<Vec<String>>);

impl Progress for Notices {
    fn phase(&self, _: &'static str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn notice(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

pub(super) struct Rig {
    pub host: Host,
    pub notices: Notices,
    pub layout: Layout,
    /// Told when a test fails.
    pub label: String,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = self.notices.0.lock().map(|notices| notices.join("\n")).unwrap_or_default();
            let _ = writeln!(std::io::stderr(), "{} {:?}\n{told}", self.label, self.layout);
        }
    }
}

/// A killed run is no failure, and says nothing.
fn be_quiet_when_killed() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Killed>() {
                usual(info);
            }
        }));
    });
}

impl Rig {
    pub fn new(layout: Layout, seed: u64) -> Self {
        be_quiet_when_killed();
        Self {
            host: Host(Arc::new(Mutex::new(World::new(layout, seed)))),
            notices: Notices::default(),
            layout,
            label: String::new(),
        }
    }

    /// Runs underlay once, unless it is killed.
    pub fn run<T>(&self, act: impl FnOnce(&Lifecycle<'_>) -> T) -> Option<T> {
        let hands = Hands::new(&self.host, &self.host, &self.host, &self.host);
        let lifecycle = Lifecycle { hands, progress: &self.notices, patience: PATIENCE };
        let ended = panic::catch_unwind(AssertUnwindSafe(|| act(&lifecycle)));
        let mut world = self.host.world();
        world.interruptions.clear();
        world.fault = None;
        world.lose_definition = false;
        world.files_locked = false;
        match ended {
            Ok(value) => Some(value),
            Err(payload) if payload.is::<Killed>() => None,
            Err(payload) => {
                drop(world);
                panic::resume_unwind(payload)
            }
        }
    }

    /// What will happen, counted in moments from now.
    pub fn interrupt(&self, interruptions: &[(usize, Interruption)]) {
        let mut world = self.host.world();
        world.clock = 0;
        world.interruptions = interruptions.to_vec();
    }

    pub fn backup(
        &self,
        approach: impl Into<Approach>,
        quiesce: Quiesce,
    ) -> Option<Result<DomainOutcome, DomainError>> {
        let wishes = Wishes { strategy: Some(approach.into()), ..Wishes::default() };
        let result = self.run(|lifecycle| lifecycle.backup(NAME, &wishes, quiesce, &self.host));
        self.check();
        if let Some(Ok(DomainOutcome { unfinished: None, .. })) = &result {
            self.check_sound();
        }
        result
    }

    pub fn recover(&self) -> Option<Result<Vec<String>, DomainError>> {
        let done = self.run(|lifecycle| lifecycle.recover(Some(NAME)))?;
        self.check();
        let result = match done {
            Ok(mut done) => done.remove(0).actions,
            Err(error) => Err(error),
        };
        if result.is_ok() {
            self.check_sound();
        }
        Some(result)
    }

    pub fn record(&self) -> Option<DomainRecord> {
        self.host.world().journal.get(UUID).map(|text| serde_json::from_str(text).unwrap())
    }

    /// What holds at all times.
    pub fn check(&self) {
        let record = self.record();
        let world = self.host.world();
        if let Some(process) = &world.machine.process {
            for disk in &process.disks {
                let view = world.images.view(&disk.chain);
                assert_eq!(
                    view, world.guest[&disk.target],
                    "{} reads what its guest did not write",
                    disk.target
                );
            }
            let recorded = record.as_ref().is_some_and(|record| record.thaw_pending);
            let frozen = process.frozen || process.freeze_pending;
            assert!(recorded || !frozen, "the guest may be frozen, and nobody knows");
        }
        world.memos.values().for_each(|memo| world.expect_true(memo));
        record
            .iter()
            .filter_map(|record| record.tracking.as_ref())
            .for_each(|known| world.expect_believed(known));
        for inode in &world.must_survive {
            assert!(world.images.with_inode(*inode).is_some(), "the only copy of what a guest wrote is gone");
        }
        let original = |path: &Path| assert!(world.images.contains(path), "{} is gone", path.display());
        world.machine.originals.iter().for_each(|(_, backing)| original(&backing.path));
        assert_eq!(world.images.get(Path::new(BASE)).version, 3, "the shared base was written");
    }

    /// What holds once underlay says that all is well.
    fn check_sound(&self) {
        let record = self.record();
        let world = self.host.world();
        assert!(!world.machine.frozen(), "the guest is frozen");
        if let Some(record) = &record {
            assert_eq!((&record.operation, &record.pull), (&None, &None), "something is still to be done");
        }
        world.expect_no_pull(record.as_ref());
        if world.foreign || world.unsaved || world.may_leave || !world.must_survive.is_empty() {
            return;
        }
        let persistent = world.machine.persistent();
        let needed: BTreeSet<_> =
            persistent.iter().flat_map(|(_, layers)| world.starting_chain(layers)).collect();
        let left = |path: &&PathBuf| {
            let name = path.to_string_lossy();
            let ours = name.contains(".underlay-") && !name.contains(".stale");
            ours && !world.machine.uses(path) && !needed.contains(*path)
        };
        let left: Vec<_> = world.images.files.keys().filter(left).collect();
        assert!(left.is_empty(), "overlays were left behind: {left:?}");
    }

    /// Whether the guest writes to its original files.
    pub fn is_given_back(&self) -> bool {
        let world = self.host.world();
        world.machine.process.iter().flat_map(|process| &process.disks).all(|disk| {
            world.machine.original(&disk.target).is_some_and(|original| original.path == disk.chain[0])
        })
    }

    /// Layers of the disk that has most.
    fn longest_chain(&self) -> usize {
        let world = self.host.world();
        let disks = world.machine.process.iter().flat_map(|process| &process.disks);
        disks.map(|disk| disk.chain.len()).max().unwrap_or_default()
    }

    /// Nothing interferes any more: all must come in order, and backups be exact and cheap.
    pub fn finish(&self, approach: impl Into<Approach>) {
        let approach = approach.into();
        {
            let mut world = self.host.world();
            world.interruptions.clear();
            world.fault = None;
            world.becomes(Mood::Answers);
            world.start();
        }
        self.recover().expect("nobody kills it").expect("it comes in order");
        self.check();
        let again = self.recover().expect("nobody kills it").expect("it is in order");
        assert!(again.is_empty(), "something was left to do: {again:?}");
        for round in 1..=3 {
            let done = self.backup(approach, Quiesce::IfPossible).expect("nobody kills it");
            if let (Err(DomainError::Refused { reason, .. }), true) = (&done, self.host.world().unsaved) {
                // Definitions that were not saved, and layers that somebody else changed before they were corrected.
                assert!(reason.contains("after the next start"), "{reason}");
                return;
            }
            let done = done.unwrap_or_else(|error| panic!("backup {round} failed: {error}"));
            assert!(done.unfinished.is_none(), "backup {round}: {:?}", done.unfinished);
            if approach == Approach::Bitmap {
                let tracked = self.record().and_then(|record| record.tracking).expect("a bitmap is believed");
                assert_eq!(
                    self.host.world().bitmaps_in_use(),
                    with_witness(&tracked.checkpoint).into(),
                    "backup {round}"
                );
                assert!(round == 1 || done.outcome.layers_read == 0, "backup {round} read whole disks");
            }
            if round == 3 && approach == Approach::Rotate {
                assert_eq!(done.outcome.layers_read, done.outcome.disks.len(), "more was read than overlays");
            }
            let mut world = self.host.world();
            (0..3).for_each(|_| world.guest_writes());
        }
        self.check();
        if approach == Approach::Rotate && !self.host.world().foreign {
            let base = if self.layout.raw { 1 } else { 2 };
            assert!(self.longest_chain() <= base + 1, "the chain is {} long", self.longest_chain());
        }
    }
}
