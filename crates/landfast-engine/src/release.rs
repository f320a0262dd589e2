//! A release: everything needed to start its instances again, whatever has become of the source folder.

use std::collections::BTreeMap;

use landfast_rollout::{Amount, Gate, RolloutPlan, ServiceShape, Strategy, Topology};
use landfast_spec::{AppSpec, Share};
use landfast_target::PinnedImage;
use landfast_types::{Digest, Hasher, ReleaseId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::migrations::{self, Sets};

/// The content of a release, kept in the journal beside the event that created it. Read by later versions:
/// fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseBody {
    pub release: ReleaseId,
    pub spec: AppSpec,
    /// The content of each artifact, by the text the manifest names it with.
    pub artifacts: BTreeMap<String, Digest>,
    /// What each image meant when the release was made, by [`landfast_spec::ImageSource::key`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, PinnedImage>,
    /// The version of each secret it was made with.
    pub secrets: BTreeMap<String, u64>,
    pub created_at: Timestamp,
    #[serde(default)]
    pub commit: Option<String>,
    #[serde(default)]
    pub note: Option<String>,
    /// Equal for equal content: unchanged input makes no new release.
    pub fingerprint: Digest,
}

/// What makes two releases the same.
pub fn fingerprint(
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
    images: &BTreeMap<String, PinnedImage>,
    secrets: &BTreeMap<String, u64>,
) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update_framed(spec.fingerprint().as_bytes());
    for (name, digest) in artifacts {
        hasher.update_framed(name.as_bytes());
        hasher.update_framed(digest.as_bytes());
    }
    for (name, image) in images {
        hasher.update_framed(name.as_bytes());
        hasher.update_framed(image.id.to_string().as_bytes());
    }
    for (name, version) in secrets {
        hasher.update_framed(name.as_bytes());
        hasher.update_framed(&version.to_be_bytes());
    }
    hasher.finish()
}

/// What the engine must know of a spec and its migrations.
pub fn topology(spec: &AppSpec, migrations: &Sets) -> Topology {
    let shape = |(name, service): (&landfast_types::ServiceName, &landfast_spec::ServiceSpec)| {
        let shape = ServiceShape {
            replicas: service.replicas,
            routed: service.port.is_some() && spec.routes_of(name).next().is_some(),
            exclusive: service.exclusive,
            after: service.after.clone(),
            drain: service.drain,
            stream_drain: service.stream_drain,
            grace: service.grace,
        };
        (name.clone(), shape)
    };
    Topology {
        services: spec.services.iter().map(shape).collect(),
        schemas: migrations
            .iter()
            .map(|(store, set)| (store.clone(), migrations::shapes(set)))
            .collect(),
    }
}

/// How the spec wants its rollouts done, or with another strategy for once.
pub fn plan(spec: &AppSpec, strategy: Option<landfast_spec::Strategy>) -> RolloutPlan {
    let deploy = &spec.deploy;
    let strategy = match strategy.unwrap_or(deploy.strategy) {
        landfast_spec::Strategy::Rolling => Strategy::Rolling {
            max_surge: amount(deploy.max_surge),
            max_unavailable: amount(deploy.max_unavailable),
        },
        landfast_spec::Strategy::BlueGreen => Strategy::BlueGreen,
        landfast_spec::Strategy::Canary => Strategy::Canary {
            steps: deploy.steps.clone(),
        },
        landfast_spec::Strategy::Recreate => Strategy::Recreate,
    };
    // Budgets are what asks for it.
    let mut stores = spec.stores.values();
    let rehearsal = stores
        .any(|store| store.rehearsal.is_some())
        .then_some(Gate::Rehearsal);
    RolloutPlan {
        strategy,
        gates: deploy
            .gates
            .iter()
            .map(|gate| self::gate(*gate))
            .chain(rehearsal)
            .collect(),
        min_ready: deploy.min_ready,
        healthy_deadline: deploy.healthy_deadline,
        progress_deadline: deploy.progress_deadline,
        hold: deploy.hold,
        standby: deploy.standby,
        rollback: deploy.rollback,
    }
}

fn amount(share: Share) -> Amount {
    match share {
        Share::Count(count) => Amount::Count(count),
        Share::Percent(percent) => Amount::Percent(percent),
    }
}

fn gate(gate: landfast_spec::Gate) -> Gate {
    match gate {
        // Backups are looked at before anything is begun.
        landfast_spec::Gate::Preflight | landfast_spec::Gate::Backup => Gate::Preflight,
        landfast_spec::Gate::Smoke => Gate::Smoke,
        landfast_spec::Gate::Hold => Gate::Hold,
        landfast_spec::Gate::Approval => Gate::Approval,
        landfast_spec::Gate::Analysis => Gate::Analysis,
    }
}
