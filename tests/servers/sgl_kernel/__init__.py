"""Stands in for SGLang's package of CUDA kernels on a machine without a GPU.

SGLang imports names from `sgl_kernel` while it loads. On a CPU without AMX its models take their plain torch paths and call
none of them; so every name is there, and calling one is an error that says so.
"""

import sys

print("[sgl_kernel] A stand-in for SGLang's GPU kernels: names only, every call is an error.", file=sys.stderr, flush=True)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_arguments, **_named):
        raise RuntimeError(f"sgl_kernel.{name} was called: this is the stand-in for machines without a GPU")

    return missing
