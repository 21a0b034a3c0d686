//! The generations that run, by request ID: for Cancel, and so that an ID names one of them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::scheduler::Cancellation;

/// The generations that run, by request ID.
#[derive(Debug, Default)]
pub(super) struct Requests {
    running: Mutex<HashMap<String, Running>>,
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
    id: String,
}

impl Requests {
    /// Claims an ID for a generation. `None` when another one has it.
    pub(super) fn claim(
        self: &Arc<Self>,
        id: &str,
        cancellation: Cancellation,
        session: Option<String>,
    ) -> Option<Claim> {
        let mut running = self.running.lock();
        if running.contains_key(id) {
            return None;
        }
        running.insert(id.to_owned(), Running { cancellation, session });
        Some(Claim { requests: Arc::clone(self), id: id.to_owned() })
    }

    /// Stops a generation. Returns its session's ID; `None` if it has none or is over.
    pub(super) fn cancel(&self, id: &str) -> Option<String> {
        let running = self.running.lock();
        let found = running.get(id)?;
        found.cancellation.cancel();
        found.session.clone()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.requests.running.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_free_again_when_its_claim_is_dropped() {
        let requests = Arc::new(Requests::default());
        let claim = requests.claim("a", Cancellation::default(), Some("s".to_owned())).unwrap();
        assert!(requests.claim("a", Cancellation::default(), None).is_none());
        assert_eq!(requests.cancel("a").as_deref(), Some("s"));
        drop(claim);
        assert_eq!(requests.cancel("a"), None);
        assert!(requests.claim("a", Cancellation::default(), None).is_some());
    }
}
