//! A node with a real agent: a namespace, a state directory, and a process that can be killed, stopped and started.
//!
//! Owns starting and ending agents, speaking to them, and looking at the node independently of them. What a test looks for is its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    future::Future,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use overlayd::{
    action::Action,
    client::Client,
    ids::{IfName, WgPublicKey},
    object::{Key, Mark, PeerSpec, Spec, Subsystem},
    observed::{Observation, PeerStats},
    platform::{
        ActionError, Interest, Kernel,
        linux::{
            DataPlane, DataPlaneChoice, LinuxKernel, LinuxOptions, device_process,
            uapi::{UapiChange, UapiClient},
        },
    },
    wire::{
        AgentRequest, AgentResponse, Frame, FrameReader, PeerScope, PeerSpec as WirePeer, Request, Response,
        StatusSnapshot, decode_frame, encode,
    },
};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{address::AddressAttribute, link::LinkAttribute, route::RouteAttribute},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::lab::{Node, need_tun, release};

pub const PORT: u16 = 51820;
/// Requests that one connection may have in flight.
pub const IN_FLIGHT: usize = 48;
/// Longest wait for something an agent does; an emulated processor is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Chooses the data plane of a run; the default is what an agent chooses by itself.
const PLANE_VARIABLE: &str = "OVERLAYD_TEST_DATA_PLANE";

pub struct OverlayNode {
    pub node: Node,
    name: String,
    state_dir: PathBuf,
    /// More arguments of `overlayd run`.
    pub flags: Vec<String>,
    /// What its agent logs.
    pub log_level: &'static str,
    /// Capabilities that its agent is started without, by number.
    pub lacking: Vec<libc::c_ulong>,
    agent: Option<Child>,
}

/// Takes a capability out of what this process and its programs can ever have.
fn drop_capability(capability: libc::c_ulong) -> libc::c_int {
    // SAFETY: takes a number and touches no memory.
    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }
}

/// Waits until `is_so`; panics with `what` when it takes longer than [`PATIENCE`]. Answers how long it took.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    begin.elapsed()
}

/// Runs a future where the namespace does not matter.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

fn chosen_plane() -> String {
    std::env::var(PLANE_VARIABLE).unwrap_or_else(|_| "auto".into())
}

/// Before Linux 6.17 IPv6 is forwarded for all links or none, and the agent leaves that to the host's administrator: who is the test.
fn forward_ipv6_where_only_the_host_can() {
    let settings = std::path::Path::new("/proc/sys/net/ipv6/conf");
    if settings.exists() && !settings.join("lo/force_forwarding").exists() {
        std::fs::write(settings.join("all/forwarding"), "1").unwrap();
    }
}

impl OverlayNode {
    pub fn new(name: &str) -> Self {
        Self::within(Node::new(), name, name)
    }

    /// A node in a namespace that is there, with a state directory of its own name.
    pub fn within(node: Node, name: &str, state: &str) -> Self {
        let state_dir = PathBuf::from(format!("/run/{state}-state"));
        std::fs::create_dir_all(&state_dir).unwrap();
        node.run(forward_ipv6_where_only_the_host_can);
        Self {
            node,
            name: name.to_owned(),
            state_dir: std::fs::canonicalize(state_dir).unwrap(),
            flags: vec!["--resync-secs=3600".into()],
            log_level: "debug",
            lacking: Vec::new(),
            agent: None,
        }
    }

