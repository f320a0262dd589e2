//! The OpenAPI 3.1 document, made from one table of endpoints. The server's own test walks the same table, so a
//! path cannot be described and not served.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, ContentBuilder, HttpMethod, InfoBuilder, LicenseBuilder, ObjectBuilder,
        OpenApiBuilder, Ref, RefOr, Required, ResponseBuilder, Schema, Type,
        path::{OperationBuilder, ParameterBuilder, ParameterIn, PathItem},
        request_body::RequestBodyBuilder,
    },
};

use crate::*;

/// One method of one path.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    /// The operation's id, which is also the client's method.
    pub id: &'static str,
    pub summary: &'static str,
    body: Body,
    answers: Vec<(u16, &'static str, Body)>,
    /// Query parameters: name, whether it is a number, what it means.
    query: &'static [(&'static str, QueryKind, &'static str)],
    /// Whether it takes an `Idempotency-Key`.
    pub idempotency_key: bool,
}

/// The methods the API uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

#[derive(Debug, Clone, Copy)]
enum QueryKind {
    Text,
    Number,
    Flag,
}

/// What a request or an answer carries.
#[derive(Debug, Clone)]
enum Body {
    None,
    Json(String),
    /// A JSON value per line.
    Lines(String),
    /// Events whose `data` is this.
    Events(String),
    Text(&'static str),
    Bytes,
}

fn json<T: ToSchema>() -> Body {
    Body::Json(T::name().into_owned())
}

/// Every endpoint.
pub fn endpoints() -> Vec<Endpoint> {
    use Method::{Delete, Get, Patch, Post, Put};
    use QueryKind::{Flag, Number, Text};

    let get = |path, id, summary, answer| Endpoint {
        method: Get,
        path,
        id,
        summary,
        body: Body::None,
        answers: vec![(200, "", answer)],
        query: &[],
        idempotency_key: false,
    };
    let post = |path, id, summary, body, answer| Endpoint {
        method: Post,
        body,
        answers: vec![(200, "", answer)],
        ..get(path, id, summary, Body::None)
    };
    let begins = |path, id, summary, body| Endpoint {
        answers: vec![(202, "A rollout began", json::<Rollout>())],
        idempotency_key: true,
        ..post(path, id, summary, body, Body::None)
    };

    vec![
        get(
            paths::HEALTH,
            "health",
            "Whether the server answers",
            json::<Health>(),
        ),
        get(
            paths::OPENAPI,
            "openapi",
            "This document",
            Body::Text("application/json"),
        ),
        get(
            paths::HOST,
            "host",
            "Versions, listeners, folders and resources",
            json::<Host>(),
        ),
        post(
            paths::DOCTOR,
            "doctor",
            "Whether this host can carry what it is to carry; changes nothing",
            json::<DoctorRequest>(),
            json::<Diagnosis>(),
        ),
        get(
            paths::APPS,
            "apps",
            "Every environment of this host in a line",
            json::<AppList>(),
        ),
        get(
            paths::ROUTES,
            "routes",
            "All routes in the order they match",
            json::<RouteList>(),
        ),
        get(
            paths::CERTIFICATES,
            "certificates",
            "The certificate of every host of the routes, in order of name",
            json::<CertificateList>(),
        ),
        Endpoint {
            answers: vec![(202, "It is ordered", json::<Certificate>())],
            ..post(
                paths::CERTIFICATE_RENEW,
                "renew_certificate",
                "Orders a host's certificate now; asking again while it is under way changes nothing",
                Body::None,
                Body::None,
            )
        },
        get(
            paths::TRAFFIC,
            "traffic",
            "What the proxy counted since its worker started",
            json::<Traffic>(),
        ),
        get(
            paths::EVENTS,
            "events",
            "What happens on this host; `Last-Event-ID` goes on after a sequence, and without it the stream begins now",
            Body::Events(Event::name().into_owned()),
        ),
        get(
            paths::METRICS,
            "metrics",
            "Prometheus metrics of the server",
            Body::Text("text/plain; version=0.0.4"),
        ),
        post(
            paths::BLOBS_MISSING,
            "missing_blobs",
            "Which blobs the store lacks, and where to go on with them",
            json::<MissingBlobsRequest>(),
            json::<MissingBlobs>(),
        ),
        Endpoint {
            method: Patch,
            query: &[
                ("offset", Number, "Where this piece begins, in bytes"),
                (
                    "last",
                    Flag,
                    "Whether the blob ends with this piece: its digest is then checked",
                ),
            ],
            ..post(
                paths::BLOB,
                "upload",
                "Adds a piece to a blob",
                Body::Bytes,
                json::<BlobSize>(),
            )
        },
        post(
            paths::ARTIFACTS,
            "create_artifact",
            "Joins uploaded blobs to an artifact; creating it again changes nothing",
            json::<ArtifactListing>(),
            json::<ArtifactCreated>(),
        ),
        get(
            paths::ENVIRONMENT,
            "status",
            "An environment as it is",
            json::<EnvironmentStatus>(),
        ),
        get(
            paths::HISTORY,
            "history",
            "Releases and rollouts, newest first",
            json::<History>(),
        ),
        get(
            paths::ENVIRONMENT_EVENTS,
            "environment_events",
            "What happens in this environment, as `/v1/events`",
            Body::Events(Event::name().into_owned()),
        ),
        Endpoint {
            query: &[
                ("service", Text, "Of a service or job"),
                ("instance", Text, "Of an instance or run"),
                (
                    "tail",
                    Number,
                    "Lines of the past over all chosen instances; 100 without it",
                ),
                ("follow", Flag, "Go on as lines come"),
            ],
            ..get(
                paths::LOGS,
                "logs",
                "What instances wrote, one JSON value per line",
                Body::Lines(LogLine::name().into_owned()),
            )
        },
        post(
            paths::PLAN,
            "plan",
            "What a deploy would do; changes nothing",
            json::<PlanRequest>(),
            json::<Plan>(),
        ),
        post(
            paths::IMAGES,
            "images",
            "Has the images of a manifest on the host, and tells how far that is; a deploy names what it answers",
            json::<ImagesRequest>(),
            Body::Lines(ImageFrame::name().into_owned()),
        ),
        Endpoint {
            answers: vec![
                (202, "A rollout began", json::<DeployAnswer>()),
                (
                    200,
                    "Nothing differs: no release was made",
                    json::<DeployAnswer>(),
                ),
            ],
            idempotency_key: true,
            ..post(
                paths::ROLLOUTS,
                "deploy",
                "Makes a release and moves the environment to it",
                json::<DeployRequest>(),
                Body::None,
            )
        },
        Endpoint {
            query: &[
                ("limit", Number, "At most this many; 20 without it"),
                ("before", Number, "Only rollouts with a smaller number"),
            ],
            ..get(
                paths::ROLLOUTS,
                "rollouts",
                "Rollouts, newest first",
                json::<RolloutList>(),
            )
        },
        get(
            paths::ROLLOUT,
            "rollout",
            "One rollout as it is",
            json::<Rollout>(),
        ),
        post(
            paths::PROMOTE,
            "promote",
            "Passes the manual gate, or takes up a parked rollout",
            json::<ReasonRequest>(),
            json::<Rollout>(),
        ),
        post(
            paths::ABORT,
            "abort",
            "Takes the rollout back",
            json::<ReasonRequest>(),
            json::<Rollout>(),
        ),
        post(
            paths::SEAL,
            "seal",
            "Lets the old release go now, instead of after `standby`",
            json::<ReasonRequest>(),
            json::<Rollout>(),
        ),
        begins(
            paths::ROLLBACK,
            "rollback",
            "Goes back to an earlier release",
            json::<RollbackRequest>(),
        ),
        post(
            paths::SCALE,
            "scale",
            "Runs more or fewer instances until the manifest's `replicas` changes",
            json::<ScaleRequest>(),
            json::<ScaleAnswer>(),
        ),
        begins(
            paths::RESTART,
            "restart",
            "Rolls the same release once more",
            json::<ReasonRequest>(),
        ),
        post(
            paths::STOP,
            "stop",
            "Shows the maintenance page and stops the instances",
            json::<ReasonRequest>(),
            json::<EnvironmentStatus>(),
        ),
        post(
            paths::START,
            "start",
            "Starts what `stop` stopped",
            json::<ReasonRequest>(),
            json::<EnvironmentStatus>(),
        ),
        Endpoint {
            answers: vec![(202, "It runs", json::<JobRun>())],
            idempotency_key: true,
            ..post(
                paths::JOB_RUNS,
                "run_job",
                "Runs a job now",
                Body::None,
                Body::None,
            )
        },
        get(
            paths::JOB_RUN,
            "job_run",
            "One run of a job",
            json::<JobRun>(),
        ),
        post(
            paths::EXEC,
            "exec",
            "Runs a command beside an instance; output comes as one JSON value per line",
            json::<ExecRequest>(),
            Body::Lines(ExecFrame::name().into_owned()),
        ),
        get(
            paths::SECRETS,
            "secrets",
            "Names and versions, never values",
            json::<SecretList>(),
        ),
        get(
            paths::SECRET,
            "secret",
            "One secret's versions, never its value",
            json::<Secret>(),
        ),
        Endpoint {
            method: Put,
            ..post(
                paths::SECRET,
                "set_secret",
                "Sets a secret: the body is the value itself, byte for byte",
                Body::Bytes,
                json::<Secret>(),
            )
        },
        Endpoint {
            method: Delete,
            answers: vec![(204, "It is gone", Body::None)],
            ..get(
                paths::SECRET,
                "remove_secret",
                "Leaves a secret out of new releases; those that pinned a version keep it",
                Body::None,
            )
        },
        post(
            paths::SECRETS,
            "import_secrets",
            "Sets the secrets of a dotenv text, all or none; names that have their value already are left alone",
            Body::Text("text/plain"),
            json::<SecretImported>(),
        ),
        post(
            paths::SECRET_REVEAL,
            "reveal_secret",
            "The value itself, and a record of who asked; over the Unix socket only",
            json::<SecretRevealRequest>(),
            json::<SecretValue>(),
        ),
        get(
            paths::SECRET_HISTORY,
            "secret_history",
            "The versions of a secret, and what was done with it, never a value",
            json::<SecretHistory>(),
        ),
        post(
            paths::SECRET_ROLLBACK,
            "roll_secret_back",
            "Sets a secret to the value of an earlier version, as a new version",
            json::<SecretRollbackRequest>(),
            json::<Secret>(),
        ),
        post(
            paths::SECRET_REVOKE,
            "revoke_secret",
            "Forgets the value of a version; whoever pinned it is given the newest",
            json::<SecretRevokeRequest>(),
            json::<SecretHistory>(),
        ),
        post(
            paths::SECRET_ROTATE,
            "rotate_secret",
            "Sets a secret to a generated or given value and brings it to the instances one after another",
            json::<SecretRotateRequest>(),
            json::<SecretRotated>(),
        ),
        get(
            paths::SECRETS_KEY,
            "secrets_key",
            "The key the secrets are sealed under, and whether a copy of it was confirmed",
            json::<SecretsKey>(),
        ),
        post(
            paths::SECRETS_KEY_EXPORT,
            "export_secrets_key",
            "The text of the key file, for a copy in a safe place; over the Unix socket only",
            Body::None,
            json::<SecretsKeyText>(),
        ),
        post(
            paths::SECRETS_KEY_CONFIRM,
            "confirm_secrets_key",
            "Shows that a copy is one of this key: the body is its text",
            Body::Text("text/plain"),
            json::<SecretsKey>(),
        ),
        post(
            paths::SECRETS_KEY_ROTATE,
            "rotate_secrets_key",
            "Replaces the key the secrets are sealed under, and re-wraps everything",
            Body::None,
            json::<SecretsKeyRotated>(),
        ),
        get(
            paths::STORES,
            "stores",
            "The data stores of an environment, in order of name",
            json::<StoreList>(),
        ),
        get(
            paths::STORE,
            "store",
            "One data store, with what was measured of it",
            json::<Store>(),
        ),
        post(
            paths::STORE_CONNECTION,
            "store_connection",
            "How a person reaches a managed store: the answer holds a password",
            Body::None,
            json::<StoreConnection>(),
        ),
        Endpoint {
            answers: vec![(202, "It is being restarted", json::<Store>())],
            ..post(
                paths::STORE_RESTART,
                "restart_store",
                "Restarts the server of a managed store",
                Body::None,
                Body::None,
            )
        },
        Endpoint {
            answers: vec![(202, "It goes on by itself", json::<Store>())],
            ..post(
                paths::STORE_ROTATE,
                "rotate_store",
                "Changes the password that instances reach a managed store with",
                json::<StoreRotateRequest>(),
                Body::None,
            )
        },
        Endpoint {
            answers: vec![
                (200, "What it would do", json::<StoreSwitched>()),
                (202, "A rollout has begun", json::<StoreSwitched>()),
            ],
            ..post(
                paths::STORE_SWITCH,
                "switch_store",
                "Has a name of the manifest served by a store that was restored from its backups",
                json::<StoreSwitchRequest>(),
                Body::None,
            )
        },
        Endpoint {
            answers: vec![(
                202,
                "It is ended, kept for a while, then removed",
                json::<Store>(),
            )],
            ..post(
                paths::STORE_DELETE,
                "delete_store",
                "Deletes a managed store that no manifest names any more, after a delay",
                json::<StoreDeleteRequest>(),
                Body::None,
            )
        },
        Endpoint {
            answers: vec![(202, "It is started again", json::<Store>())],
            ..post(
                paths::STORE_UNDELETE,
                "undelete_store",
                "Takes a deleted store back",
                Body::None,
                Body::None,
            )
        },
        get(
            paths::BACKUPS,
            "backups",
            "How the backups of an environment's stores stand",
            json::<BackupList>(),
        ),
        get(
            paths::STORE_BACKUPS,
            "store_backups",
            "The backups of one store, and how far a restore reaches",
            json::<StoreBackups>(),
        ),
        post(
            paths::STORE_BACKUPS,
            "back_up",
            "Makes a backup now; goes on when nobody reads the answer",
            json::<BackupRequest>(),
            Body::Lines(BackupFrame::name().into_owned()),
        ),
        post(
            paths::BACKUPS_VERIFY,
            "verify_backups",
            "Reads every byte of a store's backups",
            Body::None,
            Body::Lines(BackupFrame::name().into_owned()),
        ),
        post(
            paths::BACKUPS_PRUNE,
            "prune_backups",
            "Removes what is older than the manifest keeps",
            json::<PruneRequest>(),
            Body::Lines(BackupFrame::name().into_owned()),
        ),
        post(
            paths::DRILLS,
            "drill",
            "Restores the newest backup into a server of its own, checks it and removes it",
            json::<DrillRequest>(),
            Body::Lines(BackupFrame::name().into_owned()),
        ),
        post(
            paths::RESTORES,
            "restore",
            "Restores into a new store beside the old, or into a folder",
            json::<RestoreRequest>(),
            Body::Lines(BackupFrame::name().into_owned()),
        ),
        get(
            paths::BACKUP_KEY,
            "backup_key",
            "The key that backups of this host are sealed under",
            json::<BackupKey>(),
        ),
        post(
            paths::BACKUP_KEY_EXPORT,
            "export_backup_key",
            "The text of the key file, for a copy in a safe place",
            Body::None,
            json::<BackupKeyText>(),
        ),
        post(
            paths::BACKUP_KEY_CONFIRM,
            "confirm_backup_key",
            "Shows that a copy is one of this key: the body is its text",
            Body::Text("text/plain"),
            json::<BackupKey>(),
        ),
        get(
            paths::MIGRATIONS,
            "migrations",
            "What a database says was done to it",
            json::<MigrationStatus>(),
        ),
        post(
            paths::MIGRATIONS_PLAN,
            "plan_migrations",
            "What an uploaded folder of migrations would do to a database; changes nothing",
            json::<MigrateRequest>(),
            json::<MigratePlan>(),
        ),
        post(
            paths::MIGRATIONS_UP,
            "migrate_up",
            "Runs what is pending outside a rollout; ends when nobody reads the answer any more",
            json::<MigrateUpRequest>(),
            Body::Lines(MigrateFrame::name().into_owned()),
        ),
        post(
            paths::MIGRATIONS_DOWN,
            "migrate_down",
            "Takes the newest migration back by its way down",
            json::<MigrateRequest>(),
            Body::Lines(MigrateFrame::name().into_owned()),
        ),
        post(
            paths::MIGRATIONS_REHEARSE,
            "rehearse_migrations",
            "Runs what is pending on a copy of a managed database, and says what each migration costs",
            json::<MigrateRequest>(),
            Body::Lines(MigrateFrame::name().into_owned()),
        ),
        post(
            paths::MIGRATIONS_ACCEPT,
            "accept_migration",
            "Takes a changed file, or a step nobody could judge, for applied",
            json::<MigrateAcceptRequest>(),
            Body::Lines(MigrateFrame::name().into_owned()),
        ),
    ]
}

/// The schemas of every type a body names, and of what those are made of.
fn schemas() -> Vec<(String, RefOr<Schema>)> {
    fn add<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
    let mut schemas = Vec::new();
    add::<AppList>(&mut schemas);
    add::<ArtifactCreated>(&mut schemas);
    add::<ArtifactListing>(&mut schemas);
    add::<BackupFrame>(&mut schemas);
    add::<BackupKey>(&mut schemas);
    add::<BackupKeyText>(&mut schemas);
    add::<BackupList>(&mut schemas);
    add::<BackupRequest>(&mut schemas);
    add::<BlobSize>(&mut schemas);
    add::<Certificate>(&mut schemas);
    add::<CertificateList>(&mut schemas);
    add::<DeployAnswer>(&mut schemas);
    add::<DeployRequest>(&mut schemas);
    add::<Diagnosis>(&mut schemas);
    add::<DoctorRequest>(&mut schemas);
    add::<DrillRequest>(&mut schemas);
    add::<EnvironmentStatus>(&mut schemas);
    add::<Event>(&mut schemas);
    add::<ExecFrame>(&mut schemas);
    add::<ExecRequest>(&mut schemas);
    add::<Health>(&mut schemas);
    add::<History>(&mut schemas);
    add::<ImageFrame>(&mut schemas);
    add::<ImagesRequest>(&mut schemas);
    add::<Host>(&mut schemas);
    add::<JobRun>(&mut schemas);
    add::<LogLine>(&mut schemas);
    add::<MissingBlobs>(&mut schemas);
    add::<MissingBlobsRequest>(&mut schemas);
    add::<Plan>(&mut schemas);
    add::<PlanRequest>(&mut schemas);
    add::<Problem>(&mut schemas);
    add::<PruneRequest>(&mut schemas);
    add::<ReasonRequest>(&mut schemas);
    add::<RestoreRequest>(&mut schemas);
    add::<StoreBackups>(&mut schemas);
    add::<RollbackRequest>(&mut schemas);
    add::<Rollout>(&mut schemas);
    add::<RolloutList>(&mut schemas);
    add::<RouteList>(&mut schemas);
    add::<Traffic>(&mut schemas);
    add::<ScaleAnswer>(&mut schemas);
    add::<ScaleRequest>(&mut schemas);
    add::<Secret>(&mut schemas);
    add::<SecretHistory>(&mut schemas);
    add::<SecretImported>(&mut schemas);
    add::<SecretList>(&mut schemas);
    add::<SecretRevealRequest>(&mut schemas);
    add::<SecretRevokeRequest>(&mut schemas);
    add::<SecretRollbackRequest>(&mut schemas);
    add::<SecretRotateRequest>(&mut schemas);
    add::<SecretRotated>(&mut schemas);
    add::<SecretsKeyRotated>(&mut schemas);
    add::<SecretValue>(&mut schemas);
    add::<SecretsKey>(&mut schemas);
    add::<SecretsKeyText>(&mut schemas);
    add::<Store>(&mut schemas);
    add::<StoreConnection>(&mut schemas);
    add::<StoreDeleteRequest>(&mut schemas);
    add::<StoreSwitchRequest>(&mut schemas);
    add::<StoreSwitchPlan>(&mut schemas);
    add::<StoreSwitched>(&mut schemas);
    add::<StoreRotateRequest>(&mut schemas);
    add::<StoreList>(&mut schemas);
    add::<MigrationStatus>(&mut schemas);
    add::<MigrateRequest>(&mut schemas);
    add::<MigratePlan>(&mut schemas);
    add::<MigrateUpRequest>(&mut schemas);
    add::<MigrateAcceptRequest>(&mut schemas);
    add::<MigrateFrame>(&mut schemas);
    schemas.sort_by(|(left, _), (right, _)| left.cmp(right));
    schemas
}

/// The document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let info = InfoBuilder::new()
        .title("Landfast")
        .version("v1")
        .description(Some(
            "The API of `landfast server`, over its Unix socket or TCP on loopback. Problems are RFC 9457 \
             with the type `urn:landfast:problem:<code>`.",
        ))
        .license(Some(
            LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build(),
        ))
        .build();
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas())
        .build();
    let mut document = OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .build();
    for endpoint in endpoints() {
        let method = match endpoint.method {
            Method::Get => HttpMethod::Get,
            Method::Post => HttpMethod::Post,
            Method::Put => HttpMethod::Put,
            Method::Patch => HttpMethod::Patch,
            Method::Delete => HttpMethod::Delete,
        };
        let item = PathItem::new(method, operation(&endpoint));
        match document.paths.paths.get_mut(endpoint.path) {
            Some(known) => known.merge_operations(item),
            None => {
                document.paths.paths.insert(endpoint.path.to_owned(), item);
            }
        }
    }
    document
}

