//! An HTTP server that can fail in the ways that a framework prevents: no answer, half an answer, a connection that breaks.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use futures::stream;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

/// What a client sees.
#[derive(Debug)]
pub enum Reply {
    /// A complete answer.
    Full(StatusCode, HeaderMap, Bytes),
    /// The connection breaks after half of the body that was announced.
    Half(StatusCode, HeaderMap, Bytes),
    /// The connection breaks without an answer.
    Cut,
    /// Nothing, ever.
    Hang,
}

impl Reply {
    /// A complete answer in JSON.
    pub fn json(status: StatusCode, value: &serde_json::Value) -> Self {
        Self::text(status, "application/json", value.to_string())
    }

    /// A complete answer of some kind.
    pub fn text(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(axum::http::header::CONTENT_TYPE, axum::http::HeaderValue::from_static(kind))]);
        Self::Full(status, headers, text.into())
    }

    async fn response(self) -> io::Result<Response<Body>> {
        let (status, mut headers, body) = match self {
            Self::Full(status, headers, bytes) => (status, headers, Body::from(bytes)),
            Self::Half(status, mut headers, bytes) => {
                headers.insert(CONTENT_LENGTH, bytes.len().into());
                let half = bytes.slice(..bytes.len() / 2);
                let broken = io::Error::other("the script cuts the connection");
                (status, headers, Body::from_stream(stream::iter([Ok(half), Err(broken)])))
            }
            Self::Cut => return Err(io::Error::other("the script cuts the connection")),
            Self::Hang => std::future::pending().await,
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        std::mem::swap(response.headers_mut(), &mut headers);
        Ok(response)
    }
}

/// Serves every connection with `answer`, for ever.
pub async fn serve<F>(listener: TcpListener, answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Infallible
where
    F: Future<Output = Reply> + Send + 'static,
{
    let answer = Arc::new(answer);
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let reply = answer(request);
                async move { reply.await.response().await }
            });
            // A broken connection is the script's intention or the client's right.
            let _ = auto::Builder::new(TokioExecutor::new()).http1_only().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
