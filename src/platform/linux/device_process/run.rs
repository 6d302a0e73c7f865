//! The life of a device process.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Mutex, Semaphore, watch},
    task::LocalSet,
};

use super::{
    attach::{Tun, TunControl},
    engine::Engine,
    failed::DeviceError,
    place::{Listening, Place},
    server::{CONNECTIONS_MAX, serve},
    tun,
};
use crate::ids::IfName;

/// Where `wg` looks for sockets.
pub const DEFAULT_UAPI_DIR: &str = "/var/run/wireguard";

/// How often the MTU and the socket file are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a killed predecessor may hold the lock, the socket or the TUN: its threads end one after the other.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// What `overlayd wg-device` is told. Nothing secret: keys come over the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceArgs {
    pub ifname: IfName,
    /// Directory of the socket and the lock.
    pub uapi_dir: PathBuf,
}

/// Serves the interface until it is deleted or the process gets SIGTERM or SIGINT; then removes the socket file. The TUN stays.
///
/// # Assumes
/// The calling process is there for nothing else and has no async runtime: session, umask, core size and panic hook are changed.
///
/// # Errors
/// [`DeviceError`]; the caller exits with its [`exit_code`](DeviceError::exit_code).
pub fn run(args: DeviceArgs) -> Result<(), DeviceError> {
    become_a_device_process();
    // One worker for packets; requests are answered on this thread, so that writing a long dump holds up no packet.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(DeviceError::Runtime)?;
    let outcome = LocalSet::new().block_on(&runtime, live(&args));
    // gotatun's tasks have nothing left to do.
    runtime.shutdown_background();
    outcome
}

async fn live(args: &DeviceArgs) -> Result<(), DeviceError> {
    let mut stops = Stops::new().map_err(DeviceError::Runtime)?;
    let patience = Instant::now() + PATIENCE;
    let place = insist(patience, || Place::take(&args.uapi_dir, &args.ifname)).await?;
    let file = insist(patience, || tun::attach(&args.ifname).map_err(DeviceError::from)).await?;
    let control_socket = tun::control_socket().map_err(DeviceError::Runtime)?;
    let mtu = tun::mtu_of(control_socket.as_fd(), &args.ifname).map_err(DeviceError::Runtime)?;
    let (tun, control) = Tun::new(file, mtu).map_err(DeviceError::Runtime)?;
    let engine = Engine::new(tun).await.map_err(|error| DeviceError::Device(error.to_string()))?;
    let TunControl { mtu: mtu_feed, mut gone } = control;
    let engine = Rc::new(Mutex::new(engine));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Last, so that an answer on the socket means that the device works.
    let mut listening = insist(patience, || place.listen()).await?;
    tracing::info!(interface = %args.ifname, mtu, "device process serves");
    loop {
        tokio::select! {
            () = serve(&listening.listener, &engine, &connections) => {}
            finding = look_around(&place, &listening, &mtu_feed, control_socket.as_fd(), &args.ifname) => match finding {
                Finding::SocketRemoved => {
                    tracing::warn!(interface = %args.ifname, "socket file was removed; made again");
                    listening = place.listen()?;
                }
                Finding::InterfaceGone => break,
            },
            _ = gone.wait_for(|gone| *gone) => {
                tracing::info!(interface = %args.ifname, "interface was deleted");
                break;
            }
            () = stops.next() => break,
        }
    }
    place.clear(&listening);
    Ok(())
}

/// Tries again while the cause may be a former process that is being taken apart by the kernel.
async fn insist<T>(until: Instant, mut attempt: impl FnMut() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
    loop {
        match attempt() {
            Err(error) if error.may_pass() && Instant::now() < until => tokio::time::sleep(RETRY_PAUSE).await,
            other => return other,
        }
    }
}

/// What a look around found.
enum Finding {
    /// The path leads to another file, or to none.
    SocketRemoved,
    /// Nothing has the interface's name: it was deleted before anybody read from it, renamed or moved.
    InterfaceGone,
}

/// Hands MTU changes on, until something is found that needs more.
async fn look_around(
    place: &Place,
    listening: &Listening,
    mtu_feed: &watch::Sender<u16>,
    socket: BorrowedFd<'_>,
    ifname: &IfName,
) -> Finding {
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        ticks.tick().await;
        match tun::mtu_of(socket, ifname) {
            Ok(mtu) => {
                mtu_feed.send_if_modified(|known| std::mem::replace(known, mtu) != mtu);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Finding::InterfaceGone,
            Err(error) => tracing::debug!(%error, "read the MTU"),
        }
        if !place.still_reachable(listening) {
            return Finding::SocketRemoved;
        }
    }
}

struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Settings of the process as a whole. None of them is needed for packets to flow, so a failure is passed over.
fn become_a_device_process() {
    // Fails when the process leads a session already, which is as well.
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir(Path::new("/"));
    // No file of this process is for anybody else.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    // A core file would hold the private key.
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    // A panic in one task of gotatun would leave a device that looks well and drops packets. A process that is gone is started again.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        // SAFETY: _exit only ends the process. Destructors must not run: the thread that panicked may hold any lock.
        unsafe { libc::_exit(101) }
    }));
}
