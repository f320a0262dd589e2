//! What a route does with answers, as its part of the proxy's snapshot: static files of every release that can
//! still serve, pages for errors.

use std::{collections::BTreeMap, sync::Arc};

use landfast_rollout::{Environment, Weights};
use landfast_routing::snapshot::{FilesRoot, MissingFile, Protocol, RouteAnswers, RouteFiles};
use landfast_spec::{FilesSpec, RouteSpec};
use landfast_types::{ReleaseId, RouteName};

use crate::release::ReleaseBody;

type Bodies = BTreeMap<ReleaseId, Arc<ReleaseBody>>;

/// What the proxy does with the answers of a route in force.
pub(crate) fn route_answers(
    environment: &Environment,
    bodies: &Bodies,
    name: &RouteName,
    route: &RouteSpec,
) -> RouteAnswers {
    // A route in force is one of a release's own: the pages come from the same release.
    let is_it = |own: &RouteSpec| std::ptr::eq(own, route);
    let owner = bodies
        .values()
        .find(|body| body.spec.routes.get(name).is_some_and(is_it));
    let pages = owner.zip(route.error_pages.as_ref());
    RouteAnswers {
        compress: route.compress,
        files: route
            .files
            .as_ref()
            .map(|files| route_files(environment, bodies, route, files)),
        error_pages: pages.and_then(|(body, folder)| body.artifacts.get(folder).copied()),
    }
}

fn route_files(
    environment: &Environment,
    bodies: &Bodies,
    route: &RouteSpec,
    files: &FilesSpec,
) -> RouteFiles {
    let root = |(release, exposed): (ReleaseId, bool)| {
        let body = bodies.get(&release)?;
        let claims = |own: &&RouteSpec| own.host == route.host && own.path == route.path;
        let own = body.spec.routes.values().find(claims)?;
        let folder = &own.files.as_ref()?.folder;
        Some(FilesRoot {
            release,
            artifact: body.artifacts.get(folder).copied()?,
            modified: body.created_at,
            exposed,
        })
    };
    RouteFiles {
        roots: live(environment).into_iter().filter_map(root).collect(),
        missing: match files.missing {
            landfast_spec::MissingFile::Service => MissingFile::Service,
            landfast_spec::MissingFile::NotFound => MissingFile::NotFound,
            landfast_spec::MissingFile::Index => MissingFile::Index,
        },
        cache_control: files.cache_control.clone(),
    }
}

/// The releases whose files may be asked for, the newest claim first, and whether clients may have seen them: the
/// new one once it is exposed (or was, and is being taken back), the old one until the seal.
fn live(environment: &Environment) -> Vec<(ReleaseId, bool)> {
    let Some(rollout) = &environment.rollout else {
        return environment
            .serving
            .map(|it| (it, true))
            .into_iter()
            .collect();
    };
    let was_exposed = rollout.weights != Weights::OldOnly || !rollout.is_on_the_way();
    let mut live = vec![(rollout.to, was_exposed || rollout.from.is_none())];
    for old in [rollout.from, environment.serving].into_iter().flatten() {
        if live.iter().all(|(known, _)| *known != old) {
            live.push((old, true));
        }
    }
    live
}

/// How the instances of a service are spoken to.
pub(crate) fn protocol(protocol: landfast_spec::Protocol) -> Protocol {
    match protocol {
        landfast_spec::Protocol::Http1 => Protocol::Http1,
        landfast_spec::Protocol::H2c => Protocol::H2c,
    }
}

#[cfg(test)]
mod tests {
    use landfast_types::Digest;

    use super::*;
    use crate::part::{
        part,
        tests::{World, spec},
    };

    fn deploy(world: &mut World, content: &str) {
        let mut spec = spec("api", &["api"]);
        let route = spec.routes.values_mut().next().unwrap();
        route.error_pages = Some("errors".into());
        route.files = Some(FilesSpec {
            folder: "public".into(),
            missing: landfast_spec::MissingFile::Service,
            cache_control: "no-cache".into(),
        });
        world.deploy(spec);
        let (_, body) = world.bodies.iter_mut().next_back().unwrap();
        let artifacts = [("public", content), ("errors", "errors")];
        Arc::get_mut(body).unwrap().artifacts = artifacts
            .map(|(name, content)| (name.to_owned(), Digest::of(content.as_bytes())))
            .into();
    }

    /// The releases whose files are served, with what is exposed marked.
    fn roots(world: &World) -> Vec<String> {
        let part = part(&world.environment, &world.bodies, true);
        let answers = &part.routes[0].answers;
        assert_eq!(answers.error_pages, Some(Digest::of(b"errors")));
        let roots = answers.files.iter().flat_map(|files| &files.roots);
        roots
            .map(|root| format!("{}{}", root.release, if root.exposed { "" } else { "?" }))
            .collect()
    }

    #[test]
    fn the_files_of_both_releases_are_there_until_the_seal() {
        let mut world = World::new("shop");
        deploy(&mut world, "one");
        world.settle();
        assert_eq!(roots(&world), ["1"]);
        deploy(&mut world, "two");
        let mut stages = vec![roots(&world)];
        while world.environment.rollout.is_some() {
            world.second();
            let now = roots(&world);
            if stages.last() != Some(&now) {
                stages.push(now);
            }
        }
        let last = stages.pop();
        assert_eq!(last.as_deref(), Some(["2".to_owned()].as_slice()), "sealed");
        // Both in every stage before, the new one's for everybody once it takes requests.
        let expected: [&[&str]; 2] = [&["2?", "1"], &["2", "1"]];
        assert_eq!(stages, expected);
    }
}
