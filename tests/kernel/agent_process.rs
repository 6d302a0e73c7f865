//! One agent as a process: the real binary with its own state directory, socket and metrics page.
//!
//! Owns starting, stopping and speaking to it. Leaves namespaces to `lab.rs`: call everything here inside [`isolated`].
//!
//! Dropping an [`Agent`] ends it and the device processes of its namespace, which would otherwise keep that namespace alive.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use overlayd::{
    client::Client,
    wire::{AgentRequest, AgentResponse, Frame, FrameReader, PeerSpec, Request, Response, StatusSnapshot, encode},
};
use serde_json::Value;

use crate::lab::{self, Node, device_processes, network};

/// Runs the body in namespaces of its own, with the loopback interface up for the metrics page.
pub fn isolated<F: FnOnce()>(body: F) {
    lab::isolated_as::<F>(|| {
        block_on(lab::set_up_link("lo"));
        body();
    });
}

/// Longest wait for anything that is to happen soon.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// The deployment that tests set up; its device is [`DEVICE`].
pub const DEPLOYMENT: &str = "lab";
/// What the contract's rules call the node device of [`setup`] with instance `a`.
pub const DEVICE: &str = "zl-lab-a-g";

/// An agent: running, stopped, or killed.
pub struct Agent<'a> {
    pub directory: PathBuf,
    /// Port of the metrics page on 127.0.0.1.
    pub metrics_port: u16,
    node: Option<&'a Node>,
    /// Further arguments of `overlayd run`.
    pub arguments: Vec<String>,
    /// Further environment of every command of the binary.
    pub environment: Vec<(String, String)>,
    /// Soft and hard limit of descriptors.
    pub descriptors: Option<u32>,
    child: Option<Child>,
}

impl<'a> Agent<'a> {
    /// An agent in the namespace of the test; its files are below `/run/<name>`.
    pub fn new(name: &str) -> Self {
        Self::at(name, 9586)
    }

    /// The same with another port for the metrics page: for the second one in a namespace.
    pub fn at(name: &str, metrics_port: u16) -> Self {
        let directory = Path::new("/run").join(name);
        fs::create_dir_all(&directory).unwrap();
        Self {
            directory,
            metrics_port,
            node: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            descriptors: None,
            child: None,
        }
    }

    /// An agent that may not make devices: what is about the socket alone must not wait for one.
    pub fn without_device(name: &str) -> Self {
        let mut agent = Self::new(name);
        agent.arguments = ["--data-plane", "kernel"].map(String::from).into();
        agent
    }

    /// An agent inside a further namespace.
    pub fn inside(node: &'a Node, name: &str) -> Self {
        let mut agent = Self::new(name);
        agent.node = Some(node);
        agent
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("run/overlayd.sock")
    }

    pub fn uapi_dir(&self) -> PathBuf {
        self.directory.join("wireguard")
    }

    pub fn log_path(&self) -> PathBuf {
        self.directory.join("overlayd.log")
    }

    /// Everything that the agent has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The last lines of the log, for a failure's message.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// A command of the binary with this agent's directories in its environment and nothing else.
    pub fn overlayd(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_overlayd"));
        command
            .env_clear()
            .env("OVERLAYD_STATE_DIR", self.state_dir())
            .env("OVERLAYD_UAPI_DIR", self.uapi_dir())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    /// Runs another command of the binary in the agent's namespace, and gives what it printed.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = self.overlayd();
        command.args(arguments);
        self.here(move || command.output()).unwrap()
    }

