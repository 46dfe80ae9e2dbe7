//! Who is next: one actor runs at a time, until it waits for the store or a transaction of the catalog has ended.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::runtime::Runtime;
use underlay_store::catalog::{Catalog, PackState};
use underlay_store::key::{Randomness, repeatable_randomness};
use underlay_store::names;
use underlay_store::pack::PackKind;
use underlay_store::sabotage::{Rule, break_on_this_thread};

use crate::bucket::Op;
use crate::client::Process;
use crate::random::Random;
use crate::world::World;

pub type Command = Pin<Box<dyn Future<Output = ()>>>;

/// Gives a lane its next command; `None` when it has done enough.
pub type Script = Box<dyn FnMut(&Arc<World>, usize) -> Option<(usize, Command)>>;

/// Steps after which a run must have ended.
const PATIENCE: u64 = 100_000;

#[derive(Default)]
struct Flag {
    woken: Mutex<bool>,
    bell: Condvar,
}

impl Flag {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> bool {
        std::mem::take(&mut *self.lock())
    }

    /// False if nobody rings.
    fn wait(&self) -> bool {
        let woken = self.lock();
        let waited = self.bell.wait_timeout_while(woken, Duration::from_secs(20), |woken| !*woken);
        let (woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *woken
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        *self.lock() = true;
        self.bell.notify_all();
    }
}

struct Lane {
    script: Script,
    /// The process at work, and what it does.
    work: Option<(usize, Command)>,
    flag: Arc<Flag>,
    /// It can go on.
    ready: bool,
    done: bool,
}

/// Runs actors in an order that follows from the world's seed.
pub struct Schedule<'a> {
    world: Arc<World>,
    threads: &'a Threads,
    lanes: Vec<Lane>,
}

/// The thread on which catalogs work. Kept between runs; its randomness is the run's.
pub struct Threads {
    runtime: Runtime,
    random: Arc<Mutex<Random>>,
    source: Randomness,
    broken: Arc<AtomicU8>,
    gate: Arc<Mutex<()>>,
}

impl Threads {
    pub fn new() -> Self {
        let random = Arc::new(Mutex::new(Random::new(0)));
        let source = Arc::clone(&random);
        let source: Randomness =
            Arc::new(Mutex::new(move |bytes: &mut [u8]| source.lock().unwrap().fill(bytes)));
        let broken = Arc::new(AtomicU8::new(0));
        let (elsewhere, elsewhere_broken) = (Arc::clone(&source), Arc::clone(&broken));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .thread_keep_alive(Duration::from_secs(3600))
            .on_thread_start(move || {
                repeatable_randomness(Some(Arc::clone(&elsewhere)));
                break_on_this_thread(Arc::clone(&elsewhere_broken));
            })
            .build()
            .unwrap();
        Self { runtime, random, source, broken, gate: Arc::default() }
    }

    /// From here on everything random follows from `seed`, and a rule of the store is broken or none.
    pub fn reseed(&self, seed: u64, rule: Option<Rule>) {
        break_on_this_thread(Arc::clone(&self.broken));
        self.broken.store(rule.map_or(0, |rule| rule as u8), Ordering::Relaxed);
        repeatable_randomness(Some(Arc::clone(&self.source)));
        *self.random.lock().unwrap() = Random::new(seed ^ 0x0073_616c_7400);
    }

    /// Whatever is given to the other thread while this is held, it begins afterwards: whether an actor has to wait for its
    /// catalog must not depend on who is faster.
    fn hold(&self) -> MutexGuard<'_, ()> {
        let held = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = Arc::clone(&self.gate);
        drop(self.runtime.spawn_blocking(move || drop(gate.lock())));
        held
    }

    /// Returns when all that was given to the other thread before is done.
    fn barrier(&self) {
        self.runtime.block_on(async { tokio::task::spawn_blocking(|| ()).await.unwrap() });
    }
}

impl<'a> Schedule<'a> {
    pub fn new(world: &Arc<World>, threads: &'a Threads) -> Self {
        Self { world: Arc::clone(world), threads, lanes: Vec::new() }
    }

    pub fn add(&mut self, script: Script) {
        self.lanes.push(Lane { script, work: None, flag: Arc::default(), ready: true, done: false });
    }

    /// Runs one command alone, to its end.
    pub fn alone(
        world: &Arc<World>,
        threads: &Threads,
        host: usize,
        work: impl FnOnce(Process) -> Command + 'static,
    ) {
        let mut schedule = Schedule::new(world, threads);
        let mut work = Some(work);
        schedule.add(Box::new(move |world, lane| {
            let process = Process::begin(world, lane, host);
            let number = process.number;
            work.take().map(|work| (number, work(process)))
        }));
        schedule.run();
    }

