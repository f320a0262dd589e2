//! Uploads: blobs in pieces, resumed where they were cut.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::Method;
use landfast_api::{
    BLOB_PIECE_BYTES_MAX, BlobSize, MissingBlob, MissingBlobs, MissingBlobsRequest, ProblemCode,
    paths,
};
use landfast_types::Digest;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    time::sleep,
};

use crate::{
    Client, Error,
    connection::{Call, RETRY_PAUSE_MAX},
};

/// Digests asked about in one request.
const DIGESTS_MAX: usize = 5_000;
/// Cuts without a byte of progress between them after which an upload gives up: half a minute of pauses.
const STALLS_MAX: u32 = 20;

/// Times a server may name another offset for one blob before it is taken at its word.
const CORRECTIONS_MAX: u32 = 100;

/// A file whose content the store may lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub path: PathBuf,
    pub size: u64,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadProgress {
    /// Bytes the store has now, of those it lacked.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Blobs it lacked.
    pub blobs_total: u64,
    /// The connection was lost this often.
    pub cuts: u32,
}

impl Client {
    /// Which of these blobs the store lacks.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<MissingBlob>, Error> {
        let mut missing = Vec::new();
        for digests in digests.chunks(DIGESTS_MAX) {
            let digests = digests.iter().map(Digest::to_string).collect();
            let call = Call::new(
                Method::POST,
                paths::BLOBS_MISSING,
                "the question what is missing",
            )
            .json(&MissingBlobsRequest { digests });
            missing.extend(self.ask::<MissingBlobs>(call).await?.missing);
        }
        Ok(missing)
    }

    /// Adds a piece to a blob; `last` ends it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload_piece(
        &self,
        digest: &str,
        offset: u64,
        bytes: Bytes,
        last: bool,
    ) -> Result<BlobSize, Error> {
        let path = paths::fill(paths::BLOB, &[digest]);
        let target = format!("{path}?offset={offset}&last={last}");
        self.ask(Call::new(Method::PATCH, target, "an upload").bytes(bytes))
            .await
    }

    /// Uploads what the store lacks of these blobs. A cut is waited out: what is missing is asked again, and each
    /// blob goes on where it was.
    ///
    /// # Errors
    /// When a file cannot be read or changed meanwhile, the server refuses, or stays away.
    pub async fn upload(
        &self,
        blobs: &BTreeMap<Digest, Blob>,
        mut progress: impl FnMut(UploadProgress),
    ) -> Result<(), Error> {
        let digests = blobs.keys().copied().collect::<Vec<_>>();
        let mut state = Upload {
            blobs,
            total: None,
            done_best: 0,
            cuts: 0,
        };
        let mut stalls = 0;
        let mut pause = Duration::from_millis(100);
        loop {
            let before = state.done_best;
            match state.pass(self, &digests, &mut progress).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_away() && (state.total.is_some() || state.cuts > 0) => {
                    state.cuts += 1;
                    stalls = if state.done_best > before {
                        0
                    } else {
                        stalls + 1
                    };
                    if stalls > STALLS_MAX {
                        return Err(error);
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

struct Upload<'a> {
    blobs: &'a BTreeMap<Digest, Blob>,
    /// What the store lacked in the beginning: bytes and blobs.
    total: Option<(u64, u64)>,
    /// The most bytes known to be there.
    done_best: u64,
    cuts: u32,
}

impl Upload<'_> {
    /// Asks what is missing and sends it, until the end or the first error.
    async fn pass(
        &mut self,
        client: &Client,
        digests: &[Digest],
        progress: &mut impl FnMut(UploadProgress),
    ) -> Result<(), Error> {
        let missing = client.missing_blobs(digests).await?;
        let missing = missing
            .into_iter()
            .filter_map(|blob| Some((blob.digest.parse::<Digest>().ok()?, blob.offset)))
            .filter_map(|(digest, offset)| Some((digest, offset, self.blobs.get(&digest)?)))
            .collect::<Vec<_>>();
        let left = missing
            .iter()
            .map(|(_, offset, blob)| blob.size.saturating_sub(*offset));
        let left = left.sum::<u64>();
        let (bytes_total, blobs_total) = *self.total.get_or_insert((left, missing.len() as u64));
        let mut done = bytes_total.saturating_sub(left);
        for (digest, offset, blob) in missing {
            let mut at = offset.min(blob.size);
            let mut corrections = 0;
            loop {
                let piece = read_piece(blob, at).await?;
                let len = piece.len() as u64;
                let last = at + len >= blob.size;
                match client
                    .upload_piece(&digest.to_string(), at, piece, last)
                    .await
                {
                    Ok(_) => {
                        at += len;
                        done += len;
                    }
                    Err(Error::Problem(problem))
                        if problem.code() == ProblemCode::UploadOffset
                            && problem.offset.is_some_and(|offset| offset != at)
                            && corrections < CORRECTIONS_MAX =>
                    {
                        // A piece whose answer was cut has arrived after all.
                        corrections += 1;
                        let there = problem.offset.unwrap_or(at).min(blob.size);
                        done = (done + there).saturating_sub(at);
                        at = there;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                self.done_best = self.done_best.max(done);
                progress(UploadProgress {
                    bytes_done: done,
                    bytes_total,
                    blobs_total,
                    cuts: self.cuts,
                });
                if last {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Reads up to one piece of a file. Shorter only at its end.
async fn read_piece(blob: &Blob, offset: u64) -> Result<Bytes, Error> {
    let failed = |source: io::Error| Error::File {
        path: blob.path.clone(),
        source,
    };
    let mut file = File::open(&blob.path).await.map_err(failed)?;
    file.seek(io::SeekFrom::Start(offset))
        .await
        .map_err(failed)?;
    let wanted = (blob.size - offset).min(BLOB_PIECE_BYTES_MAX as u64);
    let mut piece = Vec::with_capacity(usize::try_from(wanted).unwrap_or(BLOB_PIECE_BYTES_MAX));
    file.take(wanted)
        .read_to_end(&mut piece)
        .await
        .map_err(failed)?;
    if (piece.len() as u64) < wanted {
        return Err(Error::FileChanged {
            path: blob.path.clone(),
        });
    }
    Ok(Bytes::from(piece))
}
