//! A connection to a backend that a request goes out on, whatever it speaks, and the body that comes back.
//!
//! Requests whose body is at hand go over [`crate::wire`]; the rest goes over hyper's client.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING},
};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};

use crate::{forward::Outgoing, http2_pool, request_body::RequestBody, wire::WireBody};

/// The body of a backend's answer.
pub(crate) enum BackendBody {
    Hyper(Incoming),
    Wire(WireBody),
}

impl Body for BackendBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Hyper(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Wire(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.is_end_stream(),
            Self::Wire(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.size_hint(),
            Self::Wire(body) => body.size_hint(),
        }
    }
}

/// A connection of hyper's client.
pub(crate) enum Upstream {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2_pool::Stream),
}

impl Upstream {
    /// The request as this connection takes it.
    pub(crate) fn request(&self, outgoing: &Outgoing, body: RequestBody) -> Request<RequestBody> {
        let is_streamed = matches!(body, RequestBody::Streamed(_));
        let mut request = Request::new(body);
        *request.method_mut() = outgoing.method.clone();
        *request.headers_mut() = outgoing.headers.clone();
        for (name, value) in outgoing.forwarding.fields() {
            request.headers_mut().insert(name, value.clone());
        }
        if let Some(host) = outgoing.forwarding.host() {
            request.headers_mut().insert(HOST, host.clone());
        }
        match self {
            Self::Http1(_) => {
                *request.uri_mut() = outgoing.target.clone();
                *request.version_mut() = Version::HTTP_11;
                let fields = request.headers_mut();
                if is_streamed && !fields.contains_key(CONTENT_LENGTH) {
                    // Without a word about it hyper takes a GET for one without a body.
                    fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
                if fields.contains_key(TE) && !fields.contains_key(CONNECTION) {
                    fields.insert(CONNECTION, HeaderValue::from_static("te"));
                }
            }
            Self::Http2(_) => {
                *request.version_mut() = Version::HTTP_2;
                let authority = request.headers_mut().remove(HOST);
                *request.uri_mut() = absolute(&outgoing.target, authority.as_ref());
            }
        }
        request
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(stream) => stream.sender.try_send_request(request).await,
        }
    }
}

/// HTTP/2 carries scheme and authority in the target.
fn absolute(target: &Uri, authority: Option<&HeaderValue>) -> Uri {
    let mut parts = target.clone().into_parts();
    let authority = authority.and_then(|it| it.to_str().ok()?.parse().ok());
    parts.scheme = authority.is_some().then_some(http::uri::Scheme::HTTP);
    parts.authority = authority;
    Uri::from_parts(parts).unwrap_or_else(|_| target.clone())
}
