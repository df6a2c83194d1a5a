"""Tests predicted parameters on unseen architectures: `python evaluate.py --ckpt=ghn2-digits --split=test`."""

from ghn_jax.evaluation.report import EvaluateOptions, evaluate
from ghn_jax.runtime import commands

if __name__ == "__main__":
    commands.run(EvaluateOptions, evaluate)
