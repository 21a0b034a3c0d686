//! `doctor`: what this machine can build and run, and what to install.

mod backends;
mod conformance;
mod libraries;
mod machine;

use std::path::PathBuf;

use anyhow::{bail, ensure};
use clap::Args;
use roundhouse_engine::BackendKind;
use roundhouse_models::FAMILIES;
use serde::Serialize;

use crate::tensorrt_library::LibraryArgs;
use crate::{output, serve};
use backends::{BackendReport, Backends};
use libraries::LibraryReport;
use machine::Machine;

/// `roundhouse doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Run the suite that every backend passes on this one. Fails where it cannot run, and says what is missing.
    #[arg(long)]
    backend: Option<BackendKind>,
    /// The home folder, in which libraries are looked for.
    #[arg(long, env = "ROUNDHOUSE_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    #[command(flatten)]
    library: LibraryArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    machine: Machine,
    model_families: Vec<&'static str>,
    backends: Vec<BackendReport>,
    /// The libraries of backends that were found.
    libraries: Vec<LibraryReport>,
    /// With `--backend`, what became of each promise of the suite.
    #[serde(skip_serializing_if = "Option::is_none")]
    conformance: Option<Vec<conformance::Outcome>>,
}

pub(crate) async fn run(args: DoctorArgs) -> anyhow::Result<()> {
    // Libraries are loaded and models run: no work for the runtime's threads.
    tokio::task::spawn_blocking(move || examine(&args)).await?
}

fn examine(args: &DoctorArgs) -> anyhow::Result<()> {
    let home = serve::home(args.home.as_deref());
    let search = args.library.search(&home);
    let backends = Backends::open(&home, &search, args.library.nvrtc(&home));
    let mut report = Report {
        machine: Machine::examine(),
        model_families: FAMILIES.iter().map(|family| family.architecture).collect(),
        backends: BackendKind::ALL.iter().map(|&kind| backends.report(kind)).collect(),
        libraries: libraries::find(&search),
        conformance: None,
    };
    if !args.json {
        print(&report);
    }
    let Some(kind) = args.backend else {
        return if args.json { output::print_json(&report) } else { Ok(()) };
    };
    let both = match backends.both(kind) {
        Ok(both) => both,
        Err(missing) => {
            if args.json {
                output::print_json(&report)?;
            }
            bail!("the {kind} backend cannot be examined here: {}", missing.join("; "));
        }
    };
    let outcomes = conformance::run(&*both.builder, &*both.runtime, |outcome| {
        if !args.json {
            println!("{outcome}");
        }
    });
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let all = outcomes.len();
    report.conformance = Some(outcomes);
    if args.json {
        output::print_json(&report)?;
    }
    ensure!(failed == 0, "the {kind} backend breaks {failed} of {all} promises on this machine");
    Ok(())
}

fn print(report: &Report) {
    report.machine.print();
    println!("models     {}", report.model_families.join(", "));
    for backend in &report.backends {
        println!("{backend}");
    }
    for library in &report.libraries {
        println!("{library}");
    }
}
