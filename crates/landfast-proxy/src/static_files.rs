//! Serving static files. The store is asked by the digest of the content, so that no path of a client's ever
//! reaches the file system. Whose page is served is decided by weight, as for any request; what the release
//! that was chosen lacks is looked for in the others that clients may have seen, because a page of one
//! release asks for the assets it was built with while the other serves as well.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH,
        CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION,
    },
};
use http_body::Frame;
use landfast_routing::{
    encoding::{self, Coding},
    files::{self, Condition, FilePath, Part},
    media,
    snapshot::MissingFile,
};
use landfast_types::ReleaseId;

use crate::{
    answer::{AnswerBody, Broken},
    compress,
    descriptors::{Descriptors, Taken},
    route_answers::{Content, Files, Root},
};

/// What is not larger is read at once; of what is larger, so much is held at a time.
const CHUNK_BYTES: u64 = 64 << 10;

/// What is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    /// The route's own, without a final slash.
    pub(crate) prefix: &'a str,
    pub(crate) descriptors: &'a Descriptors,
}

impl Asked<'_> {
    pub(crate) fn file_path(&self) -> Option<FilePath> {
        files::file_path(self.prefix, self.path)
    }

    fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    fn takes_html(&self) -> bool {
        let accept = self
            .headers
            .get(ACCEPT)
            .and_then(|value| value.to_str().ok());
        accept.is_some_and(|accept| accept.to_ascii_lowercase().contains("text/html"))
    }
}

enum Found<'a> {
    File(&'a Root, String, Content),
    /// A folder that was named without its slash.
    Folder,
}

/// The answer, or nothing where the service is to be asked. `chosen`: the release that answers this client.
pub(crate) fn answer(
    files: &Files,
    asked: Asked<'_>,
    chosen: ReleaseId,
) -> Option<Response<AnswerBody>> {
    let asks_service = files.missing == MissingFile::Service;
    if !matches!(*asked.method, Method::GET | Method::HEAD) {
        return (!asks_service).then(|| {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED);
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            response
        });
    }
    let path = asked.file_path();
    let found = path
        .as_ref()
        .and_then(|path| find(files, path, chosen, asks_service));
    match found {
        Some(Found::File(root, name, content)) => Some(serve(files, root, &name, content, asked)),
        Some(Found::Folder) => Some(to_folder(asked)),
        None if asks_service => None,
        None => {
            let wants_page = path.is_some_and(|path| path.is_page()) || asked.takes_html();
            let is_index = files.missing == MissingFile::Index && wants_page;
            let index = is_index
                .then(|| ordered(files, chosen).find_map(index))
                .flatten();
            Some(match index {
                Some((root, content)) => serve(files, root, INDEX, content, asked),
                None => plain(StatusCode::NOT_FOUND),
            })
        }
    }
}

const INDEX: &str = "index.html";

fn index(root: &Root) -> Option<(&Root, Content)> {
    Some((root, root.folder.file(INDEX)?))
}

/// The chosen release first, then the others that clients may have seen.
fn ordered(files: &Files, chosen: ReleaseId) -> impl Iterator<Item = &Root> {
    let first = files
        .roots
        .iter()
        .filter(move |root| root.release == chosen);
    let others = files.roots.iter();
    first.chain(others.filter(move |root| root.release != chosen && root.exposed))
}

fn find<'a>(
    files: &'a Files,
    path: &FilePath,
    chosen: ReleaseId,
    asks_service: bool,
) -> Option<Found<'a>> {
    let has_files = files.roots.iter().any(|root| root.release == chosen);
    // A release from before it had files answers by its service.
    if !has_files && asks_service && path.is_page() {
        return None;
    }
    ordered(files, chosen).find_map(|root| look(root, path))
}

fn look<'a>(root: &'a Root, path: &FilePath) -> Option<Found<'a>> {
    let name = if path.is_folder {
        path.index()
    } else {
        path.path.clone()
    };
    if let Some(content) = root.folder.file(&name) {
        return Some(Found::File(root, name, content));
    }
    let is_folder = !path.is_folder && root.folder.has_folder(&path.path);
    (is_folder && root.folder.file(&path.index()).is_some()).then_some(Found::Folder)
}

