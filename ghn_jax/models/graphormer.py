"""Graphormer: transformer layers over the nodes of a graph, whose attention knows the paths between them.

[1] Ying et al., Do Transformers Really Perform Badly for Graph Representation?, NeurIPS 2021.
[2] Knyazev et al., Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, ICML 2023.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ghn_jax.models.mlp import MLP, Dense, uniform_init
from ghn_jax.models.shape_encoder import Embedding

Nodes = Float[Array, "graph node c"]
Hops = Int[Array, "graph node node"]
Bias = Float[Array, "graph head node node"]

MAX_DEGREE = 100
MAX_DISTANCE = 1000
"""From the input; path lengths end at 50, the table does not."""
PATHS = 257
"""Rows of the table of path lengths; a path of length s has row s + 2."""
_MASKED = -(2.0**15)


class Graphormer(nn.Module):
    """Layers of attention and MLP over all nodes at once [2, Section 3].

      h_v <- h_v + in[deg-(v)] + out[deg+(v)] + dist[s_0v]
      h <- h + softmax(q k^T / sqrt(d) + b(s)) v,   h <- h + MLP(h),   each after layer norm

    where s_uv is the length of the shortest path from u to v, 0 if there is none, and b an MLP of the embeddings of
    s_uv and s_vu, the same in all layers.

    Attributes:
      layers: number of transformer layers.
      heads: of attention.
    """

    layers: int
    heads: int

    @nn.compact
    def __call__(self, nodes: Nodes, hops: Hops) -> Nodes:
        """Updates the embeddings `nodes`, sorted topologically in each graph, with padding last.

        `hops[g, u, v]` is the length of the shortest path from u to v, or 0 if there is none or v is padding.
        Padding nodes come out finite but meaningless.
        """
        c, direct = nodes.shape[-1], hops == 1
        degree_in, degree_out = (jnp.minimum(direct.sum(axis), MAX_DEGREE) for axis in (1, 2))
        nodes += _table(MAX_DEGREE + 1, c, "centrality_embed_in")(degree_in)
        nodes += _table(MAX_DEGREE + 1, c, "centrality_embed_out")(degree_out)
        nodes += _table(MAX_DISTANCE + 1, c, "input_dist_embed")(jnp.minimum(hops[:, 0], MAX_DISTANCE))

        has_edge = direct.any(axis=1) | direct.any(axis=2)
        is_node = has_edge | (jnp.arange(hops.shape[-1]) == 0)  # the input may be alone
        bias = PathBias(self.heads, c, name="paths")(hops)
        bias = jnp.where(is_node[:, None, None, :], bias, _MASKED)
        for layer in range(self.layers):
            nodes = _Layer(self.heads, name=str(layer))(nodes, bias)
        return nodes


class _Layer(nn.Module):
    """Attention and MLP, each after layer norm and added to its input."""

    heads: int

    @nn.compact
    def __call__(self, nodes: Nodes, bias: Bias) -> Nodes:
        c = nodes.shape[-1]
        nodes += _Attention(self.heads, name="attn")(_norm("ln1")(nodes), bias)
        hidden = jax.nn.gelu(Dense(4 * c, name="ff.net.0")(_norm("ln2")(nodes)), approximate=False)
        return nodes + Dense(c, name="ff.net.3")(hidden)


class PathBias(nn.Module):
    """What attention adds to the score of two nodes, for each head: MLP(concat(table[s_uv + 2], table[s_vu + 2])).

    As the graph has no circles one of the two lengths is 0, so that there are few pairs: each is computed once and
    looked up, where the public code computes one for every two nodes.
    """

    heads: int
    features: int

    @nn.compact
    def __call__(self, hops: Hops) -> Bias:
        """The biases, given path lengths of at most 254."""
        table = self.param("edge_embed", _sinusoids, (PATHS, self.features))
        longest = PATHS - 3
        signed = jnp.arange(-longest, longest + 1)
        forward, backward = jnp.maximum(signed, 0), jnp.maximum(-signed, 0)
        pairs = jnp.concatenate([table[forward + 2], table[backward + 2]], axis=-1)
        by_length = MLP((self.features, self.heads), activate_last=False, name="proj_e")(pairs)
        signed_hops = hops.astype(jnp.int32) - hops.swapaxes(1, 2).astype(jnp.int32)
        return by_length.T[:, signed_hops + longest].swapaxes(0, 1)


class _Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + bias) v in each head."""

    heads: int

    @nn.compact
    def __call__(self, nodes: Nodes, bias: Bias) -> Nodes:
        graphs, count, c = nodes.shape
        kernel = self.param("to_qkv", uniform_init(c), (c, 3 * c))
        q, k, v = jnp.moveaxis((nodes @ kernel).reshape(graphs, count, 3, self.heads, -1), 2, 0)
        scores = jnp.einsum("gqhc,gkhc->ghqk", q, k) / math.sqrt(c // self.heads)
        mixed = jnp.einsum("ghqk,gkhc->gqhc", jax.nn.softmax(scores + bias), v)
        return Dense(c, name="to_out.0")(mixed.reshape(nodes.shape))


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, name=name)


def _table(size: int, features: int, name: str) -> Embedding:
    return Embedding(size, features, start="transformer", name=name)


def _sinusoids(key: Array, shape: tuple[int, int]) -> Array:
    """Where the table of path lengths starts: the positional encoding of a transformer, but 0 for the first row."""
    del key
    rows, features = shape
    angle = np.arange(rows)[:, None] * np.exp(np.arange(0, features, 2) * (-math.log(10000.0) / features))
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(rows, features)
    table[0] = 0
    return jnp.asarray(table, jnp.float32)
