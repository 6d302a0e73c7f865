//! Namespaces for kernel tests: every test runs in a child process that has a network and a mount namespace of its own.
//!
//! Owns the re-execution of the test binary, [`Node`] (one more network namespace) and the wire between two of them. What a test prints on
//! standard output is handed on only when it failed; what follows `MEASURED:` always.
//!
//! A test that is not allowed here is not passed over in silence: it prints `SKIPPED: name: reason`, and the count.

use std::{
    fs::File,
    future::Future,
    io::{Read, Write},
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::MetadataExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
};

/// Set in the child that carries a test out.
const INSIDE: &str = "OVERLAYD_KERNEL_LAB";
/// Exit status of a child that may not do what the test needs.
const SKIP: i32 = 77;
/// Longest time one test may take.
const TEST_LIMIT: Duration = Duration::from_secs(180);
/// Another number of seconds for that: an emulated processor on a loaded machine needs more.
const LIMIT_VARIABLE: &str = "OVERLAYD_TEST_LIMIT_SECS";
/// The same for a test that is asked for every case, or for hours.
const LONG_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// What asks for that.
const LONG: [&str; 5] =
    ["OVERLAYD_CRASH_ALL", "OVERLAYD_DAMAGE_ALL", "OVERLAYD_POWER_ALL", "OVERLAYD_SOAK_SECS", "OVERLAYD_STORE_KILLS"];

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Runs the body alone in fresh namespaces. Call it as the whole of a `#[test]`, with a closure.
pub fn isolated<F: FnOnce()>(body: F) {
    isolated_as::<F>(body);
}

/// The same for a closure that wraps the test's own, which is named by its type.
pub fn isolated_as<Named>(body: impl FnOnce()) {
    let path = std::any::type_name::<Named>();
    let path = path.split_once("::").map_or(path, |(_, rest)| rest);
    let name = path.strip_suffix("::{{closure}}").expect("isolated() takes a closure");
    if is_inside() {
        prepare_inside();
        body();
        return;
    }
    // Timings of two tests on two processors would spoil each other.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let begin = Instant::now();
    let mut child = child_for(name).spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
    let mounts = mount_namespace(&child.id().to_string());
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.read_to_string(&mut text);
        text
    });
    let limit = limit();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > limit {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    end_leftovers(mounts.as_deref());
    let text = reader.join().unwrap();
    let mut stderr = std::io::stderr();
    // The test harness writes the first line of a test behind its name.
    for line in text.lines().filter_map(|line| line.find("MEASURED:").map(|at| &line[at..])) {
        let _ = writeln!(stderr, "{line}");
    }
    for line in text.lines().filter_map(|line| Some(line.split_once("SKIPPED PART: ")?.1)) {
        let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = writeln!(stderr, "SKIPPED: {name}: {line} ({count} skipped so far)");
    }
    if status.code() == Some(SKIP) {
        let reason = text
            .lines()
            .find_map(|line| line.split_once("SKIP: ").map(|(_, reason)| reason))
            .unwrap_or("no reason given");
        let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = writeln!(stderr, "SKIPPED: {name}: {reason} ({count} skipped so far)");
        return;
    }
    assert!(status.success(), "{name}: {:?} signal {:?}\n{text}", status.code(), status.signal());
}

