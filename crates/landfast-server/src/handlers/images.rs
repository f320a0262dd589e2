//! The images of a manifest: had on the host before a deploy names them.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    response::Response,
};
use bytes::Bytes;
use landfast_api::{ImageFrame, ImagesRequest, PinnedImage, ProblemCode};
use landfast_engine::{ImageProgress, Resolved, image_warnings};
use landfast_types::{ImageId, ImageReference};
use tokio::sync::mpsc;

use super::{
    InEnvironment,
    instance::{ndjson, push_line},
    plan::read_manifest,
    scope,
};
use crate::{
    answer::{Answer, Failure, Json},
    state::AppState,
};

/// Lines that wait for a slow reader; further progress is left out.
const WAITING_MAX: usize = 256;

pub(crate) async fn images(
    State(state): State<AppState>,
    Path((app, environment)): InEnvironment,
    Json(request): Json<ImagesRequest>,
) -> Answer<Response> {
    let scope = scope(&app, &environment)?;
    let read = read_manifest(&state, &scope, &request.manifest, &BTreeMap::new())?;
    let built = request.built.into_iter().map(|(key, reference)| {
        let read: ImageReference = reference.parse().map_err(bad_reference)?;
        // What it names is let go of by that name one day: no other may be named here.
        let ours = format!("landfast/{}/", scope.app);
        if !read.name().starts_with(&ours) {
            let detail = format!(
                "image `{key}`: `{reference}` is no name of a build of this app; those begin with `{ours}`"
            );
            return Err(Failure::new(ProblemCode::RequestInvalid, detail));
        }
        Ok((key, read))
    });
    let built = built.collect::<Answer<BTreeMap<_, _>>>()?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let (progress, told) = mpsc::channel(WAITING_MAX);
    let platform = state.platform.clone();
    state.spawn(async move {
        let resolve = platform.resolve_images(&read.spec, &built, Some(progress));
        // The end comes behind all progress. A reader that goes away ends it.
        let both = async { tokio::join!(resolve, tell(told, &sender)).0 };
        let resolved = tokio::select! {
            resolved = both => resolved,
            () = sender.closed() => return,
        };
        let last = match resolved {
            Ok(resolved) => ImageFrame::Done {
                warnings: image_warnings(&read.spec, &resolved),
                pulled: pulled(&resolved),
                images: pins(&resolved),
            },
            Err(error) => ImageFrame::Failed {
                problem: Failure::from(error).0,
            },
        };
        send(&sender, &last).await;
    });
    ndjson(receiver)
}

fn bad_reference(error: landfast_types::ImageReferenceError) -> Failure {
    Failure::new(ProblemCode::RequestInvalid, error.to_string())
}

fn pulled(resolved: &Resolved) -> Vec<String> {
    let pulled = resolved.iter().filter(|(_, image)| image.was_pulled);
    pulled.map(|(key, _)| key.clone()).collect()
}

/// What a deploy would pin.
fn pins(resolved: &Resolved) -> BTreeMap<String, PinnedImage> {
    let pin = |(key, one): (&String, &landfast_target::ResolvedImage)| {
        (key.clone(), wire_image(&one.image))
    };
    resolved.iter().map(pin).collect()
}

/// An image on the wire.
pub(crate) fn wire_image(image: &landfast_target::PinnedImage) -> PinnedImage {
    PinnedImage {
        reference: image.reference.to_string(),
        pinned: image.pinned.as_ref().map(ToString::to_string),
        id: image.id.to_string(),
    }
}

/// Images that a client names.
pub(crate) fn read_pins(
    images: &BTreeMap<String, PinnedImage>,
) -> Answer<BTreeMap<String, landfast_target::PinnedImage>> {
    let each = images.iter().map(|(key, image)| {
        let id: Result<ImageId, _> = image.id.parse();
        let id = id.map_err(|error| {
            let detail = format!("image `{key}`: {error}");
            Failure::new(ProblemCode::RequestInvalid, detail)
        })?;
        let pinned = image.pinned.as_ref().map(|pinned| pinned.parse());
        let read = landfast_target::PinnedImage {
            reference: image.reference.parse().map_err(bad_reference)?,
            pinned: pinned.transpose().map_err(bad_reference)?,
            id,
        };
        Ok((key.clone(), read))
    });
    each.collect()
}

async fn tell(mut told: mpsc::Receiver<ImageProgress>, sender: &mpsc::Sender<Bytes>) {
    while let Some(progress) = told.recv().await {
        let ImageProgress { image, step } = progress;
        let frame = ImageFrame::Progress {
            image,
            layer: step.layer,
            status: step.status,
            done_bytes: step.done.map(|bytes| bytes.0),
            total_bytes: step.of.map(|bytes| bytes.0),
        };
        send(sender, &frame).await;
    }
}

async fn send(sender: &mpsc::Sender<Bytes>, frame: &ImageFrame) {
    let mut text = Vec::new();
    push_line(&mut text, frame);
    if sender.send(Bytes::from(text)).await.is_err() {
        tracing::debug!("nobody reads on");
    }
}
