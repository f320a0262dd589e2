//! One method for each endpoint. Errors of all of them: see [`Error`].

use bytes::Bytes;
use http::Method;
use landfast_api::{
    AppList, ArtifactCreated, ArtifactListing, Certificate, CertificateList, DeployAnswer,
    DeployRequest, Diagnosis, DoctorRequest, EnvironmentStatus, ExecFrame, ExecRequest, Health,
    History, Host, ImageFrame, ImagesRequest, JobRun, LogLine, LogQuery, MigrateAcceptRequest,
    MigrateFrame, MigratePlan, MigrateRequest, MigrateUpRequest, MigrationStatus, Plan,
    PlanRequest, ReasonRequest, RollbackRequest, Rollout, RolloutList, RouteList, ScaleAnswer,
    ScaleRequest, Secret, SecretHistory, SecretImported, SecretList, SecretRevealRequest,
    SecretRevokeRequest, SecretRollbackRequest, SecretRotateRequest, SecretRotated, SecretValue,
    SecretsKey, SecretsKeyRotated, SecretsKeyText, Store, StoreConnection, StoreDeleteRequest,
    StoreList, StoreRotateRequest, StoreSwitchRequest, StoreSwitched, Traffic, paths,
};
use landfast_types::Scope;

use crate::{Client, Error, Events, Lines, connection::Call};

pub(crate) fn get(path: &str, doing: &str) -> Call {
    Call::new(Method::GET, path, doing)
}

pub(crate) fn post(path: &str, doing: &str) -> Call {
    Call::new(Method::POST, path, doing)
}

/// A path below an environment.
pub(crate) fn under(template: &str, scope: &Scope, rest: &[&str]) -> String {
    let mut values = vec![scope.app.as_str(), scope.environment.as_str()];
    values.extend(rest);
    paths::fill(template, &values)
}

fn reason(reason: Option<&str>) -> ReasonRequest {
    ReasonRequest {
        reason: reason.map(str::to_owned),
    }
}

#[expect(
    clippy::missing_errors_doc,
    reason = "said once at the head of the module"
)]
impl Client {
    /// Whether the server answers.
    pub async fn health(&self) -> Result<Health, Error> {
        self.ask(get(paths::HEALTH, "the health check")).await
    }

    /// The OpenAPI document the server serves.
    pub async fn openapi(&self) -> Result<serde_json::Value, Error> {
        self.ask(get(paths::OPENAPI, "the OpenAPI document")).await
    }

    /// Versions, listeners, folders and resources.
    pub async fn host(&self) -> Result<Host, Error> {
        self.ask(get(paths::HOST, "the host's description")).await
    }

    /// Whether the host can carry what it is to carry.
    pub async fn doctor(&self, request: &DoctorRequest) -> Result<Diagnosis, Error> {
        let call = Call::new(Method::POST, paths::DOCTOR, "the host's diagnosis");
        self.ask(call.json(request)).await
    }

    /// Every environment of the host in a line.
    pub async fn apps(&self) -> Result<AppList, Error> {
        self.ask(get(paths::APPS, "the list of apps")).await
    }

    /// All routes in the order they match.
    pub async fn routes(&self) -> Result<RouteList, Error> {
        self.ask(get(paths::ROUTES, "the list of routes")).await
    }

    /// The certificate of every host of the routes.
    pub async fn certificates(&self) -> Result<CertificateList, Error> {
        self.ask(get(paths::CERTIFICATES, "the list of certificates"))
            .await
    }

    /// Orders a host's certificate now.
    pub async fn renew_certificate(&self, host: &str) -> Result<Certificate, Error> {
        let path = paths::fill(paths::CERTIFICATE_RENEW, &[host]);
        self.ask(Call::new(Method::POST, path, "the renewal")).await
    }

    /// What the proxy counted since its worker started.
    pub async fn traffic(&self) -> Result<Traffic, Error> {
        self.ask(get(paths::TRAFFIC, "the traffic")).await
    }