    /// The same, with the agent's socket as the last argument; standard output as text.
    pub fn ask(&self, arguments: &[&str]) -> (i32, String) {
        let socket = self.socket();
        let mut all = arguments.to_vec();
        all.extend(["--socket", socket.to_str().unwrap()]);
        let output = self.command(&all);
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text)
    }

    /// The command line that [`spawn`](Self::spawn) starts.
    pub fn run_command(&self) -> Command {
        let mut run = self.overlayd();
        run.arg("run")
            .arg("--socket")
            .arg(self.socket())
            .args(["--metrics-listen", &format!("127.0.0.1:{}", self.metrics_port)])
            .args(&self.arguments);
        if let Some(descriptors) = self.descriptors {
            let script = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
            let mut limited = Command::new("/bin/sh");
            limited.arg("-c").arg(script).arg(run.get_program()).args(run.get_args());
            limited.env_clear();
            limited.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
            limited.stdin(Stdio::null());
            run = limited;
        }
        run
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) {
        let command = self.run_command();
        self.spawn_as(command);
    }

    /// The same with another command line.
    pub fn spawn_as(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "it runs already");
        let log: File = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        // Nothing of the test may stay open in a process that could outlive it.
        command.stdout(Stdio::null()).stderr(log);
        self.child = Some(self.here(move || command.spawn()).unwrap());
    }

    /// Starts the process and waits until its first round is over.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    pub fn wait_ready(&self) {
        self.wait_for("to be ready", |agent| {
            agent.page("/readyz").is_ok_and(|page| page.ends_with("ready\n") && page.contains("200 OK"))
        });
    }

    /// Waits until `is_so`, with a bound.
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        if !within(PATIENCE, || is_so(self)) {
            panic!("waited too long for {what}; the log ends:\n{}", self.log_end());
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was started").id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Sends SIGTERM; gives the time to the end of the process, and its status.
    pub fn terminate(&mut self) -> (Duration, ExitStatus) {
        let begun = Instant::now();
        self.signal(Signal::SIGTERM);
        let status = self.wait_for_end();
        (begun.elapsed(), status)
    }

    /// Waits for a process that is about to end.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it was started");
        let mut status = None;
        if !within(PATIENCE, || {
            status = child.try_wait().unwrap();
            status.is_some()
        }) {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the agent does not end; its log ends:\n{}", self.log_end());
        }
        status.unwrap()
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Sends a request on a connection of its own.
    pub fn request(&self, request: Request) -> Response {
        let socket = self.socket();
        match block_on(async { Client::connect(&socket).await?.request(request).await }) {
            Ok(response) => response,
            Err(error) => panic!("{error}; the log ends:\n{}", self.log_end()),
        }
    }

    /// Sends a request that must not be refused.
    pub fn must(&self, request: Request) -> Response {
        let shown = format!("{request:?}");
        match self.request(request) {
            Response::Err { message } => panic!("{shown}: {message}; the log ends:\n{}", self.log_end()),
            response => response,
        }
    }

    /// The message of a request that must be refused.
    pub fn refused(&self, request: Request) -> String {
        let shown = format!("{request:?}");
        match self.request(request) {
            Response::Err { message } => message,
            response => panic!("{shown}: {response:?}"),
        }
    }

    pub fn status(&self) -> StatusSnapshot {
        match self.must(Request::Status) {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// The report of `overlayd status --json`.
    pub fn report(&self) -> Value {
        self.own(AgentRequest::Status)
    }

    /// Makes the agent look at the node now; gives its report afterwards.
    pub fn look_again(&self) -> Value {
        self.own(AgentRequest::Resync)
    }

    fn own(&self, request: AgentRequest) -> Value {
        let socket = self.socket();
        match block_on(async { Client::connect(&socket).await?.agent_request(request).await }).unwrap() {
            AgentResponse::Report { report } => report,
            AgentResponse::Err { message } => panic!("{message}"),
        }
    }

    pub fn generation(&self) -> u64 {
        self.report()["generation"].as_u64().unwrap()
    }

    /// An HTTP answer of the metrics page, with its head.
    pub fn page(&self, path: &str) -> io::Result<String> {
        let (port, path) = (self.metrics_port, path.to_owned());
        self.here(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        })
    }

    /// The metrics page alone.
    pub fn metrics(&self) -> String {
        let page = self.page("/metrics").unwrap();
        page.split_once("\r\n\r\n").expect("a head").1.to_owned()
    }

    /// The sum of a metric over all series whose text begins like this.
    pub fn metric(&self, begins: &str) -> f64 {
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        self.metrics().lines().filter(|line| line.starts_with(begins)).filter_map(value).sum()
    }

    /// A connection that speaks bytes.
    pub fn raw(&self) -> Raw {
        Raw::connect(&self.socket())
    }

    /// Resident memory of the process in bytes.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// Pids of the device processes in the agent's namespace.
    pub fn device_pids(&self) -> Vec<i32> {
        device_processes(self.here(|| Ok(network())).unwrap())
    }

    /// Sends a signal to every device process in the agent's namespace.
    pub fn signal_devices(&self, signal: Signal) {
        for device in self.device_pids() {
            kill(Pid::from_raw(device), signal).unwrap();
        }
    }

    /// Whether a link of this name is in the agent's namespace.
    pub fn has_link(&self, name: &str) -> bool {
        let name = name.to_owned();
        self.here(move || Ok(nix::net::if_::if_nametoindex(name.as_str()).is_ok())).unwrap()
    }

    /// Runs the work in the agent's namespace.
    pub fn here<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        match self.node {
            Some(node) => node.run(work),
            None => work(),
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for pid in self.device_pids() {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// A connection on which anything can be sent.
pub struct Raw {
    pub stream: UnixStream,
    frames: FrameReader,
    received: Vec<Value>,
}

impl Raw {
    pub fn connect(socket: &Path) -> Self {
        Self::try_connect(socket).unwrap()
    }

    /// The same where there may be no agent.
    pub fn try_connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, frames: FrameReader::default(), received: Vec::new() })
    }

    /// Sends bytes as they are. An error is no surprise: the other side may have hung up.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a body with its length in front.
    pub fn body(&mut self, body: &[u8]) {
        let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        self.bytes(&frame).unwrap();
    }

    pub fn request(&mut self, id: u64, request: Request) {
        self.bytes(&encode(&Frame::Request { id, request }).unwrap()).unwrap();
    }

    /// The next frame that is no event; `None` when the other side has hung up.
    pub fn next(&mut self) -> Option<Value> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if !self.received.is_empty() {
                return Some(self.received.remove(0));
            }
            let count = match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            };
            let mut input = &chunk[..count];
            while let Some(body) = self.frames.feed(&mut input).unwrap() {
                let frame: Value = serde_json::from_slice(&body).unwrap();
                if frame["frame"] != "event" {
                    self.received.push(frame);
                }
            }
        }
    }

    /// The answer to a request that is sent now.
    pub fn answer(&mut self, id: u64, request: Request) -> Value {
        self.try_answer(id, request).expect("an answer")
    }

    /// The same; `None` when the agent went away before it answered.
    pub fn try_answer(&mut self, id: u64, request: Request) -> Option<Value> {
        self.bytes(&encode(&Frame::Request { id, request }).unwrap()).ok()?;
        let answer = self.next()?;
        assert_eq!(answer["id"], id, "{answer}");
        Some(answer["response"].clone())
    }

    /// Whether the other side has hung up; does not wait.
    pub fn is_closed(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let mut byte = [0];
        let closed = loop {
            match self.stream.read(&mut byte) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).unwrap();
        closed
    }
}

