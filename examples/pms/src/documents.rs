//! Signed documents in a bucket, each under its reservation and its own SHA-256: one that is there never changes.

use std::time::Duration;

use bytes::Bytes;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStoreExt as _, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    list::{PaginatedListOptions, PaginatedListStore as _},
    path::Path,
};
use sha2::{Digest as _, Sha256};

use crate::settings::Bucket;

const CONNECT_MAX: Duration = Duration::from_secs(1);
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The bucket.
pub(crate) struct Documents {
    bucket: AmazonS3,
}

impl Documents {
    pub(crate) fn new(bucket: &Bucket) -> anyhow::Result<Self> {
        let options = ClientOptions::new()
            .with_allow_http(bucket.endpoint.starts_with("http://"))
            .with_connect_timeout(CONNECT_MAX)
            .with_timeout(ANSWER_MAX);
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 1,
            retry_timeout: ANSWER_MAX,
        };
        let bucket = AmazonS3Builder::new()
            .with_client_options(options)
            .with_retry(retry)
            .with_endpoint(&bucket.endpoint)
            .with_bucket_name(&bucket.name)
            .with_region(&bucket.region)
            .with_virtual_hosted_style_request(!bucket.path_style)
            .with_access_key_id(&bucket.access_key)
            .with_secret_access_key(&bucket.secret_key)
            .build()?;
        Ok(Self { bucket })
    }

    /// Whether the bucket is there and may be read.
    pub(crate) async fn check(&self) -> object_store::Result<()> {
        let options = PaginatedListOptions {
            max_keys: Some(1),
            ..PaginatedListOptions::default()
        };
        let listed = self.bucket.list_paginated(Some("reservations/"), options);
        listed.await.map(drop)
    }

    /// Keeps a document and gives its SHA-256.
    pub(crate) async fn put(
        &self,
        reservation: u64,
        document: Bytes,
    ) -> object_store::Result<String> {
        let sha256 = sha256(&document);
        self.bucket
            .put(&path(reservation, &sha256), document.into())
            .await?;
        Ok(sha256)
    }

    pub(crate) async fn get(&self, reservation: u64, sha256: &str) -> object_store::Result<Bytes> {
        self.bucket
            .get(&path(reservation, sha256))
            .await?
            .bytes()
            .await
    }
}

/// In lower-case hexadecimal.
pub(crate) fn sha256(document: &[u8]) -> String {
    Sha256::digest(document)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn path(reservation: u64, sha256: &str) -> Path {
    Path::from(format!("reservations/{reservation}/{sha256}"))
}