/// The document as it is committed and served: indented, with a line end.
pub fn openapi_json() -> String {
    let text = openapi()
        .to_pretty_json()
        .expect("the document is plain data");
    text + "\n"
}

fn operation(endpoint: &Endpoint) -> utoipa::openapi::path::Operation {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(endpoint.id))
        .summary(Some(endpoint.summary))
        .tag(tag(endpoint.path));
    for part in endpoint.path.split(['{', '}']).skip(1).step_by(2) {
        let kind = if part == "id" {
            Type::Integer
        } else {
            Type::String
        };
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(part)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(plain(kind))),
        );
    }
    for (name, kind, description) in endpoint.query {
        let kind = match kind {
            QueryKind::Text => Type::String,
            QueryKind::Number => Type::Integer,
            QueryKind::Flag => Type::Boolean,
        };
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(*name)
                .parameter_in(ParameterIn::Query)
                .required(if *name == "offset" {
                    Required::True
                } else {
                    Required::False
                })
                .description(Some(*description))
                .schema(Some(plain(kind))),
        );
    }
    let header = |name: &str, description: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(description))
            .schema(Some(plain(Type::String)))
    };
    if endpoint.idempotency_key {
        let description = "The same key and body answer with the first answer for a day";
        operation = operation.parameter(header("Idempotency-Key", description));
    }
    if matches!(endpoint.answers.first(), Some((_, _, Body::Events(_)))) {
        let description = "The sequence of the last event seen";
        operation = operation.parameter(header("Last-Event-ID", description));
    }
    if let Some((media, content)) = content(&endpoint.body) {
        let body = RequestBodyBuilder::new()
            .content(media, content)
            .required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    for (status, description, body) in &endpoint.answers {
        let description = if description.is_empty() {
            "It worked"
        } else {
            description
        };
        let mut response = ResponseBuilder::new().description(description);
        if let Some((media, content)) = content(body) {
            response = response.content(media, content);
        }
        operation = operation.response(status.to_string(), response.build());
    }
    let problem = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(Problem::name())))
        .build();
    let response = ResponseBuilder::new()
        .description("What went wrong")
        .content(PROBLEM_JSON, problem);
    operation.response("default", response.build()).build()
}