    pub fn uapi_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/{}-wireguard", self.name))
    }

    pub fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/run/{}-overlayd.sock", self.name))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(format!("/run/{}.log", self.name)).unwrap_or_default()
    }

    /// Empties the log.
    pub fn forget_log(&self) {
        std::fs::write(format!("/run/{}.log", self.name), "").unwrap();
    }

    pub fn mark(&self) -> Mark {
        Mark::of_instance(&self.state_dir.to_string_lossy())
    }

    fn overlayd(&self) -> Command {
        self.dressed(env!("CARGO_BIN_EXE_overlayd"))
    }

    /// A program with this node's directories in its environment.
    fn dressed(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("OVERLAYD_UAPI_DIR", self.uapi_dir())
            .env("OVERLAYD_STATE_DIR", &self.state_dir)
            .env_remove("OVERLAYD_SOCKET");
        command
    }

    fn log_file(&self) -> File {
        OpenOptions::new().create(true).append(true).open(format!("/run/{}.log", self.name)).unwrap()
    }

    /// The command that is the agent, without its standard streams.
    fn run_command(&self) -> Command {
        let mut command = self.overlayd();
        command.args(["run", "--data-plane", &chosen_plane(), "--log", self.log_level, "--socket"]);
        command.arg(self.socket()).args(&self.flags);
        command
    }

    /// Starts the agent and does not wait for it.
    pub fn spawn(&mut self) {
        let mut command = self.run_command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.log_file());
        for capability in self.lacking.clone() {
            let drop_it = move || match drop_capability(capability) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            };
            // SAFETY: one system call between fork and exec.
            unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, drop_it) };
        }
        let child = self.node.run(move || command.spawn());
        assert!(self.agent.is_none());
        self.agent = Some(child.unwrap());
    }

    /// Starts a process that becomes the agent as soon as it is sent a line.
    pub fn spawn_held(&mut self) -> ChildStdin {
        let agent = self.run_command();
        let mut command = self.dressed("sh");
        command.args(["-c", "read _; exec \"$0\" \"$@\""]).arg(agent.get_program()).args(agent.get_args());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(self.log_file());
        let mut child = self.node.run(move || command.spawn()).unwrap();
        let line = child.stdin.take().unwrap();
        assert!(self.agent.is_none());
        self.agent = Some(child);
        line
    }

    pub fn is_started(&self) -> bool {
        self.agent.is_some()
    }

    /// Starts the agent; answers how long it took to be ready.
    pub fn start(&mut self) -> Duration {
        let begin = Instant::now();
        self.spawn();
        until(&format!("{} is ready: {}", self.name, self.log_tail()), || {
            self.page("/readyz").is_some_and(|page| page.contains("200 OK"))
        });
        begin.elapsed()
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// Waits until the agent ended by itself.
    pub fn ended(&mut self) {
        let mut agent = self.agent.take().unwrap();
        until("the agent ends", || agent.try_wait().unwrap().is_some());
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.agent.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    pub fn agent_pid(&self) -> i32 {
        i32::try_from(self.agent.as_ref().unwrap().id()).unwrap()
    }

    /// The agent has died, and somebody else has waited for it.
    pub fn forget_agent(&mut self) {
        self.agent = None;
    }

    /// Runs another command of overlayd inside the node.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = self.overlayd();
        command.args(arguments);
        self.node.run(move || command.output()).unwrap()
    }

    /// The records of the document, as an export has them.
    ///
    /// # Errors
    /// What the export said, when there is no document.
    pub fn records(&self) -> Result<BTreeMap<String, Value>, Output> {
        let output = self.command(&["store", "export"]);
        if !output.status.success() {
            return Err(output);
        }
        let mut export: Value = serde_json::from_slice(&output.stdout).unwrap();
        Ok(serde_json::from_value(export["records"].take()).unwrap())
    }

    /// What `overlayd diff --state-dir` prints, without asking the agent; and its exit status.
    pub fn diff(&self) -> (Vec<String>, i32) {
        let state_dir = self.state_dir.to_string_lossy().into_owned();
        let output = self.command(&["diff", "--state-dir", &state_dir]);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let status = output.status.code().unwrap_or(-1);
        assert!(status != 1, "{errors}");
        (text.lines().map(str::to_owned).collect(), status)
    }

    pub fn assert_no_difference(&self) {
        assert_eq!(self.diff(), (vec![], 0));
    }

    pub fn ask(&self, request: Request) -> Response {
        block_on(async { Client::connect(&self.socket()).await.unwrap().request(request).await.unwrap() })
    }

    /// A request that must be granted.
    pub fn request(&self, request: Request) -> Response {
        let text = format!("{request:?}");
        match self.ask(request) {
            Response::Err { message } => panic!("{}: {text}: {message}\n{}", self.name, self.log_tail()),
            response => response,
        }
    }

    /// Sends requests with [`IN_FLIGHT`] under way and waits for all answers; gives the number of those that came before their effect.
    pub fn pour(&self, requests: impl Iterator<Item = Request>) -> u32 {
        block_on(async {
            let mut stream = UnixStream::connect(self.socket()).await.unwrap();
            let (mut frames, mut chunk) = (FrameReader::default(), vec![0; 65536]);
            let (mut in_flight, mut requests, mut id, mut late) = (BTreeSet::new(), requests.peekable(), 0, 0);
            while requests.peek().is_some() || !in_flight.is_empty() {
                while in_flight.len() < IN_FLIGHT
                    && let Some(request) = requests.next()
                {
                    id += 1;
                    in_flight.insert(id);
                    stream.write_all(&encode(&Frame::Request { id, request }).unwrap()).await.unwrap();
                }
                let count = stream.read(&mut chunk).await.unwrap();
                assert_ne!(count, 0);
                let mut input = &chunk[..count];
                while let Some(body) = frames.feed(&mut input).unwrap() {
                    if let Frame::Response { id, response } = decode_frame(&body).unwrap() {
                        if let Response::Err { message } = response {
                            // Emulated and busy, a node may take longer than an answer waits: the edit stands all the same.
                            assert!(message.starts_with("kept as generation"), "{message}");
                            late += 1;
                        }
                        in_flight.remove(&id);
                    }
                }
            }
            late
        })
    }

    pub fn status(&self) -> StatusSnapshot {
        match self.request(Request::Status) {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Makes the agent look at the whole node and waits for that round.
    pub fn resync(&self) {
        self.report(AgentRequest::Resync);
    }

    /// The generation of the document.
    pub fn generation(&self) -> u64 {
        self.report(AgentRequest::Status)["generation"].as_u64().unwrap()
    }

    fn report(&self, request: AgentRequest) -> Value {
        let answer =
            block_on(async { Client::connect(&self.socket()).await.unwrap().agent_request(request).await.unwrap() });
        match answer {
            AgentResponse::Report { report } => report,
            AgentResponse::Err { message } => panic!("{message}"),
        }
    }

    pub fn setup(&self, cluster: &str, slice: Option<&str>, port: u16) -> IfName {
        let request = setup_request(cluster, slice, port);
        match self.request(request) {
            Response::BridgeName { name } => name.parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub fn public_key(&self) -> WgPublicKey {
        self.status().public_key.unwrap().parse().unwrap()
    }

    pub fn page(&self, path: &str) -> Option<String> {
        let path = path.to_owned();
        self.node.run(move || {
            let address = SocketAddr::from(([127, 0, 0, 1], 9586));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
            let mut page = String::new();
            stream.read_to_string(&mut page).ok()?;
            Some(page)
        })
    }

    /// The series of one metric that are not zero, labels as on the page.
    pub fn metric(&self, name: &str) -> BTreeMap<String, f64> {
        let page = self.page("/metrics").expect("the metrics page");
        let series = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| (labels.to_owned(), value.parse().unwrap()))
        });
        series.filter(|(_, value): &(String, f64)| *value != 0.0).collect()
    }

    pub fn total(&self, name: &str) -> f64 {
        self.metric(name).values().sum()
    }

    pub fn actions(&self) -> f64 {
        self.total("overlayd_actions_total")
    }

    /// Runs actions on the node as somebody with our mark would: the agent does not know of it.
    pub fn execute(&self, actions: Vec<Action>) -> Vec<Result<(), ActionError>> {
        self.execute_as(self.mark(), actions)
    }

    pub fn execute_as(&self, mark: Mark, actions: Vec<Action>) -> Vec<Result<(), ActionError>> {
        let options = self.options(mark);
        self.node.block_on(move || async move { LinuxKernel::open(options).unwrap().execute(&actions).await })
    }

    fn options(&self, mark: Mark) -> LinuxOptions {
        let choice = match chosen_plane().as_str() {
            "auto" => DataPlaneChoice::Auto,
            "kernel" => DataPlaneChoice::Kernel,
            "userspace" => DataPlaneChoice::Userspace,
            other => panic!("{PLANE_VARIABLE}={other}"),
        };
        LinuxOptions::new(mark, choice, self.uapi_dir())
    }

    /// What is on the node under a mark, seen without the agent.
    pub fn observe_as(&self, mark: Mark) -> Observation {
        let options = self.options(mark);
        self.node.block_on(move || async move {
            let interest = Interest { subsystems: Subsystem::ALL.into(), ..Interest::default() };
            LinuxKernel::open(options).unwrap().observe(&interest).await.unwrap()
        })
    }

    pub fn observe(&self) -> Observation {
        self.observe_as(self.mark())
    }

    pub fn peer(&self, public_key: &WgPublicKey) -> Option<(PeerSpec, PeerStats)> {
        let seen = self.observe();
        seen.objects.iter().find_map(|(key, seen)| match (key, &seen.spec) {
            (Key::Peer { public_key: of, .. }, Spec::Peer(peer)) if of == public_key => {
                Some((peer.clone(), seen.stats.unwrap_or_default()))
            }
            _ => None,
        })
    }

    pub fn plane(&self, device: &IfName) -> DataPlane {
        let (options, device) = (self.options(self.mark()), device.clone());
        let plane =
            self.node.block_on(move || async move { LinuxKernel::open(options).unwrap().data_plane(&device).await });
        plane.unwrap().unwrap()
    }

    /// The process behind a userspace device.
    pub fn device_process(&self, device: &IfName) -> Option<i32> {
        let client = UapiClient::new(&self.uapi_dir(), device);
        self.node.block_on(move || async move { client.server_pid().await }).ok()
    }

    pub fn uapi(&self, device: &IfName, changes: Vec<UapiChange>) {
        let client = UapiClient::new(&self.uapi_dir(), device);
        self.node.block_on(move || async move { client.set(&changes).await }).unwrap();
    }

    /// Runs work with a netlink socket of the node.
    pub fn netlink<T, F>(&self, work: impl FnOnce(Handle) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.node.block_on(move || async move {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            work(handle).await
        })
    }

    /// Every link, address, route and known peer as one line each, sorted. Left out: counters, indexes, ages, and what the kernel
    /// makes by itself (link-local addresses are drawn by chance).
    pub fn dump(&self, marks: &[Mark]) -> Vec<String> {
        let mut lines = self.netlink(|handle| async move { dump(&handle).await });
        for mark in marks {
            let seen = self.observe_as(*mark);
            for (key, seen) in &seen.objects {
                if matches!(key, Key::Peer { .. } | Key::Device(_) | Key::Sysctl { .. }) {
                    let handshake = seen.stats.and_then(|stats| stats.last_handshake);
                    lines.push(format!("{key} {:?} handshake {handshake:?}", seen.spec));
                }
            }
        }
        lines.sort();
        lines
    }

    /// Bytes sent and received by every peer under a mark.
    pub fn counters(&self, mark: Mark) -> BTreeMap<Key, (u64, u64)> {
        let seen = self.observe_as(mark).objects;
        let counted = seen.into_iter().filter_map(|(key, seen)| {
            let stats = seen.stats?;
            Some((key, (stats.rx_bytes, stats.tx_bytes)))
        });
        counted.collect()
    }
}

impl Drop for OverlayNode {
    fn drop(&mut self) {
        self.kill();
        // A device process ends with its link; the namespace may outlive this test in it otherwise.
        let own = self.uapi_dir();
        let sockets = std::fs::read_dir(&own).into_iter().flatten().flatten();
        for socket in sockets {
            let name = socket.file_name().to_string_lossy().into_owned();
            if let Some(Ok(device)) = name.strip_suffix(".sock").map(str::parse::<IfName>)
                && let Some(pid) = self.device_process(&device)
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

pub fn setup_request(cluster: &str, slice: Option<&str>, port: u16) -> Request {
    Request::SetupGlobalOverlay {
        deployment: "e2e".into(),
        instance_id: "0".into(),
        cluster_cidr: cluster.into(),
        slice_cidr: slice.map(str::to_owned),
        wg_port: port,
        host_adapter_mandatory: false,
        nat: None,
    }
}

pub fn add_peer(public_key: &WgPublicKey, endpoint: &str, allowed_ips: &str) -> Request {
    Request::AddPeer {
        peer: WirePeer {
            public_key: public_key.to_string(),
            endpoint: endpoint.into(),
            allowed_ips: allowed_ips.into(),
            persistent_keepalive_secs: 0,
            candidates: Vec::new(),
        },
        scope: PeerScope::Global,
    }
}

async fn dump(handle: &Handle) -> Vec<String> {
    let mut lines = Vec::new();
    let mut names = BTreeMap::new();
    let mut links = handle.link().get().execute();
    while let Some(mut link) = links.try_next().await.unwrap() {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let name = name.unwrap();
        names.insert(link.header.index, name.clone());
        let is_bridge = format!("{:?}", link.attributes).contains("Kind(Bridge)");
        link.attributes.retain(|attribute| match attribute {
            // A bridge's timers run.
            LinkAttribute::LinkInfo(_) => !is_bridge,
            LinkAttribute::Stats(_)
            | LinkAttribute::Stats64(_)
            | LinkAttribute::AfSpecUnspec(_)
            | LinkAttribute::CarrierChanges(_)
            | LinkAttribute::CarrierUpCount(_)
            | LinkAttribute::CarrierDownCount(_) => false,
            _ => true,
        });
        lines.push(format!(
            "link {name} {:?} {:?} {:?}",
            link.header.link_layer_type, link.header.flags, link.attributes
        ));
    }
    let name_of = |index: u32| names.get(&index).cloned().unwrap_or_else(|| index.to_string());
    let mut addresses = handle.address().get().execute();
    while let Some(mut address) = addresses.try_next().await.unwrap() {
        address.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::CacheInfo(_)));
        let line = format!(
            "address {} /{} {:?} {:?}",
            name_of(address.header.index),
            address.header.prefix_len,
            address.header.scope,
            address.attributes
        );
        lines.push(line);
    }
    for request in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(request).execute();
        while let Some(mut route) = routes.try_next().await.unwrap() {
            let device = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(name_of(*index)),
                _ => None,
            });
            route
                .attributes
                .retain(|attribute| !matches!(attribute, RouteAttribute::Oif(_) | RouteAttribute::CacheInfo(_)));
            lines.push(format!("route {device:?} {:?} {:?}", route.header, route.attributes));
        }
    }
    lines.retain(|line| !line.contains("fe80::"));
    lines
}

