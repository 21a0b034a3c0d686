//! One suite that every store passes: [`store_conformance`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::try_join_all;
use object_store::ObjectStoreExt as _;
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, EngineKey, EngineOptions, KeyInputs, Manifest, MemoryPlan,
    ModelInfo, Precision, Target, WeightQuantization,
};
use tempfile::TempDir;

use crate::engine_store::blob_path;
use crate::{
    CacheLimits, EngineStore, ListRequest, LocalCache, NoProgress, Published, Source, StoreError,
    TransferProgress, TransferUpdate,
};

/// What the suite says of a store.
pub type Outcome = Result<(), Source>;

/// A manifest without blobs, of its own key for each model and number.
///
/// # Errors
/// Never in practice: the key's inputs serialise.
pub fn sample_manifest(model: &str, number: u32) -> Result<Manifest, Source> {
    let options = EngineOptions {
        precision: Precision::Fp32,
        cache: CacheKind::InPlace,
        backend: BackendKind::Cpu,
        max_seq_len: number,
        max_batch_size: 1,
        all_logits: false,
        targets: ComputeCapabilities::NONE,
        quantization: WeightQuantization::None,
        tensorrt: None,
    };
    let target = Target { os: "any".to_owned(), arch: "any".to_owned(), compute_capabilities: Vec::new() };
    let checkpoint_digest = "5a".repeat(32);
    let inputs = KeyInputs {
        checkpoint_digest: &checkpoint_digest,
        options: &options,
        backend_version: model,
        target: &target,
        compiler_version: "1",
    };
    Ok(Manifest {
        format: Manifest::FORMAT,
        key: EngineKey::new(&inputs)?,
        model: model.to_owned(),
        revision: None,
        checkpoint_digest: checkpoint_digest.clone(),
        info: ModelInfo {
            model_type: "llama".to_owned(),
            architecture: "LlamaForCausalLM".to_owned(),
            vocab_size: 32,
            num_hidden_layers: 1,
            max_position_embeddings: 64,
            eos_token_ids: vec![2],
            bos_token_id: None,
            vision: None,
        },
        options,
        target: target.clone(),
        backend_version: model.to_owned(),
        compiler_version: "1".to_owned(),
        passes: Vec::new(),
        memory_plan: MemoryPlan::default(),
        blobs: Vec::new(),
        created_unix_ms: 0,
    })
}

