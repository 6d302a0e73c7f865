//! Puts the house together, runs it, and ends it.
//!
//! Owns the order of start and stop. Upholds I-02 (the document is loaded before the kernel is even opened) and B3, B31 (a signal is
//! caught from the first instruction on and always ends the process in time).

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use rand_core::{OsRng, TryRngCore};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{broadcast, watch},
};

use super::{
    agent::{Agent, Stop},
    health::PeerHealth,
    listen::{self, ListenError, Place},
    metrics::Metrics,
    names, page,
    settings::Settings,
};
use crate::{
    clock::{Clock, SystemClock},
    desired::{
        Committed, Committer, Document, Record, RecordKey,
        store::{DiskStore, Opened, StoreError, Write},
    },
    object::{Key, KeyPair, Mark},
    platform::{DataPlaneChoice, NativeKernel, NativeOptions},
    reconcile::{
        engine::Engine,
        runtime::{self, Finished, Inbox, RuntimeOptions},
        target::Facts,
    },
    secret::PrivateKey,
    wire::{Event, limits::EVENT_QUEUE},
};

/// A stop that takes longer is ended the hard way; everything acknowledged is durable by then (B3).
const STOPPED_WITHIN: Duration = Duration::from_millis(1500);

/// Time between two looks at the peers' handshakes and counters.
const GLANCE_EVERY: Duration = Duration::from_secs(5);

/// Why the agent did not start. Nothing was changed on the node.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the document cannot be read; nothing was changed; run `overlayd store check`")]
    Document(#[from] crate::desired::BadRecord),
    #[error("the store holds no private key of this node; import a copy that was made with --with-secrets")]
    NoKey,
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("{0}")]
    Process(&'static str, #[source] std::io::Error),
}

/// Runs the agent until a signal or a `Shutdown` request ends it.
///
/// # Errors
/// See [`RunError`]: the reasons for which it could not start.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    let mut signals = Signals::catch()?;
    raise_descriptor_limit();
    tokio::select! {
        biased;
        () = signals.end() => Ok(()),
        started = start(settings) => {
            let Running { agent, committer, place } = started?;
            signals.until_stopped(&agent).await;
            stop(committer, &place);
            Ok(())
        }
    }
}

struct Running {
    agent: Arc<Agent>,
    committer: Committer,
    place: Place,
}

/// Signals are caught before anything else is done.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
    resumed: Signal,
}

