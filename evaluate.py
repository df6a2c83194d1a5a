"""Tests predicted parameters on unseen architectures: `python evaluate.py --ckpt=ghn2-digits --split=test`."""

from ghn_jax.__main__ import evaluate

if __name__ == "__main__":
    evaluate()
