//! The server: who may ask, what becomes of a message, and the sockets.
//!
//! Owns messages and their limits. Leaves the overlay's names to [`zone`](super::zone) and all others to [`forward`](super::forward).
//!
//! Upholds I-15 (connections and their idle time have bounds) and A26 (no record and no such name are told apart).
//!
//! SERVFAIL means that nobody can know, NXDOMAIN that we do, REFUSED that it is none of the asker's business.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use hickory_resolver::proto::{
    op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Record, RecordType},
};
use hickory_server::{
    net::{
        NetError,
        runtime::{Time, TokioTime},
        xfer::Protocol,
    },
    proto::serialize::binary::{BinDecoder, BinEncoder},
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server},
    zone_handler::{MessageResponse, MessageResponseBuilder, Queries},
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};

use super::{
    forward::{Forwarded, Forwarder, Source},
    shares::Shares,
    zone::{self, Verdict},
};
use crate::{desired::Document, ids::DnsName};

/// Longest answer by UDP (DNS Flag Day 2020): what passes every link without being cut in pieces.
const UDP_PAYLOAD_MAX: u16 = 1_232;
/// Longest answer by UDP to whoever does not say what it takes (RFC 1035 section 4.2.1).
const UDP_PAYLOAD_PLAIN: u16 = 512;
/// Addresses of one name that fit into the shortest answer, and the least that a record takes in any, bytes: a name that was told before,
/// type, class, TTL and length.
const FIT_ALWAYS: usize = 8;
const RECORD_MIN: usize = 12;
/// Memory for questions that have come and are not read yet, bytes; one takes some 800.
const DATAGRAMS_ROOM: usize = 4 << 20;
/// Connections to all addresses, those among them of one asker, those to one address that wait to be accepted, how long one may be silent,
/// and how many questions it may bring.
const CONNECTIONS_MAX: usize = 128;
const CONNECTIONS_OF_ONE_MAX: usize = 16;
const BACKLOG: i32 = 64;
const SILENT_MAX: Duration = Duration::from_secs(5);
const QUESTIONS_MAX: usize = 100;
/// How often the host's own addresses are looked at, at the most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Told of everything that was answered.
pub trait Witness: Send + Sync {
    /// `what`: one of [`RESULTS`].
    fn answered(&self, what: &'static str);
    fn forwarded(&self, source: Source, took: Duration);
}

/// Everything that an answer depends on, and what all listeners share.
pub struct Answering {
    zone: DnsName,
    document: Arc<RwLock<Document>>,
    forwarder: Arc<Forwarder>,
    witness: Arc<dyn Witness>,
    host: Mutex<Host>,
    connections: Arc<Semaphore>,
    callers: Arc<Shares>,
}

/// The host's own addresses, as they were a moment ago.
#[derive(Default)]
struct Host {
    looked: Option<Instant>,
    addresses: HashSet<IpAddr>,
}

/// An answer before it is a message.
struct Answer {
    code: ResponseCode,
    authoritative: bool,
    records: Vec<Record>,
    authority: Vec<Record>,
}

impl Answer {
    fn nothing(code: ResponseCode) -> Self {
        Self { code, authoritative: false, records: Vec::new(), authority: Vec::new() }
    }
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        let (code, records, authority) = match verdict {
            Verdict::Records(records) => (ResponseCode::NoError, records, Vec::new()),
            Verdict::NoData(soa) => (ResponseCode::NoError, Vec::new(), vec![*soa]),
            Verdict::NoName(soa) => (ResponseCode::NXDomain, Vec::new(), vec![*soa]),
        };
        Self { code, authoritative: true, records, authority }
    }
}

impl From<Forwarded> for Answer {
    fn from(forwarded: Forwarded) -> Self {
        let (code, records, authority) = match forwarded {
            Forwarded::Answer(records) => (ResponseCode::NoError, records, Vec::new()),
            Forwarded::Nothing { code, authority } => (code, Vec::new(), authority),
            Forwarded::Unknown(why) => {
                tracing::debug!(%why, "a name outside the overlay could not be resolved");
                (ResponseCode::ServFail, Vec::new(), Vec::new())
            }
        };
        Self { code, authoritative: false, records, authority }
    }
}

impl Answering {
    pub fn new(
        zone: DnsName,
        document: Arc<RwLock<Document>>,
        forwarder: Arc<Forwarder>,
        witness: Arc<dyn Witness>,
    ) -> Self {
        Self {
            zone,
            document,
            forwarder,
            witness,
            host: Mutex::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            callers: Arc::default(),
        }
    }

    fn document(&self) -> RwLockReadGuard<'_, Document> {
        self.document.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Overlay addresses and the host itself. Others have no business here, whatever way they came.
    fn may_ask(&self, source: IpAddr) -> bool {
        source.is_loopback() || self.is_in_overlay(source) || self.is_of_this_host(source)
    }

    fn is_in_overlay(&self, address: IpAddr) -> bool {
        let document = self.document();
        let Some(overlay) = document.overlay() else { return false };
        overlay.cluster.contains_address(&address)
            || document
                .segments()
                .keys()
                .any(|service| document.segment_net(service).is_some_and(|net| net.subnets.contains_address(&address)))
    }

