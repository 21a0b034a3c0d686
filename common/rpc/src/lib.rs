//! What both gRPC services share: the server shell, health, reflection and error details.
