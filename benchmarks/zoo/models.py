"""Which models are tried: of each family that a package has one or a few, the small ones."""

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.zoo import keras_models
from benchmarks.zoo.adapters import (
    Entry,
    equinox_function,
    haiku_function,
    nothing_drawn,
    torch_function,
)

CHANNELS_FIRST = (3, 224, 224)


def entries() -> Iterator[Entry]:
    """The models of the packages that are installed."""
    for package, models in _ZOO.items():
        if importlib.util.find_spec(package):
            yield from models()


# -- Flax -----------------------------------------------------------------------------------------------------------


def _flaxmodels() -> Iterator[Entry]:
    for name in ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "VGG16", "VGG19"):

        def make(name: str = name) -> Any:
            import flaxmodels

            extra = {} if name.startswith("VGG") else {"normalize": False}
            return getattr(flaxmodels, name)(output="logits", pretrained=None, **extra)

        yield Entry("flaxmodels (Linen)", name, make)


def _jax_resnet() -> Iterator[Entry]:
    for name in (
        "ResNet18",
        "ResNet34",
        "ResNet50",
        "ResNet101",
        "WideResNet50",
        "ResNeXt50",
        "ResNetD18",
        "ResNetD34",
        "ResNetD50",
        "ResNeSt50Fast",
        "ResNeSt50",
    ):

        def make(name: str = name) -> Any:
            import jax_resnet

            return getattr(jax_resnet, name)(n_classes=1000)

        yield Entry("jax-resnet (Linen)", name, make)


def _jaxnn() -> Iterator[Entry]:
    for name in (
        "resnet18",
        "resnet18d",
        "resnet26t",
        "resnet34",
        "resnet50",
        "resnet50d",
        "resnext50_32x4d",
        "seresnet50",
        "ecaresnet26t",
        "vit_tiny_patch16_224",
        "vit_small_patch16_224",
    ):

        def make(name: str = name) -> Any:
            import jaxnn
            from flax import nnx

            with nothing_drawn():
                return jaxnn.create_model(name, rngs=nnx.Rngs(0))

        yield Entry("jaxnn (NNX)", name, make)


# -- Haiku and Equinox ----------------------------------------------------------------------------------------------


def _haiku() -> Iterator[Entry]:
    for name in ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "MobileNetV1"):

        def make(name: str = name) -> Any:
            import haiku as hk

            def forward(x: Any, is_training: bool) -> Any:
                return getattr(hk.nets, name)(num_classes=1000)(x, is_training)

            return haiku_function(forward, Entry("", "", make).images)

        yield Entry("dm-haiku", name, make)


_EQUIMO = {
    "attnet": "attnet_xxs attnet_t1",
    "convnext": "convnext_t convnext_s",
    "iformer": "iformer_t iformer_s iformer_m_faster",
    "lowformer": "lowformer_backbone_b0 lowformer_backbone_b1",
    "mobilenet": "mobilenetv3_small mobilenetv3_large",
    "reduceformer": "reduceformer_backbone_b1 reduceformer_backbone_b2",
    "vit": "vit_tiny_patch16_224 vit_small_patch32_224 dinov2_vits14_reg dinov3_vits16_pretrain_lvd1689m "
    "siglip2_vitb32_256",
    "mlla": "Mlla",
    "vssd": "Vssd",
}

_EQUIMO_SIDES = {
    "lowformer_backbone_b0": 256,
    "lowformer_backbone_b1": 256,
    "dinov2_vits14_reg": 518,
    "siglip2_vitb32_256": 256,
}
"""Sizes of images of models that are not for 224 pixels."""


def _equimo() -> Iterator[Entry]:
    for module, names in _EQUIMO.items():
        for name in names.split():

            def make(module: str = module, name: str = name) -> Any:
                model = getattr(importlib.import_module(f"equimo.models.{module}"), name)
                extra = {"img_size": 224, "in_channels": 3} if inspect.isclass(model) else {}
                extra |= {"attention_type": "softmax"} if module == "lowformer" else {}  # has no default
                with nothing_drawn():
                    made = model(num_classes=1000, key=jax.random.key(0), **extra)
                return equinox_function(made)

            side = _EQUIMO_SIDES.get(name, 224)
            yield Entry("equimo (Equinox)", name, make, (3, side, side))


def _jaxonmodels() -> Iterator[Entry]:
    names = {
        "resnet": "_resnet18 _resnet34 _resnet50 _resnext50_32x4d _wide_resnet50_2",
        "efficientnet": "_efficientnet_b0 _efficientnet_b1 _efficientnet_v2_s",
        "convnext": "_convnext_tiny _convnext_small",
        "swin_transformer": "_swin_t _swin_v2_t",
    }
    for module, models in names.items():
        for name in models.split():

            def make(module: str = module, name: str = name) -> Any:
                build = getattr(importlib.import_module(f"jaxonmodels.models.{module}"), name)
                known = inspect.signature(build).parameters
                extra = {"inference": True} if "inference" in known else {}
                with nothing_drawn():
                    made = build(jax.random.key(0), **extra)
                return equinox_function(*made)

            yield Entry("jaxonmodels (Equinox)", name.removeprefix("_"), make, CHANNELS_FIRST)


# -- PyTorch --------------------------------------------------------------------------------------------------------

_TIMM = (
    "resnet18 resnet50 resnet18d resnext50_32x4d seresnet50 resnest14d ecaresnet26t skresnet18 res2net50_26w_4s "
    "gernet_s regnetx_002 regnety_002 repvgg_a0 densenet121 dla34 hrnet_w18_small darknet53 cspresnet50 vovnet39a "
    "ese_vovnet19b_dw dpn48b xception41 inception_v3 inception_v4 vgg11_bn mobilenetv2_100 mobilenetv3_small_100 "
    "mobilenetv4_conv_small mnasnet_small efficientnet_b0 tf_efficientnetv2_b0 ghostnet_100 lcnet_050 tinynet_e "
    "rexnet_100 hardcorenas_a mobileone_s0 fastvit_t8 convnext_atto convnextv2_atto convmixer_768_32 nf_resnet50 "
    "resnetv2_50 vit_tiny_patch16_224 deit_tiny_patch16_224 cait_xxs24_224 beit_base_patch16_224 mixer_s32_224 "
    "gmlp_s16_224 resmlp_12_224 poolformer_s12 swin_tiny_patch4_window7_224 pvt_v2_b0 levit_128s mobilevit_xxs "
    "mobilevitv2_050 edgenext_xx_small efficientformer_l1 coat_tiny visformer_tiny crossvit_tiny_240 "
    "tnt_s_legacy_patch16_224 xcit_nano_12_p16_224 twins_pcpvt_small inception_next_atto"
)


def _timm() -> Iterator[Entry]:
    for name in _TIMM.split():

        def make(name: str = name) -> Any:
            import timm

            return torch_function(timm.create_model(name, num_classes=1000))

        side = 240 if name.endswith("240") else 299 if name.startswith(("inception_v", "xception")) else 224
        yield Entry("timm (torchax)", name, make, (3, side, side))


_ZOO = {
    "flaxmodels": _flaxmodels,
    "jax_resnet": _jax_resnet,
    "jaxnn": _jaxnn,
    "haiku": _haiku,
    "equimo": _equimo,
    "jaxonmodels": _jaxonmodels,
    "keras": keras_models.applications,
    "kimm": keras_models.kimm,
    "zeromodels": keras_models.zeromodels,
    "keras_hub": keras_models.keras_hub,
    "torchax": _timm,
}
"""Models by the package that must be there."""
