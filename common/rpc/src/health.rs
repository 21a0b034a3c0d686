//! Health: NOT_SERVING until a service can serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

/// The health of a server and of each of its services. All start as NOT_SERVING.
#[derive(Debug, Clone)]
pub struct Readiness {
    reporter: HealthReporter,
    services: Vec<&'static str>,
    drains: Arc<AtomicBool>,
}

impl Readiness {
    /// The health of these services (full gRPC names), and the `grpc.health.v1` service that reports it.
    pub async fn new(services: &[&'static str]) -> (Self, HealthServer<impl Health>) {
        let (reporter, server) = tonic_health::server::health_reporter();
        let readiness = Self { reporter, services: services.to_vec(), drains: Arc::default() };
        readiness.set(ServingStatus::NotServing).await;
        (readiness, server)
    }

    /// The health of some of the services, and of the whole server.
    #[must_use]
    pub fn of(&self, services: &[&'static str]) -> Self {
        Self { services: services.to_vec(), ..self.clone() }
    }

    /// Everything is SERVING, unless the server drains.
    pub async fn serving(&self) {
        if self.drains.load(Ordering::Acquire) {
            return;
        }
        self.set(ServingStatus::Serving).await;
        // The server can have begun to drain meanwhile.
        if self.drains.load(Ordering::Acquire) {
            self.not_serving().await;
        }
    }

    /// Everything is NOT_SERVING.
    pub async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    /// Everything is NOT_SERVING from now on.
    pub(crate) async fn drain(&self) {
        self.drains.store(true, Ordering::Release);
        self.not_serving().await;
    }

    async fn set(&self, status: ServingStatus) {
        for service in self.services.iter().copied().chain([""]) {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_server::Health;

    use super::*;

    async fn status(health: &impl Health, service: &str) -> i32 {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(tonic::Request::new(request)).await.unwrap().into_inner().status
    }

    #[tokio::test]
    async fn a_part_of_the_services_changes_alone_and_nothing_serves_once_the_server_drains() {
        const NOT_SERVING: i32 = 2;
        const SERVING: i32 = 1;
        let (reporter, health) = tonic_health::server::health_reporter();
        drop(health);
        let health = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
        let readiness = Readiness { reporter, services: vec!["a", "b"], drains: Arc::default() };
        readiness.serving().await;
        let part = readiness.of(&["b"]);
        part.not_serving().await;
        assert_eq!((status(&health, "a").await, status(&health, "b").await), (SERVING, NOT_SERVING));
        assert_eq!(status(&health, "").await, NOT_SERVING);
        part.serving().await;
        assert_eq!((status(&health, "b").await, status(&health, "").await), (SERVING, SERVING));
        readiness.drain().await;
        part.serving().await;
        assert_eq!((status(&health, "a").await, status(&health, "b").await), (NOT_SERVING, NOT_SERVING));
    }
}
