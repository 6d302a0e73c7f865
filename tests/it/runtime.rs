//! When rounds run: the runner on a clock that the test owns, so that half a minute of waiting takes no time and no luck.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{channel::oneshot, stream::BoxStream};
use overlayd::{
    action::Action,
    clock::{Clock, Now, UnixTime},
    desired::{Document, Edit, PeerRequest},
    object::{Key, Subsystem},
    observed::{Observation, Observed, Owner},
    platform::{ActionError, Hint, Interest, Kernel, ObserveError, sim::SimKernel},
    reconcile::{
        engine::Engine,
        ledger::Condition,
        runtime::{Command, Commands, Finished, Inbox, RuntimeOptions, commands, run},
        target::Facts,
        view::SharedView,
    },
};
use tokio::{sync::Notify, task::JoinHandle};

use crate::world::{device, device_key, document, edit, foreign_link, mark, peer};

/// Longer than anything that a test waits for, on the test's clock.
const PATIENCE: Duration = Duration::from_secs(600);
/// A pause longer than any test.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
const RESYNC: Duration = Duration::from_secs(30);

/// The clock of the timers, which stands still until every task waits.
#[derive(Clone, Copy)]
struct TimersClock;

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Clock for TimersClock {
    fn now(&self) -> Now {
        Now { instant: now(), unix: UnixTime(1_000_000) }
    }
}

/// A kernel that takes its time over every call.
struct SlowKernel {
    inner: SimKernel,
    takes: Duration,
}

impl Kernel for SlowKernel {
    fn observe(&mut self, interest: &Interest) -> impl Future<Output = Result<Observation, ObserveError>> + Send {
        let (seen, takes) = (self.inner.observe(interest), self.takes);
        async move {
            tokio::time::sleep(takes).await;
            seen.await
        }
    }

    fn execute(&mut self, actions: &[Action]) -> impl Future<Output = Vec<Result<(), ActionError>>> + Send {
        let (outcomes, takes) = (self.inner.execute(actions), self.takes);
        async move {
            tokio::time::sleep(takes).await;
            outcomes.await
        }
    }

    fn hints(&mut self) -> BoxStream<'static, Hint> {
        self.inner.hints()
    }
}

/// What the runner told of one round.
#[derive(Debug, Clone)]
struct Told {
    cause: &'static str,
    full: bool,
    actions: usize,
    in_sync: bool,
    lags: Vec<Duration>,
    at: Instant,
}

/// A running agent, and what a test needs to talk to it.
struct Agent {
    document: Arc<RwLock<Document>>,
    kernel: SimKernel,
    inbox: Arc<Inbox>,
    commands: Commands,
    view: SharedView,
    told: Arc<Mutex<Vec<Told>>>,
    finished: Arc<Notify>,
    overruns: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Agent {
    /// An agent with this many peers on a node that is right. Its first round has ended.
    async fn settled(peers: u16) -> Self {
        let agent = Self::start(peers, Duration::ZERO);
        agent.until("the first round", |told| !told.is_empty()).await;
        agent
    }

    fn start(peers: u16, kernel_takes: Duration) -> Self {
        Self::start_glancing(peers, kernel_takes, NEVER)
    }

    fn start_glancing(peers: u16, kernel_takes: Duration, glance_every: Duration) -> Self {
        let document = Arc::new(RwLock::new(document(peers)));
        let kernel = SimKernel::default();
        let slow = SlowKernel { inner: kernel.clone(), takes: kernel_takes };
        let engine = Engine::new(slow, TimersClock, document.clone(), Facts::new(mark()));
        let (view, inbox) = (engine.view(), Arc::new(Inbox::default()));
        let (orders, inlet) = commands();
        let (told, finished) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let overruns = Arc::new(AtomicUsize::new(0));
        let note = {
            let (told, finished) = (told.clone(), finished.clone());
            move |round: Finished<'_>| {
                told.lock().unwrap().push(Told {
                    cause: round.cause,
                    full: round.round.full,
                    actions: round.round.actions.len(),
                    in_sync: round.round.in_sync,
                    lags: round.lags,
                    at: now(),
                });
                finished.notify_waiters();
            }
        };
        let count = {
            let overruns = overruns.clone();
            Arc::new(move || {
                overruns.fetch_add(1, Ordering::SeqCst);
            })
        };
        let options = RuntimeOptions { resync_every: RESYNC, glance_every, jitter_seed: 7 };
        let task = tokio::spawn(run(engine, inbox.clone(), inlet, options, count, note));
        Self { document, kernel, inbox, commands: orders, view, told, finished, overruns, task }
    }

