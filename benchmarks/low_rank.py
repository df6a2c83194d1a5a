"""Predicts a ViT-B and a language model with a low-rank decoder, and measures how it grows with the width it reaches.

    python -m benchmarks.low_rank

The weights are fresh: what is predicted is as large, and takes as long, as with trained ones. The second prediction of
each is timed, when all is compiled.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import ghn_jax
from ghn_jax.models import full_rank, low_rank
from ghn_jax.models.config import GHNConfig, preset
from ghn_jax.models.ghn import init_params
from ghn_jax.models.templates import Template
from ghn_jax.pretrained import TrainedGHN

_NODES = 8


class Block(nn.Module):
    """Causal attention, then an MLP, each after layer norm and added to its input."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Updates (batch, token, channel)."""
        features = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0])
        x += nn.MultiHeadDotProductAttention(self.heads, name="attention")(
            nn.LayerNorm(name="ln1")(x), mask=mask
        )
        hidden = nn.gelu(nn.Dense(4 * features, name="up")(nn.LayerNorm(name="ln2")(x)))
        return x + nn.Dense(features, name="down")(hidden)


class LanguageModel(nn.Module):
    """A decoder-only transformer, GPT-2's by default but for the vocabulary; the logits share the table of tokens."""

    vocabulary: int
    features: int = 768
    layers: int = 12
    heads: int = 12

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The logits (batch, token, label) of tokens (batch, token)."""
        embed = nn.Embed(self.vocabulary, self.features, name="embed")
        start = nn.initializers.normal(0.02)
        x = embed(tokens) + self.param("position", start, (tokens.shape[1], self.features))
        for layer in range(self.layers):
            x = Block(self.heads, name=f"block{layer}")(x)
        return embed.attend(nn.LayerNorm(name="ln")(x))


def main(name: str = "logah-t", tokens: int = 256, vocabulary: int = 16384) -> None:
    """Prints parameters and seconds of both models, and a table by width.

    Args:
      name: the preset.
      tokens: length of the sequence.
      vocabulary: number of tokens.
    """
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    predict(fresh(preset(name, 1000, 224)), "ViT-B/16", ghn_jax.target("vit_b_16"), image)
    text = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    predict(fresh(preset(name, vocabulary, 224)), "language model", LanguageModel(vocabulary), text)
    print(
        "| width | parameters | at full rank | ms for the factors of a weight | and their product | ns an element |"
    )
    print("|---|---|---|---|---|---|")
    for width in (256, 512, 1024, 2048):
        print(row(dataclasses.replace(preset(name, 10, 224), channels=width)))


def fresh(config: GHNConfig) -> TrainedGHN:
    """A GHN that is not trained."""
    ghn = TrainedGHN(config, init_params(config, jax.random.key(0)), {})
    print(f"GHN of {count(ghn.params):,} parameters for {config.num_classes} classes")
    return ghn


def predict(ghn: TrainedGHN, name: str, model: Any, sample: jax.ShapeDtypeStruct) -> None:
    """Predicts a model twice, and prints the second report and what repeats in its tensors."""
    ghn_jax.predict_parameters(model, sample, ghn)
    start = time.perf_counter()
    variables, report = ghn_jax.predict_parameters(model, sample, ghn)
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(variables["params"]) if np.ndim(leaf) == 2]
    repeated = sum(len(np.unique(kernel[:8], axis=1).T) < kernel.shape[1] for kernel in kernels)
    print(
        f"{name}: {time.perf_counter() - start:.2f} s, {report}; {repeated} of {len(kernels)} matrices repeat a channel"
    )


def row(config: GHNConfig) -> str:
    """Of a decoder that reaches so many channels, its size, and the time of a square weight of that width."""
    width = config.channels
    weights = init_params(config, jax.random.key(0))["decoder"]
    nodes = jax.random.normal(jax.random.key(1), (_NODES, config.hidden))

    def factors(nodes: jax.Array) -> list[jax.Array]:
        codes = low_rank.decode_codes(weights, nodes).swapaxes(0, 1)
        return [low_rank.factor(weights, code, width, 1) for code in codes]

    def product(nodes: jax.Array) -> jax.Array:
        return low_rank.decode_template(config, Template("conv", 1, 1, width, width), weights, nodes)

    full = full_rank.layers(dataclasses.replace(config, decoder="full_rank"))
    size = sum(math.prod(layer.kernel) + math.prod(layer.bias or (0,)) for layer in full.values())
    alone, whole = (milliseconds(jax.jit(function), nodes) / _NODES for function in (factors, product))
    return f"| {width} | {count(weights):,} | {size:,} | {alone:.2f} | {whole:.2f} | {1e6 * whole / width**2:.1f} |"


def milliseconds(function: Callable[[jax.Array], Any], nodes: jax.Array) -> float:
    """Of the fastest of a few calls."""
    jax.block_until_ready(function(nodes))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(nodes))
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def count(params: Any) -> int:
    """Number of weights."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    tyro.cli(main)
