//! A server of the world outside, which can be told to be silent.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
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
    Silent,
}

pub struct Upstream {
    asked: Arc<AtomicU64>,
    names: Arc<Mutex<BTreeSet<String>>>,
    is_silent: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Knows `known.example`, and that there is no `gone.example`.
    pub fn start(node: &Node) -> Self {
        let socket = node.run(|| UdpSocket::bind("0.0.0.0:53")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (asked, names) = (Arc::default(), Arc::<Mutex<BTreeSet<String>>>::default());
        let (is_silent, is_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (count, seen, silent, over) = (Arc::clone(&asked), names.clone(), is_silent.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                AtomicU64::fetch_add(&count, 1, Ordering::Relaxed);
                let question = Message::from_vec(&buffer[..length]).unwrap();
                seen.lock().unwrap().insert(question.queries[0].name().to_ascii());
                if !silent.load(Ordering::Relaxed) {
                    let _ = socket.send_to(&answer(&question), from);
                }
            }
        });
        Self { asked, names, is_silent, is_over, thread: Some(thread) }
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Every name that was asked for.
    pub fn names(&self) -> BTreeSet<String> {
        self.names.lock().unwrap().clone()
    }

    pub fn turn(&self, ways: Ways) {
        self.is_silent.store(ways == Ways::Silent, Ordering::Relaxed);
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

fn answer(question: &Message) -> Vec<u8> {
    let query = question.queries[0].clone();
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    if query.name().to_ascii().eq_ignore_ascii_case("known.example.") {
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
    message.to_vec().unwrap()
}