fn plain(kind: Type) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(kind).into()
}

fn content(body: &Body) -> Option<(&'static str, utoipa::openapi::Content)> {
    let named = |name: &str| {
        ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(name)))
            .build()
    };
    Some(match body {
        Body::None => return None,
        Body::Json(name) => ("application/json", named(name)),
        Body::Lines(name) => (NDJSON, named(name)),
        Body::Events(name) => (EVENT_STREAM, named(name)),
        Body::Text(media) => (
            media,
            ContentBuilder::new()
                .schema(Some(<String as PartialSchema>::schema()))
                .build(),
        ),
        Body::Bytes => ("application/octet-stream", ContentBuilder::new().build()),
    })
}

/// Groups the operations for readers.
fn tag(path: &str) -> &'static str {
    if path.starts_with("/v1/blobs") || path.starts_with("/v1/artifacts") {
        "artifacts"
    } else if path.contains("/secrets") {
        "secrets"
    } else if path.contains("/rollouts")
        || path.ends_with("/plan")
        || path.ends_with("/images")
        || path.ends_with("/rollback")
    {
        "rollouts"
    } else if path.starts_with(paths::ENVIRONMENT) {
        "environments"
    } else {
        "host"
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        let text = openapi_json();
        let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["openapi"], "3.1.0");
        let schemas = document["components"]["schemas"]
            .as_object()
            .expect("schemas");
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().expect("a closing quote");
            assert!(schemas.contains_key(name), "no schema {name}");
        }
    }

    #[test]
    fn every_endpoint_has_an_id_of_its_own() {
        let endpoints = endpoints();
        let ids = endpoints
            .iter()
            .map(|endpoint| endpoint.id)
            .collect::<BTreeSet<_>>();
        assert_eq!(ids.len(), endpoints.len());
        assert!(
            endpoints
                .iter()
                .all(|endpoint| endpoint.path.starts_with("/v1/"))
        );
    }

    /// The committed document is what readers see in the repository. `cargo xtask docs` writes it, and so does
    /// this test where `UPDATE_DOCS` is set.
    #[test]
    fn the_committed_document_is_this_one() {
        let committed = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/openapi.json"
        );
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(committed, openapi_json()).expect("the folder is there");
        }
        let text = std::fs::read_to_string(committed).expect("it is committed");
        assert!(
            text == openapi_json(),
            "docs/reference/openapi.json is old: run `cargo xtask docs`"
        );
    }
}