/// Bytes that differ by seed and compress badly.
#[must_use]
pub fn sample_bytes(seed: u64, len: usize) -> Vec<u8> {
    // xorshift64*, https://doi.org/10.18637/jss.v008.i14
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A folder of files to publish.
#[derive(Debug)]
pub struct SampleFiles {
    folder: TempDir,
    files: Vec<(String, PathBuf)>,
}

impl SampleFiles {
    /// Writes files of these names, seeds and lengths.
    ///
    /// # Errors
    /// What the disk fails with.
    pub fn new(files: &[(&str, u64, usize)]) -> Result<Self, Source> {
        let folder = TempDir::new()?;
        let mut written = Vec::new();
        for (name, seed, len) in files {
            let path = folder.path().join(name);
            std::fs::write(&path, sample_bytes(*seed, *len))?;
            written.push(((*name).to_owned(), path));
        }
        Ok(Self { folder, files: written })
    }

    /// As [`EngineStore::publish`] takes them.
    #[must_use]
    pub fn files(&self) -> &[(String, PathBuf)] {
        &self.files
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Checks that a store keeps every promise of [`EngineStore`]. It must be empty, and is empty again afterwards. One of
/// the files is larger than a part of 5 MiB, the smallest that S3 takes.
///
/// # Errors
/// The first promise that is broken.
pub async fn store_conformance(store: &EngineStore) -> Outcome {
    empty_store_has_nothing(store).await?;
    publishing_creates_once(store).await?;
    one_of_many_publishers_wins(store).await?;
    deleting_keeps_what_others_share(store).await?;
    listing_pages_in_order(store).await?;
    pulling_brings_every_byte(store).await?;
    a_lost_blob_is_missing_until_published_again(store).await?;
    check(store.blobs().await?.is_empty(), "the suite leaves blobs behind")
}

fn check(holds: bool, promise: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { Err(promise.into().into()) }
}

async fn empty_store_has_nothing(store: &EngineStore) -> Outcome {
    let key = sample_manifest("nobody", 1)?.key;
    check(!store.exists(&key).await?, "an empty store has no engine")?;
    let missing = store.get_manifest(&key).await;
    check(
        matches!(missing, Err(StoreError::NotFound { .. })),
        format!("expected NotFound, got {missing:?}"),
    )?;
    let missing = store.delete(&key).await;
    check(
        matches!(missing, Err(StoreError::NotFound { .. })),
        format!("expected NotFound, got {missing:?}"),
    )?;
    check(store.list(ListRequest::default()).await?.manifests.is_empty(), "an empty store lists nothing")?;
    check(store.collect_garbage().await? == Default::default(), "an empty store has no garbage")
}

async fn publishing_creates_once(store: &EngineStore) -> Outcome {
    let files =
        SampleFiles::new(&[("graph.json", 1, 100), ("weights.safetensors", 2, 11 << 20), ("empty", 0, 0)])?;
    let first = sample_manifest("once", 1)?;
    let progress = Recorded::default();
    let published = store.publish(first.clone(), files.files(), &progress).await?;
    check(published.is_created(), "the first publication creates the engine")?;
    check(progress.done() == (11 << 20) + 100, format!("progress ends at {}", progress.done()))?;
    let created = published.into_manifest();
    let names: Vec<_> = created.blobs.iter().map(|blob| (blob.name.as_str(), blob.size)).collect();
    let expected = [("graph.json", 100), ("weights.safetensors", 11 << 20), ("empty", 0)];
    check(names == expected, format!("blobs are {names:?}"))?;
    check(store.exists(&first.key).await?, "a published engine exists")?;
    check(store.get_manifest(&first.key).await? == created, "the manifest reads as it was written")?;

    let second = Manifest { created_unix_ms: 1, ..first.clone() };
    let again = store.publish(second, files.files(), &NoProgress).await?;
    check(
        again == Published::AlreadyExists(created.clone()),
        "a second publication returns the first one's",
    )?;
    let other = SampleFiles::new(&[("graph.json", 9, 9)])?;
    let again = store.publish(first.clone(), other.files(), &NoProgress).await?;
    check(again == Published::AlreadyExists(created), "whatever files the second one has")?;
    let deleted = store.delete(&first.key).await?;
    check(
        deleted.blobs == 3 && deleted.bytes == (11 << 20) + 100,
        format!("its blobs go with it: {deleted:?}"),
    )?;
    check(!store.exists(&first.key).await?, "a deleted engine is gone")
}

async fn one_of_many_publishers_wins(store: &EngineStore) -> Outcome {
    let files = SampleFiles::new(&[("graph.json", 3, 4096), ("weights.safetensors", 4, 6 << 20)])?;
    let manifests = (0..4).map(|at| Ok(Manifest { created_unix_ms: at, ..sample_manifest("contested", 1)? }));
    let manifests = manifests.collect::<Result<Vec<_>, Source>>()?;
    let key = sample_manifest("contested", 1)?.key;
    let published = manifests.into_iter().map(|manifest| store.publish(manifest, files.files(), &NoProgress));
    let published = try_join_all(published).await?;
    let created = published.iter().filter(|published| published.is_created()).count();
    check(created == 1, format!("{created} of {} publishers created the engine", published.len()))?;
    let stored = store.get_manifest(&key).await?;
    check(
        published.iter().all(|published| *published.manifest() == stored),
        "all return the winner's manifest",
    )?;
    delete_with_blobs(store, &stored).await
}

async fn deleting_keeps_what_others_share(store: &EngineStore) -> Outcome {
    let left = SampleFiles::new(&[("graph.json", 5, 10), ("weights.safetensors", 6, 1 << 20)])?;
    let right = SampleFiles::new(&[("graph.json", 7, 10), ("weights.safetensors", 6, 1 << 20)])?;
    let (left_key, right_key) = (sample_manifest("shared", 1)?.key, sample_manifest("shared", 2)?.key);
    store.publish(sample_manifest("shared", 1)?, left.files(), &NoProgress).await?;
    store.publish(sample_manifest("shared", 2)?, right.files(), &NoProgress).await?;
    let digests =
        |blobs: Vec<(String, _)>| blobs.into_iter().map(|(digest, _)| digest).collect::<BTreeSet<_>>();
    check(digests(store.blobs().await?).len() == 3, "equal files are stored once")?;
    let deleted = store.delete(&left_key).await?;
    check(deleted.blobs == 1 && deleted.bytes == 10, format!("only what nobody shares goes: {deleted:?}"))?;
    let rest = store.get_manifest(&right_key).await?.blobs.into_iter().map(|blob| blob.sha256).collect();
    check(digests(store.blobs().await?) == rest, "the other engine keeps its blobs")?;
    store.delete(&right_key).await?;
    check(store.blobs().await?.is_empty(), "the last engine takes its blobs with it")
}

async fn listing_pages_in_order(store: &EngineStore) -> Outcome {
    let files = SampleFiles::new(&[("graph.json", 8, 8)])?;
    let mut expected = Vec::new();
    for (model, number) in [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)] {
        let published = store.publish(sample_manifest(model, number)?, files.files(), &NoProgress).await?;
        expected.push(published.into_manifest());
    }
    expected.sort_by(|left, right| left.key.cmp(&right.key));
    for model in [None, Some("a"), Some("b"), Some("c")] {
        let expected: Vec<_> =
            expected.iter().filter(|manifest| model.is_none_or(|model| manifest.model == model)).collect();
        for page_size in [0, 1, 2, 3, 5, 6] {
            let mut found = Vec::new();
            let mut token = None;
            loop {
                let request = ListRequest { page_size, page_token: token.as_deref(), model };
                let page = store.list(request).await?;
                let full = page_size == 0 || page.manifests.len() <= page_size;
                check(full, format!("a page of {page_size} has {}", page.manifests.len()))?;
                found.extend(page.manifests);
                token = page.next_page_token;
                if token.is_none() {
                    break;
                }
                check(found.len() < expected.len(), "the last page has no token")?;
            }
            check(
                found.iter().collect::<Vec<_>>() == expected,
                format!("pages of {page_size} of {model:?} give every engine once, by key"),
            )?;
        }
    }
    let bad = store.list(ListRequest { page_token: Some("../x"), ..ListRequest::default() }).await;
    check(matches!(bad, Err(StoreError::InvalidArgument { .. })), format!("a token of no page: {bad:?}"))?;
    for manifest in expected {
        store.delete(&manifest.key).await?;
    }
    Ok(())
}

async fn pulling_brings_every_byte(store: &EngineStore) -> Outcome {
    let sizes =
        [("graph.json", 10, 1000), ("weights.safetensors", 11, 9 << 20), ("empty", 0, 0), ("twin", 10, 1000)];
    let files = SampleFiles::new(&sizes)?;
    let published = store.publish(sample_manifest("pulled", 1)?, files.files(), &NoProgress).await?;
    let folder = TempDir::new()?;
    let cache = LocalCache::open(folder.path(), CacheLimits::default())?;
    for round in ["cold", "warm"] {
        let manifest = store.get_manifest(&published.manifest().key).await?;
        let progress = Recorded::default();
        let pulled = cache.pull(store, &manifest, &progress).await?;
        check(pulled.files().manifest == manifest, format!("{round}: the manifest is the engine's"))?;
        check(
            progress.done() == manifest.total_bytes(),
            format!("{round}: progress ends at {}", progress.done()),
        )?;
        for (name, seed, len) in sizes {
            let found = std::fs::read(pulled.files().path(name)?)?;
            check(found == sample_bytes(seed, len), format!("{round}: {name} has its bytes"))?;
        }
    }
    store.delete(&published.manifest().key).await?;
    Ok(())
}

async fn a_lost_blob_is_missing_until_published_again(store: &EngineStore) -> Outcome {
    let files = SampleFiles::new(&[("graph.json", 12, 10), ("weights.safetensors", 13, 1000)])?;
    let manifest =
        store.publish(sample_manifest("lost", 1)?, files.files(), &NoProgress).await?.into_manifest();
    let lost = &manifest.blob("weights.safetensors")?.sha256;
    store.client.delete(&blob_path(lost)).await?;
    let folder = TempDir::new()?;
    let cache = LocalCache::open(folder.path(), CacheLimits::default())?;
    let missing = cache.pull(store, &manifest, &NoProgress).await;
    let named = matches!(&missing, Err(StoreError::MissingBlob { digest, .. }) if digest == lost);
    check(named, format!("expected MissingBlob, got {missing:?}"))?;
    let other = SampleFiles::new(&[("graph.json", 12, 10)])?;
    let missing = store.publish(sample_manifest("lost", 1)?, other.files(), &NoProgress).await;
    let named = matches!(&missing, Err(StoreError::MissingBlob { digest, .. }) if digest == lost);
    check(named, format!("a publisher of other files cannot repair it: {missing:?}"))?;
    store.publish(sample_manifest("lost", 1)?, files.files(), &NoProgress).await?;
    cache.pull(store, &manifest, &NoProgress).await?;
    delete_with_blobs(store, &manifest).await
}

/// Deletes an engine some of whose blobs were uploaded after its manifest: [`EngineStore::delete`] leaves those alone for
/// a while.
async fn delete_with_blobs(store: &EngineStore, manifest: &Manifest) -> Outcome {
    store.delete(&manifest.key).await?;
    for blob in &manifest.blobs {
        store.delete_object(&blob_path(&blob.sha256)).await?;
    }
    Ok(())
}

/// Remembers how far a transfer got.
#[derive(Default)]
struct Recorded(AtomicU64);

impl Recorded {
    fn done(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TransferProgress for Recorded {
    fn update(&self, update: &TransferUpdate<'_>) {
        self.0.fetch_max(update.done, Ordering::Relaxed);
    }
}
