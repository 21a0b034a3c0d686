//! Object storage: content addressing, upload, and the local pull cache.
