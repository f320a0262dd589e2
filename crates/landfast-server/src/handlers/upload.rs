//! Artifacts: blobs piece by piece, then the listing that joins them.

use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use bytes::Bytes;
use http::StatusCode;
use landfast_api::{
    ArtifactCreated, ArtifactEntry, ArtifactEntryKind, ArtifactListing, BlobSize, MissingBlob,
    MissingBlobs, MissingBlobsRequest, ProblemCode,
};
use landfast_store::{Entry, EntryKind, StoreError, TreeListing};
use landfast_types::Digest;
use serde::Deserialize;

use crate::{
    answer::{Answer, Failure, Json},
    idempotency::json_response,
    state::AppState,
};

const DIGESTS_MAX: usize = 10_000;
/// A fortieth of the weight of the proxy, a ninth of that of an instance.
const BULK_NICE: i32 = 10;

pub(crate) async fn missing(
    State(state): State<AppState>,
    Json(request): Json<MissingBlobsRequest>,
) -> Answer<Response> {
    if request.digests.len() > DIGESTS_MAX {
        let detail = format!("at most {DIGESTS_MAX} digests at once");
        return Err(Failure::new(ProblemCode::TooLarge, detail));
    }
    let digests: Vec<Digest> = request
        .digests
        .iter()
        .map(|text| digest(text))
        .collect::<Answer<_>>()?;
    let store = state.platform.shared().store.clone();
    let missing = blocking(move || store.missing(&digests)).await?;
    let missing = missing
        .into_iter()
        .map(|(digest, offset)| MissingBlob {
            digest: digest.to_string(),
            offset,
        })
        .collect();
    Ok(json_response(StatusCode::OK, &MissingBlobs { missing }))
}

#[derive(Deserialize)]
pub(crate) struct Piece {
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    last: bool,
}

pub(crate) async fn piece(
    State(state): State<AppState>,
    Path(name): Path<String>,
    Query(piece): Query<Piece>,
    body: Bytes,
) -> Answer<Response> {
    let digest = digest(&name)?;
    let store = state.platform.shared().store.clone();
    let size = bulk(move || {
        store.append(&digest, piece.offset, &body)?;
        if piece.last {
            store.finish(&digest)?;
        }
        Ok::<_, StoreError>(piece.offset + body.len() as u64)
    });
    Ok(json_response(
        StatusCode::OK,
        &BlobSize { size: size.await?? },
    ))
}

pub(crate) async fn create(
    State(state): State<AppState>,
    Json(listing): Json<ArtifactListing>,
) -> Answer<Response> {
    let entries = listing
        .files
        .into_iter()
        .map(entry)
        .collect::<Answer<Vec<_>>>()?;
    let listing = TreeListing::new(entries)
        .map_err(|error| Failure::new(ProblemCode::RequestInvalid, error.to_string()))?;
    let store = state.platform.shared().store.clone();
    let digest = bulk(move || store.commit(&listing)).await??;
    Ok(json_response(
        StatusCode::OK,
        &ArtifactCreated {
            digest: digest.to_string(),
        },
    ))
}

fn entry(entry: ArtifactEntry) -> Answer<Entry> {
    let lacks = |what: &str| {
        let detail = format!("`{}` has no {what}", entry.path);
        Failure::new(ProblemCode::RequestInvalid, detail)
    };
    let kind = match entry.kind {
        ArtifactEntryKind::Folder => EntryKind::Folder,
        ArtifactEntryKind::File => EntryKind::File {
            executable: entry.executable,
            size: entry.size,
            digest: digest(entry.digest.as_deref().ok_or_else(|| lacks("digest"))?)?,
        },
        ArtifactEntryKind::Link => EntryKind::Symlink {
            target: entry.target.clone().ok_or_else(|| lacks("target"))?,
        },
    };
    Ok(Entry {
        path: entry.path,
        kind,
    })
}

fn digest(text: &str) -> Answer<Digest> {
    text.parse().map_err(|error: landfast_types::DigestError| {
        Failure::new(ProblemCode::RequestInvalid, error.to_string())
    })
}

/// As [`blocking`], for what computes for long: it gives way to everything that answers requests on this host.
async fn bulk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    let (reply, done) = tokio::sync::oneshot::channel();
    // A thread of its own: without `CAP_SYS_NICE` it cannot go back to where it was.
    let thread = std::thread::Builder::new().name("bulk".into());
    let started = thread.spawn(move || {
        // On Linux this is of the calling thread alone.
        if let Err(error) = rustix::process::nice(BULK_NICE) {
            tracing::debug!(%error, "an upload is hashed at full priority");
        }
        // Whoever asked may have gone.
        let _gone = reply.send(work());
    });
    started.map_err(|error| Failure::internal(format!("no worker could be started: {error}")))?;
    done.await
        .map_err(|_| Failure::internal("a worker failed".to_owned()))
}

/// Runs what blocks on the disk away from the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::internal(format!("a worker failed: {error}")))
}