/// Whether `is_so` comes true in time.
pub fn within(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// 10.200.0.0/16 with the slice 10.200.1.0/24 and port 51820.
pub fn setup(instance: &str) -> Request {
    Request::SetupGlobalOverlay {
        deployment: DEPLOYMENT.into(),
        instance_id: instance.into(),
        cluster_cidr: "10.200.0.0/16".into(),
        slice_cidr: Some("10.200.1.0/24".into()),
        wg_port: 51820,
        host_adapter_mandatory: false,
        nat: None,
    }
}

/// Peer number `n`, with a key and a network of its own; nobody answers at its endpoint.
pub fn peer(n: u16) -> PeerSpec {
    PeerSpec {
        public_key: peer_key(n),
        endpoint: format!("192.0.2.{}:51820", n % 250 + 1),
        allowed_ips: format!("10.{}.{}.0/24", 201 + n / 256, n % 256),
        persistent_keepalive_secs: 0,
        candidates: Vec::new(),
    }
}

pub fn peer_key(n: u16) -> String {
    let mut bytes = [1; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    overlayd::ids::WgPublicKey::from_bytes(bytes).to_string()
}

pub fn add_peer(n: u16) -> Request {
    Request::AddPeer { peer: peer(n), scope: overlayd::wire::PeerScope::Global }
}
