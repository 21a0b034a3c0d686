//! Where sessions are stored, and in which version.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use roundhouse_store::{StoreError, Versions, Written};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::{RecordError, SessionRecord};

/// How long a turn's end waits for the store at most.
const SAVE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an expired session stays stored unless its own executor deletes it: its last turn may be running, and long.
const SWEEP_GRACE: Duration = Duration::from_secs(3600);

/// The sessions of all executors that share a store: each as a record in versions, the next one written at the end of
/// each turn by whoever ran it.
pub struct SessionArchive {
    versions: Versions,
    runtime: Handle,
    tasks: TaskTracker,
    /// When the records expire that were read for it: version by name.
    known: Mutex<HashMap<String, (u64, SystemTime)>>,
}

/// A stored session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// Its version.
    pub version: u64,
    /// What is stored.
    pub record: SessionRecord,
}

/// Why a session is not stored or not found.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Another executor has gone on with the session.
    #[error("session {id:?} went on in another executor: this turn is not part of it")]
    Overtaken {
        /// The session.
        id: String,
    },
    /// Another executor has deleted the session.
    #[error("session {id:?} was deleted in another executor")]
    Deleted {
        /// The session.
        id: String,
    },
    /// The store did not answer in time.
    #[error("the session store did not answer within {0:?}")]
    Timeout(Duration),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl SessionArchive {
    /// Over a store of records. Its work runs on the current runtime.
    #[must_use]
    pub fn new(versions: Versions) -> Arc<Self> {
        Arc::new(Self {
            versions,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            known: Mutex::default(),
        })
    }

    /// Runs work of which [`SessionArchive::finish`] waits for the end. From any thread.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Waits for the end of what is being written.
    pub async fn finish(&self) {
        self.tasks.close();
        if tokio::time::timeout(SAVE_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(sessions = self.tasks.len(), "sessions were still being stored at the end");
        }
    }

    /// Writes the version after `version`; its number.
    ///
    /// # Errors
    /// [`ArchiveError`]. Where it is the store's, the version may have been written all the same, which the next save
    /// finds out.
    pub(super) async fn save(
        &self,
        id: &str,
        version: u64,
        record: SessionRecord,
    ) -> Result<u64, ArchiveError> {
        let json = record.to_json(id)?;
        let saving = async {
            let mut version = version;
            loop {
                let overtaken = || ArchiveError::Overtaken { id: id.to_owned() };
                match self.versions.write(id, version + 1, json.clone()).await? {
                    Written::Done => return Ok(version + 1),
                    Written::Deleted => return Err(ArchiveError::Deleted { id: id.to_owned() }),
                    Written::Overtaken => {
                        // By an earlier try, perhaps, that the writer does not know to have succeeded.
                        let stored = self.read(id).await?.ok_or_else(overtaken)?;
                        if stored.record.writer != record.writer || stored.version <= version {
                            return Err(overtaken());
                        }
                        version = stored.version;
                    }
                }
            }
        };
        let saved = tokio::time::timeout(SAVE_TIMEOUT, saving).await;
        saved.unwrap_or(Err(ArchiveError::Timeout(SAVE_TIMEOUT)))
    }

    /// Whether somebody else than `writer` has gone on with a session from `version`.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub(super) async fn newer(&self, id: &str, version: u64, writer: &str) -> Result<Newer, ArchiveError> {
        match self.versions.latest_number(id).await? {
            None if version > 0 => Ok(Newer::Deleted),
            Some(latest) if latest > version => match self.read(id).await? {
                Some(stored) if stored.record.writer == writer => Ok(Newer::None),
                Some(_) => Ok(Newer::Another),
                None => Ok(Newer::Deleted),
            },
            _ => Ok(Newer::None),
        }
    }

    /// A session of this name that has not expired.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn find(&self, id: &str) -> Result<Option<StoredSession>, ArchiveError> {
        if !is_session_id(id) {
            return Ok(None);
        }
        let stored = self.read(id).await?;
        Ok(stored.filter(|stored| stored.record.expires() > SystemTime::now()))
    }

    async fn read(&self, id: &str) -> Result<Option<StoredSession>, ArchiveError> {
        let Some(latest) = self.versions.latest(id, SessionRecord::MAX_BYTES).await? else {
            return Ok(None);
        };
        let record = SessionRecord::from_json(id, &latest.bytes)?;
        Ok(Some(StoredSession { version: latest.number, record }))
    }

    /// Deletes a session.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn delete(&self, id: &str) -> Result<(), ArchiveError> {
        Ok(self.versions.delete(id).await?)
    }

    /// Deletes a session that is over here, unless another executor has gone on with it.
    pub(super) fn delete_expired(self: &Arc<Self>, id: String, version: u64, writer: String) {
        let archive = Arc::clone(self);
        self.spawn(async move {
            let deleted = match archive.newer(&id, version, &writer).await {
                Ok(Newer::None) => archive.delete(&id).await,
                result => result.map(drop),
            };
            if let Err(error) = deleted {
                tracing::warn!(session = id, %error, "an expired session is still stored");
            }
        });
    }

    /// Deletes what has expired, whoever stored it: its executor may be gone. How many sessions that were.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn sweep(&self) -> Result<usize, ArchiveError> {
        let all = self.versions.list().await?;
        self.known.lock().retain(|id, _| all.contains_key(id));
        let mut deleted = 0;
        for (id, version) in all {
            let known = self.known.lock().get(&id).copied();
            let expires = match known.filter(|&(known, _)| known == version) {
                Some((_, expires)) => expires,
                None => match self.read(&id).await {
                    Ok(Some(stored)) => {
                        let expires = stored.record.expires();
                        self.known.lock().insert(id.clone(), (stored.version, expires));
                        expires
                    }
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::warn!(session = id, %error, "a stored session is left alone");
                        continue;
                    }
                },
            };
            if expires + SWEEP_GRACE <= SystemTime::now() {
                self.delete(&id).await?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}

/// Whether a name can be a session's: what is none is no record's either.
fn is_session_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether there is a newer version of a session than this executor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newer {
    /// There is none, or only the writer's own.
    None,
    /// Another executor has gone on with it.
    Another,
    /// Another executor has deleted it.
    Deleted,
}
