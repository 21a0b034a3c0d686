//! The generations that run, by request ID: for Cancel, and so that an ID names one of them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::scheduler::Cancellation;

/// The generations that run, by request ID.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By tenant and ID: a tenant's requests are nobody else's to stop.
    running: Mutex<HashMap<(String, String), Running>>,
}

#[derive(Debug)]
struct Running {
    cancellation: Cancellation,
    session: Option<String>,
}

/// A request's claim on its ID; dropped when its generation is over.
#[derive(Debug)]
pub(super) struct Claim {
    requests: Arc<Requests>,
    key: (String, String),
}

impl Requests {
    /// Claims an ID for a tenant's generation. `None` when another one has it.
    pub(super) fn claim(
        self: &Arc<Self>,
        tenant: &str,
        id: &str,
        cancellation: Cancellation,
        session: Option<String>,
    ) -> Option<Claim> {
        let key = (tenant.to_owned(), id.to_owned());
        let mut running = self.running.lock();
        if running.contains_key(&key) {
            return None;
        }
        running.insert(key.clone(), Running { cancellation, session });
        Some(Claim { requests: Arc::clone(self), key })
    }

    /// Stops a tenant's generation. Returns its session's ID; `None` if it has none or is over.
    pub(super) fn cancel(&self, tenant: &str, id: &str) -> Option<String> {
        let running = self.running.lock();
        let found = running.get(&(tenant.to_owned(), id.to_owned()))?;
        found.cancellation.cancel();
        found.session.clone()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.requests.running.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_id_is_free_again_when_its_claim_is_dropped() {
        let requests = Arc::new(Requests::default());
        let claim = requests.claim("t", "a", Cancellation::default(), Some("s".to_owned())).unwrap();
        assert!(requests.claim("t", "a", Cancellation::default(), None).is_none());
        assert_eq!(requests.cancel("t", "a").as_deref(), Some("s"));
        assert_eq!(requests.cancel("another", "a"), None);
        assert!(requests.claim("another", "a", Cancellation::default(), None).is_some());
        drop(claim);
        assert_eq!(requests.cancel("t", "a"), None);
        assert!(requests.claim("t", "a", Cancellation::default(), None).is_some());
    }
}
