#!/usr/bin/env python3
"""Puts libtorch's CPU part into third_party/libtorch: libraries and headers of the torch wheel, nothing of CUDA.

About 530 MB are downloaded once and 500 MB stay. torch-sys 0.24 needs exactly libtorch 2.11.0. The libraries find each
other by their own run path, which counts on the wheels being unpacked side by side (torch/ and nvidia/).

With --reference also .venv-reference/bin/python, a Python with torch and transformers on the CPU, which the tests compare
with; see reference.py. The wheel is downloaded once for both.

With --sglang, --vllm also the real generation servers for the CPU in .venv-sglang, .venv-vllm; see servers.py.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import reference
import servers

ROOT = pathlib.Path(__file__).resolve().parent.parent
DESTINATION = ROOT / "third_party" / "libtorch"
TORCH = "2.11.0"
# libtorch_cpu.so names these two CUDA libraries although it never calls them; they are small.
WHEELS = [f"torch=={TORCH}", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]
LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1"}
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux2014_x86_64"]


def download(folder):
    # The reference needs the wheel of this Python, and both the same one: each wheel has its own build of libtorch.
    version = "{}.{}".format(*sys.version_info) if reference.supported() else "3.11"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--python-version", version, "--dest", str(folder)]
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


def install_libtorch(wheels, scratch):
    # Unpacked beside and renamed, so that an interrupted set-up is never taken for a complete one.
    unpacked = scratch / "libtorch"
    for wheel in wheels:
        unpack(wheel, unpacked)
    # torch-sys always links libtorch.so; this linker script keeps libtorch_cuda.so out of it.
    (unpacked / "torch" / "lib" / "libtorch.so").write_text("INPUT(libtorch_cpu.so)\n")
    (unpacked / "torch" / "build-version").write_text(TORCH + "\n")
    shutil.rmtree(DESTINATION, ignore_errors=True)
    unpacked.rename(DESTINATION)


def main():
    libtorch = not (DESTINATION / "torch" / "build-version").is_file()
    python = "--reference" in sys.argv[1:] and reference.supported() and not reference.complete(ROOT)
    if libtorch or python:
        print(f"Fetching torch {TORCH} (about 530 MB) …", flush=True)
        DESTINATION.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=DESTINATION.parent) as scratch:
            scratch = pathlib.Path(scratch)
            (scratch / "wheels").mkdir()
            wheels = download(scratch / "wheels")
            if libtorch:
                install_libtorch(wheels, scratch)
            if python:
                reference.install(ROOT, wheels, DESTINATION)
    print(f"libtorch {TORCH} is in {DESTINATION.relative_to(ROOT)}")
    if "--reference" in sys.argv[1:]:
        print(reference.state(ROOT))
    for engine in servers.ENGINES:
        if f"--{engine}" in sys.argv[1:]:
            servers.install(ROOT, engine)


if __name__ == "__main__":
    main()
