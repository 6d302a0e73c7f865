//! Network namespaces of one's own: where the demonstration and the kernel tests play.
//!
//! Owns making namespaces, joining two of them by a veth pair, and running code or programs inside one. Nothing here touches the host's
//! own network, and nothing here is used by the agent.
//!
//! Entering a namespace is a property of a *thread*: every entry gets a thread of its own, which ends before it could be used for
//! anything else.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    process::{Child, Command},
};

use ipnet::IpNet;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{getgid, getuid},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

/// Puts this process into namespaces of its own: user (unless it is root), mount, and the pid namespace of its children.
/// Must be called before the process has a second thread.
///
/// # Errors
/// When the machine does not allow it.
pub fn leave_the_host() -> io::Result<()> {
    let (uid, gid) = (getuid(), getgid());
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags)?;
    if !uid.is_root() {
        // user_namespaces(7): setgroups must be given up before an ordinary user may write a group map.
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    Ok(())
}

/// Gives the first process of a new pid namespace its own `/proc`, and a `/run` that nobody else sees.
///
/// # Errors
/// When the machine does not allow it.
pub fn furnish() -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    Ok(())
}

/// A network namespace, alive for as long as this value or a process in it is.
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new, empty namespace with its loopback interface up.
    ///
    /// # Errors
    /// When the machine does not allow it.
    pub fn new() -> io::Result<Self> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let namespace = Self { file: joined(made.join())? };
        namespace.run_async(async |netlink| {
            let lo = index_of(&netlink, "lo").await?;
            netlink.link().set(LinkUnspec::new_with_index(lo).up().build()).execute().await.map_err(io::Error::other)
        })?;
        Ok(namespace)
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered; otherwise what `work` gives.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                work()
            });
            joined(thread.join())
        })
    }

    /// Runs asynchronous work with a netlink socket of the namespace.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_async<T: Send>(
        &self,
        work: impl AsyncFnOnce(rtnetlink::Handle) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, netlink, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                work(netlink).await
            })
        })
    }

    /// Starts a program inside the namespace.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.run(|| command.spawn())
    }

    /// Joins two namespaces by a veth pair with these names and addresses.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn join(
        &self,
        name: &str,
        address: IpNet,
        other: &Namespace,
        other_name: &str,
        other_address: IpNet,
    ) -> io::Result<()> {
        let there = other.file.as_raw_fd();
        self.run_async(async |netlink| {
            let mut peer = LinkMessage::default();
            peer.attributes.extend([LinkAttribute::IfName(other_name.into()), LinkAttribute::NetNsFd(there)]);
            let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
                .name(name.to_owned())
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .build();
            netlink.link().add(pair).execute().await.map_err(io::Error::other)?;
            bring_up(&netlink, name, address).await
        })?;
        other.run_async(async |netlink| bring_up(&netlink, other_name, other_address).await)
    }
}

async fn bring_up(netlink: &rtnetlink::Handle, name: &str, address: IpNet) -> io::Result<()> {
    let index = index_of(netlink, name).await?;
    let ip: IpAddr = address.addr();
    netlink.address().add(index, ip, address.prefix_len()).execute().await.map_err(io::Error::other)?;
    netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(io::Error::other)
}

async fn index_of(netlink: &rtnetlink::Handle, name: &str) -> io::Result<u32> {
    use futures::TryStreamExt;
    let found =
        netlink.link().get().match_name(name.to_owned()).execute().try_next().await.map_err(io::Error::other)?;
    found.map(|link| link.header.index).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn joined<T>(result: std::thread::Result<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|_| Err(io::Error::other("the work inside the namespace panicked")))
}
