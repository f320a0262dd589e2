//! Why a request is refused, and with which status.

/// What is wrong with a request. The text is for the client and the access log; it holds nothing of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    // Lines (RFC 9112, 2.2).
    #[error("a line ends in a line feed without a carriage return")]
    BareLineFeed,
    #[error("a carriage return is not followed by a line feed")]
    BareCarriageReturn,
    // The request line (RFC 9112, 3).
    #[error("the request line does not begin with a method")]
    Method,
    #[error("this is not a forward proxy")]
    Connect,
    #[error("the request target is not a valid one")]
    Target,
    #[error("the request target is too long")]
    TargetTooLong,
    #[error("the path has a segment `.` or `..`, plain or encoded")]
    DotSegment,
    #[error("the HTTP version is neither 1.0 nor 1.1")]
    Version,
    // Fields (RFC 9112, 5).
    #[error("a header line is folded or begins with a space")]
    Folded,
    #[error("a header name is not a token right before its colon")]
    FieldName,
    #[error("a header value has a control character")]
    FieldValue,
    #[error("the request has too many header fields")]
    TooManyFields,
    #[error("the request head is too large")]
    HeadTooLarge,
    // The host (RFC 9112, 3.2).
    #[error("the request names no host")]
    HostMissing,
    #[error("the request names its host twice")]
    HostTwice,
    #[error("the host is not a valid one")]
    HostInvalid,
    #[error("the request target and the Host header name different hosts")]
    HostMismatch,
    // The length of the body (RFC 9112, 6).
    #[error("the content length is not one plain number")]
    ContentLength,
    #[error("the content length is given twice")]
    ContentLengthTwice,
    #[error("the body length is given in two ways")]
    LengthAndEncoding,
    #[error("the transfer encoding is malformed, or given twice")]
    TransferEncoding,
    #[error("the transfer encoding is not `chunked` alone")]
    UnknownTransferEncoding,
    #[error("HTTP/1.0 knows no transfer encoding")]
    TransferEncodingInHttp10,
    #[error("the expectation is not `100-continue`")]
    Expectation,
    // Chunks (RFC 9112, 7.1).
    #[error("a chunk does not begin with its size")]
    ChunkSize,
    #[error("a chunk extension is malformed")]
    ChunkExtension,
    #[error("the chunk extensions are too long")]
    ChunkExtensionTooLong,
    #[error("a chunk does not end where its size says")]
    ChunkEnd,
    #[error("the trailer has a field that belongs into the head")]
    TrailerField,
    #[error("the trailer is too large")]
    TrailerTooLarge,
}

impl Refusal {
    /// The status of the answer (RFC 9110, 15; RFC 6585, 5): always 4xx or 501.
    pub const fn status(self) -> u16 {
        match self {
            Self::Connect => 405,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::TooManyFields | Self::HeadTooLarge | Self::TrailerTooLarge => 431,
            Self::UnknownTransferEncoding => 501,
            Self::BareLineFeed
            | Self::BareCarriageReturn
            | Self::Method
            | Self::Target
            | Self::DotSegment
            | Self::Version
            | Self::Folded
            | Self::FieldName
            | Self::FieldValue
            | Self::HostMissing
            | Self::HostTwice
            | Self::HostInvalid
            | Self::HostMismatch
            | Self::ContentLength
            | Self::ContentLengthTwice
            | Self::LengthAndEncoding
            | Self::TransferEncoding
            | Self::TransferEncodingInHttp10
            | Self::ChunkSize
            | Self::ChunkExtension
            | Self::ChunkExtensionTooLong
            | Self::ChunkEnd
            | Self::TrailerField => 400,
        }
    }
}