/// Two nodes on one wire that are each other's peers: node n is 192.0.2.n outside.
pub struct Pair {
    pub a: OverlayNode,
    pub b: OverlayNode,
    pub device: IfName,
    pub network: Network,
}

/// The addresses of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    pub cluster: &'static str,
    pub slices: [&'static str; 2],
    pub nodes: [&'static str; 2],
}

pub const IPV4: Network = Network {
    cluster: "10.200.0.0/16",
    slices: ["10.200.0.0/24", "10.200.1.0/24"],
    nodes: ["10.200.0.1", "10.200.1.1"],
};

pub const IPV6: Network = Network {
    cluster: "fd00:200::/48",
    slices: ["fd00:200:0:1::/64", "fd00:200:0:2::/64"],
    nodes: ["fd00:200:0:1::1", "fd00:200:0:2::1"],
};

pub fn endpoint(number: u8) -> String {
    format!("192.0.2.{number}:{PORT}")
}

/// Two nodes on a wire whose agents are ready and were told nothing.
pub fn two_nodes() -> (OverlayNode, OverlayNode) {
    if chosen_plane() != "kernel" {
        need_tun();
    }
    // Tokio makes one pair of sockets for the whole process, in the namespace of the thread that happens to be the first, and holds it for ever.
    block_on(async {});
    let (mut a, mut b) = (OverlayNode::new("a"), OverlayNode::new("b"));
    a.node.wire(&b.node, IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]), 24);
    a.start();
    b.start();
    (a, b)
}

