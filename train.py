"""Meta-trains a Graph HyperNetwork: `python train.py --dataset=cifar10 --data_dir=DIR`."""

from ghn_jax.__main__ import train

if __name__ == "__main__":
    train()
