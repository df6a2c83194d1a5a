"""A start for short runs: layers of predicted networks pass their channels on.

As initialised by default, an untrained GHN decodes much the same random matrix for every layer. A deep network of such
layers forgets its images, and what a channel means at its end differs from network to network, so that gradients of
different networks have little in common. Here decoded kernels start near the identity over channels, and norms let
most of a channel through the ReLU after them: all networks begin with one code of channels, that of their stems.
"""

from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]

_IDENTITY = 2.0
"""Of the decoded value of each channel on itself; others start at about 0.1 without, 0.05 with the factor below."""

_RANDOM = 0.5
"""Factor on the random part of the decoder's last layer."""

_BIAS = 0.6
"""Of norms, in units of a channel's standard deviation: 3/4 of a normal channel pass a ReLU, not a half."""

_THIN = 4
"""Input channels that stems and depthwise kernels read, and which therefore stay random."""


def near_identity(params: Params) -> Params:
    """Weights of a fresh GHN, from `ghn_jax.models.ghn.init_params`, with this start.

    Only the last layers of the decoders of kernels and of vectors differ. Not in the papers. Raises ValueError for a
    low-rank decoder, whose products are far from the identity.
    """
    decoder = dict(params["decoder"])
    if "decoder.conv.2.bias" not in decoder:
        raise ValueError(
            "`start` (='near_identity') needs a decoder of full rank: use another preset, or --recipe=ghn3"
        )
    bias = decoder["decoder.conv.2.bias"]  # (in, out)
    identity = jnp.eye(len(bias)).at[:_THIN].set(0.0)
    decoder["decoder.conv.2.bias"] = _RANDOM * bias + _IDENTITY * identity
    decoder["decoder.conv.2.weight"] = _RANDOM * decoder["decoder.conv.2.weight"]
    vectors = decoder[
        "decoder_1d.fc.2.bias"
    ]  # a weight-like vector, then a bias-like one, which is tanh(0.2 x)
    shift = jnp.arctanh(_BIAS) / 0.2
    decoder["decoder_1d.fc.2.bias"] = vectors.at[len(vectors) // 2 :].add(shift)
    return jax.tree.map(jnp.asarray, params | {"decoder": decoder})
