//! `google.longrunning.Operations` over the compiler's jobs.

use std::time::{Duration, Instant};

use prost::Message as _;
use prost_types::Any;
use roundhouse_proto::compiler::CompileMetadata;
use roundhouse_proto::google::longrunning::operations_server::Operations;
use roundhouse_proto::google::longrunning::{
    self, CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, WaitOperationRequest, operation,
};
use roundhouse_proto::google::rpc;
use roundhouse_rpc::{Failure, deadline, reason};
use tonic::{Code, Request, Response, Status};

use super::CompilerService;
use crate::convert;
use crate::jobs::Snapshot;

const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1000;

#[tonic::async_trait]
impl Operations for CompilerService {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let done = match request.filter.as_str() {
            "" => None,
            "done=true" => Some(true),
            "done=false" => Some(false),
            other => {
                let message = format!("filter {other:?}: expected nothing, done=true or done=false");
                return Err(Failure::invalid_field("filter", message).into());
            }
        };
        let page_size = match usize::try_from(request.page_size) {
            Ok(0) => DEFAULT_PAGE_SIZE,
            Ok(size) => size.min(MAX_PAGE_SIZE),
            Err(_) => return Err(Failure::invalid_field("page_size", "page_size is negative").into()),
        };
        let mut operations = self.jobs.list();
        operations.retain(|operation| done.is_none_or(|done| operation.is_done() == done));
        // A page goes on after the operation that the one before ended with.
        let start = match request.page_token.as_str() {
            "" => 0,
            token => operations
                .iter()
                .position(|operation| operation.name() == token)
                .map(|index| index + 1)
                .ok_or_else(|| {
                    Failure::invalid_field("page_token", "page_token is of no operation that there is")
                })?,
        };
        let rest = operations.len() - start;
        let page: Vec<_> = operations.iter().skip(start).take(page_size).collect();
        let next_page_token =
            page.last().filter(|_| rest > page.len()).map(|last| last.name().to_owned()).unwrap_or_default();
        let operations = page.iter().map(|operation| message(&operation.snapshot())).collect();
        Ok(Response::new(ListOperationsResponse { operations, next_page_token }))
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<longrunning::Operation>, Status> {
        let operation = self.operation(&request.into_inner().name)?;
        Ok(Response::new(message(&operation.snapshot())))
    }

    async fn delete_operation(
        &self,
        request: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let operation = self.operation(&request.into_inner().name)?;
        if !operation.is_done() {
            let message = format!("{} is still running: cancel it first", operation.name());
            return Err(Failure::new(Code::FailedPrecondition, reason::OPERATION_RUNNING, message).into());
        }
        self.jobs.forget(operation.name());
        Ok(Response::new(()))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        self.operation(&request.into_inner().name)?.cancel();
        Ok(Response::new(()))
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<longrunning::Operation>, Status> {
        let until = deadline(request.metadata());
        let request = request.into_inner();
        let operation = self.operation(&request.name)?;
        let timeout = request
            .timeout
            .map(Duration::try_from)
            .transpose()
            .map_err(|_| Failure::invalid_field("timeout", "timeout is negative or not a duration"))?;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match timeout.into_iter().chain(left).min() {
            // Running out of time is an answer too: the operation as it is then.
            Some(limit) => drop(tokio::time::timeout(limit, operation.wait()).await),
            None => operation.wait().await,
        }
        Ok(Response::new(message(&operation.snapshot())))
    }
}

/// A status as operations carry it, details included.
pub(super) fn status(status: &Status) -> rpc::Status {
    // The details of a tonic status are an encoded google.rpc.Status: code, message and details.
    rpc::Status::decode(status.details()).ok().filter(|decoded| decoded.code != 0).unwrap_or_else(|| {
        rpc::Status { code: status.code().into(), message: status.message().to_owned(), details: Vec::new() }
    })
}

/// An operation as callers see it.
pub(super) fn message(snapshot: &Snapshot) -> longrunning::Operation {
    let end = snapshot.ended.as_ref();
    let metadata = CompileMetadata {
        model: snapshot.model.clone(),
        engine_key: snapshot.engine_key.clone(),
        progress: Some(snapshot.progress),
        create_time: Some(convert::timestamp(snapshot.created)),
        end_time: end.map(|(time, _)| convert::timestamp(*time)),
    };
    longrunning::Operation {
        name: snapshot.name.clone(),
        metadata: Some(any("CompileMetadata", &metadata)),
        done: end.is_some(),
        result: end.map(|(_, result)| match result {
            Ok(response) => operation::Result::Response(any("CompileEngineResponse", response)),
            Err(status) => operation::Result::Error(status.clone()),
        }),
    }
}

fn any(name: &str, message: &impl prost::Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/roundhouse.compiler.v1.{name}"),
        value: message.encode_to_vec(),
    }
}
