//! The HTTP page of figures: `/metrics`, `/healthz`, `/readyz`.
//!
//! Owns the listener. It is meant for a loopback address: it has neither encryption nor a password.
//!
//! A port that is taken is not a reason to leave the overlay alone: the page is tried again, the loop does not wait for it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use super::agent::Agent;

/// Scrapes served at a time; more would only take memory from the loop.
const SCRAPES_MAX: usize = 16;
/// Longest life of one scrape's connection, headers included.
const SCRAPE_WITHIN: Duration = Duration::from_secs(10);
/// Pause before a taken port is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Serves the page for as long as the process lives.
pub async fn serve(agent: Arc<Agent>) {
    let address = agent.settings.metrics_listen;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "the metrics page has no password and is not on a loopback address");
    }
    let mut complained = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%address, %error, "no metrics page yet; choose a free --metrics-listen");
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    };
    let places = Arc::new(Semaphore::new(SCRAPES_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a scrape could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&agent, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).keep_alive(false);
            let connection = server.serve_connection(TokioIo::new(stream), service);
            // A scraper that hangs up or is too slow concerns nobody else.
            let _ = tokio::time::timeout(SCRAPE_WITHIN, connection).await;
            drop(place);
        });
    }
}

fn answer(agent: &Agent, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let plain = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        response
    };
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n".into());
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, agent.metrics.render(&agent.document(), &agent.view.read())),
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" if agent.view.read().progress.ready => text(StatusCode::OK, "ready\n".into()),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the first round has not ended\n".into()),
        _ => text(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n".into()),
    }
}
