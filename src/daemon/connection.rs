//! One connection: bytes in, answers and events out.
//!
//! Owns the two halves of a connection and the limits that hold for it. Leaves what a request means to [`answer`](super::answer).
//!
//! Upholds I-15: unfinished frames have a deadline, requests in flight and queued events a bound, writes a time limit (A9, B28).
//!
//! The reader queues edits itself, one after the other, and only the waiting is done aside: that is what keeps the order of one client's
//! requests while a `Status` overtakes a slow setup.

use std::{sync::Arc, time::Duration};

use prometheus::IntCounter;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot},
    time::Instant,
};

use super::{
    agent::Agent,
    answer,
    connections::{Connections, Seat},
};
use crate::wire::{
    AgentFrame, AgentRequest, AgentResponse, Decoded, Event, Frame, FrameReader, Request, Response, decode_request,
    encode, encode_agent, limits::FRAME_COMPLETE_WITHIN,
};

/// Requests of one connection that may be worked on at a time; beyond it the reader waits.
const IN_FLIGHT_MAX: usize = 64;
/// Answers of one connection that are encoded and wait to leave. A full status may have megabytes, so the rest are made when their turn
/// comes (I-15).
const ANSWERS_WAITING_MAX: usize = 2;
/// Longest time that one answer may take to leave; a client that reads slower is gone for all practical purposes.
const WRITTEN_WITHIN: Duration = Duration::from_secs(30);
/// Why a connection ended that its client closed.
const END_OF_REQUESTS: &str = "closed by the client";
/// Bytes read at a time.
const READ_CHUNK: usize = 16 * 1024;

/// An answer on its way out; the permit of its request is given back when it has left.
struct Outgoing {
    bytes: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
    /// Told when the bytes are in the socket.
    written: Option<oneshot::Sender<()>>,
}

impl Outgoing {
    fn new(bytes: Vec<u8>, permit: OwnedSemaphorePermit) -> Self {
        Self { bytes, _permit: Some(permit), written: None }
    }
}

/// Serves a connection until either side closes it.
pub async fn serve(
    agent: Arc<Agent>,
    connections: Arc<Connections>,
    seat: Arc<Seat>,
    stream: UnixStream,
    origin: String,
) {
    let (reader, writer) = stream.into_split();
    let (answers, outbox) = mpsc::channel(ANSWERS_WAITING_MAX);
    let events = agent.events.subscribe();
    let writing = write_all(writer, outbox, events, &agent.metrics.socket.events_lost);
    tokio::pin!(writing);
    let reading =
        Reading { agent: &agent, connections: &connections, seat: &seat, origin: &origin, held: 0, complained: false };
    agent.metrics.socket.connections.inc();
    let why = tokio::select! {
        why = reading.run(reader, answers) => why,
        () = &mut writing => "the client does not read or went away",
        () = seat.close.notified() => "idle, and its place was needed",
    };
    if why == END_OF_REQUESTS {
        // A client may close its sending half and still wait for answers.
        tokio::select! {
            _ = tokio::time::timeout(WRITTEN_WITHIN, &mut writing) => {}
            () = seat.close.notified() => {}
        }
    }
    agent.metrics.socket.connections.dec();
    agent.metrics.socket.connections_closed.with_label_values(&[why]).inc();
    tracing::debug!(%origin, why, "connection closed");
    connections.leave(seat.id);
}

struct Reading<'a> {
    agent: &'a Arc<Agent>,
    connections: &'a Connections,
    seat: &'a Arc<Seat>,
    origin: &'a str,
    held: usize,
    /// A frame without an id was logged; the next ones on this connection are not.
    complained: bool,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.connections.hold(self.held, 0);
    }
}