/// Longest time that one test may take in this run.
fn limit() -> Duration {
    if LONG.iter().any(|variable| std::env::var_os(variable).is_some()) {
        return LONG_LIMIT;
    }
    match std::env::var(LIMIT_VARIABLE) {
        Ok(seconds) => Duration::from_secs(seconds.parse().expect("a number of seconds")),
        Err(_) => TEST_LIMIT,
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What tells a network namespace from all others; `None` where it cannot be looked at.
type Network = Option<(u64, u64)>;

fn network_at(path: &str) -> Network {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// The network namespace of the calling thread.
pub fn network() -> Network {
    network_at("/proc/thread-self/ns/net")
}

/// Pids of the processes behind userspace devices in a network namespace.
pub fn device_processes(network: Network) -> Vec<i32> {
    let is_meant = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"wg-device")
            && network_at(&format!("/proc/{pid}/ns/net")) == network
    };
    processes().filter(is_meant).collect()
}

fn mount_namespace(process: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

/// Kills what a test left running in its mount namespace: a device process outlives its agent, and would keep the test's network for ever.
fn end_leftovers(of_test: Option<&Path>) {
    let Some(of_test) = of_test.filter(|of_test| mount_namespace("self").as_deref() != Some(of_test)) else { return };
    for pid in processes() {
        if mount_namespace(&pid.to_string()).as_deref() == Some(of_test) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Whether this is the child that carries a test out.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Ends the test as not possible here. Only inside [`isolated`].
pub fn skip(reason: &str) -> ! {
    println!("SKIP: {reason}");
    std::process::exit(SKIP);
}

/// Says that a part of the test is not possible here, and goes on. Only inside [`isolated`].
pub fn skip_part(reason: &str) {
    println!("SKIPPED PART: {reason}");
}

/// What this kernel calls itself.
pub fn release() -> String {
    nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned()
}

/// True for this kernel and later ones.
pub fn release_is_at_least(major: u32, minor: u32) -> bool {
    let release = release();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

fn child_for(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let (uid_map, gid_map) = (format!("0 {uid} 1"), format!("0 {gid} 1"));
    // SAFETY: between fork and exec only system calls and small writes; the test process may have threads, but none of their locks is taken
    // here: the strings were made before the fork.
    unsafe {
        command.pre_exec(move || {
            let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
            if uid != 0 {
                flags |= CloneFlags::CLONE_NEWUSER;
            }
            if unshare(flags).is_err() {
                libc::write(1, c"SKIP: no namespaces allowed here\n".as_ptr().cast(), 33);
                libc::_exit(SKIP);
            }
            if uid != 0 {
                write_plain(c"/proc/self/setgroups", b"deny");
                write_plain(c"/proc/self/uid_map", uid_map.as_bytes());
                write_plain(c"/proc/self/gid_map", gid_map.as_bytes());
            }
            Ok(())
        });
    }
    command
}

/// Writes a file with system calls only.
fn write_plain(path: &std::ffi::CStr, bytes: &[u8]) {
    // SAFETY: the path ends in zero, the buffer is as long as said, and the descriptor is closed once.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, bytes.as_ptr().cast(), bytes.len());
            libc::close(fd);
        }
    }
}

fn prepare_inside() {
    let private = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
    let run = private.and_then(|()| mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755")));
    if let Err(errno) = run {
        skip(&format!("no mounts allowed here: {errno}"));
    }
}

/// Ends the test unless TUN devices can be made.
pub fn need_tun() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        skip(&format!("/dev/net/tun: {error}"));
    }
}

/// A network namespace inside the lab.
pub struct Node {
    namespace: File,
}

impl Node {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net").map_err(|_| nix::Error::EIO)
        });
        let namespace = match made.join().unwrap() {
            Ok(namespace) => namespace,
            Err(errno) => skip(&format!("no second network namespace: {errno}")),
        };
        let node = Self { namespace };
        node.block_on(|| async { set_up_link("lo").await });
        node
    }

    /// The network namespace of a process; it lives as long as this, also when the process is gone.
    pub fn of_process(pid: i32) -> std::io::Result<Self> {
        File::open(format!("/proc/{pid}/ns/net")).map(|namespace| Self { namespace })
    }

    /// The same namespace once more.
    pub fn twin(&self) -> Self {
        Self { namespace: self.namespace.try_clone().unwrap() }
    }

    /// Runs the closure on a thread in this namespace.
    pub fn run<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(body).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The same without waiting for it.
    pub fn spawn<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let namespace = self.namespace.try_clone().unwrap();
        std::thread::spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }

    /// Runs the future on a runtime whose only thread is in this namespace.
    pub fn block_on<T, F>(&self, body: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(body())
        })
    }

    /// Joins two nodes by a veth pair named `wire` at both ends.
    pub fn wire(&self, other: &Node, own: IpAddr, others: IpAddr, prefix: u8) {
        self.join("wire", other);
        for (node, address) in [(self, own), (other, others)] {
            node.add_address("wire", address, prefix);
        }
    }

    pub fn add_address(&self, link: &str, address: IpAddr, prefix: u8) {
        let link = link.to_owned();
        self.block_on(move || async move { add_address(&link, address, prefix).await });
    }

    /// Joins two nodes by a veth pair with one name at both ends, and sets both up.
    pub fn join(&self, name: &str, other: &Node) {
        let (far, link) = (other.namespace.try_clone().unwrap(), name.to_owned());
        self.block_on(move || async move {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            let mut peer = LinkMessage::default();
            peer.attributes.push(LinkAttribute::IfName(link.clone()));
            peer.attributes.push(LinkAttribute::NetNsFd(far.as_raw_fd()));
            let veth = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
                .name(link)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .build();
            handle.link().add(veth).execute().await.unwrap();
        });
        for node in [self, other] {
            let link = name.to_owned();
            node.block_on(move || async move { set_up_link(&link).await });
        }
    }
}

/// Adds an address to a link of the calling thread's namespace.
pub async fn add_address(link: &str, address: IpAddr, prefix: u8) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    handle.address().add(index, address, prefix).execute().await.unwrap();
}

pub async fn set_up_link(link: &str) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    let change = LinkUnspec::new_with_index(index).up().build();
    handle.link().change(change).execute().await.unwrap();
}

pub async fn delete_link(link: &str) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    handle.link().del(index).execute().await.unwrap();
}

pub async fn set_mtu(link: &str, mtu: u32) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    let change = LinkUnspec::new_with_index(index).mtu(mtu).build();
    handle.link().change(change).execute().await.unwrap();
}