    /// Prometheus metrics of the server, as text.
    pub async fn metrics(&self) -> Result<String, Error> {
        let bytes = self.ask_bytes(&get(paths::METRICS, "the metrics")).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What happens, on the host or in one environment, after an event or from now on.
    pub fn events(&self, scope: Option<&Scope>, after: Option<u64>) -> Events {
        let path = match scope {
            Some(scope) => under(paths::ENVIRONMENT_EVENTS, scope, &[]),
            None => paths::EVENTS.to_owned(),
        };
        Events::new(self, path, after)
    }

    /// Joins uploaded blobs to an artifact. Doing it twice changes nothing.
    pub async fn create_artifact(
        &self,
        listing: &ArtifactListing,
    ) -> Result<ArtifactCreated, Error> {
        self.ask(Call::new(Method::POST, paths::ARTIFACTS, "the listing").json(listing))
            .await
    }

    /// An environment as it is.
    pub async fn status(&self, scope: &Scope) -> Result<EnvironmentStatus, Error> {
        self.ask(get(&under(paths::ENVIRONMENT, scope, &[]), "the status"))
            .await
    }

    /// Releases and rollouts, newest first.
    pub async fn history(&self, scope: &Scope) -> Result<History, Error> {
        self.ask(get(&under(paths::HISTORY, scope, &[]), "the history"))
            .await
    }

    /// What instances wrote.
    pub async fn logs(&self, scope: &Scope, query: &LogQuery) -> Result<Lines<LogLine>, Error> {
        let mut target = under(paths::LOGS, scope, &[]);
        let mut separator = '?';
        let mut add = |name: &str, value: &str| {
            target.push_str(&format!("{separator}{name}={}", paths::encode(value)));
            separator = '&';
        };
        if let Some(service) = &query.service {
            add("service", service);
        }
        if let Some(instance) = &query.instance {
            add("instance", instance);
        }
        if let Some(tail) = query.tail {
            add("tail", &tail.to_string());
        }
        if query.follow {
            add("follow", "true");
        }
        Lines::open(self, get(&target, "the logs")).await
    }

    /// What a deploy would do.
    pub async fn plan(&self, scope: &Scope, request: &PlanRequest) -> Result<Plan, Error> {
        let call = Call::new(Method::POST, under(paths::PLAN, scope, &[]), "the plan");
        self.ask(call.json(request)).await
    }

    /// Has the images of a manifest on the server's host. Dropping the answer ends it.
    pub async fn images(
        &self,
        scope: &Scope,
        request: &ImagesRequest,
    ) -> Result<Lines<ImageFrame>, Error> {
        let path = under(paths::IMAGES, scope, &[]);
        Lines::open(self, post(&path, "the images").json(request)).await
    }

    /// Makes a release and moves the environment to it. The same key makes one rollout, however often it is sent.
    pub async fn deploy(
        &self,
        scope: &Scope,
        request: &DeployRequest,
        key: &str,
    ) -> Result<DeployAnswer, Error> {
        let call = Call::new(
            Method::POST,
            under(paths::ROLLOUTS, scope, &[]),
            "the deploy",
        );
        self.ask(call.json(request).key(key)).await
    }

    /// Rollouts, newest first.
    pub async fn rollouts(
        &self,
        scope: &Scope,
        limit: u32,
        before: Option<u64>,
    ) -> Result<RolloutList, Error> {
        let mut target = format!("{}?limit={limit}", under(paths::ROLLOUTS, scope, &[]));
        if let Some(before) = before {
            target.push_str(&format!("&before={before}"));
        }
        self.ask(get(&target, "the list of rollouts")).await
    }

    /// One rollout as it is.
    pub async fn rollout(&self, scope: &Scope, id: u64) -> Result<Rollout, Error> {
        self.ask(get(
            &under(paths::ROLLOUT, scope, &[&id.to_string()]),
            "the rollout",
        ))
        .await
    }

    /// Passes the manual gate, or takes up a parked rollout.
    pub async fn promote(
        &self,
        scope: &Scope,
        id: u64,
        why: Option<&str>,
    ) -> Result<Rollout, Error> {
        let path = under(paths::PROMOTE, scope, &[&id.to_string()]);
        self.ask(Call::new(Method::POST, path, "the promotion").json(&reason(why)))
            .await
    }

    /// Takes a rollout back.
    pub async fn abort(&self, scope: &Scope, id: u64, why: Option<&str>) -> Result<Rollout, Error> {
        let path = under(paths::ABORT, scope, &[&id.to_string()]);
        self.ask(Call::new(Method::POST, path, "the abort").json(&reason(why)))
            .await
    }

    /// Lets the old release go now.
    pub async fn seal(&self, scope: &Scope, id: u64, why: Option<&str>) -> Result<Rollout, Error> {
        let path = under(paths::SEAL, scope, &[&id.to_string()]);
        self.ask(Call::new(Method::POST, path, "the seal").json(&reason(why)))
            .await
    }

    /// Goes back to an earlier release.
    pub async fn rollback(
        &self,
        scope: &Scope,
        request: &RollbackRequest,
        key: &str,
    ) -> Result<Rollout, Error> {
        let call = Call::new(
            Method::POST,
            under(paths::ROLLBACK, scope, &[]),
            "the rollback",
        );
        self.ask(call.json(request).key(key)).await
    }

    /// Runs more or fewer instances.
    pub async fn scale(&self, scope: &Scope, request: &ScaleRequest) -> Result<ScaleAnswer, Error> {
        let call = Call::new(Method::POST, under(paths::SCALE, scope, &[]), "the scaling");
        self.ask(call.json(request)).await
    }

    /// Rolls the same release once more.
    pub async fn restart(
        &self,
        scope: &Scope,
        why: Option<&str>,
        key: &str,
    ) -> Result<Rollout, Error> {
        let call = Call::new(
            Method::POST,
            under(paths::RESTART, scope, &[]),
            "the restart",
        );
        self.ask(call.json(&reason(why)).key(key)).await
    }

    /// Shows the maintenance page and stops the instances.
    pub async fn stop(&self, scope: &Scope, why: Option<&str>) -> Result<EnvironmentStatus, Error> {
        let call = Call::new(Method::POST, under(paths::STOP, scope, &[]), "the stop");
        self.ask(call.json(&reason(why))).await
    }

    /// Starts what was stopped.
    pub async fn start(
        &self,
        scope: &Scope,
        why: Option<&str>,
    ) -> Result<EnvironmentStatus, Error> {
        let call = Call::new(Method::POST, under(paths::START, scope, &[]), "the start");
        self.ask(call.json(&reason(why))).await
    }

    /// Runs a job now.
    pub async fn run_job(&self, scope: &Scope, job: &str, key: &str) -> Result<JobRun, Error> {
        let call = Call::new(
            Method::POST,
            under(paths::JOB_RUNS, scope, &[job]),
            "the job",
        );
        self.ask(call.key(key)).await
    }

    /// One run of a job.
    pub async fn job_run(&self, scope: &Scope, job: &str, run: &str) -> Result<JobRun, Error> {
        self.ask(get(&under(paths::JOB_RUN, scope, &[job, run]), "the run"))
            .await
    }

    /// Runs a command beside an instance.
    pub async fn exec(
        &self,
        scope: &Scope,
        request: &ExecRequest,
    ) -> Result<Lines<ExecFrame>, Error> {
        let call = Call::new(Method::POST, under(paths::EXEC, scope, &[]), "the command");
        Lines::open(self, call.json(request)).await
    }

    /// Names and versions of secrets.
    pub async fn secrets(&self, scope: &Scope) -> Result<SecretList, Error> {
        self.ask(get(
            &under(paths::SECRETS, scope, &[]),
            "the list of secrets",
        ))
        .await
    }

    /// One secret's versions, never its value.
    pub async fn secret(&self, scope: &Scope, name: &str) -> Result<Secret, Error> {
        self.ask(get(&under(paths::SECRET, scope, &[name]), "the secret"))
            .await
    }

    /// Sets a secret to a value, byte for byte.
    pub async fn set_secret(
        &self,
        scope: &Scope,
        name: &str,
        value: &landfast_types::Secret<Vec<u8>>,
    ) -> Result<Secret, Error> {
        let call = Call::new(
            Method::PUT,
            under(paths::SECRET, scope, &[name]),
            "the secret",
        );
        self.ask(call.bytes(Bytes::copy_from_slice(value.reveal())))
            .await
    }

    /// Leaves a secret out of new releases.
    pub async fn remove_secret(&self, scope: &Scope, name: &str) -> Result<(), Error> {
        let call = Call::new(
            Method::DELETE,
            under(paths::SECRET, scope, &[name]),
            "the removal",
        );
        self.ask_bytes(&call).await.map(|_empty| ())
    }

    /// Sets the secrets of a dotenv text, all or none.
    pub async fn import_secrets(
        &self,
        scope: &Scope,
        text: &landfast_types::Secret<Vec<u8>>,
    ) -> Result<SecretImported, Error> {
        let call = post(&under(paths::SECRETS, scope, &[]), "the secrets");
        self.ask(call.bytes(Bytes::copy_from_slice(text.reveal())))
            .await
    }

    /// A value, with a record of who asked.
    pub async fn reveal_secret(
        &self,
        scope: &Scope,
        name: &str,
        request: &SecretRevealRequest,
    ) -> Result<SecretValue, Error> {
        let call = post(&under(paths::SECRET_REVEAL, scope, &[name]), "the value");
        self.ask(call.json(request)).await
    }

    /// The versions of a secret, and what was done with it.
    pub async fn secret_history(&self, scope: &Scope, name: &str) -> Result<SecretHistory, Error> {
        let path = under(paths::SECRET_HISTORY, scope, &[name]);
        self.ask(get(&path, "the secret's history")).await
    }

    /// Sets a secret to the value of an earlier version.
    pub async fn roll_secret_back(
        &self,
        scope: &Scope,
        name: &str,
        request: &SecretRollbackRequest,
    ) -> Result<Secret, Error> {
        let call = post(
            &under(paths::SECRET_ROLLBACK, scope, &[name]),
            "the rollback",
        );
        self.ask(call.json(request)).await
    }

    /// Sets a secret to a generated or given value and brings it to the instances.
    pub async fn rotate_secret(
        &self,
        scope: &Scope,
        name: &str,
        request: &SecretRotateRequest,
    ) -> Result<SecretRotated, Error> {
        let path = under(paths::SECRET_ROTATE, scope, &[name]);
        self.ask(post(&path, "the rotation").json(request)).await
    }

    /// Forgets the value of a version.
    pub async fn revoke_secret(
        &self,
        scope: &Scope,
        name: &str,
        request: &SecretRevokeRequest,
    ) -> Result<SecretHistory, Error> {
        let call = post(
            &under(paths::SECRET_REVOKE, scope, &[name]),
            "the revocation",
        );
        self.ask(call.json(request)).await
    }

    /// The key the secrets are sealed under, without the key itself.
    pub async fn secrets_key(&self) -> Result<SecretsKey, Error> {
        self.ask(get(paths::SECRETS_KEY, "the key")).await
    }

    /// The text of the key file.
    pub async fn export_secrets_key(&self) -> Result<SecretsKeyText, Error> {
        self.ask(post(paths::SECRETS_KEY_EXPORT, "the key")).await
    }

    /// Shows that a text is a copy of the key.
    pub async fn confirm_secrets_key(
        &self,
        copy: &landfast_types::Secret<Vec<u8>>,
    ) -> Result<SecretsKey, Error> {
        let call = post(paths::SECRETS_KEY_CONFIRM, "the copy");
        self.ask(call.bytes(Bytes::copy_from_slice(copy.reveal())))
            .await
    }

    /// Replaces the key the secrets are sealed under.
    pub async fn rotate_secrets_key(&self) -> Result<SecretsKeyRotated, Error> {
        self.ask(post(paths::SECRETS_KEY_ROTATE, "the new key"))
            .await
    }

    /// The data stores of an environment.
    pub async fn stores(&self, scope: &Scope) -> Result<StoreList, Error> {
        let path = under(paths::STORES, scope, &[]);
        self.ask(get(&path, "the list of stores")).await
    }

    /// One data store, with what was measured of it.
    pub async fn store(&self, scope: &Scope, name: &str) -> Result<Store, Error> {
        let path = under(paths::STORE, scope, &[name]);
        self.ask(get(&path, "the store")).await
    }

    /// How a person reaches a managed store. The answer holds a password.
    pub async fn store_connection(
        &self,
        scope: &Scope,
        name: &str,
    ) -> Result<StoreConnection, Error> {
        let path = under(paths::STORE_CONNECTION, scope, &[name]);
        self.ask(Call::new(Method::POST, path, "the connection"))
            .await
    }

    /// Restarts the server of a managed store.
    pub async fn restart_store(&self, scope: &Scope, name: &str) -> Result<Store, Error> {
        let path = under(paths::STORE_RESTART, scope, &[name]);
        self.ask(Call::new(Method::POST, path, "the restart")).await
    }

    /// Changes the password that instances reach a managed store with. It goes on by itself.
    pub async fn rotate_store(
        &self,
        scope: &Scope,
        name: &str,
        request: &StoreRotateRequest,
    ) -> Result<Store, Error> {
        let path = under(paths::STORE_ROTATE, scope, &[name]);
        self.ask(post(&path, "the rotation").json(request)).await
    }

    /// Has a name of the manifest served by another store, or asks what that would do.
    pub async fn switch_store(
        &self,
        scope: &Scope,
        name: &str,
        request: &StoreSwitchRequest,
    ) -> Result<StoreSwitched, Error> {
        let path = under(paths::STORE_SWITCH, scope, &[name]);
        self.ask(post(&path, "the switch").json(request)).await
    }

    /// Deletes a managed store after a delay.
    pub async fn delete_store(
        &self,
        scope: &Scope,
        name: &str,
        request: &StoreDeleteRequest,
    ) -> Result<Store, Error> {
        let path = under(paths::STORE_DELETE, scope, &[name]);
        let call = Call::new(Method::POST, path, "the deletion");
        self.ask(call.json(request)).await
    }

    /// Takes a deleted store back.
    pub async fn undelete_store(&self, scope: &Scope, name: &str) -> Result<Store, Error> {
        let path = under(paths::STORE_UNDELETE, scope, &[name]);
        self.ask(Call::new(Method::POST, path, "the undeletion"))
            .await
    }

    /// What a database says was done to it.
    pub async fn migrations(&self, scope: &Scope, store: &str) -> Result<MigrationStatus, Error> {
        let path = under(paths::MIGRATIONS, scope, &[store]);
        self.ask(get(&path, "the migrations")).await
    }

    /// What an uploaded folder of migrations would do.
    pub async fn plan_migrations(
        &self,
        scope: &Scope,
        store: &str,
        request: &MigrateRequest,
    ) -> Result<MigratePlan, Error> {
        let path = under(paths::MIGRATIONS_PLAN, scope, &[store]);
        self.ask(post(&path, "the plan").json(request)).await
    }

    /// Runs what is pending. Dropping the answer ends it.
    pub async fn migrate_up(
        &self,
        scope: &Scope,
        store: &str,
        request: &MigrateUpRequest,
    ) -> Result<Lines<MigrateFrame>, Error> {
        let path = under(paths::MIGRATIONS_UP, scope, &[store]);
        Lines::open(self, post(&path, "the migrations").json(request)).await
    }

    /// Takes the newest migration back. Dropping the answer ends it.
    pub async fn migrate_down(
        &self,
        scope: &Scope,
        store: &str,
        request: &MigrateRequest,
    ) -> Result<Lines<MigrateFrame>, Error> {
        let path = under(paths::MIGRATIONS_DOWN, scope, &[store]);
        Lines::open(self, post(&path, "the way down").json(request)).await
    }

    /// Runs what is pending on a copy. Dropping the answer ends it.
    pub async fn rehearse_migrations(
        &self,
        scope: &Scope,
        store: &str,
        request: &MigrateRequest,
    ) -> Result<Lines<MigrateFrame>, Error> {
        let path = under(paths::MIGRATIONS_REHEARSE, scope, &[store]);
        Lines::open(self, post(&path, "the rehearsal").json(request)).await
    }

    /// Takes a migration for applied as its file is now.
    pub async fn accept_migration(
        &self,
        scope: &Scope,
        store: &str,
        request: &MigrateAcceptRequest,
    ) -> Result<Lines<MigrateFrame>, Error> {
        let path = under(paths::MIGRATIONS_ACCEPT, scope, &[store]);
        Lines::open(self, post(&path, "the migration").json(request)).await
    }
}
