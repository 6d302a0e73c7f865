//! Speaks to a running agent over its socket.
//!
//! Owns one connection: numbering requests, finding the answer among events. Leaves the words to [`wire`](crate::wire).
//!
//! Upholds I-15: events that nobody asks for are kept up to a bound, then the oldest go.
//!
//! Requests are sent one at a time. A client that wants several in flight opens several connections, or numbers its own frames.

use std::{collections::VecDeque, io, path::Path};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::wire::{
    AgentFrame, AgentRequest, AgentResponse, Event, Frame, FrameReader, Request, Response, decode_agent_frame,
    decode_frame, encode, encode_agent, limits::EVENT_QUEUE,
};

/// Bytes read at a time.
const READ_CHUNK: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connect to {path}: {source}; is overlayd running, and may this user open its socket?")]
    Connect { path: String, source: io::Error },
    #[error("speak to overlayd")]
    Io(#[from] io::Error),
    #[error("overlayd closed the connection before it answered")]
    Closed,
    #[error("overlayd's answer is not understood: {0}")]
    NotUnderstood(String),
    #[error("the request is larger than a frame may be")]
    TooLarge,
}

/// One connection to an agent.
pub struct Client {
    stream: UnixStream,
    frames: FrameReader,
    received: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    next_id: u64,
}

impl Client {
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| ClientError::Connect { path: path.display().to_string(), source })?;
        Ok(Self {
            stream,
            frames: FrameReader::default(),
            received: VecDeque::new(),
            events: VecDeque::new(),
            next_id: 1,
        })
    }

    /// Sends a request of the contract and waits for its answer.
    ///
    /// # Errors
    /// When the connection breaks. A request that was refused is an answer, not an error.
    pub async fn request(&mut self, request: Request) -> Result<Response, ClientError> {
        let id = self.take_id();
        let bytes = encode(&Frame::Request { id, request }).map_err(|_| ClientError::TooLarge)?;
        self.stream.write_all(&bytes).await?;
        loop {
            match self.next_frame().await? {
                Frame::Response { id: of, response } if of == id => return Ok(response),
                Frame::Event(event) => self.keep(event),
                Frame::Response { .. } | Frame::Request { .. } => {}
            }
        }
    }

    /// Sends one of overlayd's own requests and waits for its answer.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn agent_request(&mut self, request: AgentRequest) -> Result<AgentResponse, ClientError> {
        let id = self.take_id();
        let bytes = encode_agent(&AgentFrame::Request { id, request }).map_err(|_| ClientError::TooLarge)?;
        self.stream.write_all(&bytes).await?;
        loop {
            let body = self.next_body().await?;
            match decode_agent_frame(&body) {
                Ok(AgentFrame::Response { id: of, response }) if of == id => return Ok(response),
                Ok(AgentFrame::Response { .. } | AgentFrame::Request { .. }) => {}
                Err(_) => {
                    if let Ok(Frame::Event(event)) = decode_frame(&body) {
                        self.keep(event);
                    }
                }
            }
        }
    }

    /// Sends a body as it is and gives the next body that is no event: for trying out what the agent makes of it.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn raw(&mut self, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        let length = u32::try_from(body.len()).map_err(|_| ClientError::TooLarge)?;
        self.stream.write_all(&length.to_le_bytes()).await?;
        self.stream.write_all(body).await?;
        loop {
            let answer = self.next_body().await?;
            match decode_frame(&answer) {
                Ok(Frame::Event(event)) => self.keep(event),
                Ok(Frame::Request { .. } | Frame::Response { .. }) | Err(_) => return Ok(answer),
            }
        }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next_event(&mut self) -> Result<Event, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            if let Frame::Event(event) = self.next_frame().await? {
                return Ok(event);
            }
        }
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == EVENT_QUEUE {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    async fn next_frame(&mut self) -> Result<Frame, ClientError> {
        let body = self.next_body().await?;
        decode_frame(&body).map_err(|error| ClientError::NotUnderstood(error.to_string()))
    }

    async fn next_body(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut chunk = vec![0; READ_CHUNK];
        loop {
            if let Some(body) = self.received.pop_front() {
                return Ok(body);
            }
            let count = self.stream.read(&mut chunk).await?;
            if count == 0 {
                return Err(ClientError::Closed);
            }
            let mut input = &chunk[..count];
            let understood = |error: crate::wire::Oversized| ClientError::NotUnderstood(error.to_string());
            while let Some(body) = self.frames.feed(&mut input).map_err(understood)? {
                self.received.push_back(body);
            }
        }
    }
}