impl Signals {
    fn catch() -> Result<Self, RunError> {
        let catch = |kind| signal(kind).map_err(|error| RunError::Process("catch signals", error));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            reload: catch(SignalKind::hangup())?,
            resumed: catch(SignalKind::from_raw(libc::SIGCONT))?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the end; a hangup or a resumption only makes the loop look at everything.
    async fn until_stopped(&mut self, agent: &Arc<Agent>) {
        let mut stop = agent.stop.subscribe();
        loop {
            tokio::select! {
                biased;
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = stop.wait_for(Option::is_some) => return,
                _ = self.reload.recv() => look_again(agent),
                _ = self.resumed.recv() => look_again(agent),
            }
        }
        agent.stop.send_replace(Some(Stop::Signal));
    }
}

/// While the process was stopped, or an operator thought it worth a signal, events may have been lost.
fn look_again(agent: &Arc<Agent>) {
    let (reply, _) = futures::channel::oneshot::channel();
    // A full queue means that a look is coming anyway.
    let _ = agent.commands.clone().try_send(runtime::Command::Resync(reply));
}

async fn start(settings: Settings) -> Result<Running, RunError> {
    let clock = SystemClock;
    let (store, document, identity) = load(settings.state_dir.clone()).await?;
    let mark = Mark::of_instance(&identity);
    let generation = document.generation();
    let choice = data_plane(&settings);
    let kernel = NativeKernel::open(NativeOptions::new(mark, choice, settings.uapi_dir.clone()))
        .map_err(|error| RunError::Process("open the kernel's interfaces", error))?;
    let (listener, place) = listen::bind(&settings)?;

    let inbox = Arc::new(Inbox::default());
    let latecomer: Arc<OnceLock<Arc<Agent>>> = Arc::new(OnceLock::new());
    let committer = Committer::start(document, Box::new(store), clock, announce(inbox.clone(), latecomer.clone()))
        .map_err(|error| RunError::Process("start the committer", error))?;
    let facts = Facts { mtu: settings.mtu, ..Facts::new(mark) };
    let resync_every = settings.resync_every;
    let engine = Engine::new(kernel, clock, committer.document(), facts);
    let (commands, queue) = runtime::commands();
    let (covered, covered_so_far) = watch::channel(0);
    let agent = Arc::new(Agent {
        settings,
        mark,
        clock,
        editor: committer.editor(),
        document: committer.document(),
        view: engine.view(),
        commands,
        covered: covered_so_far,
        metrics: Metrics::new(),
        events: broadcast::channel(EVENT_QUEUE).0,
        stop: watch::channel(None).0,
    });
    let _ = latecomer.set(agent.clone());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), generation, %mark, socket = %agent.settings.socket.display(), "started");
    let overruns = {
        let agent = agent.clone();
        Arc::new(move || agent.metrics.reconcile.netlink_overruns.inc())
    };
    let options =
        RuntimeOptions { glance_every: GLANCE_EVERY, resync_every, jitter_seed: u64::from(mark.link_group()) };
    tokio::spawn(runtime::run(engine, inbox, queue, options, overruns, after_round(agent.clone(), covered)));
    tokio::spawn(names::keep_fresh(agent.clone()));
    tokio::spawn(page::serve(agent.clone()));
    tokio::spawn(listen::accept(agent.clone(), listener));
    tokio::spawn(tell_systemd(agent.clone()));
    Ok(Running { agent, committer, place })
}

/// Reads the store on a thread of its own: disks may be slow, and a signal must not wait for one.
async fn load(state_dir: PathBuf) -> Result<(DiskStore, Document, String), RunError> {
    match tokio::task::spawn_blocking(move || open_store(&state_dir)).await {
        Ok(opened) => opened,
        Err(panic) => Err(RunError::Process("read the store", std::io::Error::other(panic))),
    }
}

/// Opens or makes the store and reads the document.
fn open_store(state_dir: &Path) -> Result<(DiskStore, Document, String), RunError> {
    // Drawn before the store is opened and used only when there is none yet: the key is made once and kept.
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| {
        RunError::Process("draw random bytes for the node's key", std::io::Error::other(error.to_string()))
    })?;
    let first_records = || {
        let key = Record::NodeKey(KeyPair::from_private(PrivateKey::from_random_bytes(bytes)));
        vec![Write { key: RecordKey::NodeKey.to_string(), value: Some(key.encode()) }]
    };
    let Opened { store, contents, notes } = DiskStore::open(state_dir, SystemClock.now().unix, first_records)?;
    for note in notes {
        tracing::warn!(%note, "store");
    }
    let document = Document::from_contents(&contents)?;
    if document.node_key().is_none_or(|key| key.private.is_none()) {
        return Err(RunError::NoKey);
    }
    let identity = std::fs::canonicalize(state_dir)
        .map_err(|error| RunError::Process("find the path of the state directory", error))?;
    Ok((store, document, identity.to_string_lossy().into_owned()))
}

fn data_plane(settings: &Settings) -> DataPlaneChoice {
    match settings.data_plane {
        super::settings::DataPlane::Auto => DataPlaneChoice::Auto,
        super::settings::DataPlane::Kernel => DataPlaneChoice::Kernel,
        super::settings::DataPlane::Userspace => DataPlaneChoice::Userspace,
    }
}

/// Wakes the loop for every durable edit.
fn announce(inbox: Arc<Inbox>, agent: Arc<OnceLock<Arc<Agent>>>) -> crate::desired::Listener {
    Box::new(move |group: &[Committed], flush: Duration| {
        let at = SystemClock.now().instant;
        if let Some(agent) = agent.get()
            && group.iter().any(|committed| committed.changed)
        {
            agent.metrics.reconcile.fsync_seconds.observe(flush.as_secs_f64());
        }
        for committed in group {
            inbox.announce(&committed.touched, committed.generation, at);
        }
    })
}

