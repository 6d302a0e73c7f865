//! One node of the demonstration: a namespace, a state directory, and an agent that can be killed, stopped and started.

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cli::outcome::block_on,
    client::Client,
    platform::lab::Namespace,
    wire::{AgentRequest, AgentResponse, Request, Response, StatusSnapshot},
};

/// Longest wait for an agent to be ready, or for a repair.
const PATIENCE: Duration = Duration::from_secs(15);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9586);

pub struct Node {
    pub name: &'static str,
    pub namespace: Arc<Namespace>,
    pub directory: PathBuf,
    data_plane: String,
    agent: Option<Child>,
}

impl Node {
    pub fn new(name: &'static str, directory: &Path, data_plane: &str) -> io::Result<Self> {
        let directory = directory.join(name);
        fs::create_dir_all(&directory)?;
        Ok(Self {
            name,
            namespace: Arc::new(Namespace::new()?),
            directory,
            data_plane: data_plane.to_owned(),
            agent: None,
        })
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub fn uapi_dir(&self) -> PathBuf {
        self.directory.join("wireguard")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("run/overlayd.sock")
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("overlayd.log")
    }

    fn overlayd(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.env_clear().env("OVERLAYD_UAPI_DIR", self.uapi_dir()).env("OVERLAYD_STATE_DIR", self.state_dir());
        command
    }

    /// Starts the agent and waits until its first round is done.
    pub fn start(&mut self) -> Result<(), Box<dyn Error>> {
        let log: File = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = self.overlayd();
        command.arg("run").arg("--socket").arg(self.socket()).args(["--data-plane", &self.data_plane]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.agent = Some(self.namespace.spawn(&mut command)?);
        self.wait_for("its agent to be ready", |node| {
            Ok(node.page("/readyz").is_ok_and(|page| page.contains("ready\n") && page.contains("200 OK")))
        })
    }

    /// Ends the agent the hard way.
    pub fn kill(&mut self) -> io::Result<()> {
        match self.agent.take() {
            Some(mut agent) => {
                agent.kill()?;
                agent.wait().map(|_| ())
            }
            None => Ok(()),
        }
    }

    /// Ends the agent the polite way; gives the time it took.
    pub fn terminate(&mut self) -> Result<Duration, Box<dyn Error>> {
        self.signal(Signal::SIGTERM)?;
        let begun = Instant::now();
        if let Some(mut agent) = self.agent.take() {
            let status = agent.wait()?;
            if !status.success() {
                return Err(format!("{}'s agent ended with {status} after SIGTERM", self.name).into());
            }
        }
        Ok(begun.elapsed())
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        let pid = i32::try_from(agent.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }

    /// Runs another command of overlayd inside the node and gives what it printed.
    pub fn command(&self, arguments: &[&str]) -> io::Result<Output> {
        let mut command = self.overlayd();
        command.args(arguments);
        self.namespace.run(|| command.output())
    }

    pub fn request(&self, request: Request) -> Result<Response, Box<dyn Error>> {
        let response = block_on(async { Client::connect(&self.socket()).await?.request(request).await })??;
        match response {
            Response::Err { message } => Err(format!("{} answered: {message}", self.name).into()),
            response => Ok(response),
        }
    }

    pub fn status(&self) -> Result<StatusSnapshot, Box<dyn Error>> {
        match self.request(Request::Status)? {
            Response::Status(status) => Ok(status),
            other => Err(format!("{} answered a status request with {}", self.name, other.result()).into()),
        }
    }

    /// Makes the agent look at the node now, so that its next status is fresh.
    pub fn look_again(&self) -> Result<(), Box<dyn Error>> {
        let resync = AgentRequest::Resync;
        match block_on(async { Client::connect(&self.socket()).await?.agent_request(resync).await })?? {
            AgentResponse::Report { .. } => Ok(()),
            AgentResponse::Err { message } => Err(format!("{} answered: {message}", self.name).into()),
        }
    }

    /// The sum of a metric over all its labels, from the node's own page.
    pub fn metric(&self, name: &str) -> io::Result<f64> {
        let page = self.page("/metrics")?;
        let is_meant = |line: &&str| line.starts_with(name) && !line.starts_with('#');
        Ok(page.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
            + 0.0)
    }

    fn page(&self, path: &str) -> io::Result<String> {
        self.namespace.run(|| {
            let mut stream = TcpStream::connect_timeout(&METRICS, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        })
    }

    /// Waits until `is_so`, with a bound.
    pub fn wait_for(
        &self,
        what: &str,
        is_so: impl Fn(&Node) -> Result<bool, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if is_so(self)? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        Err(format!("{} waited too long for {what}; its agent's log ends:\n{}", self.name, tail.join("\n")).into())
    }
}
