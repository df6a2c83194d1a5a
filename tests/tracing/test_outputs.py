"""Which outputs are logits, and which layers make them."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

import ghn_jax

IMAGES = jnp.zeros((1, 8, 8, 3))


class Outputs(nn.Module):
    """Features and logits, under some names."""

    names: tuple[str, str]
    classes: int = 10

    @nn.compact
    def __call__(self, x):
        features = nn.relu(nn.Conv(64, (3, 3))(x)).mean((1, 2))
        heads = nn.Dense(self.classes, name="head")(features) + nn.Dense(self.classes, name="head_dist")(
            features
        )
        return dict(zip(self.names, (features, heads / 2), strict=True))


def test_logits_are_found_and_every_head_is_a_class_layer():
    for names in (("features", "logits"), ("a", "b"), ("b", "a")):
        _, report = ghn_jax.predict_parameters(Outputs(names), IMAGES, strict=True)
        assert report.output == sorted(names).index(names[1])
    _, report = ghn_jax.predict_parameters(Outputs(("a", "b")), IMAGES, logits="b", strict=True)
    assert report.output == 1
    with pytest.raises(
        ghn_jax.UnsupportedModel, match=r"`logits` \(='c'\) is no output of `model`: choose one of 'a', 'b'"
    ):
        ghn_jax.predict_parameters(Outputs(("a", "b")), IMAGES, logits="c")
    with pytest.raises(ValueError, match=r"last layer \(head\.kernel\) has 1000.*headless=True"):
        ghn_jax.predict_parameters(Outputs(("a", "b"), classes=1000), IMAGES)
    with pytest.warns(UserWarning, match="classification layer"):
        _, report = ghn_jax.predict_parameters(Outputs(("a", "b"), 7), IMAGES, predict_class_layers=False)
    assert {name.partition(".")[0] for name in report.unassigned} == {"head", "head_dist"}


class Backbone(nn.Module):
    """Maps of two sizes."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        return x, nn.Conv(512, (1, 1), name="last")(x)


def test_headless_backbone_is_predicted_whole():
    with pytest.raises(ghn_jax.UnsupportedModel, match="headless=True"):
        ghn_jax.predict_parameters(Backbone(), IMAGES)
    _, report = ghn_jax.predict_parameters(Backbone(), IMAGES, headless=True, strict=True)
    assert report.output is None
