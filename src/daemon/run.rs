//! Puts the house together, runs it, and ends it.
//!
//! Owns the order of start and stop. Upholds I-02 (the document is loaded before the kernel is even opened) and B3, B31 (a signal is
//! caught from the first instruction on and always ends the process in time).

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{broadcast, watch},
};

use super::{
    agent::{Agent, Stop},
    failed::RunError,
    listen::{self, Place},
    liveness::{self, Followed},
    load::{Loaded, load},
    metrics::Metrics,
    names, page,
    proxies::{self, Proxies},
    resolver::{self, Resolver},
    rounds,
    settings::Settings,
    systemd, tidy,
};
use crate::{
    clock::SystemClock,
    desired::Committer,
    object::Mark,
    platform::{NativeKernel, NativeOptions},
    reconcile::{
        engine::Engine,
        runtime::{self, Inbox, RuntimeOptions},
    },
    wire::limits::EVENT_QUEUE,
};

/// A stop that takes longer is ended the hard way; everything acknowledged is durable by then (B3).
const STOPPED_WITHIN: Duration = Duration::from_millis(1500);

/// Time between two looks at the peers' handshakes and counters.
const GLANCE_EVERY: Duration = Duration::from_secs(5);

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
                _ = self.reload.recv() => agent.look_again(),
                _ = self.resumed.recv() => agent.look_again(),
            }
        }
        agent.stop.send_replace(Some(Stop::Signal));
    }
}

async fn start(settings: Settings) -> Result<Running, RunError> {
    let clock = SystemClock;
    let Loaded { store, document, identity } = load(settings.state_dir.clone()).await?;
    let mark = Mark::of_instance(&identity);
    let generation = document.generation();
    let options = NativeOptions {
        run_dir: settings.run_dir.clone(),
        resolver_dir: settings.resolver_dir.clone(),
        ..NativeOptions::new(mark, settings.data_plane, settings.uapi_dir.clone())
    };
    let kernel =
        NativeKernel::open(options).map_err(|error| RunError::Process("open the kernel's interfaces", error))?;
    let (listener, place) = listen::bind(&settings)?;

    let inbox = Arc::new(Inbox::default());
    let latecomer: Arc<OnceLock<Arc<Agent>>> = Arc::new(OnceLock::new());
    let committer = Committer::start(
        document,
        Box::new(store),
        clock,
        settings.policy.clone(),
        rounds::announce(inbox.clone(), latecomer.clone()),
    )
    .map_err(|error| RunError::Process("start the committer", error))?;
    let facts = settings.facts(mark);
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
        followed: Followed::default(),
        proxies: Proxies::default(),
        resolver: Resolver::default(),
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
    liveness::take_stock(&agent).await;
    tokio::spawn(runtime::run(engine, inbox, queue, options, overruns, rounds::after_each(agent.clone(), covered)));
    tokio::spawn(names::keep_fresh(agent.clone()));
    tokio::spawn(tidy::keep_tidy(agent.clone()));
    tokio::spawn(proxies::keep(agent.clone()));
    tokio::spawn(resolver::keep(agent.clone()));
    tokio::spawn(page::serve(agent.clone()));
    tokio::spawn(listen::accept(agent.clone(), listener));
    tokio::spawn(systemd::keep_told(agent.clone()));
    Ok(Running { agent, committer, place })
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
