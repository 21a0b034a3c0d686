//! What building and loading promise.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use roundhouse_backend::{BackendError, BuildProgress};
use roundhouse_engine::{BackendKind, CacheKind, EngineOptions, Precision};

use super::engine::{Built, Source, Unwatched, build, case_name, options};
use super::failure::InCase as _;
use super::{Backend, Failure};
use crate::tiny_models::TinyModel;

/// An engine of the backend's first precision and cache kind, to build.
fn first(backend: &Backend<'_>) -> Result<(Source, EngineOptions, String), Failure> {
    let precision = backend.precisions.first().copied().unwrap_or(Precision::Fp32);
    let cache = backend.caches.first().copied().unwrap_or(CacheKind::InPlace);
    let options = options(backend, precision, cache, false);
    Ok((Source::tiny(&TinyModel::llama())?, options, case_name("llama", &options)))
}

/// Remembers what a build reports; cancels it at its first report if asked to.
#[derive(Default)]
struct Watch {
    cancel: bool,
    reports: AtomicU64,
    done: AtomicU64,
    total: AtomicU64,
    disorderly: AtomicBool,
}

impl BuildProgress for Watch {
    fn bytes(&self, done: u64, total: u64) -> Result<(), BackendError> {
        let before = self.done.swap(done, Ordering::SeqCst);
        let total_before = self.total.swap(total, Ordering::SeqCst);
        let first = self.reports.fetch_add(1, Ordering::SeqCst) == 0;
        if done < before || done > total || (!first && total != total_before) {
            self.disorderly.store(true, Ordering::SeqCst);
        }
        if self.cancel { Err(BackendError::Cancelled) } else { Ok(()) }
    }

    fn log(&self, _line: &str) {}
}

/// Progress goes up to a total that does not change, and a build that is told to stop stops with
/// [`BackendError::Cancelled`].
///
/// # Errors
/// When it does not.
pub fn builds_report_progress_and_stop_when_asked(backend: &Backend<'_>) -> Result<(), Failure> {
    let (source, options, case) = first(backend)?;
    let watch = Watch::default();
    build(backend, &case, &source, &options, &watch)?;
    let (done, total) = (watch.done.load(Ordering::SeqCst), watch.total.load(Ordering::SeqCst));
    if watch.disorderly.load(Ordering::SeqCst) || done != total || total == 0 {
        let what = format!("progress went back, beyond its total, or ended at {done} of {total}");
        return Err(Failure::departure(&case, what));
    }
    let watch = Watch { cancel: true, ..Watch::default() };
    match build(backend, &case, &source, &options, &watch) {
        Err(Failure::Backend { source: BackendError::Cancelled, .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(Failure::departure(&case, "a cancelled build went on")),
    }
}

/// An engine of another backend, version or target is refused with [`BackendError::Incompatible`], from its manifest
/// alone and when loaded.
///
/// # Errors
/// When it is not.
pub fn foreign_engines_are_refused(backend: &Backend<'_>) -> Result<(), Failure> {
    let (source, options, case) = first(backend)?;
    let Built { files, .. } = &build(backend, &case, &source, &options, &Unwatched)?;
    backend.runtime.check(&files.manifest).in_case(&case)?;
    let other = BackendKind::ALL.iter().copied().find(|&kind| kind != backend.runtime.kind());
    let mut foreign = [files.clone(), files.clone(), files.clone()];
    foreign[0].manifest.options.backend = other.unwrap_or(BackendKind::Cpu);
    foreign[1].manifest.backend_version.push_str("-of-another-time");
    foreign[2].manifest.target.arch = "pdp11".to_owned();
    for (files, what) in foreign.iter().zip(["backend", "version", "architecture"]) {
        let case = format!("{case} of another {what}");
        match backend.runtime.check(&files.manifest) {
            Err(BackendError::Incompatible { .. }) => {}
            result => return Err(Failure::departure(&case, format!("check: {result:?}"))),
        }
        match backend.runtime.load(files) {
            Err(BackendError::Incompatible { .. }) => {}
            Err(error) => return Err(Failure::departure(&case, format!("load: {error:?}"))),
            Ok(_) => return Err(Failure::departure(&case, "it was loaded")),
        }
    }
    Ok(())
}

/// An engine with a file that is missing, empty or cut in half is refused, whichever file it is.
///
/// # Errors
/// When it is loaded.
pub fn broken_files_are_errors(backend: &Backend<'_>) -> Result<(), Failure> {
    let (source, options, case) = first(backend)?;
    let names: Vec<String> = {
        let built = build(backend, &case, &source, &options, &Unwatched)?;
        built.files.paths.into_keys().collect()
    };
    for name in names {
        for what in ["missing", "empty", "half"] {
            let built = build(backend, &case, &source, &options, &Unwatched)?;
            let path = built.files.path(&name).map_err(BackendError::from).in_case(&case)?;
            match what {
                "missing" => fs::remove_file(path)?,
                "empty" => fs::write(path, [])?,
                _ => {
                    let bytes = fs::read(path)?;
                    fs::write(path, &bytes[..bytes.len() / 2])?;
                }
            }
            if backend.runtime.load(&built.files).is_ok() {
                return Err(Failure::departure(&case, format!("it was loaded with {name:?} {what}")));
            }
        }
    }
    Ok(())
}
