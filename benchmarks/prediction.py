"""Times the prediction of ResNet-50's parameters, from the model to its arrays, and measures its memory.

    python -m benchmarks.prediction

Warm: in a process that has predicted ResNet-34, an architecture it has not seen. Cold: a new process, from `import`,
with a warm compilation cache. Peak memory is that of the cold process, above what it holds after the imports.
"""

import json
import subprocess
import sys
import time

import tyro

_COLD = """
import time; start = time.perf_counter()
import json, resource
import jax, jax.numpy as jnp, ghn_jax
from ghn_jax.runtime import compilation
compilation.use_persistent_cache()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
imported = time.perf_counter() - start
ghn, model = ghn_jax.load("ghn2-digits"), ghn_jax.target("resnet50", 10, 32)
jnp.zeros(()).block_until_ready(); before = peak()
variables, report = ghn_jax.predict_parameters(model, jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"), ghn)
seconds = time.perf_counter() - start
print(json.dumps(dict(imported=imported, seconds=seconds, memory=(peak() - before) / (4 * report.parameters))))
"""


def main(rounds: int = 5) -> None:
    """Prints a table.

    Args:
      rounds: warm predictions of each model; the first is of an architecture not seen before.
    """
    cold = [json.loads(_run(_COLD)) for _ in range(2)][1]  # the first one fills the compilation cache
    import jax

    import ghn_jax
    from ghn_jax.runtime import compilation

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    compilation.use_persistent_cache()
    ghn = ghn_jax.load("ghn2-digits")
    ghn_jax.predict_parameters(ghn_jax.target("resnet34", 10, 32), images, ghn)
    counter = compilation.CompilationCounter()
    counter.register()
    print(
        "| model | prediction | trace | graph | predict | assemble | sum, ms | compilations |\n|" + "---|" * 8
    )
    for name in ("resnet50", "mobilenet_v2", "resnet101"):
        for number in range(rounds):
            before, start = counter.count + counter.cached, time.perf_counter()
            _, report = ghn_jax.predict_parameters(ghn_jax.target(name, 10, 32), images, ghn)
            total = time.perf_counter() - start
            parts = " | ".join(f"{1000 * report.seconds[part]:.0f}" for part in report.seconds)
            made = counter.count + counter.cached - before
            print(
                f"| {name} | {'unseen' if number == 0 else 'again'} | {parts} | {1000 * total:.0f} | {made} |"
            )
    print(
        f"cold process: {cold['seconds']:.1f} s from import to parameters, of which imports {cold['imported']:.1f} s; "
        f"peak memory {cold['memory']:.1f} x the parameters' bytes"
    )


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    tyro.cli(main)