    /// Makes an edit and announces it, as the committer's listener does.
    fn edit(&self, wanted: &Edit) -> u64 {
        let mut document = self.document.write().unwrap();
        let change = edit(&mut document, wanted);
        self.inbox.announce(&change.touched, document.generation(), now());
        document.generation()
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    fn rounds(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    /// Waits until the rounds told so far fulfil the condition.
    async fn until(&self, what: &str, fulfilled: impl Fn(&[Told]) -> bool) {
        let wait = async {
            loop {
                let next = self.finished.notified();
                if fulfilled(&self.told()) {
                    return;
                }
                next.await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("{what} never came: {:#?}", self.told());
        }
    }

    /// Lets time pass on the test's clock.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        self.commands.clone().try_send(command(reply)).unwrap();
        tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap()
    }
}

fn keepalive(number: u16, seconds: u16) -> Edit {
    Edit::EnsurePeer(PeerRequest { keepalive: seconds, ..peer(number) })
}

#[tokio::test(start_paused = true)]
async fn the_first_round_is_a_full_one_and_then_the_loop_rests() {
    let agent = Agent::settled(3).await;
    agent.pass(RESYNC / 2).await;
    let told = agent.told();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].full && told[0].in_sync && told[0].cause == "start", "{told:#?}");
}

#[tokio::test(start_paused = true)]
async fn edits_announced_while_a_round_runs_share_the_next_one() {
    let agent = Agent::start(100, Duration::from_millis(50));
    agent.pass(Duration::from_millis(10)).await;
    agent.edit(&keepalive(1, 1));
    agent.until("the first round", |told| !told.is_empty()).await;
    // The runner takes the edit up now; the rest arrives while it works on it.
    agent.pass(Duration::from_millis(10)).await;
    let mut last = 0;
    for number in 1..=100 {
        last = agent.edit(&keepalive(number, 2));
    }
    agent.until("the rounds of the edits", |told| told.len() >= 3).await;
    agent.pass(Duration::from_secs(5)).await;
    let told = agent.told();
    assert_eq!(told.len(), 3, "{told:#?}");
    assert_eq!((told[2].full, told[2].lags.len()), (false, 100));
    assert!(told[2].lags.iter().all(|lag| *lag < Duration::from_millis(200)), "{:?}", told[2].lags);
    assert_eq!(agent.view.read().progress.covered, last);
    assert_eq!(agent.view.read().progress.converged, last);
}