impl Reading<'_> {
    /// Reads until the end; says why it ended.
    async fn run(mut self, mut socket: OwnedReadHalf, answers: mpsc::Sender<Outgoing>) -> &'static str {
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut frames = FrameReader::default();
        let mut chunk = vec![0; READ_CHUNK];
        let mut begun: Option<Instant> = None;
        loop {
            let read = socket.read(&mut chunk);
            let read = match begun {
                None => read.await,
                Some(begun) => match tokio::time::timeout_at(begun + FRAME_COMPLETE_WITHIN, read).await {
                    Ok(read) => read,
                    Err(_) => return "a frame was not completed in time",
                },
            };
            let count = match read {
                Ok(0) => return END_OF_REQUESTS,
                Err(_) => return "broken",
                Ok(count) => count,
            };
            let mut input = &chunk[..count];
            loop {
                match frames.feed(&mut input) {
                    Err(oversized) => {
                        tracing::warn!(origin = self.origin, %oversized, "connection closed");
                        return "oversized frame";
                    }
                    Ok(None) => break,
                    Ok(Some(body)) => {
                        begun = None;
                        if let Err(why) = self.frame(&body, &in_flight, &answers).await {
                            return why;
                        }
                    }
                }
            }
            begun = if frames.is_inside_a_frame() { begun.or_else(|| Some(Instant::now())) } else { None };
            let within = self.connections.hold(self.held, frames.held());
            self.held = frames.held();
            if !within {
                return "too much memory in unfinished frames";
            }
        }
    }

    async fn frame(
        &mut self,
        body: &[u8],
        in_flight: &Arc<Semaphore>,
        answers: &mpsc::Sender<Outgoing>,
    ) -> Result<(), &'static str> {
        self.seat.touch();
        let Ok(permit) = in_flight.clone().acquire_owned().await else {
            return Err("stopping");
        };
        match decode_request(body) {
            Decoded::NotJson => return Err("not JSON"),
            Decoded::NotUnderstood { id: None, message } => {
                let ignored = &["unknown", "ignored"];
                self.agent.metrics.socket.requests.with_label_values(ignored).inc();
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(origin = self.origin, %message, "a frame without an id was ignored");
                }
            }
            Decoded::NotUnderstood { id: Some(id), message } => {
                self.agent.metrics.socket.requests.with_label_values(&["unknown", "err"]).inc();
                let outgoing = Outgoing::new(frame_bytes(id, Response::Err { message }), permit);
                answers.send(outgoing).await.map_err(|_| "broken")?;
            }
            Decoded::Request { id, request } => self.request(id, request, permit, answers.clone()).await,
            Decoded::Agent { id, request } => self.agent_request(id, request, permit, answers.clone()),
        }
        Ok(())
    }

    /// Takes a request in at once, and answers it from a task of its own.
    async fn request(&self, id: u64, request: Request, permit: OwnedSemaphorePermit, answers: mpsc::Sender<Outgoing>) {
        let op = request.op();
        let pending = answer::take(self.agent, &request, self.origin).await;
        let shutdown = matches!(pending, answer::Pending::Shutdown);
        let (agent, seat) = (self.agent.clone(), self.seat.clone());
        seat.begin();
        tokio::spawn(async move {
            let outcome = answer::finish(&agent, pending).await;
            // The client may have gone away; what it asked for was done.
            let place = answers.reserve().await.ok();
            let response = outcome.into_response(&agent);
            agent.metrics.socket.requests.with_label_values(&[op, result_word(&response)]).inc();
            let (written, left) = oneshot::channel();
            let outgoing = Outgoing { written: Some(written), ..Outgoing::new(frame_bytes(id, response), permit) };
            if let Some(place) = place {
                place.send(outgoing);
            }
            seat.end();
            if shutdown {
                let _ = left.await;
                answer::shut_down(&agent).await;
            }
        });
    }

    fn agent_request(
        &self,
        id: u64,
        request: AgentRequest,
        permit: OwnedSemaphorePermit,
        answers: mpsc::Sender<Outgoing>,
    ) {
        let (agent, seat, origin) = (self.agent.clone(), self.seat.clone(), self.origin.to_owned());
        seat.begin();
        tokio::spawn(async move {
            let response = answer::agent_request(&agent, &request, &origin).await;
            let _ = answers.send(Outgoing::new(agent_frame_bytes(id, response), permit)).await;
            seat.end();
        });
    }
}