pub fn pair(network: Network) -> Pair {
    let (a, b) = two_nodes();
    let device = a.setup(network.cluster, Some(network.slices[0]), PORT);
    b.setup(network.cluster, Some(network.slices[1]), PORT);
    a.request(add_peer(&b.public_key(), &endpoint(2), network.slices[1]));
    b.request(add_peer(&a.public_key(), &endpoint(1), network.slices[0]));
    Pair { a, b, device, network }
}

impl Pair {
    pub fn far(&self) -> IpAddr {
        self.network.nodes[1].parse().unwrap()
    }

    pub fn near(&self) -> IpAddr {
        self.network.nodes[0].parse().unwrap()
    }

    /// "kernel" or "userspace", and the kernel's release: for the lines with figures.
    pub fn stage(&self) -> String {
        stage(&self.a, &self.device)
    }
}

pub fn stage(node: &OverlayNode, device: &IfName) -> String {
    let plane = match node.plane(device) {
        DataPlane::Kernel => "kernel",
        DataPlane::Userspace => "userspace",
    };
    format!("{plane} data plane, Linux {}", release())
}

impl OverlayNode {
    /// Takes the state directory away, as when a machine is set up anew.
    pub fn forget_state(&self) {
        assert!(self.agent.is_none());
        std::fs::remove_dir_all(&self.state_dir).unwrap();
    }

    /// Starts the process behind a userspace device that is not the agent's.
    pub fn start_device(&self, device: &IfName) {
        let (dir, device) = (self.uapi_dir(), device.clone());
        self.node.block_on(move || async move {
            let exe = std::path::Path::new(env!("CARGO_BIN_EXE_overlayd"));
            device_process::start(exe, &device, &dir).await.unwrap();
        });
    }

    pub fn remove_address(&self, link: &str, address: IpAddr) {
        let link = link.to_owned();
        self.netlink(move |handle| async move {
            let index = nix::net::if_::if_nametoindex(link.as_str()).unwrap();
            let mut addresses = handle.address().get().set_link_index_filter(index).execute();
            while let Some(found) = addresses.try_next().await.unwrap() {
                let is_meant = |attribute: &AddressAttribute| {
                    matches!(attribute, AddressAttribute::Address(found) | AddressAttribute::Local(found) if *found == address)
                };
                if found.attributes.iter().any(is_meant) {
                    handle.address().del(found).execute().await.unwrap();
                    return;
                }
            }
            panic!("{address} is not on {link}");
        });
    }
}