    /// Runs all lanes to their ends.
    pub fn run(&mut self) {
        let _entered = self.threads.runtime.enter();
        while let Some(choice) = self.choose() {
            match choice {
                Choice::Grant(id) => {
                    let waker = self.world.core().grant(id);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Choice::Poll(lane) => self.poll(lane),
            }
            self.bury();
            if self.world.core().step > PATIENCE {
                self.world.complain("the run does not end");
                break;
            }
        }
        self.lanes.clear();
    }

    fn choose(&mut self) -> Option<Choice> {
        for lane in &mut self.lanes {
            lane.ready |= lane.flag.take();
        }
        let mut core = self.world.core();
        core.step += 1;
        let tick = core.random.below(5000) as i64;
        core.clock += tick;
        core.land(false);
        loop {
            let step = core.step;
            let polls = self.lanes.iter().enumerate().filter(|(_, lane)| lane.ready && !lane.done);
            let mut choices: Vec<Choice> = polls.map(|(at, _)| Choice::Poll(at)).collect();
            let mut waking = None;
            for (id, request) in &core.requests {
                match request.op {
                    Op::Pause { until } if until > step => {
                        waking = Some(waking.map_or(until, |earlier: u64| earlier.min(until)));
                    }
                    _ => choices.push(Choice::Grant(*id)),
                }
            }
            if !choices.is_empty() {
                let at = core.random.index(choices.len());
                return Some(choices[at]);
            }
            core.step = waking?;
            core.land(false);
        }
    }

    /// Lets a lane run until it waits.
    fn poll(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        lane.ready = false;
        if lane.work.is_none() {
            let Some(work) = (lane.script)(&self.world, at) else {
                lane.done = true;
                return;
            };
            lane.work = Some(work);
        }
        let Some((process, command)) = &mut lane.work else { return };
        let process = *process;
        let newest = self.world.core().requests.keys().next_back().copied();
        let waker = Waker::from(Arc::clone(&lane.flag));
        let held = self.threads.hold();
        let polled = command.as_mut().poll(&mut Context::from_waker(&waker));
        drop(held);
        if polled == Poll::Ready(()) {
            lane.work = None;
            lane.ready = true;
            return;
        }
        if self.world.core().lives[process].doomed {
            return;
        }
        let waiting: Vec<u64> = {
            let core = self.world.core();
            let own = core.requests.iter().filter(|(_, request)| core.lives[request.process].lane == at);
            own.map(|(id, _)| *id).collect()
        };
        match waiting[..] {
            // It waits for its catalog.
            [] => {
                if !lane.flag.wait() {
                    self.world.complain("an actor waits for nothing");
                    lane.done = true;
                }
            }
            // It asked for one thing, and waits for that alone.
            [only] if Some(only) > newest => {}
            // Several requests at once: is there work for the catalog beside them?
            _ => self.threads.barrier(),
        }
    }

    /// Ends processes that died, and kills others by chance. Their lanes go on with something else.
    fn bury(&mut self) {
        let mut core = self.world.core();
        let chance = core.weather.kill;
        let running: Vec<usize> = (0..self.lanes.len()).filter(|at| self.lanes[*at].work.is_some()).collect();
        if chance > 0 && !running.is_empty() && core.random.chance(chance) {
            let at = *core.random.pick(&running);
            let number = self.lanes[at].work.as_ref().map_or(0, |work| work.0);
            core.note(number, "killed", "", "");
            drop(core);
            self.end(at);
            core = self.world.core();
        }
        let chance = core.weather.catalog_loss;
        if chance > 0 && core.random.chance(chance) {
            let hosts = core.hosts.len();
            let host = core.random.index(hosts);
            core.note(999, "catalog lost", "", if host == 0 { "of A" } else { "of B" });
            core.hosts[host].losses += 1;
            for (number, _) in self.lanes.iter().filter_map(|lane| lane.work.as_ref()) {
                core.lives[*number].doomed |= core.lives[*number].host == host;
            }
            core.hosts[host].catalog = None;
        }
        let chance = core.weather.removal;
        if chance > 0 && core.random.chance(chance) {
            let hosts = core.hosts.len();
            let host = core.random.index(hosts);
            core.note(999, "catalog removed", "", if host == 0 { "of A" } else { "of B" });
            core.hosts[host].losses += 1;
            let removed = core.hosts[host].catalog.take();
            core.hosts[host].removed.extend(removed);
        }
        let chance = core.weather.put_back;
        if chance > 0 && core.random.chance(chance) {
            let hosts = core.hosts.len();
            let host = core.random.index(hosts);
            if core.has_copy(host) {
                core.hosts[host].losses += 1;
                for (number, _) in self.lanes.iter().filter_map(|lane| lane.work.as_ref()) {
                    core.lives[*number].doomed |= core.lives[*number].host == host;
                }
            }
            let catalogs = core.catalogs();
            drop(core);
            self.threads.barrier();
            self.world.copy_or_put_back(host, leaving(&catalogs));
            core = self.world.core();
        }
        core.audit();
        let chance = core.weather.rot;
        if chance > 0 && core.judging == 0 && core.random.chance(chance) {
            let catalogs: Vec<Catalog> = core.catalogs();
            drop(core);
            self.threads.barrier();
            let mut leaving = leaving(&catalogs);
            core = self.world.core();
            leaving.extend(core.left_in_copies());
            core.rot(leaving);
        }
        let doomed: Vec<usize> = (running.into_iter())
            .filter(|at| self.lanes[*at].work.as_ref().is_some_and(|work| core.lives[work.0].doomed))
            .collect();
        drop(core);
        doomed.into_iter().for_each(|at| self.end(at));
    }

    fn end(&mut self, at: usize) {
        // What the catalog is at for it ends first: a transaction happens or not.
        self.threads.barrier();
        let lane = &mut self.lanes[at];
        if let Some((number, command)) = lane.work.take() {
            drop(command);
            self.world.core().lose_pretended(number);
        }
        lane.ready = true;
    }
}

/// Packs that are not simply in use, by any of these catalogs.
fn leaving(catalogs: &[Catalog]) -> BTreeSet<String> {
    let mut leaving = BTreeSet::new();
    for catalog in catalogs {
        for kind in [PackKind::Data, PackKind::Nodes] {
            let packs = catalog.packs(kind).unwrap().into_iter();
            let going = packs.filter(|pack| pack.state != PackState::Live);
            leaving.extend(going.map(|pack| names::pack(kind, &pack.name)));
        }
    }
    leaving
}

#[derive(Clone, Copy)]
enum Choice {
    Poll(usize),
    Grant(u64),
}
