//! The catalog against hash maps that say the same in the plainest way.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::pack::PackKind;

#[derive(Debug, Clone)]
enum Step {
    Open(u8),
    Have(u8, PackKind, Vec<u8>),
    Add(u8, u8, PackKind, Vec<u8>),
    Import(u8, PackKind, Vec<u8>),
    Prove(u8),
    Pin(u8, u8),
    Commit(u8, u8, u8),
    End(u8, bool),
}

#[derive(Default)]
struct Session {
    state: Option<SessionState>,
    pins: BTreeSet<(PackKind, u8)>,
    roots: BTreeSet<u8>,
}

#[derive(Default)]
struct Model {
    sessions: BTreeMap<u8, Session>,
    /// Name to kind, ids, writers, proven.
    packs: BTreeMap<u8, (PackKind, BTreeSet<u8>, BTreeSet<u8>, bool)>,
    snapshots: BTreeMap<u8, u8>,
}

impl Model {
    fn is_open(&self, session: u8) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.state == Some(SessionState::Open))
    }

    fn offers(&self, session: u8, kind: PackKind, id: u8) -> bool {
        self.packs.values().any(|(of, ids, writer, proven)| {
            *of == kind
                && ids.contains(&id)
                && (kind == PackKind::Data || *proven || writer.contains(&session))
        })
    }

    fn owns(&self, session: u8, kind: PackKind, id: u8) -> bool {
        self.packs
            .values()
            .any(|(of, ids, writer, _)| *of == kind && ids.contains(&id) && writer.contains(&session))
    }

    fn end(&mut self, session: u8, state: SessionState) {
        self.sessions.insert(session, Session { state: Some(state), ..Session::default() });
    }
}

fn kind() -> impl Strategy<Value = PackKind> {
    prop_oneof![Just(PackKind::Data), Just(PackKind::Nodes)]
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..4_u8;
    let ids = || prop::collection::vec(0..12_u8, 0..8);
    prop_oneof![
        2 => who.clone().prop_map(Step::Open),
        4 => (who.clone(), kind(), ids()).prop_map(|(s, k, i)| Step::Have(s, k, i)),
        3 => (who.clone(), 0..10_u8, kind(), ids()).prop_map(|(s, n, k, i)| Step::Add(s, n, k, i)),
        1 => (0..10_u8, kind(), ids()).prop_map(|(n, k, i)| Step::Import(n, k, i)),
        1 => (0..10_u8).prop_map(Step::Prove),
        2 => (who.clone(), 0..12_u8).prop_map(|(s, r)| Step::Pin(s, r)),
        1 => (who.clone(), 0..6_u8, 0..12_u8).prop_map(|(s, n, r)| Step::Commit(s, n, r)),
        1 => (who, any::<bool>()).prop_map(|(s, fence)| Step::End(s, fence)),
    ]
}

