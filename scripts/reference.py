"""Makes .venv-reference: a Python that runs transformers on the CPU with the libtorch that our programs link, and moto's server.

The only torch wheel on PyPI is the CUDA one. Its Python half cannot be loaded without libtorch_cuda.so, and that names ten
NVIDIA libraries of 2.5 GB, which nothing here ever calls. So they are replaced by empty libraries of the same names: with
TORCH_USE_RTLD_GLOBAL, torch's own switch, functions are looked up when they are called and not before, and a call into CUDA
would end the process with the name of what is missing. The kernels of the CPU are the wheel's own, untouched.

700 MB stay, of which 450 MB are shared with third_party/libtorch by hard links. A file `complete` with all versions is
written last; without it, or with other versions, the folder is made anew.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile
import zlib

FOLDER = ".venv-reference"
# What torch and transformers really import, pinned. pip cannot resolve it: torch would ask for every NVIDIA wheel.
PACKAGES = [
    "transformers==4.57.1", "safetensors==0.6.2", "tokenizers==0.22.1", "huggingface-hub==0.36.0",
    "numpy==2.2.6; python_version < '3.11'", "numpy==2.3.4; python_version >= '3.11'",
    "certifi==2025.10.5", "charset-normalizer==3.4.4", "filelock==3.20.0", "fsspec==2025.9.0", "idna==3.11",
    "mpmath==1.3.0", "packaging==25.0", "pyyaml==6.0.3", "regex==2025.10.23", "requests==2.32.5", "sympy==1.14.0",
    "tqdm==4.67.1", "typing-extensions==4.15.0", "urllib3==2.5.0",
    # moto's server, as far as S3 goes: the buckets' second peer.
    "moto==5.2.5", "boto3==1.44.5", "botocore==1.44.5", "s3transfer==0.19.3", "jmespath==1.1.0", "python-dateutil==2.9.0.post0",
    "six==1.17.0", "cryptography==50.0.2", "cffi==2.1.1", "pycparser==2.23", "xmltodict==1.0.4", "responses==0.26.3",
    "py-partiql-parser==0.6.3", "flask==3.1.3", "flask-cors==6.0.5", "werkzeug==3.1.9", "markupsafe==3.0.4", "click==8.5.1",
    "blinker==1.9.0", "itsdangerous==2.2.0", "jinja2==3.1.6",
]
STAND_INS = [
    "libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9", "libcufft.so.12", "libcufile.so.0", "libcurand.so.10",
    "libcusparse.so.12", "libcusparseLt.so.0", "libnccl.so.2", "libnvshmem_host.so.3",
]
# Nothing of a forward pass, and not loaded by `import torch`.
LEFT_OUT = (
    "torch/include/", "torch/share/", "torch/bin/protoc", "torch/bin/ptxas", "torch/lib/libtorch_cuda_linalg.so",
    "torch/lib/libcaffe2_nvrtc.so", "nvidia/cu13/include/",
)


def supported():
    """Whether torch 2.11.0 has a wheel for the Python that runs this."""
    return (3, 10) <= sys.version_info[:2] <= (3, 14) and sys.implementation.name == "cpython"


def pins(wheels=("torch==2.11.0",)):
    return "\n".join([sys.version.split()[0], *wheels, *PACKAGES]) + "\n"


def complete(root):
    marker = root / FOLDER / "complete"
    return marker.is_file() and marker.read_text() == pins()


def state(root):
    if complete(root):
        return f"transformers is in {FOLDER}"
    return f"No {FOLDER}: torch 2.11.0 has no wheel for this Python {sys.version.split()[0]}; comparisons with it are skipped."


def install(root, wheels, libtorch):
    """Builds the environment from downloaded wheels; `libtorch` is the folder with the libraries to share."""
    print("Making a Python with transformers, to compare with …", flush=True)
    folder = root / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    # Without pip, which some distributions split off; pip from outside fills the folder.
    venv.create(folder, with_pip=False, symlinks=True)
    packages = folder / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    for wheel in wheels:
        unpack(wheel, packages, libtorch)
    stand_ins(packages / "nvidia" / "cu13" / "lib")
    if not (packages / "torch/lib/libtorch_cpu.so").samefile(libtorch / "torch/lib/libtorch_cpu.so"):
        print("Note: third_party/libtorch is of another Python's wheel, another build of the same libtorch; remove it and set up again.")
    (packages / "reference.pth").write_text("import os; os.environ.setdefault('TORCH_USE_RTLD_GLOBAL', '1')\n")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
                    "--only-binary=:all:", "--root-user-action=ignore", "--target", str(packages), *PACKAGES], check=True)
    (folder / "complete").write_text(pins())


def unpack(wheel, packages, libtorch):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.filename.startswith(LEFT_OUT):
                continue
            shared = libtorch / entry.filename
            if entry.file_size > 1 << 20 and is_copy(shared, entry):
                target = packages / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(shared, target)
            else:
                target = pathlib.Path(archive.extract(entry, packages))
                # zipfile forgets that a program is one.
                target.chmod(entry.external_attr >> 16 & 0o777 | 0o600)


def is_copy(path, entry):
    if not path.is_file() or path.stat().st_size != entry.file_size:
        return False
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum == entry.CRC


def stand_ins(folder):
    for name in STAND_INS:
        subprocess.run(["cc", "-shared", "-nostdlib", "-x", "c", os.devnull, "-o", str(folder / name), f"-Wl,-soname,{name}"], check=True)
