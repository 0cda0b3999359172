#!/usr/bin/env python3
"""Puts libtorch's CPU part into third_party/libtorch: libraries and headers of the torch wheel, nothing of CUDA.

About 530 MB are downloaded once and 500 MB stay. torch-sys 0.24 needs exactly libtorch 2.11.0: another version that lies there is
replaced. The libraries find each other by their own run path, which counts on the wheels being unpacked side by side (torch/ and
nvidia/).

With --reference also .venv-reference/bin/python, a Python with torch and transformers on the CPU, which the tests compare
with; see reference.py. The wheel is downloaded once for both.

With --sglang, --vllm also the real generation servers for the CPU in .venv-sglang, .venv-vllm; see servers.py.

With --beside COMMAND (last) the Pythons are made while the command runs, as soon as libtorch is there. What their making prints is
shown in one piece at the end. Where the command fails, or is interrupted, their making ends too and is begun anew the next time.
"""

import argparse
import multiprocessing
import os
import pathlib
import shutil
import signal
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


def libtorch_version():
    """The version of the libtorch that lies there, without what follows a plus (`2.11.0+cu130`); None without a whole one."""
    marker, libraries = DESTINATION / "torch" / "build-version", DESTINATION / "torch" / "lib"
    if not marker.is_file() or not all((libraries / name).is_file() for name in ("libtorch.so", "libtorch_cpu.so", "libc10.so")):
        return None
    return marker.read_text().strip().split("+")[0]


class Wheels:
    """torch's wheels, downloaded when they are first asked for; both who need them may."""

    def __init__(self):
        self.scratch = DESTINATION.parent / f"setup-{os.getpid()}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.scratch, ignore_errors=True)

    def get(self):
        folder = self.scratch / "wheels"
        if not folder.is_dir():
            print(f"Fetching torch {TORCH} (about 530 MB) …", flush=True)
            folder.mkdir(parents=True)
            download(folder)
        return sorted(folder.glob("*.whl"))


def make_libtorch(wheels):
    found = libtorch_version()
    if found != TORCH:
        if found:
            print(f"{DESTINATION.relative_to(ROOT)} holds libtorch {found}, {TORCH} is wanted: it is replaced.", flush=True)
        install_libtorch(wheels.get(), wheels.scratch)
    print(f"libtorch {TORCH} is in {DESTINATION.relative_to(ROOT)}", flush=True)


def make_pythons(terms, wheels):
    if terms.reference:
        if reference.supported() and not reference.complete(ROOT):
            reference.install(ROOT, wheels.get(), DESTINATION)
        print(reference.state(ROOT), flush=True)
    for engine in servers.ENGINES:
        if getattr(terms, engine):
            servers.install(ROOT, engine)


def beside(command, work):
    """Runs `work` in a process of its own while the command runs. The command's exit code, or else 1 where the work failed."""
    with tempfile.TemporaryFile() as output:
        aside = multiprocessing.get_context("fork").Process(target=apart, args=(work, output.fileno()))
        aside.start()
        try:
            code = run(command)
            if code == 0:
                aside.join()
        finally:
            end(aside)
            output.seek(0)
            sys.stdout.flush()
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    return code or (1 if aside.exitcode else 0)


def run(command):
    # With make's own descriptors, by which it shares its jobs.
    running = subprocess.Popen(command, close_fds=False)
    try:
        return running.wait()
    except BaseException:
        # make passes it on to what it runs.
        running.terminate()
        running.wait()
        raise


def apart(work, output):
    # A group of its own, so that pip and what it starts can be ended with it; a signal from a terminal goes to the other group.
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work()


def end(aside):
    if aside.is_alive():
        print("The Pythons are not finished; the next set-up begins them anew.", flush=True)
        try:
            os.killpg(aside.pid, signal.SIGTERM)
        except ProcessLookupError:
            aside.terminate()
    aside.join()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--reference", action="store_true", help="also .venv-reference, a Python with transformers")
    for engine in servers.ENGINES:
        parser.add_argument(f"--{engine}", action="store_true", help=f"also .venv-{engine}, the real server on the CPU")
    parser.add_argument("--beside", nargs=argparse.REMAINDER, metavar="COMMAND",
                        help="the Pythons are made while this command runs; everything that follows belongs to it")
    terms = parser.parse_args()
    if terms.beside == []:
        parser.error("--beside needs a command")
    return terms


def main():
    terms = arguments()
    # As Ctrl-C does: what was begun is tidied up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Wheels() as wheels:
        make_libtorch(wheels)
        if terms.beside:
            return beside(terms.beside, lambda: make_pythons(terms, wheels))
        make_pythons(terms, wheels)
        return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