    fn is_of_this_host(&self, address: IpAddr) -> bool {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if host.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            *host = Host { looked: Some(Instant::now()), addresses: own_addresses() };
        }
        host.addresses.contains(&address)
    }

    async fn answer(&self, request: &Request) -> Answer {
        if !self.may_ask(request.src().ip()) {
            return Answer::nothing(ResponseCode::Refused);
        }
        if request.metadata.op_code != OpCode::Query {
            return Answer::nothing(ResponseCode::NotImp);
        }
        let asked = request.request_info().ok().filter(|_| is_one_question(&request.queries));
        let Some(asked) = asked else { return Answer::nothing(ResponseCode::FormErr) };
        if request.version() != 0 {
            return Answer::nothing(ResponseCode::BADVERS);
        }
        let (name, kind) = (asked.query.original().name().clone(), asked.query.query_type());
        if asked.query.query_class() != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return Answer::nothing(ResponseCode::Refused);
        }
        let verdict = zone::answer(&self.document(), &self.zone, &name, kind);
        if let Some(verdict) = verdict {
            let mut answer = Answer::from(verdict);
            let turn = usize::from(request.metadata.id) % answer.records.len().max(1);
            // Not always the same one first.
            answer.records.rotate_left(turn);
            return answer;
        }
        if !request.metadata.recursion_desired {
            return Answer::nothing(ResponseCode::Refused);
        }
        let begun = Instant::now();
        let (forwarded, source) = self.forwarder.ask(name, kind, request.src().ip(), |ip| self.is_in_overlay(ip)).await;
        self.witness.forwarded(source, begun.elapsed());
        forwarded.into()
    }
}

/// The addresses of this host's links. That one can be bound says nothing where others may be bound too (`ip_nonlocal_bind`).
#[cfg(unix)]
fn own_addresses() -> HashSet<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let ip = |found: nix::ifaddrs::InterfaceAddress| {
        let address = found.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    all.filter_map(ip).collect()
}

#[cfg(not(unix))]
fn own_addresses() -> HashSet<IpAddr> {
    HashSet::new()
}

/// What can become of a question, as [`Witness::answered`] is told it.
pub const RESULTS: [&str; 6] = ["answered", "no_data", "no_name", "unknown", "refused", "malformed"];

fn word(answer: &Answer) -> &'static str {
    match (answer.code, answer.records.is_empty()) {
        (ResponseCode::NoError, false) => "answered",
        (ResponseCode::NoError, true) => "no_data",
        (ResponseCode::NXDomain, _) => "no_name",
        (ResponseCode::Refused, _) => "refused",
        (ResponseCode::ServFail, _) => "unknown",
        _ => "malformed",
    }
}

/// Answers what the library has read.
struct Responder(Arc<Answering>);

#[async_trait::async_trait]
impl RequestHandler for Responder {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        let answer = self.0.answer(request).await;
        let nothing = no_questions();
        // An answer repeats the questions' bytes. Others are of no use there, or would mean something else.
        let asked = if is_one_question(&request.queries) { &request.queries } else { &nothing };
        self.0.witness.answered(word(&answer));
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            let takes = if request.protocol() == Protocol::Udp { asked.max_payload() } else { UDP_PAYLOAD_MAX };
            edns.set_max_payload(takes.clamp(UDP_PAYLOAD_PLAIN, UDP_PAYLOAD_MAX));
            edns
        });
        let edns = edns.as_ref();
        let limit = match (request.protocol(), edns) {
            (Protocol::Udp, Some(edns)) => usize::from(edns.max_payload()),
            (Protocol::Udp, None) => usize::from(UDP_PAYLOAD_PLAIN),
            _ => usize::from(u16::MAX),
        };
        let mut records = answer.records.as_slice();
        let is_short = records.len() <= FIT_ALWAYS && records.iter().all(|record| record.data.ip_addr().is_some());
        let is_too_long = || {
            let whole = encoded(message(asked, edns, metadata, records, &answer.authority));
            whole.is_ok_and(|(_, bytes)| bytes.len() > limit)
        };
        if !is_short && (records.len() * RECORD_MIN > limit || is_too_long()) {
            // A part of the answer is of use to nobody (RFC 2181 section 9), and would leave no room for what EDNS wants to say.
            metadata.truncation = true;
            records = &[];
        }
        let message = message(asked, edns, metadata, records, &answer.authority);
        match handle.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, from = %request.src(), "an answer could not be sent");
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}

type Records<'a> = std::slice::Iter<'a, Record>;

/// True for exactly one question (RFC 9619) whose name is spelled out. One that is written as the place of an earlier name (RFC 1035
/// section 4.1.4) means nothing: before the first question there is only the header.
fn is_one_question(asked: &Queries) -> bool {
    let [question] = asked.queries() else { return false };
    // A byte before each label, and after them one for the root, two for the type and two for the class.
    let labels: usize = question.original().name().iter().map(|label| label.len() + 1).sum();
    labels + 5 == asked.as_bytes().len()
}

