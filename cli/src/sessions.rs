//! `sessions`: list, show and delete an executor's sessions.

use anyhow::ensure;
use clap::{Args, Subcommand};
use roundhouse_proto::executor::{DeleteSessionRequest, GetSessionRequest, ListSessionsRequest, Session};

use crate::clients::ServiceArgs;
use crate::output;

/// `roundhouse sessions`.
#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    #[command(subcommand)]
    command: SessionsCommand,
    #[command(flatten)]
    services: ServiceArgs,
    /// Print JSON, one object a session.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum SessionsCommand {
    /// List the sessions.
    List,
    /// Show one session.
    Get {
        /// Its ID.
        id: String,
    },
    /// End a session.
    Delete {
        /// Its ID.
        id: String,
    },
}

pub(crate) async fn run(args: SessionsArgs) -> anyhow::Result<()> {
    ensure!(
        !args.services.executor.is_empty(),
        "sessions live in an executor service: give its address with --executor"
    );
    let mut executor = args.services.executor().await?;
    match args.command {
        SessionsCommand::List => {
            let mut page_token = None;
            loop {
                let request = ListSessionsRequest { page_token, ..ListSessionsRequest::default() };
                let page = executor.list_sessions(request).await?.into_inner();
                for session in &page.sessions {
                    print(session, args.json)?;
                }
                if page.next_page_token.is_empty() {
                    return Ok(());
                }
                page_token = Some(page.next_page_token);
            }
        }
        SessionsCommand::Get { id } => {
            print(&executor.get_session(GetSessionRequest { session_id: id }).await?.into_inner(), args.json)
        }
        SessionsCommand::Delete { id } => {
            executor.delete_session(DeleteSessionRequest { session_id: id.clone() }).await?;
            if !args.json {
                println!("deleted {id}");
            }
            Ok(())
        }
    }
}

fn print(session: &Session, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(&serde_json::json!({
            "id": session.id,
            "engine_key": session.engine_key,
            "num_tokens": session.num_tokens,
            "max_seq_len": session.max_seq_len,
            "kv_bytes": session.kv_bytes,
            "busy": session.busy,
            "create_time_unix_s": session.create_time.as_ref().map(|time| time.seconds),
            "expire_time_unix_s": session.expire_time.as_ref().map(|time| time.seconds),
        }));
    }
    println!(
        "{}  {}/{} tokens  {}  {}  engine {}",
        session.id,
        session.num_tokens,
        session.max_seq_len,
        output::bytes(session.kv_bytes),
        if session.busy { "busy" } else { "idle" },
        session.engine_key
    );
    Ok(())
}