/// The relative links of a folder's page need the slash.
fn to_folder(asked: Asked<'_>) -> Response<AnswerBody> {
    let query = asked
        .query
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let mut response = plain(StatusCode::PERMANENT_REDIRECT);
    if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", asked.path)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn serve(
    files: &Files,
    root: &Root,
    name: &str,
    content: Content,
    asked: Asked<'_>,
) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::empty());
    let (content, coding) = prepared(root, name, content, asked, response.headers_mut());
    let digest = content.digest.to_string();
    // Half of SHA-256 tells contents apart just as well, and is shorter.
    let etag = format!("\"{}\"", &digest[..32]);
    let kind = media::content_type(name);
    let fields = response.headers_mut();
    let text = |text: &str| HeaderValue::from_str(text).expect("a tag and a date are plain");
    fields.insert(ETAG, text(&etag));
    fields.insert(LAST_MODIFIED, text(&root.modified));
    let is_page = kind.starts_with("text/html");
    let cache_control = if is_page {
        HeaderValue::from_static("no-cache")
    } else {
        files.cache_control.clone()
    };
    fields.insert(CACHE_CONTROL, cache_control);
    match files::condition(asked.headers, &etag, &root.modified) {
        Condition::Holds => {}
        Condition::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        Condition::Failed => return plain(StatusCode::PRECONDITION_FAILED),
    }
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    fields.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // A file is what its name says, whatever its bytes look like.
    let nosniff = HeaderValue::from_static("nosniff");
    fields.insert("x-content-type-options", nosniff);
    if let Some(coding) = coding {
        fields.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
    }
    let size = content.size;
    let part = match *asked.method {
        Method::GET => files::part(asked.headers, &etag, size),
        _ => Part::Whole,
    };
    let (first, length) = match part {
        Part::Whole => (0, size),
        Part::Range { first, last } => {
            let range = format!("bytes {first}-{last}/{size}");
            response.headers_mut().insert(CONTENT_RANGE, text(&range));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            (first, last - first + 1)
        }
        Part::Unsatisfiable => {
            let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE);
            let range = text(&format!("bytes */{size}"));
            response.headers_mut().insert(CONTENT_RANGE, range);
            return response;
        }
    };
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(length));
    if asked.is_head() || length == 0 {
        return response;
    }
    let Some(place) = asked.descriptors.take() else {
        return plain(StatusCode::SERVICE_UNAVAILABLE);
    };
    match files
        .store
        .open(&content.digest)
        .and_then(|file| body((file, place), first, length))
    {
        Ok(body) => response.map(|_| body),
        Err(error) => {
            tracing::error!(file = name, release = %root.release, %error, "a file of the store cannot be read");
            plain(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// The coded file beside this one that the client would rather have, if any.
fn prepared(
    root: &Root,
    name: &str,
    content: Content,
    asked: Asked<'_>,
    fields: &mut HeaderMap,
) -> (Content, Option<Coding>) {
    let beside = |coding: Coding| {
        let coded = root.folder.file(&format!("{name}{}", coding.extension()))?;
        Some((coding, coded))
    };
    let beside: Vec<_> = Coding::PREPARED.into_iter().filter_map(beside).collect();
    if beside.is_empty() {
        return (content, None);
    }
    encoding::vary(fields);
    let offered: Vec<_> = beside.iter().map(|(coding, _)| *coding).collect();
    let accepted = compress::accepted(asked.headers);
    let chosen = compress::negotiate(accepted.as_ref(), &offered);
    let coded = beside
        .into_iter()
        .find(|(coding, _)| Some(*coding) == chosen);
    coded.map_or((content, None), |(coding, coded)| (coded, Some(coding)))
}

/// The file with the right to its descriptor.
type Open = (File, Taken);

fn body(file: Open, first: u64, length: u64) -> io::Result<AnswerBody> {
    if length <= CHUNK_BYTES {
        return read(&file.0, first, length).map(AnswerBody::whole);
    }
    let file = Arc::new(file);
    let end = first + length;
    let frames = stream::unfold(first, move |at| {
        let file = Arc::clone(&file);
        async move {
            let count = (end - at).min(CHUNK_BYTES);
            if count == 0 {
                return None;
            }
            // A disk may be slow, and other connections share this thread.
            let chunk = tokio::task::spawn_blocking(move || read(&file.0, at, count)).await;
            match chunk.map_err(io::Error::other).flatten() {
                Ok(chunk) => Some((Ok(Frame::data(chunk)), at + count)),
                Err(error) => {
                    tracing::error!(%error, "a file of the store cannot be read on");
                    Some((Err(Broken), end))
                }
            }
        }
    });
    Ok(AnswerBody::frames(Box::pin(frames)))
}

fn read(file: &File, at: u64, count: u64) -> io::Result<Bytes> {
    let mut chunk = vec![0; usize::try_from(count).map_err(io::Error::other)?];
    file.read_exact_at(&mut chunk, at)?;
    Ok(chunk.into())
}

fn plain(status: StatusCode) -> Response<AnswerBody> {
    let text = status
        .canonical_reason()
        .unwrap_or("failed")
        .to_ascii_lowercase();
    let mut response = Response::new(AnswerBody::whole(format!("{text}\n")));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
