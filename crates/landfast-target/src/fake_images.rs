//! Images that exist in name only, for tests of whatever drives a target.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use landfast_types::{Digest, ImageId, ImageReference};

use crate::{
    ImageError, ImageFacts, Images, PinnedImage, Pull, PullProgress, PullProgressSender,
    RegistryLogin, ResolvedImage,
};

/// A daemon's images and a registry beside it. Clones share them.
#[derive(Clone, Default)]
pub struct FakeImages {
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    /// What the registry has, by name and tag.
    offered: BTreeMap<String, Offer>,
    /// What the daemon has.
    here: BTreeMap<ImageId, ImageFacts>,
    /// What the daemon knows names by.
    names: BTreeMap<String, (ImageId, Option<Digest>)>,
    /// What is ours to let go of.
    kept: BTreeSet<ImageId>,
    registry_away: Option<String>,
}

#[derive(Clone)]
struct Offer {
    digest: Digest,
    id: ImageId,
    facts: ImageFacts,
}

impl FakeImages {
    /// From here on the registry gives this image by this name. Its digest there is that of its id's text.
    pub fn offer(&self, reference: &ImageReference, id: ImageId, facts: ImageFacts) {
        let digest = Digest::of(id.to_string().as_bytes());
        self.shelf()
            .offered
            .insert(key(reference), Offer { digest, id, facts });
    }

    /// Puts an image on the daemon under a name, as a build does.
    pub fn build(&self, reference: &ImageReference, id: ImageId, facts: ImageFacts) {
        let mut shelf = self.shelf();
        shelf.here.insert(id, facts);
        shelf.names.insert(key(reference), (id, None));
    }

    /// Takes an image from the daemon, names and all.
    pub fn remove(&self, id: &ImageId) {
        self.shelf().remove(id);
    }

    /// From here on the registry cannot be asked, for this reason, or can again.
    pub fn lose_registry(&self, reason: Option<&str>) {
        self.shelf().registry_away = reason.map(str::to_owned);
    }

    /// Whether the daemon has it.
    pub fn has(&self, id: &ImageId) -> bool {
        self.shelf().here.contains_key(id)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("nobody panics while holding it")
    }
}

impl fmt::Debug for FakeImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeImages").finish_non_exhaustive()
    }
}

/// Name and tag, as a daemon files them.
fn key(reference: &ImageReference) -> String {
    let (registry, repository) = (reference.registry(), reference.repository());
    format!("{registry}/{repository}:{}", reference.tag_meant())
}

impl Shelf {
    fn remove(&mut self, id: &ImageId) {
        self.here.remove(id);
        self.kept.remove(id);
        self.names.retain(|_, (named, _)| named != id);
    }

    /// What the registry answers.
    fn ask(&self, reference: &ImageReference) -> Result<Offer, ImageError> {
        if let Some(detail) = &self.registry_away {
            return Err(ImageError::RegistryAway {
                registry: reference.registry().to_owned(),
                reference: reference.to_string(),
                detail: detail.clone(),
            });
        }
        let offer = match reference.digest() {
            Some(digest) => self.offered.values().find(|offer| offer.digest == digest),
            None => self.offered.get(&key(reference)),
        };
        offer.cloned().ok_or_else(|| missing(reference))
    }

    fn take(&mut self, reference: &ImageReference, offer: &Offer) -> bool {
        let is_new = !self.here.contains_key(&offer.id);
        self.here.insert(offer.id, offer.facts.clone());
        self.names
            .insert(key(reference), (offer.id, Some(offer.digest)));
        is_new
    }

    fn resolved(
        &mut self,
        reference: &ImageReference,
        registry_said: Option<String>,
        was_pulled: bool,
    ) -> Result<ResolvedImage, ImageError> {
        let named = self.names.get(&key(reference));
        let (id, digest) = named.copied().ok_or_else(|| missing(reference))?;
        self.kept.insert(id);
        Ok(ResolvedImage {
            image: PinnedImage {
                reference: reference.clone(),
                pinned: digest.map(|digest| reference.at(digest)),
                id,
            },
            registry_said,
            was_pulled,
            facts: self.here.get(&id).cloned().unwrap_or_default(),
        })
    }
}

