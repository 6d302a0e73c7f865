//! When to run a round: triggers become scopes, one at a time.
//!
//! Owns the scheduler, a stream in the manner of kube-runtime's: triggers are merged (dedupe), hints wait for their burst to end (debounce),
//! objects that failed come back when their backoff is over. Leaves what a round does to [`engine`](super::engine).
//!
//! Upholds I-13 (a hint only marks and wakes), I-15 (merging bounds the queue by the number of objects), I-16 (timers live here and nowhere below).
//!
//! There is one runner. A round about one peer is short because its scope is small, not because it runs beside another round.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{
    channel::{mpsc, oneshot},
    future::FutureExt,
    stream::{BoxStream, Stream, StreamExt},
    task::AtomicWaker,
};

use super::{
    engine::{Depth, Engine},
    explain::Diff,
    target::Scope,
    view::Round,
};
use crate::{
    clock::Clock,
    desired::Touched,
    ids::DnsName,
    object::Key,
    platform::{Hint, Kernel},
};

/// How long the loop waits after a hint for the rest of its burst.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A look at the peers is followed by a pause of at least so many times its length: it takes a twentieth of the loop at most.
const GLANCE_SHARE: u32 = 20;
/// Acknowledged edits whose way to the kernel is timed; those beyond it are not measured (I-15).
const TIMED_EDITS_MAX: usize = 4096;
/// Commands that may wait for the runner.
const COMMANDS_MAX: usize = 64;

/// What the daemon may ask of the runner besides rounds.
pub enum Command {
    /// Say what a round would do; do nothing.
    Inspect(oneshot::Sender<Result<Diff, String>>),
    /// Look at everything now; the answer comes after that round and says whether the node is as it should be.
    Resync(oneshot::Sender<bool>),
    /// The addresses of endpoint host names have changed.
    Resolved(BTreeMap<DnsName, IpAddr>),
    /// Take the device down; the answer comes after that round and says whether it is down.
    Suspend(oneshot::Sender<bool>),
}

/// Where edits are announced; shared between the committer and the scheduler.
#[derive(Default)]
pub struct Inbox {
    pending: Mutex<Pending>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Pending {
    keys: BTreeSet<Key>,
    everything: bool,
    /// Highest generation announced.
    generation: u64,
    /// Announced and not yet handed to a round.
    fresh: bool,
    timed: VecDeque<Instant>,
}

impl Inbox {
    /// Announces a durable edit. Never waits.
    pub fn announce(&self, touched: &Touched, generation: u64, at: Instant) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match touched {
            Touched::Nothing => {}
            Touched::Keys(keys) => pending.keys.extend(keys.iter().cloned()),
            Touched::Everything => pending.everything = true,
        }
        pending.generation = pending.generation.max(generation);
        pending.fresh = true;
        if pending.timed.len() < TIMED_EDITS_MAX {
            pending.timed.push_back(at);
        }
        drop(pending);
        self.waker.wake();
    }

    fn take(&self) -> Option<Pending> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if !pending.fresh {
            return None;
        }
        let generation = pending.generation;
        Some(std::mem::replace(&mut *pending, Pending { generation, ..Pending::default() }))
    }
}

/// The runner's next piece of work.
enum Work {
    Round {
        scope: Scope,
        /// Every edit up to this generation is covered once the round has ended.
        covers: u64,
        edits: VecDeque<Instant>,
        woken_at: Instant,
        cause: &'static str,
    },
    /// A look at the peers only.
    Glance,
    Command(Command),
}

/// Turns triggers into work. Polled by the runner only, so at most one round is under way.
struct Scheduler {
    inbox: Arc<Inbox>,
    hints: BoxStream<'static, Hint>,
    commands: mpsc::Receiver<Command>,
    resync_every: Duration,
    jitter: u64,
    glance_every: Duration,
    /// When the peers are to be looked at.
    glance_at: Instant,
    /// When the next full round is due, what for, and when it was first asked for.
    due: Due,
    /// A command was the last work that was handed out: a round that waits is next, so that neither starves the other.
    after_command: bool,
    overruns: Arc<dyn Fn() + Send + Sync>,
    timer: Pin<Box<tokio::time::Sleep>>,
}

