//! `Watch`, served by hand: tonic's encoder copies every message per stream, this one sends what the store encoded once.
//!
//! A stream is its response's body and has no task of its own: an event wakes one task and not two.

mod frame;
mod stream;

use super::service::{MAX_MESSAGE, Shared, keyspace_of};
use bytes::Bytes;
use frame::Message;
use http_body::Frame;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready as ready_or_pending};
use stream::WatchStream;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::{Status, Streaming};
use tonic_prost::ProstDecoder;
use tower::Service;

/// One message waits while another is being sent: a reader that does not read holds no more than these two.
const QUEUED_MESSAGES: usize = 1;

/// A stream with this metadata is told, after the events of a round, how far all of its watches have come, unasked: a mirror
/// of several ranges keeps them in one order without a round trip per change. etcd does not know it and ignores it.
pub(crate) const PROGRESS_METADATA: &str = "hawser-progress";

#[derive(Clone)]
pub(crate) struct WatchService(pub(crate) Arc<Shared>);

impl tonic::server::NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl Service<http::Request<Body>> for WatchService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        ready(Ok(self.serve(request).unwrap_or_else(Status::into_http)))
    }
}

impl WatchService {
    /// The stream goes on as its body is read, and ends with it: when the reader goes, when the client closes its side, or
    /// with the keyspace.
    fn serve(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        if request.uri().path() != "/etcdserverpb.Watch/Watch" {
            return Err(Status::unimplemented("Watch has one method, Watch"));
        }
        let (parts, body) = request.into_parts();
        let keyspace = keyspace_of(&parts.extensions)?;
        let requests = Streaming::new_request(ProstDecoder::default(), body, None, Some(MAX_MESSAGE));
        let (out, messages) = mpsc::channel(QUEUED_MESSAGES);
        let tell_rounds = parts.headers.contains_key(PROGRESS_METADATA);
        let stream = WatchStream::new(Arc::clone(&self.0), keyspace, parts.extensions, out, tell_rounds);
        let mut response = http::Response::new(Body::new(WatchBody {
            stream: Some(Box::pin(stream.run(requests))),
            messages,
            message: Vec::new().into_iter(),
            ended: false,
        }));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
        Ok(response)
    }
}

pub(crate) enum Outgoing {
    Message(Message),
    /// The stream is over; its status goes into the trailers.
    End(Status),
}

/// What hyper polls when HTTP/2's flow control has room, and only then.
struct WatchBody {
    /// Makes the messages; none once it has made the last.
    stream: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    messages: mpsc::Receiver<Outgoing>,
    /// The rest of the message being sent.
    message: std::vec::IntoIter<Bytes>,
    ended: bool,
}

impl http_body::Body for WatchBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(bytes) = self.message.next() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready_or_pending!(self.poll_message(cx)) {
                Some(Outgoing::Message(message)) => self.message = message.into_chunks().into_iter(),
                Some(Outgoing::End(status)) => return Poll::Ready(Some(Ok(self.end(&status)))),
                None => {
                    let status = Status::unavailable("the server is stopping");
                    return Poll::Ready(Some(Ok(self.end(&status))));
                }
            }
        }
    }
}

impl WatchBody {
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        // What is made already goes first: there is room for one.
        if let Poll::Ready(Some(message)) = self.messages.poll_recv(cx) {
            return Poll::Ready(Some(message));
        }
        if let Some(stream) = &mut self.stream
            && stream.as_mut().poll(cx).is_ready()
        {
            self.stream = None;
        }
        self.messages.poll_recv(cx)
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // Only a message that is no header value can fail; the code alone always can be written.
            trailers.insert("grpc-status", http::HeaderValue::from(status.code() as u16));
        }
        Frame::trailers(trailers)
    }
}
