//! Backups.

use bytes::Bytes;
use landfast_api::{
    BackupFrame, BackupKey, BackupKeyText, BackupList, BackupRequest, DrillRequest, PruneRequest,
    RestoreRequest, StoreBackups, WaitQuery, paths,
};
use landfast_types::{Scope, Secret};

use crate::{
    Client, Error, Lines,
    methods::{get, post, under},
};

impl Client {
    /// How the backups of an environment's stores stand.
    pub async fn backups(&self, scope: &Scope) -> Result<BackupList, Error> {
        let path = under(paths::BACKUPS, scope, &[]);
        self.ask(get(&path, "the list of backups")).await
    }

    /// The backups of one store.
    pub async fn store_backups(&self, scope: &Scope, store: &str) -> Result<StoreBackups, Error> {
        let path = under(paths::STORE_BACKUPS, scope, &[store]);
        self.ask(get(&path, "the backups")).await
    }

    /// Makes a backup. Once begun, it goes on when the answer is dropped, as all of these do.
    pub async fn back_up(
        &self,
        scope: &Scope,
        store: &str,
        request: &BackupRequest,
        wait: WaitQuery,
    ) -> Result<Lines<BackupFrame>, Error> {
        let path = waiting(under(paths::STORE_BACKUPS, scope, &[store]), wait);
        Lines::open(self, post(&path, "the backup").json(request)).await
    }

    /// Reads every byte of a store's backups.
    pub async fn verify_backups(
        &self,
        scope: &Scope,
        store: &str,
        wait: WaitQuery,
    ) -> Result<Lines<BackupFrame>, Error> {
        let path = waiting(under(paths::BACKUPS_VERIFY, scope, &[store]), wait);
        Lines::open(self, post(&path, "the verification")).await
    }

    /// Removes what is too old.
    pub async fn prune_backups(
        &self,
        scope: &Scope,
        store: &str,
        request: &PruneRequest,
        wait: WaitQuery,
    ) -> Result<Lines<BackupFrame>, Error> {
        let path = waiting(under(paths::BACKUPS_PRUNE, scope, &[store]), wait);
        Lines::open(self, post(&path, "the pruning").json(request)).await
    }

    /// Restores the newest backup, checks it and removes it.
    pub async fn drill(
        &self,
        scope: &Scope,
        store: &str,
        request: &DrillRequest,
        wait: WaitQuery,
    ) -> Result<Lines<BackupFrame>, Error> {
        let path = waiting(under(paths::DRILLS, scope, &[store]), wait);
        Lines::open(self, post(&path, "the drill").json(request)).await
    }

    /// Restores beside the server that runs.
    pub async fn restore(
        &self,
        scope: &Scope,
        store: &str,
        request: &RestoreRequest,
        wait: WaitQuery,
    ) -> Result<Lines<BackupFrame>, Error> {
        let path = waiting(under(paths::RESTORES, scope, &[store]), wait);
        Lines::open(self, post(&path, "the restore").json(request)).await
    }

    /// The key that backups of the host are sealed under.
    pub async fn backup_key(&self) -> Result<BackupKey, Error> {
        self.ask(get(paths::BACKUP_KEY, "the key")).await
    }

    /// The text of its file.
    pub async fn export_backup_key(&self) -> Result<BackupKeyText, Error> {
        self.ask(post(paths::BACKUP_KEY_EXPORT, "the key")).await
    }

    /// Shows that a text is a copy of it.
    pub async fn confirm_backup_key(&self, copy: &Secret<Vec<u8>>) -> Result<BackupKey, Error> {
        let call = post(paths::BACKUP_KEY_CONFIRM, "the copy");
        self.ask(call.bytes(Bytes::copy_from_slice(copy.reveal())))
            .await
    }
}

fn waiting(path: String, WaitQuery { wait }: WaitQuery) -> String {
    match wait {
        true => format!("{path}?wait=true"),
        false => path,
    }
}