fn take(catalog: &Catalog, model: &mut Model, step: Step) {
    match step {
        Step::Open(s) => {
            let opened = catalog.open_session(session(s), "vm", 0);
            if model.sessions.contains_key(&s) {
                assert_eq!(opened.is_ok(), model.is_open(s));
            } else {
                opened.unwrap();
                model.end(s, SessionState::Open);
            }
        }
        Step::Have(s, kind, ids) => {
            let answer = match kind {
                PackKind::Data => {
                    catalog.have_chunks(session(s), &ids.iter().map(|n| chunk(*n)).collect::<Vec<_>>(), 0)
                }
                PackKind::Nodes => {
                    catalog.have_nodes(session(s), &ids.iter().map(|n| node(*n)).collect::<Vec<_>>(), 0)
                }
            };
            assert_eq!(answer.is_ok(), model.is_open(s));
            let Ok(answer) = answer else { return };
            assert_eq!(answer, ids.iter().map(|id| model.offers(s, kind, *id)).collect::<Vec<_>>());
            let had = ids.into_iter().zip(answer).filter(|(_, had)| *had).map(|(id, _)| (kind, id));
            model.sessions.get_mut(&s).unwrap().pins.extend(had);
        }
        Step::Add(s, name, kind, ids) => {
            let added = catalog.add_pack(session(s), &pack(name, kind, &ids));
            let fits = model.packs.get(&name).is_none_or(|(of, ..)| *of == kind);
            assert_eq!(added.is_ok(), model.is_open(s) && fits);
            if added.is_ok() {
                let held: BTreeSet<u8> = ids.into_iter().collect();
                let new = || (kind, held.clone(), BTreeSet::new(), false);
                let known = model.packs.entry(name).or_insert_with(new);
                // It may be known as somebody found it, damaged; now it is what its writer says.
                known.1 = held;
                known.2.insert(s);
            }
        }
        Step::Import(name, kind, ids) => {
            catalog.import_pack(&pack(name, kind, &ids)).unwrap();
            model.packs.entry(name).or_insert((kind, ids.into_iter().collect(), BTreeSet::new(), false));
        }
        Step::Prove(name) => {
            catalog.mark_proven(&[PackName::new([name; 32])]).unwrap();
            model.packs.entry(name).and_modify(|pack| pack.3 = true);
        }
        Step::Pin(s, of) => {
            let pinned = catalog.pin_roots(session(s), &[root(u64::from(of), of)]);
            assert_eq!(pinned.is_ok(), model.is_open(s));
            let Ok(pinned) = pinned else { return };
            assert_eq!(pinned, [model.snapshots.values().any(|live| *live == of)]);
            if pinned[0] {
                model.sessions.get_mut(&s).unwrap().roots.insert(of);
            }
        }
        Step::Commit(s, name, of) => {
            let roots = [root(u64::from(of), of)];
            let committed = commit(catalog, session(s), snapshot(name), 0, &[of], &roots);
            let (open, before) = (model.is_open(s), model.snapshots.get(&name).copied());
            let ended = model.sessions.get(&s).is_some_and(|of| of.state == Some(SessionState::Committed));
            let same = before == Some(of);
            assert_eq!(committed.is_ok(), (open && (before.is_none() || same)) || (ended && same));
            if committed.is_ok() && open {
                model.end(s, SessionState::Committed);
                model.snapshots.insert(name, of);
                model.packs.values_mut().filter(|pack| pack.2.contains(&s)).for_each(|pack| pack.3 = true);
            }
        }
        Step::End(s, fence) => {
            let ended =
                if fence { catalog.fence_session(session(s)) } else { catalog.abandon_session(session(s)) };
            let before = model.sessions.get(&s).and_then(|session| session.state);
            assert_eq!(ended.is_ok(), before.is_some_and(|state| state != SessionState::Committed));
            if before == Some(SessionState::Open) {
                model.end(s, if fence { SessionState::Fenced } else { SessionState::Abandoned });
            }
        }
    }
}

fn agree(catalog: &Catalog, model: &Model) {
    let chunks: Vec<_> = (0..12).map(chunk).collect();
    let nodes: Vec<_> = (0..12).map(node).collect();
    for (kind, found) in [
        (PackKind::Data, catalog.locate_chunks(&chunks).unwrap()),
        (PackKind::Nodes, catalog.locate_nodes(&nodes).unwrap()),
    ] {
        for (id, places) in (0..12_u8).zip(found) {
            let found: BTreeSet<u8> = places.iter().map(|place| place.pack.as_bytes()[0]).collect();
            let holds = |pack: &(PackKind, BTreeSet<u8>, _, _)| pack.0 == kind && pack.1.contains(&id);
            let expected = model.packs.iter().filter(|(_, pack)| holds(pack)).map(|(name, _)| *name);
            assert_eq!(found, expected.collect());
            assert_eq!(found.len(), places.len());
        }
    }
    for n in 0..4_u8 {
        let state = model.sessions.get(&n).and_then(|session| session.state);
        assert_eq!(catalog.session_state(session(n)).unwrap(), state);
        let Some(held) = model.sessions.get(&n).filter(|_| model.is_open(n)) else { continue };
        let expect = |test: &dyn Fn(u8) -> bool| (0..12).map(test).collect::<Vec<_>>();
        let known =
            expect(&|id| held.pins.contains(&(PackKind::Data, id)) || model.owns(n, PackKind::Data, id));
        assert_eq!(catalog.known_chunks(session(n), &chunks).unwrap(), known);
        let pinned = expect(&|id| held.pins.contains(&(PackKind::Nodes, id)));
        assert_eq!(catalog.is_pinned_node(session(n), &nodes).unwrap(), pinned);
        let own = expect(&|id| model.owns(n, PackKind::Nodes, id));
        assert_eq!(catalog.is_own_node(session(n), &nodes).unwrap(), own);
        let roots: Vec<_> = held.roots.iter().map(|of| root(u64::from(*of), *of)).collect();
        assert_eq!(catalog.session_roots(session(n)).unwrap(), roots);
    }
    let totals = catalog.totals().unwrap();
    let count = |kind| model.packs.values().filter(|p| p.0 == kind).map(|p| p.1.len() as u64).sum::<u64>();
    assert_eq!((totals.chunks, totals.nodes), (count(PackKind::Data), count(PackKind::Nodes)));
    assert_eq!((totals.packs, totals.snapshots), (model.packs.len() as u64, model.snapshots.len() as u64));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let (catalog, mut model) = (catalog(), Model::default());
        for step in steps {
            take(&catalog, &mut model, step);
        }
        agree(&catalog, &model);
    }
}