#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    cause: &'static str,
    woken_at: Instant,
}

impl Scheduler {
    /// Asks for a full round no later than `at`.
    fn require(&mut self, at: Instant, cause: &'static str) {
        if at < self.due.at {
            self.due = Due { at, cause, woken_at: now() };
        }
    }

    /// After a full round: the next is the periodic one, somewhat earlier or later so that a fleet does not look at once.
    fn rewind(&mut self) {
        // xorshift64 (Marsaglia 2003): any spread will do.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let tenth = self.resync_every / 10;
        let spread = tenth.mul_f64((self.jitter % 2001) as f64 / 1000.0);
        let at = now() + self.resync_every - tenth + spread;
        self.due = Due { at, cause: "resync", woken_at: at };
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Option<Work>> {
        self.inbox.waker.register(cx.waker());
        while let Poll::Ready(Some(hint)) = self.hints.poll_next_unpin(cx) {
            let cause = match hint {
                Hint::Changed(_) => "hint",
                Hint::Overrun => {
                    (self.overruns)();
                    "overrun"
                }
            };
            self.require(now() + DEBOUNCE, cause);
        }
        if std::mem::take(&mut self.after_command)
            && let Some(round) = self.waiting_round()
        {
            return Poll::Ready(Some(round));
        }
        match self.commands.poll_next_unpin(cx) {
            Poll::Ready(Some(command)) => {
                self.after_command = true;
                return Poll::Ready(Some(Work::Command(command)));
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        loop {
            if let Some(round) = self.waiting_round() {
                return Poll::Ready(Some(round));
            }
            if self.glance_at <= now() {
                self.glance_at = now() + self.glance_every;
                return Poll::Ready(Some(Work::Glance));
            }
            self.timer.as_mut().reset(self.due.at.min(self.glance_at).into());
            if self.timer.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Sets the next look at the peers. With very many of them, or on a slow machine, a look takes long, and edits wait behind it.
    fn pace_glances(&mut self, took: Duration) {
        self.glance_at = now() + self.glance_every.max(took * GLANCE_SHARE);
    }

    /// The round that is to run now. A full round that is due takes the edits along: were they always first, a steady stream of
    /// edits would put off repairs for ever.
    fn waiting_round(&mut self) -> Option<Work> {
        let edits = self.inbox.take();
        if self.due.at <= now() {
            let pending = edits.unwrap_or_default();
            return Some(Work::Round {
                scope: Scope::Everything,
                covers: pending.generation,
                edits: pending.timed,
                woken_at: self.due.woken_at,
                cause: self.due.cause,
            });
        }
        let pending = edits?;
        let scope = if pending.everything { Scope::Everything } else { Scope::Keys(pending.keys) };
        Some(Work::Round { scope, covers: pending.generation, edits: pending.timed, woken_at: now(), cause: "edit" })
    }
}

/// The timers' own clock: the machine's, except in a test that stops it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Stream for Scheduler {
    type Item = Work;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Work>> {
        self.poll_work(cx)
    }
}

/// What the runner tells after every round.
pub struct Finished<'a> {
    pub round: &'a Round,
    pub cause: &'static str,
    /// How long the edits that this round covered had waited since their acknowledgement.
    pub lags: Vec<Duration>,
    /// From the first sign of trouble to the end of the round.
    pub since_woken: Duration,
}

/// Settings of the runner.
pub struct RuntimeOptions {
    /// Time between two full looks at the node when nothing happens.
    pub resync_every: Duration,
    /// Time between two looks at the peers: no kernel tells when a peer changes, and a status is no older than this.
    pub glance_every: Duration,
    /// Seed of the spread of `resync_every`; not zero.
    pub jitter_seed: u64,
}

/// A handle to the runner's command queue.
pub type Commands = mpsc::Sender<Command>;

/// The command queue: one end for the daemon, one for [`run`].
pub fn commands() -> (Commands, mpsc::Receiver<Command>) {
    mpsc::channel(COMMANDS_MAX)
}

/// Runs rounds until the last [`Commands`] handle is dropped. The first is a full one.
pub async fn run<K: Kernel, C: Clock>(
    mut engine: Engine<K, C>,
    inbox: Arc<Inbox>,
    commands: mpsc::Receiver<Command>,
    options: RuntimeOptions,
    overruns: Arc<dyn Fn() + Send + Sync>,
    mut finished: impl FnMut(Finished<'_>),
) {
    let started = now();
    let mut scheduler = Scheduler {
        inbox,
        hints: engine.kernel().hints().fuse().boxed(),
        commands,
        resync_every: options.resync_every,
        jitter: options.jitter_seed.max(1),
        due: Due { at: started, cause: "start", woken_at: started },
        glance_every: options.glance_every,
        glance_at: started + options.glance_every,
        after_command: false,
        overruns,
        timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
    };
    while let Some(work) = scheduler.next().await {
        match work {
            Work::Round { scope, covers, edits, woken_at, cause } => {
                if scope == Scope::Everything {
                    scheduler.rewind();
                }
                match cause {
                    "hint" | "overrun" => engine.distrust(Depth::Host),
                    "resync" => engine.distrust(Depth::Whole),
                    _ => {}
                }
                let round = engine.round(scope).await;
                engine.cover(covers);
                conclude(&mut scheduler, &round);
                let ended = now();
                let lag = |at: Instant| ended.saturating_duration_since(at);
                finished(Finished {
                    round: &round,
                    cause,
                    lags: edits.into_iter().filter(|_| round.in_sync).map(lag).collect(),
                    since_woken: lag(woken_at),
                });
            }
            Work::Glance => {
                let begun = now();
                let round = engine.glance().await;
                scheduler.pace_glances(now() - begun);
                follow_up(&mut scheduler, &round);
                finished(Finished { round: &round, cause: "glance", lags: Vec::new(), since_woken: now() - begun });
            }
            Work::Command(command) => obey(&mut engine, &mut scheduler, command, &mut finished).await,
        }
    }
}

fn conclude(scheduler: &mut Scheduler, round: &Round) {
    if round.full {
        scheduler.rewind();
    }
    follow_up(scheduler, round);
}

fn follow_up(scheduler: &mut Scheduler, round: &Round) {
    if let Some(at) = round.again_at {
        scheduler.require(at, "retry");
    }
}

async fn obey<K: Kernel, C: Clock>(
    engine: &mut Engine<K, C>,
    scheduler: &mut Scheduler,
    command: Command,
    finished: &mut impl FnMut(Finished<'_>),
) {
    let started = now();
    let (cause, reply) = match command {
        Command::Inspect(reply) => {
            // Nobody waits any more when sending fails.
            let _ = reply.send(engine.inspect().await);
            return;
        }
        Command::Resolved(resolved) => {
            engine.facts().resolved = resolved;
            ("resolved", None)
        }
        Command::Resync(reply) => {
            engine.distrust(Depth::Whole);
            ("asked", Some(reply))
        }
        Command::Suspend(reply) => {
            engine.facts().suspended = true;
            ("shutdown", Some(reply))
        }
    };
    let round = engine.round(Scope::Everything).await;
    conclude(scheduler, &round);
    finished(Finished {
        round: &round,
        cause,
        lags: Vec::new(),
        since_woken: now().saturating_duration_since(started),
    });
    if let Some(reply) = reply {
        let _ = reply.send(round.in_sync);
    }
}
