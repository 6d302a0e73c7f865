//! A DNS client of the tests' own: one question, by UDP or TCP, from any namespace.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use hickory_resolver::proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};

use crate::lab::Node;

#[derive(Clone)]
pub struct Question {
    name: Name,
    kind: RecordType,
    is_by_tcp: bool,
    payload: Option<u16>,
    patience: Duration,
}

impl Question {
    pub fn new(name: &str, kind: RecordType) -> Self {
        // Also names that no host has.
        let name = Name::from_labels(name.trim_end_matches('.').split('.').map(str::as_bytes)).unwrap();
        Self { name, kind, is_by_tcp: false, payload: None, patience: Duration::from_millis(500) }
    }

    pub fn by_tcp(self) -> Self {
        Self { is_by_tcp: true, ..self.patiently() }
    }

    pub fn taking(self, payload: u16) -> Self {
        Self { payload: Some(payload), ..self }
    }

    /// Waits so long for an answer.
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Waits as long as a server may take that is waiting itself.
    pub fn patiently(self) -> Self {
        Self { patience: Duration::from_secs(10), ..self }
    }

    pub fn message(&self, id: u16) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(self.name.clone(), self.kind));
        if let Some(payload) = self.payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.edns = Some(edns);
        }
        message
    }

    /// Asks from a namespace; `None` when nothing comes.
    pub fn ask(&self, node: &Node, server: SocketAddr) -> Option<Message> {
        let question = self.clone();
        node.run(move || question.ask_here(server))
    }

    /// Asks until an answer comes: a packet may be lost where nobody reads fast enough.
    pub fn ask_surely(&self, node: &Node, server: SocketAddr) -> Message {
        let question = self.clone().patiently();
        question.ask(node, server).expect("an answer")
    }

    fn ask_here(&self, server: SocketAddr) -> Option<Message> {
        let bytes = self.message(7).to_vec().unwrap();
        let answer = if self.is_by_tcp {
            let mut stream = TcpStream::connect_timeout(&server, self.patience).ok()?;
            stream.set_read_timeout(Some(self.patience)).unwrap();
            stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).ok()?;
            stream.write_all(&bytes).ok()?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).ok()?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).ok()?;
            answer
        } else {
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(self.patience)).unwrap();
            socket.connect(server).ok()?;
            socket.send(&bytes).ok()?;
            let mut answer = vec![0; 65_536];
            let length = socket.recv(&mut answer).ok()?;
            answer.truncate(length);
            answer
        };
        Some(Message::from_vec(&answer).unwrap())
    }
}

/// A client that asks for one name again and again.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

/// Asks for the addresses of a name that always has some.
pub fn ask_all(node: &Node, server: SocketAddr, name: &str) -> Load {
    let stop = Arc::new(AtomicBool::new(false));
    let question = Question::new(name, RecordType::A);
    let socket = node.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let is_over = stop.clone();
    let thread = std::thread::spawn(move || {
        let (mut asked, mut wrong, mut buffer) = (0u64, 0, vec![0; 4096]);
        while !is_over.load(Ordering::Relaxed) {
            let id = u16::try_from(asked % 60_000).unwrap();
            socket.send(&question.message(id).to_vec().unwrap()).unwrap();
            let right = socket.recv(&mut buffer).ok().and_then(|length| Message::from_vec(&buffer[..length]).ok());
            let right = right.is_some_and(|answer| {
                answer.metadata.id == id
                    && answer.metadata.response_code == ResponseCode::NoError
                    && answer.answers.len() == 1
            });
            asked += 1;
            wrong += u64::from(!right);
        }
        (asked, wrong)
    });
    Load { stop, thread }
}

impl Load {
    /// How many questions were asked, and how many of them got a wrong answer or none.
    pub fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
