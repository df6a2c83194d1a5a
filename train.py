"""Meta-trains a Graph HyperNetwork: `python train.py --dataset=cifar10 --data_dir=DIR`."""

from ghn_jax.runtime import commands
from ghn_jax.training.loop import train
from ghn_jax.training.options import TrainOptions

if __name__ == "__main__":
    commands.run(TrainOptions, train)
