"""How XLA is to compile for the CPU.

Its defaults are made for one program of large matrices. Blocks are small and there are hundreds of them: with these
options they compile in two thirds of the time, and run as fast, dense convolutions of few channels up to twice as fast
(`python -m benchmarks.compilation`).
"""

import functools

import jax

from ghn_jax.executor import blocks
from ghn_jax.executor.blocks import Block
from ghn_jax.executor.convolutions import on_cpu

Options = dict[str, str | bool]

_COMMON: Options = {
    # LLVM's second and third level take a third of the time and gain nothing
    "xla_backend_optimization_level": "1",
    # XLA's default but for convolutions, which its older library (Eigen) does in half the time
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}
_BLOCK: Options = {
    # in one LLVM module: warm-up compiles several blocks at once anyway, and every module takes mappings of memory, of
    # which Linux grants a process 65,530
    "xla_cpu_parallel_codegen_split_count": "1"
}
_LEGACY_FUSIONS: Options = {"xla_cpu_use_fusion_emitters": False}
_MOSTLY_FUSIONS = (blocks.DepthwiseConvolution, blocks.Pool, blocks.TokenMLP)


def options_for(block: Block | None = None) -> Options:
    """Options for compiling a block, or a program of many blocks (None).

    The newer code generator for fusions takes twice as long, and pays for what is mostly fusions.

    Returns none for a GPU or TPU, and none that the installed XLA does not know.
    """
    options = _COMMON
    if block is not None:
        options = (
            _COMMON | _BLOCK if isinstance(block, _MOSTLY_FUSIONS) else _COMMON | _BLOCK | _LEGACY_FUSIONS
        )
    return {name: value for name, value in options.items() if on_cpu() and _knows(name, value)}


@functools.cache
def _knows(name: str, value: str | bool) -> bool:
    """Whether the installed XLA has an option."""
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
