//! The last things that happen to an answer: our own errors in the form the client reads, and compression.

use http::{
    HeaderValue, Method, Request, Response, Version,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
};
use landfast_routing::grpc;

use crate::{
    answer::AnswerBody,
    compress,
    route_answers::{self, RouteAnswers},
};

/// Marks the answer of a stopped app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// It is the page of the manifest.
    WithPage,
    Plain,
}

/// What must be known of the request when its answer is there.
pub(crate) struct Finish {
    is_grpc: bool,
    is_head: bool,
    accept: Option<HeaderValue>,
    accept_encoding: Option<HeaderValue>,
}

impl Finish {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        Self {
            // gRPC is HTTP/2 alone: to anybody else the words of HTTP are the ones to go by.
            is_grpc: request.version() == Version::HTTP_2 && grpc::is_grpc(headers),
            is_head: request.method() == Method::HEAD,
            accept: headers.get(ACCEPT).cloned(),
            accept_encoding: compress::accepted(headers),
        }
    }

    fn takes_html(&self) -> bool {
        let accept = self.accept.as_ref().and_then(|value| value.to_str().ok());
        accept.is_none_or(|accept| {
            let accept = accept.to_ascii_lowercase();
            accept.contains("text/html") || accept.contains("*/*")
        })
    }

    /// An answer of our own.
    pub(crate) fn own(
        &self,
        answers: Option<&RouteAnswers>,
        response: Response<AnswerBody>,
    ) -> Response<AnswerBody> {
        if self.is_grpc {
            return to_grpc(response);
        }
        match answers.and_then(|answers| self.page(answers, &response)) {
            Some(page) => with_page(response, page),
            None => response,
        }
    }

    /// Any answer.
    pub(crate) fn code(
        &self,
        answers: Option<&RouteAnswers>,
        response: Response<AnswerBody>,
    ) -> Response<AnswerBody> {
        if !answers.is_some_and(|answers| answers.compress) || self.is_head {
            return response;
        }
        compress::apply(self.accept_encoding.as_ref(), response)
    }

    fn page(
        &self,
        answers: &RouteAnswers,
        response: &Response<AnswerBody>,
    ) -> Option<bytes::Bytes> {
        if !self.takes_html() {
            return None;
        }
        let stopped = response.extensions().get::<Stopped>();
        let stopped = match stopped {
            Some(Stopped::WithPage) => return None,
            Some(Stopped::Plain) => answers.pages.page(route_answers::MAINTENANCE),
            None => None,
        };
        let by_status = || {
            let status = response.status().as_u16();
            answers.pages.page(&format!("{status}.html"))
        };
        stopped.or_else(by_status)
    }
}

fn with_page(response: Response<AnswerBody>, page: bytes::Bytes) -> Response<AnswerBody> {
    let mut response = response.map(|_| AnswerBody::whole(page));
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A gRPC client reads its own status and nothing else.
fn to_grpc(response: Response<AnswerBody>) -> Response<AnswerBody> {
    let status = grpc::status_of(response.status());
    let reason = response.status().canonical_reason().unwrap_or("failed");
    let mut answer = Response::new(AnswerBody::empty());
    let fields = answer.headers_mut();
    // Everything but what described the text that is not sent.
    *fields = response.into_parts().0.headers;
    fields.remove(CONTENT_LENGTH);
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.extend(grpc::status_fields(status, reason));
    answer
}