fn result_word(response: &Response) -> &'static str {
    if matches!(response, Response::Err { .. }) { "err" } else { "ok" }
}

fn frame_bytes(id: u64, response: Response) -> Vec<u8> {
    encode(&Frame::Response { id, response }).unwrap_or_else(|too_large| {
        let response = Response::Err { message: too_large.to_string() };
        encode(&Frame::Response { id, response }).unwrap_or_default()
    })
}

fn agent_frame_bytes(id: u64, response: AgentResponse) -> Vec<u8> {
    encode_agent(&AgentFrame::Response { id, response }).unwrap_or_else(|too_large| {
        let response = AgentResponse::Err { message: too_large.to_string() };
        encode_agent(&AgentFrame::Response { id, response }).unwrap_or_default()
    })
}

/// Writes answers and events until the socket breaks.
///
/// A client need not read events: one that is stuck waits for as long as no answer waits behind it, and further ones are lost to this client.
async fn write_all(
    mut socket: OwnedWriteHalf,
    mut outbox: mpsc::Receiver<Outgoing>,
    mut events: broadcast::Receiver<Event>,
    events_lost: &IntCounter,
) {
    loop {
        let next = tokio::select! {
            biased;
            answer = outbox.recv() => answer,
            event = events.recv() => {
                let event = match event {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(lost)) => {
                        events_lost.inc_by(lost);
                        continue;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                let Ok(bytes) = encode(&Frame::Event(event)) else { continue };
                let writing = socket.write_all(&bytes);
                tokio::pin!(writing);
                tokio::select! {
                    biased;
                    written = &mut writing => match written {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                    answer = outbox.recv() => match tokio::time::timeout(WRITTEN_WITHIN, writing).await {
                        Ok(Ok(())) => answer,
                        Ok(Err(_)) | Err(_) => return,
                    },
                }
            }
        };
        // Without a next answer the reader has ended and every answer has left.
        let Some(outgoing) = next else { return };
        match tokio::time::timeout(WRITTEN_WITHIN, socket.write_all(&outgoing.bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
        if let Some(written) = outgoing.written {
            let _ = written.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{decode_frame, limits::EVENT_QUEUE};

    #[tokio::test]
    async fn a_client_that_does_not_read_loses_events_and_still_gets_its_answer() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_, writer) = near.into_split();
        let (answers, outbox) = mpsc::channel(1);
        let (events, subscribed) = broadcast::channel(EVENT_QUEUE);
        let lost = IntCounter::new("lost", "events").unwrap();
        let counter = lost.clone();
        let writing = tokio::spawn(async move { write_all(writer, outbox, subscribed, &counter).await });
        const SENT: usize = 20_000;
        for n in 0..SENT {
            let pubkey = format!("{n:0>44}");
            events.send(Event::PeerHealthChanged { pubkey, healthy: true }).unwrap();
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // However long it does not read.
        tokio::time::pause();
        tokio::time::sleep(WRITTEN_WITHIN * 3).await;
        tokio::time::resume();
        let answer = Outgoing { bytes: frame_bytes(7, Response::Ok), _permit: None, written: None };
        answers.send(answer).await.unwrap();
        drop(answers);
        let (mut reader, _open) = far.into_split();
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.unwrap();
        writing.await.unwrap();
        let (mut frames, mut input, mut heard, mut answered) = (FrameReader::default(), &all[..], 0, false);
        while let Some(body) = frames.feed(&mut input).unwrap() {
            match decode_frame(&body).unwrap() {
                Frame::Event(_) => heard += 1,
                Frame::Response { id, .. } => answered = id == 7,
                Frame::Request { .. } => unreachable!("a server sends none"),
            }
        }
        assert!(answered && !frames.is_inside_a_frame(), "whole frames only");
        assert!(heard > 0 && heard < SENT, "{heard} heard");
    }
}