fn missing(reference: &ImageReference) -> ImageError {
    ImageError::NotFound {
        reference: reference.to_string(),
        detail: "neither the daemon nor the registry has it".to_owned(),
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn resolve(
        &self,
        reference: &ImageReference,
        pull: Pull,
        _login: Option<&RegistryLogin>,
        progress: Option<&PullProgressSender>,
    ) -> Result<ResolvedImage, ImageError> {
        let mut shelf = self.shelf();
        let is_here = shelf.names.contains_key(&key(reference));
        let asks = match pull {
            Pull::Newer | Pull::Always => true,
            Pull::Missing => !is_here,
            Pull::Never => false,
        };
        if !asks {
            return shelf.resolved(reference, None, false);
        }
        match shelf.ask(reference) {
            Ok(offer) => {
                let was_pulled = shelf.take(reference, &offer);
                if let Some(progress) = progress.filter(|_| was_pulled) {
                    let layer = offer.id.short();
                    // A reader that does not keep up misses it.
                    drop(progress.try_send(PullProgress {
                        layer,
                        status: "Pull complete".to_owned(),
                        done: Some(offer.facts.size),
                        of: Some(offer.facts.size),
                    }));
                }
                shelf.resolved(reference, None, was_pulled)
            }
            Err(error) if pull == Pull::Newer && is_here => {
                shelf.resolved(reference, Some(error.to_string()), false)
            }
            Err(error) => Err(error),
        }
    }

    async fn ensure(
        &self,
        image: &PinnedImage,
        _login: Option<&RegistryLogin>,
        _progress: Option<&PullProgressSender>,
    ) -> Result<(), ImageError> {
        let mut shelf = self.shelf();
        if shelf.here.contains_key(&image.id) {
            shelf.kept.insert(image.id);
            return Ok(());
        }
        let pinned = image.pinned.as_ref();
        let pinned = pinned.ok_or_else(|| missing(&image.reference))?;
        let offer = shelf.ask(pinned)?;
        if offer.id != image.id {
            return Err(ImageError::Changed {
                reference: pinned.to_string(),
                wanted: image.id,
                found: offer.id,
            });
        }
        shelf.here.insert(offer.id, offer.facts);
        shelf.kept.insert(offer.id);
        Ok(())
    }

    async fn inspect(&self, id: &ImageId) -> Result<Option<ImageFacts>, ImageError> {
        Ok(self.shelf().here.get(id).cloned())
    }

    /// Each image has everything.
    async fn find(&self, id: &ImageId, wanted: &[String]) -> Result<Vec<String>, ImageError> {
        let place = |name: &String| match name.contains('/') {
            true => name.clone(),
            false => format!("/usr/bin/{name}"),
        };
        Ok(match self.has(id) {
            true => wanted.iter().map(place).collect(),
            false => Vec::new(),
        })
    }

    async fn claim(&self, reference: &ImageReference) -> Result<ResolvedImage, ImageError> {
        self.shelf().resolved(reference, None, false)
    }

    async fn collect(&self, keep: &BTreeSet<ImageId>) -> Result<Vec<ImageId>, ImageError> {
        let mut shelf = self.shelf();
        let gone: Vec<_> = shelf.kept.difference(keep).copied().collect();
        for id in &gone {
            shelf.remove(id);
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn follows_the_registry_while_it_answers() {
        let images = FakeImages::default();
        let shop: ImageReference = "registry.test/shop:1".parse().unwrap();
        let [one, two] = [b"1", b"2"].map(|text| ImageId(Digest::of(text)));
        images.offer(&shop, one, ImageFacts::default());
        let first = images
            .resolve(&shop, Pull::Newer, None, None)
            .await
            .unwrap();
        assert_eq!((first.image.id, first.was_pulled), (one, true));
        images.offer(&shop, two, ImageFacts::default());
        let kept = images.resolve(&shop, Pull::Missing, None, None).await;
        assert_eq!(kept.unwrap().image.id, one);
        images.lose_registry(Some("it is away"));
        let local = images
            .resolve(&shop, Pull::Newer, None, None)
            .await
            .unwrap();
        assert_eq!(local.image.id, one);
        assert!(local.registry_said.unwrap().contains("it is away"));
        let strict = images.resolve(&shop, Pull::Always, None, None).await;
        assert!(strict.unwrap_err().is_retryable());
        images.lose_registry(None);
        let newer = images
            .resolve(&shop, Pull::Newer, None, None)
            .await
            .unwrap();
        assert_eq!((newer.image.id, newer.was_pulled), (two, true));
        // A release that goes back finds its image again.
        assert_eq!(images.collect(&[two].into()).await.unwrap(), [one]);
        assert!(!images.has(&one));
        let gone = images.ensure(&first.image, None, None).await;
        assert!(matches!(gone, Err(ImageError::NotFound { .. })));
        images.offer(&shop, one, ImageFacts::default());
        images.ensure(&first.image, None, None).await.unwrap();
        assert!(images.has(&one));
    }
}
