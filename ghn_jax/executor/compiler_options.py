"""How XLA is to compile.

Its defaults are made for one program of large matrices. Blocks are small and there are hundreds of them: on a CPU they
compile in two thirds of the time with these options, and run as fast, dense convolutions of few channels up to twice as
fast (`python -m benchmarks.compilation`).
"""

import functools
from typing import Literal

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
_ONE_MODULE: Options = {
    # programs are compiled several at a time anyway, and every LLVM module takes mappings of memory, of which Linux
    # grants a process 65,530
    "xla_cpu_parallel_codegen_split_count": "1"
}
_LEGACY_FUSIONS: Options = {
    # the newer code generator for fusions takes twice as long, and pays only for what is mostly fusions
    "xla_cpu_use_fusion_emitters": False
}
_REORDERED_SUMS: Options = {
    # lets LLVM add up several pixels at once for the gradient of a depthwise kernel; NaN and infinity are kept
    "xla_cpu_enable_fast_math": True
}
_UNOPTIMISED: Options = {
    # for what runs once
    "xla_backend_optimization_level": "0"
}
_NOT_TRIED: Options = {
    # trying all ways of a product takes longer than a network's blocks, which Python starts one by one, would gain
    "xla_gpu_autotune_level": "0"
}
_MOSTLY_FUSIONS = (blocks.DepthwiseConvolution, blocks.Pool, blocks.TokenMLP)


def options_for(program: Block | Literal["ghn", "fused", "once"]) -> Options:
    """Options for compiling a block, a function of the GHN, the fused executor's program, or what runs once.

    Returns none for a TPU, and none that the installed XLA does not know.
    """
    if not on_cpu():
        on_gpu = jax.default_backend() in ("gpu", "cuda", "rocm")
        # what a GPU takes for a convolution untried can be 300 times slower than the best
        convolves = isinstance(program, blocks.Convolution) and not program.is_product
        untried = on_gpu and program != "fused" and not convolves
        return {name: value for name, value in _NOT_TRIED.items() if untried and knows(name, value)}
    options = _COMMON
    if program != "fused":
        options = options | _ONE_MODULE
        if not isinstance(program, _MOSTLY_FUSIONS):
            options = options | _LEGACY_FUSIONS
        if isinstance(program, blocks.DepthwiseConvolution):
            options = options | _REORDERED_SUMS
        if program == "once":
            options = options | _UNOPTIMISED
    return {name: value for name, value in options.items() if knows(name, value)}


@functools.cache
def knows(name: str, value: str | bool) -> bool:
    """Whether the installed XLA has an option."""
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