/// What happens after every round: figures, waiting replies, peers' health, the watermark, one line of log.
fn after_round(agent: Arc<Agent>, covered: watch::Sender<u64>) -> impl FnMut(Finished<'_>) + Send {
    let mut health = PeerHealth::default();
    let mut settled = agent.document().settled();
    move |finished: Finished<'_>| {
        agent.metrics.reconcile.round(&finished);
        let progress = agent.view.read().progress;
        covered.send_replace(progress.covered);
        if finished.round.blind.is_none() && progress.covered > settled && knows_every_endpoint(&agent) {
            settled = progress.covered;
            agent.editor.settle(settled);
        }
        if finished.round.full {
            let now = agent.clock.now().unix;
            for event in health.compare(&agent.view.read().snapshot, now) {
                tracing::info!(?event, "peer health");
                publish(&agent, event);
            }
        }
        log_round(&finished);
    }
}

/// True when the kernel was told of every peer's endpoint as far as rounds have come. What else is blocked or failing does not matter: were it
/// to hold the watermark back, the next start would push back the endpoints of all peers that have roamed since (A5).
fn knows_every_endpoint(agent: &Agent) -> bool {
    let document = agent.document();
    let view = agent.view.read();
    view.ledger.troubled().keys().all(|key| match key {
        Key::Peer { public_key, .. } => {
            let wanted = document.peers().get(public_key);
            wanted.is_none_or(|peer| view.ledger.realized_at(key) == Some(peer.since))
        }
        Key::Link(_) | Key::Address { .. } | Key::Route { .. } | Key::Sysctl { .. } | Key::Device(_) => true,
    })
}

fn publish(agent: &Agent, event: Event) {
    // No receiver is no error: nobody is connected.
    let _ = agent.events.send(event);
}

fn log_round(finished: &Finished<'_>) {
    let round = finished.round;
    if let Some(why) = &round.blind {
        tracing::error!(%why, "the node could not be looked at; nothing was changed");
        return;
    }
    for action in &round.actions {
        match &action.error {
            None => tracing::debug!(object = %action.key, action = action.verb, "done"),
            Some(why) => {
                tracing::warn!(object = %action.key, action = action.verb, result = action.result, %why, "not done")
            }
        }
    }
    for (key, cause) in &round.drift {
        tracing::warn!(object = %key, cause, "drift: it changed though the document did not; repaired");
    }
    if round.actions.is_empty() {
        tracing::debug!(cause = finished.cause, in_sync = round.in_sync, "round");
    } else {
        tracing::info!(
            cause = finished.cause,
            generation = round.generation,
            changes = round.actions.len(),
            drift = round.drift.len(),
            in_sync = round.in_sync,
            micros = u64::try_from(finished.since_woken.as_micros()).unwrap_or(u64::MAX),
            "round"
        );
    }
}

/// Tells systemd when the agent is ready and, where it asks for it, that it is alive: only while rounds end.
async fn tell_systemd(agent: Arc<Agent>) {
    while !agent.view.read().progress.ready {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut rounds = None;
    loop {
        let now = agent.view.read().progress.rounds;
        if rounds == Some(now) {
            look_again(&agent);
        } else {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        rounds = Some(now);
        tokio::time::sleep(limit / 4).await;
    }
}

/// More descriptors than a login shell gives: every client and every device has one.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, soft, "the descriptor limit stays as it is");
    }
}

fn stop(committer: Committer, place: &Place) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    std::thread::spawn(|| {
        std::thread::sleep(STOPPED_WITHIN);
        tracing::warn!("the stop took too long and is cut short; everything acknowledged is durable");
        std::process::exit(0);
    });
    place.clear();
    committer.stop();
    tracing::info!("stopped");
}
