#!/usr/bin/env python3
"""Fetch the TensorRT for RTX that the tensorrt backend builds and runs engines with.

    python3 scripts/fetch_tensorrt.py [--dir .roundhouse/tensorrt]

NVIDIA publishes it on PyPI, under its own proprietary licence, which is unpacked beside the library: by fetching it
you accept it. It needs no GPU to build engines. A library that is already there with the pinned SHA-256 is left alone;
a new one comes out of a checked wheel and gets its name last, so a cut-off run never leaves a wrong file behind.
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

REQUIREMENT = "tensorrt-rtx-cu13-libs==1.7.1.116"
WHEEL_SHA256 = "e3fd45fed001240d63304e77a2d4006319b839994237cb294b6e7ad72acaabcd"
LIBRARY = "tensorrt_rtx_libs/libtensorrt_rtx.so.1"
LIBRARY_SHA256 = "a74fa3974f1892b65a53b06a14ffcb15758ac51c12135ada84490f53f67e1051"
LICENCE = "tensorrt_rtx_cu13_libs-1.7.1.116.dist-info/licenses/LICENSE.txt"


def fetch(folder: Path) -> None:
    target = folder / LIBRARY
    if target.is_file() and sha256_of(target) == LIBRARY_SHA256:
        print(f"{target}: present, digest right")
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print(f"TensorRT is not fetched: {REQUIREMENT} is for Linux on x86_64; the other backends do without it")
        return
    print(f"downloading {REQUIREMENT} (95 MB), which is under NVIDIA's proprietary licence", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder: a library that is not whole must not be found in it, and the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name)
        wheel = download_wheel(pip_command(scratch), REQUIREMENT, scratch)
        found = sha256_of(wheel)
        if found != WHEEL_SHA256:
            sys.exit(f"{wheel.name} has SHA-256 {found}, expected {WHEEL_SHA256}; nothing was installed")
        with zipfile.ZipFile(wheel) as archive:
            for member, path in ((LICENCE, target.with_name("LICENSE.txt")), (LIBRARY, target)):
                partial = scratch / path.name
                with archive.open(member) as source, partial.open("wb") as output:
                    shutil.copyfileobj(source, output, BLOCK_BYTES)
                os.replace(partial, path)
    print(f"{target}: {target.stat().st_size} bytes; its licence is {target.with_name('LICENSE.txt')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, default=REPOSITORY / ".roundhouse" / "tensorrt", help="where the library goes"
    )
    fetch(parser.parse_args().dir)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit("fetch_tensorrt: needs Python 3.11 or newer")
    main()
