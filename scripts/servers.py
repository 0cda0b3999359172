"""Makes .venv-sglang and .venv-vllm: the real generation servers, running on the CPU, for the tests.

Their packages are pinned in tests/servers/*.txt. torch is there from its CUDA wheel, the only one on PyPI, without NVIDIA's
libraries: what it links and never calls on a CPU is replaced by empty libraries of the same names (see reference.py, which
does the same). SGLang further imports names from a package of GPU kernels; tests/servers/sgl_kernel stands in for it.

About 1.2 GB are downloaded for each once, 3 GB stay. A file `complete` with the pins is written last; without it, or with
other pins, the folder is made anew. GRAIL_SERVERS_LIMIT bounds the seconds one installation may take (default 1200).
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

ENGINES = ("sglang", "vllm")
# These two are in the pins: torch's own libraries call them when they are loaded.
REAL = re.compile(r"lib(cudart|cupti)\.so")
FOREIGN = re.compile(r"lib(cu|nccl|nv)[a-zA-Z_]*\.so\.\d+$")


def supported():
    """Whether the pins have wheels for the Python and machine that run this."""
    return sys.platform == "linux" and os.uname().machine == "x86_64" and (3, 11) <= sys.version_info[:2] <= (3, 12)


def folder(root, engine):
    return root / f".venv-{engine}"


def pins(root, engine):
    stand_in = root / "tests/servers/sgl_kernel/__init__.py"
    return "\n".join([sys.version.split()[0], (root / f"tests/servers/{engine}.txt").read_text(), stand_in.read_text()])


def complete(root, engine):
    marker = folder(root, engine) / "complete"
    return marker.is_file() and marker.read_text() == pins(root, engine)


def install(root, engine):
    """Installs an engine where it is missing; says what is there. A failure is told and ends in False: tests then skip."""
    if complete(root, engine):
        print(f"{engine} is in {folder(root, engine).name}")
        return True
    if not supported():
        print(f"No {folder(root, engine).name}: the pinned servers need Python 3.11 or 3.12 on x86-64 Linux; tests with {engine} skip.")
        return False
    print(f"Fetching {engine} for the CPU (about 1.2 GB) …", flush=True)
    try:
        build(root, engine)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder(root, engine), ignore_errors=True)
        print(f"No {folder(root, engine).name}: {error}; tests with {engine} skip.")
        return False
    print(f"{engine} is in {folder(root, engine).name}")
    return True


def build(root, engine):
    target = folder(root, engine)
    shutil.rmtree(target, ignore_errors=True)
    # Without pip, which some distributions split off; pip from outside fills the folder.
    venv.create(target, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(target / "bin/python"), "install", "--quiet", "--disable-pip-version-check",
           "--no-deps", "--no-compile", "--only-binary=:all:", "--root-user-action=ignore"]
    limit = float(os.environ.get("GRAIL_SERVERS_LIMIT", "1200"))
    try:
        subprocess.run([*pip, "-r", str(root / f"tests/servers/{engine}.txt")], check=True, timeout=limit)
    except subprocess.TimeoutExpired as late:
        raise TimeoutError(f"its packages were not there after {limit:.0f} s (GRAIL_SERVERS_LIMIT)") from late
    packages = target / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    stand_ins(packages)
    (packages / "rtld_global.pth").write_text("import os; os.environ.setdefault('TORCH_USE_RTLD_GLOBAL', '1')\n")
    if engine == "sglang":
        shutil.copytree(root / "tests/servers/sgl_kernel", packages / "sgl_kernel")
    (target / "complete").write_text(pins(root, engine))


def stand_ins(packages):
    """Empty libraries in the place of NVIDIA's that torch's name and nobody installed."""
    libraries = packages / "nvidia/cu13/lib"
    libraries.mkdir(parents=True, exist_ok=True)
    wanted = set()
    for library in (packages / "torch/lib").glob("*.so"):
        read = subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True, text=True)
        wanted |= set(re.findall(r"NEEDED.*\[(.*)\]", read.stdout))
    for name in sorted(filter(FOREIGN.match, wanted)):
        if name == "libcuda.so.1" or REAL.match(name):
            continue
        subprocess.run(["cc", "-shared", "-nostdlib", "-x", "c", os.devnull, "-o", str(libraries / name), f"-Wl,-soname,{name}"], check=True)
