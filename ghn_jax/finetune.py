"""Trains a network: `python -m ghn_jax.finetune --arch=resnet18 --dataset=digits --compare=random,ghn2-digits`.

To be run, as `ghn-finetune`, not imported: `ghn_jax.finetune` is the function of `ghn_jax.finetuning.loop`.
"""

from ghn_jax.runtime import commands

if __name__ == "__main__":
    with commands.errors_as_lines():
        from ghn_jax.finetuning.command import run
        from ghn_jax.finetuning.options import FinetuneOptions

    commands.run(FinetuneOptions, run)
elif __name__ != "__mp_main__":  # as worker processes import what was run
    raise ImportError(
        "`ghn_jax.finetune` is a function: from ghn_jax import finetune, without importing this module"
    )
