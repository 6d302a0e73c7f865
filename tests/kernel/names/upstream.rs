//! A server of the world outside, which can be told to be silent, or to refuse.

use std::{
    collections::BTreeSet,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};

use crate::lab::Node;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    Answers,
    Refuses,
    Silent,
}

pub struct Upstream {
    asked: Arc<AtomicU64>,
    names: Arc<Mutex<BTreeSet<String>>>,
    ways: Arc<Mutex<Ways>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Knows every name that begins with `known`, and that there is no other.
    pub fn start(node: &Node, at: &str) -> Self {
        let at: IpAddr = at.parse().unwrap();
        let socket = node.run(move || UdpSocket::bind((at, 53))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (asked, names) = (Arc::default(), Arc::<Mutex<BTreeSet<String>>>::default());
        let (ways, is_over) = (Arc::new(Mutex::new(Ways::Answers)), Arc::<AtomicBool>::default());
        let (count, seen, now, over) = (Arc::clone(&asked), names.clone(), ways.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                AtomicU64::fetch_add(&count, 1, Ordering::Relaxed);
                let question = Message::from_vec(&buffer[..length]).unwrap();
                seen.lock().unwrap().insert(question.queries[0].name().to_ascii());
                let answer = match *now.lock().unwrap() {
                    Ways::Answers => answer(&question),
                    Ways::Refuses => refusal(&question),
                    Ways::Silent => continue,
                };
                let _ = socket.send_to(&answer.to_vec().unwrap(), from);
            }
        });
        Self { asked, names, ways, is_over, thread: Some(thread) }
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Every name that was asked for.
    pub fn names(&self) -> BTreeSet<String> {
        self.names.lock().unwrap().clone()
    }

    pub fn turn(&self, ways: Ways) {
        *self.ways.lock().unwrap() = ways;
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn refusal(question: &Message) -> Message {
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = ResponseCode::Refused;
    message.add_query(question.queries[0].clone());
    message
}

fn answer(question: &Message) -> Message {
    let query = question.queries[0].clone();
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    if query.name().to_ascii().to_lowercase().starts_with("known") {
        if query.query_type() == RecordType::A {
            message.answers.push(Record::from_rdata(query.name().clone(), 60, RData::A(A::new(192, 0, 2, 7))));
        }
    } else {
        let example = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(example.clone(), example.clone(), 1, 60, 60, 60, 30);
        message.authorities.push(Record::from_rdata(example, 30, RData::SOA(soa)));
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    message.add_query(query);
    message
}
