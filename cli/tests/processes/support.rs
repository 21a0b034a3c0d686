//! The binary, the services that it runs, and models for them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_roundhouse");
/// Longer than anything here takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The root of the workspace, where `make` puts what it fetches.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn checkpoint() -> PathBuf {
    let path = workspace().join(".roundhouse/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `make models`", path.display());
    path
}

pub(crate) fn gemma3() -> PathBuf {
    let path = workspace().join(".roundhouse/models/gemma-3-270m-q4_k_m.gguf");
    assert!(path.exists(), "{} is missing: run `make test-models`", path.display());
    path
}

pub(crate) fn tiny_llama() -> PathBuf {
    workspace().join("tests/golden/tiny-llama-2")
}

/// A service's process, killed when dropped.
pub(crate) struct Service {
    pub(crate) process: Child,
    pub(crate) url: String,
}

impl Service {
    pub(crate) fn start(name: &str, folder: &Path, arguments: &[&str]) -> Self {
        let address_file = folder.join(format!("{name}.address"));
        // A service that was here before wrote its own.
        let _ = std::fs::remove_file(&address_file);
        let mut process = Command::new(BINARY)
            .arg(name)
            .args(["--address", "127.0.0.1:0", "--address-file"])
            .arg(&address_file)
            .arg("--store")
            .arg(folder.join("store"))
            .args(arguments)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = wait_for(|| {
            assert!(process.try_wait().unwrap().is_none(), "the {name} service ended");
            std::fs::read_to_string(&address_file).ok()
        });
        Self { process, url: format!("http://{address}") }
    }

    pub(crate) fn compiler(folder: &Path) -> Self {
        Self::start("compiler", folder, &["--work-dir", folder.join("compiler").to_str().unwrap()])
    }

    /// A service that serves metrics, and where.
    pub(crate) fn measured(name: &str, folder: &Path, arguments: &[&str]) -> (Self, String) {
        let file = folder.join(format!("{name}.metrics"));
        let mut all =
            vec!["--metrics-address", "127.0.0.1:0", "--metrics-address-file", file.to_str().unwrap()];
        all.extend(arguments);
        let service = Self::start(name, folder, &all);
        let address = wait_for(|| std::fs::read_to_string(&file).ok());
        (service, address)
    }

    pub(crate) fn executor(folder: &Path) -> Self {
        Self::start("executor", folder, &["--cache-dir", folder.join("executor").to_str().unwrap()])
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks again until there is an answer.
pub(crate) fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "nothing after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the binary at the root of the workspace.
pub(crate) fn roundhouse(arguments: &[&str]) -> Output {
    Command::new(BINARY).current_dir(workspace()).args(arguments).output().unwrap()
}

pub(crate) fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(crate) fn run_llm(compiler: &Service, executor: &Service, model: &Path, more: &[&str]) -> Output {
    let mut arguments =
        vec!["run-llm", "--compiler", &compiler.url, "--executor", &executor.url, "--json", "--model"];
    arguments.push(model.to_str().unwrap());
    arguments.extend(more);
    roundhouse(&arguments)
}
