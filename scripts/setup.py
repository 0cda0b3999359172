#!/usr/bin/env python3
"""Puts libtorch's CPU part into third_party/libtorch: libraries and headers of the torch wheel, nothing of CUDA.

About 530 MB are downloaded once and 500 MB stay. torch-sys 0.24 needs exactly libtorch 2.11.0. The libraries find each
other by their own run path, which counts on the wheels being unpacked side by side (torch/ and nvidia/).
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DESTINATION = ROOT / "third_party" / "libtorch"
TORCH = "2.11.0"
# libtorch_cpu.so names these two CUDA libraries although it never calls them; they are small.
WHEELS = [f"torch=={TORCH}", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]
LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1"}
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux2014_x86_64"]


def download(folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--python-version", "3.11", "--dest", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run(command + WHEELS, check=True)
    return sorted(folder.glob("*.whl"))


def wanted(name):
    file = pathlib.PurePosixPath(name).name
    if name.startswith("torch/include/"):
        return True
    if name.startswith("torch/lib/"):
        return file in LIBRARIES
    return name.startswith("nvidia/") and ("libcudart" in file or "libcupti.so" in file)


def unpack(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        for name in filter(wanted, archive.namelist()):
            archive.extract(name, folder)


def main():
    if (DESTINATION / "torch" / "build-version").is_file():
        print(f"libtorch {TORCH} is in {DESTINATION.relative_to(ROOT)}")
        return
    print(f"Fetching libtorch {TORCH} (CPU part, about 530 MB) …", flush=True)
    DESTINATION.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside and renamed, so that an interrupted set-up is never taken for a complete one.
    with tempfile.TemporaryDirectory(dir=DESTINATION.parent) as scratch:
        scratch = pathlib.Path(scratch)
        unpacked = scratch / "libtorch"
        (scratch / "wheels").mkdir()
        for wheel in download(scratch / "wheels"):
            unpack(wheel, unpacked)
        # torch-sys always links libtorch.so; this linker script keeps libtorch_cuda.so out of it.
        (unpacked / "torch" / "lib" / "libtorch.so").write_text("INPUT(libtorch_cpu.so)\n")
        (unpacked / "torch" / "build-version").write_text(TORCH + "\n")
        shutil.rmtree(DESTINATION, ignore_errors=True)
        unpacked.rename(DESTINATION)
    print(f"libtorch {TORCH} is in {DESTINATION.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