#[tokio::test(start_paused = true)]
async fn an_edit_of_one_peer_is_a_round_about_that_peer() {
    let agent = Agent::settled(200).await;
    let (calls, looks) = (agent.kernel.calls(), agent.kernel.looks());
    let generation = agent.edit(&keepalive(100, 1));
    agent.until("its round", |told| told.len() == 2).await;
    let told = agent.told();
    assert!(told[1].cause == "edit" && !told[1].full && told[1].actions == 1, "{told:#?}");
    assert_eq!((agent.kernel.calls(), agent.kernel.looks()), (calls + 1, looks));
    assert_eq!(agent.view.read().progress.covered, generation);
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_touches_no_object_is_covered_without_a_look() {
    let agent = Agent::settled(2).await;
    let looks = agent.kernel.looks();
    let generation = agent.edit(&Edit::SetNodeId(9));
    agent.until("its round", |told| told.len() == 2).await;
    assert_eq!(agent.view.read().progress.covered, generation);
    assert_eq!(agent.kernel.looks(), looks);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_hints_causes_one_round_that_repairs() {
    let agent = Agent::settled(3).await;
    let route = Key::Link(device());
    agent.kernel.node(|node| node.remove(&route));
    for _ in 0..50 {
        agent.kernel.hint(Hint::Changed(Subsystem::Link));
    }
    agent.until("the repair", |told| told.len() == 2).await;
    agent.pass(Duration::from_secs(1)).await;
    let told = agent.told();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[1].cause == "hint" && told[1].full && told[1].actions > 0 && told[1].in_sync);
    assert!(told[1].at - told[0].at < Duration::from_millis(100), "a deleted link is back within a tenth of a second");
}

#[tokio::test(start_paused = true)]
async fn lost_events_are_counted_and_answered_with_a_full_look() {
    let agent = Agent::settled(3).await;
    agent.kernel.hint(Hint::Overrun);
    agent.until("the look", |told| told.len() == 2).await;
    let told = agent.told();
    assert!(told[1].full && told[1].cause == "overrun", "{told:#?}");
    assert_eq!(agent.overruns.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_tried_again_without_anybody_asking() {
    let agent = Agent::settled(3).await;
    agent.kernel.break_object(device_key(2), ActionError::Failed("simulated".into()));
    agent.edit(&keepalive(2, 1));
    let failing = |view: &SharedView| matches!(view.read().ledger.condition(&device_key(2)), Some(Condition::Failing { attempts, .. }) if *attempts >= 4);
    agent.until("some tries", |_| failing(&agent.view)).await;
    let elapsed = agent.told().last().unwrap().at - agent.told()[0].at;
    assert!(elapsed < Duration::from_secs(2), "the first pauses are short: {elapsed:?}");
    agent.kernel.mend(&device_key(2));
    agent.until("the try that goes well", |told| told.last().is_some_and(|last| last.in_sync)).await;
    let rounds = agent.rounds();
    agent.pass(Duration::from_secs(20)).await;
    assert_eq!(agent.rounds(), rounds, "and then the loop rests");
    assert_eq!(agent.view.read().progress.converged, agent.document.read().unwrap().generation());
}

#[tokio::test(start_paused = true)]
async fn what_gave_no_hint_is_found_by_the_periodic_look() {
    let agent = Agent::settled(3).await;
    agent.kernel.node(|node| node.remove(&device_key(2)));
    agent.until("the periodic look", |told| told.len() == 2).await;
    let told = agent.told();
    assert!(told[1].cause == "resync" && told[1].actions == 1, "{told:#?}");
    let waited = told[1].at - told[0].at;
    assert!(waited >= RESYNC.mul_f64(0.9) && waited <= RESYNC.mul_f64(1.11), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_changed_without_a_sign_is_found_by_a_glance_and_the_periodic_look_still_comes() {
    let agent = Agent::start_glancing(3, Duration::ZERO, Duration::from_secs(5));
    agent.until("the first round", |told| !told.is_empty()).await;
    let lost = agent.kernel.node(|node| {
        let key = node.objects().keys().find(|key| key.subsystem() == Subsystem::Peer).unwrap().clone();
        node.remove(&key);
        key
    });
    agent.until("the repair", |told| told.iter().skip(1).any(|told| told.actions == 1)).await;
    let repair = agent.told().into_iter().find(|told| told.cause == "glance" && told.actions == 1).unwrap();
    assert!(repair.at - agent.told()[0].at <= Duration::from_secs(6));
    assert!(agent.kernel.node(|node| node.objects().contains_key(&lost)));
    agent.until("the periodic look", |told| told.iter().any(|told| told.cause == "resync")).await;
    let looked = agent.told().into_iter().find(|told| told.cause == "resync").unwrap();
    assert!(looked.at - agent.told()[0].at <= RESYNC * 2, "glances do not put it off");
}

#[tokio::test(start_paused = true)]
async fn periodic_looks_are_spread() {
    let agent = Agent::settled(1).await;
    agent.until("ten looks", |told| told.len() > 10).await;
    let told = agent.told();
    let mut pauses: Vec<Duration> = told.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    pauses.sort();
    pauses.dedup();
    assert!(pauses.len() > 5, "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_edits_does_not_put_off_a_repair() {
    let agent = Agent::start(10, Duration::from_millis(1));
    agent.until("the first round", |told| !told.is_empty()).await;
    agent.kernel.node(|node| node.remove(&Key::Link(device())));
    agent.kernel.hint(Hint::Changed(Subsystem::Link));
    // A new edit is there whenever a round has ended.
    for step in 0..200 {
        agent.edit(&keepalive(step % 10 + 1, step));
        let before = agent.rounds();
        agent.until("the next round", |told| told.len() > before).await;
        if agent.told().iter().skip(1).any(|told| told.full) {
            assert!(step < 60, "{step} edits came first");
            return;
        }
    }
    panic!("the repair never came");
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_questions_does_not_put_off_an_edit() {
    let agent = Agent::start(3, Duration::from_millis(1));
    agent.until("the first round", |told| !told.is_empty()).await;
    let questions = tokio::spawn({
        let commands = agent.commands.clone();
        async move {
            // Two at a time, so that one always waits when another has been answered.
            let ask = || async {
                for _ in 0..2_000 {
                    let (reply, answer) = oneshot::channel();
                    if commands.clone().try_send(Command::Inspect(reply)).is_err() || answer.await.is_err() {
                        return;
                    }
                }
            };
            futures::join!(ask(), ask());
        }
    });
    agent.pass(Duration::from_millis(20)).await;
    let asked = now();
    agent.edit(&keepalive(1, 1));
    agent.until("its round", |told| told.iter().any(|told| told.cause == "edit")).await;
    assert!(now() - asked < Duration::from_millis(50), "{:?}", now() - asked);
    questions.abort();
}

#[tokio::test(start_paused = true)]
async fn a_question_changes_nothing() {
    let agent = Agent::settled(3).await;
    agent.kernel.node(|node| {
        node.remove(&device_key(1));
        node.forget_journal();
    });
    let before = format!("{:?}", agent.view.read());
    let diff = agent.ask(Command::Inspect).await.unwrap();
    assert_eq!(diff.differences.len(), 1, "{}", diff.to_text());
    assert_eq!(format!("{:?}", agent.view.read()), before);
    assert!(agent.kernel.node(|node| node.journal().is_empty()));
    assert_eq!(agent.rounds(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_is_asked_for_has_ended_when_the_answer_comes() {
    let agent = Agent::settled(3).await;
    agent.kernel.node(|node| node.remove(&device_key(1)));
    agent.ask(Command::Resync).await;
    assert!(agent.kernel.node(|node| node.objects().contains_key(&device_key(1))));
}

#[tokio::test(start_paused = true)]
async fn a_suspension_is_answered_when_the_device_is_gone() {
    let agent = Agent::settled(3).await;
    assert!(agent.ask(Command::Suspend).await, "the device is down");
    assert!(agent.kernel.node(|node| !node.objects().contains_key(&Key::Link(device()))));
}

#[tokio::test(start_paused = true)]
async fn a_host_name_that_resolves_is_told_to_the_kernel() {
    let agent = Agent::settled(0).await;
    let named = PeerRequest { endpoint: Some("b.example.org:51820".parse().unwrap()), ..peer(1) };
    agent.edit(&Edit::EnsurePeer(named));
    agent.until("its round", |told| told.len() == 2).await;
    let addresses = BTreeMap::from([("b.example.org".parse().unwrap(), "192.0.2.77".parse().unwrap())]);
    agent.commands.clone().try_send(Command::Resolved(addresses)).unwrap();
    agent.until("the next", |told| told.len() == 3).await;
    assert_eq!(agent.told()[2].actions, 1);
    assert_eq!(agent.view.read().ledger.condition(&device_key(1)), Some(&Condition::Realized));
}

#[tokio::test(start_paused = true)]
async fn a_stranger_in_the_way_does_not_keep_the_loop_busy() {
    let agent = Agent::settled(3).await;
    let link = Key::Link(device());
    agent.kernel.break_object(link.clone(), ActionError::Failed("simulated".into()));
    agent.kernel.node(|node| node.remove(&link));
    agent.kernel.hint(Hint::Changed(Subsystem::Link));
    agent.until("the failure", |told| told.len() >= 2).await;
    let stranger = Observed { spec: foreign_link(), owner: Owner::Stranger("dummy".into()), stats: None };
    agent.kernel.node(|node| node.place(link, stranger));
    let before = agent.rounds();
    agent.pass(Duration::from_secs(300)).await;
    let rounds = agent.rounds() - before;
    assert!(rounds <= 12, "ten periodic looks and one retry, not {rounds}");
}

#[tokio::test(start_paused = true)]
async fn the_runner_ends_with_the_last_handle() {
    let Agent { commands, task, .. } = Agent::settled(1).await;
    drop(commands);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}
