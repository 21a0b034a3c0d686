//! Health: NOT_SERVING until a service can serve.

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

/// The health of a server and of each of its services. All start as NOT_SERVING.
#[derive(Debug, Clone)]
pub struct Readiness {
    reporter: HealthReporter,
    services: Vec<&'static str>,
}

impl Readiness {
    /// The health of these services (full gRPC names), and the `grpc.health.v1` service that reports it.
    pub async fn new(services: &[&'static str]) -> (Self, HealthServer<impl Health>) {
        let (reporter, server) = tonic_health::server::health_reporter();
        let readiness = Self { reporter, services: services.to_vec() };
        readiness.set(ServingStatus::NotServing).await;
        (readiness, server)
    }

    /// Everything is SERVING.
    pub async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// Everything is NOT_SERVING.
    pub async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        for service in self.services.iter().copied().chain([""]) {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