fn no_questions() -> Queries {
    match Queries::read(&mut BinDecoder::new(&[]), 0) {
        Ok(none) => none,
        Err(_) => unreachable!("nothing is read"),
    }
}

fn message<'q, 'a>(
    questions: &'q Queries,
    edns: Option<&'q Edns>,
    metadata: Metadata,
    records: &'a [Record],
    authority: &'a [Record],
) -> MessageResponse<'q, 'a, Records<'a>, Records<'a>, Records<'a>, Records<'a>> {
    MessageResponseBuilder::new(questions, edns).build(metadata, records, authority, &[], &[])
}

/// The bytes of an answer, however many.
fn encoded<'a>(
    response: MessageResponse<
        '_,
        'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
    >,
) -> Result<(ResponseInfo, Vec<u8>), NetError> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::MAX);
    let info = response.destructive_emit(&mut encoder)?;
    Ok((info, bytes))
}

/// Lets more questions wait than the system gives everybody: its own buffer holds some 250 of them, a burst of one container.
fn make_room(socket: &Socket) {
    #[cfg(target_os = "linux")]
    if nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBufForce, &DATAGRAMS_ROOM).is_ok() {
        return;
    }
    // What is more than the system allows is not an error, and not given.
    if let Err(error) = socket.set_recv_buffer_size(DATAGRAMS_ROOM) {
        tracing::debug!(%error, "the resolver's socket keeps the system's own buffer");
    }
}

/// Both sockets of one address.
pub struct Listening {
    datagrams: UdpSocket,
    connections: TcpListener,
}

impl Listening {
    /// Takes UDP and TCP of `address`, which need not be on the host yet.
    ///
    /// # Errors
    /// When one of the ports is taken (`AddrInUse`) or may not be taken.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let take = |kind: Type| -> io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(address), kind, None)?;
            socket.set_nonblocking(true)?;
            if kind == Type::STREAM {
                // Connections of the agent before this one may still be ending.
                socket.set_reuse_address(true)?;
            } else {
                make_room(&socket);
            }
            #[cfg(target_os = "linux")]
            if address.is_ipv4() {
                socket.set_freebind_v4(true)?;
            } else {
                socket.set_freebind_v6(true)?;
            }
            socket.bind(&address.into())?;
            Ok(socket)
        };
        let datagrams = UdpSocket::from_std(take(Type::DGRAM)?.into())?;
        let connections = take(Type::STREAM)?;
        connections.listen(BACKLOG)?;
        Ok(Self { datagrams, connections: TcpListener::from_std(connections.into())? })
    }

    /// Answers until the future is dropped, or a socket can no longer be read.
    pub async fn serve(self, answering: Arc<Answering>) {
        let mut server = Server::new(Responder(answering.clone()));
        server.register_socket(self.datagrams);
        tokio::select! {
            ended = server.block_until_done() => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "the resolver's socket cannot be read any more; it is opened again");
                }
            }
            () = accept(self.connections, answering) => {}
        }
    }
}

/// Accepts connections, so many and no more: the library would take them without end.
async fn accept(listener: TcpListener, answering: Arc<Answering>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                // Whoever may not ask, or has too many already, is hung up on.
                if !answering.may_ask(from.ip()) {
                    answering.witness.answered("refused");
                    continue;
                }
                let Some(share) = answering.callers.take(from.ip(), CONNECTIONS_OF_ONE_MAX) else { continue };
                // While all places are taken, those who come next wait to be accepted.
                let Ok(place) = answering.connections.clone().acquire_owned().await else { return };
                let answering = answering.clone();
                tokio::spawn(async move {
                    let _until_the_end = (place, share);
                    if let Err(error) = converse(stream, from, &answering).await {
                        tracing::debug!(%error, %from, "a resolver's connection ended early");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a resolver's connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection: question and answer in turn, each with its length before it (RFC 1035 section 4.2.2).
async fn converse(mut stream: TcpStream, from: SocketAddr, answering: &Arc<Answering>) -> io::Result<()> {
    for _ in 0..QUESTIONS_MAX {
        let question = tokio::time::timeout(SILENT_MAX, async {
            let length = usize::from(stream.read_u16().await?);
            let mut question = vec![0; length];
            stream.read_exact(&mut question).await?;
            Ok::<_, io::Error>(question)
        });
        let question = match question.await {
            Ok(Ok(question)) => question,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let Some(answer) = reply(answering, question, from, Protocol::Tcp).await else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(answer);
        tokio::time::timeout(SILENT_MAX, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// The answer to one message; `None` to what is no question.
pub(super) async fn reply(
    answering: &Arc<Answering>,
    question: Vec<u8>,
    from: SocketAddr,
    protocol: Protocol,
) -> Option<Vec<u8>> {
    let request = Request::from_bytes(question, from, protocol).ok()?;
    if request.metadata.message_type != MessageType::Query {
        return None;
    }
    let written = Written::default();
    Responder(answering.clone()).handle_request::<_, TokioTime>(&request, written.clone()).await;
    Some(written.take())
}

/// Keeps the bytes of an answer.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait::async_trait]
impl ResponseHandler for Written {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let (info, bytes) = encoded(response)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        Ok(info)
    }
}
