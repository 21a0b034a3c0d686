//! Where a store is: the client of an address.

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use url::Url;

use crate::{StoreError, StoreOptions};

/// The client of an address.
pub(crate) struct Place {
    pub(crate) client: Arc<dyn ObjectStore>,
    /// For messages, without credentials.
    pub(crate) location: Arc<str>,
    /// The folder, when it is one.
    pub(crate) folder: Option<Arc<FilePath>>,
}

impl Place {
    /// Opens a folder's path, or a URL of `file`, `memory`, `s3`, `gs`, `az` and whatever else object_store knows. A local
    /// folder is made when it does not exist. Nothing remote is asked yet.
    ///
    /// # Errors
    /// [`StoreError::InvalidUrl`], [`StoreError::UnknownOption`], or what the folder fails with.
    pub(crate) fn open(url_or_path: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let invalid = |what: String| StoreError::InvalidUrl { url: url_or_path.to_owned(), what };
        if url_or_path.is_empty() {
            return Err(invalid("it is empty".to_owned()));
        }
        if !url_or_path.contains("://") {
            if looks_like_a_url(url_or_path) {
                return Err(invalid("expected scheme://…; a folder of this name is ./…".to_owned()));
            }
            return Self::open_folder(FilePath::new(url_or_path), options);
        }
        let url = Url::parse(url_or_path).map_err(|error| invalid(error.to_string()))?;
        if url.scheme() == "file" {
            let folder = url.to_file_path().map_err(|()| invalid("expected file:///path".to_owned()))?;
            return Self::open_folder(&folder, options);
        }
        roundhouse_tls::choose_provider();
        let (client, prefix) = object_store::parse_url_opts(&url, options.client_options()?)
            .map_err(|error| invalid(error.to_string()))?;
        let client: Arc<dyn ObjectStore> = match prefix.is_root() {
            true => client.into(),
            false => Arc::new(PrefixStore::new(client, prefix)),
        };
        let location = format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path());
        Ok(Self { client, location: location.into(), folder: None })
    }

    fn open_folder(folder: &FilePath, options: &StoreOptions) -> Result<Self, StoreError> {
        options.client_options()?;
        std::fs::create_dir_all(folder).map_err(|error| StoreError::from_io(error, folder))?;
        let folder = folder.canonicalize().map_err(|error| StoreError::from_io(error, folder))?;
        let location = folder.display().to_string();
        let client = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|error| StoreError::from_client(error, "the folder", &location))?
            .with_automatic_cleanup(true)
            .with_fsync(true);
        Ok(Self { client: Arc::new(client), location: location.into(), folder: Some(folder.into()) })
    }
}

/// Whether a path starts as a URL does, as `s3:/bucket` with its slash missing. One letter is a Windows drive.
fn looks_like_a_url(path: &str) -> bool {
    path.split_once(':').is_some_and(|(scheme, _)| {
        scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}
