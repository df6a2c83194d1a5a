"""Which models of Keras are tried: those that come with it, and of three packages."""

import importlib
from collections.abc import Iterator
from typing import Any

from benchmarks.zoo.adapters import Entry, keras_function

_KERAS = (
    "ConvNeXtTiny DenseNet121 DenseNet169 EfficientNetB0 EfficientNetB1 EfficientNetV2B0 EfficientNetV2B1 "
    "EfficientNetV2S InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 MobileNetV3Large MobileNetV3Small "
    "NASNetMobile ResNet50 ResNet50V2 ResNet101 VGG16 Xception"
)

_KIMM = (
    "ConvMixer736D32 ConvMixer1024D20 ConvNeXtAtto ConvNeXtPico ConvNeXtTiny DenseNet121 EfficientNetB0 "
    "EfficientNetLiteB0 EfficientNetV2B0 EfficientNetV2S TinyNetA TinyNetE GhostNetW050 GhostNetW100 GhostNetV2W100 "
    "GhostNetV3W050 GhostNetV3W100 HGNetTiny HGNetV2B0 HGNetV2B1 InceptionNeXtTiny InceptionV3 MobileNetV2W050 "
    "MobileNetV2W100 LCNet035 LCNet100 MobileNetV3W050Small MobileNetV3W100LargeMinimal MobileNetV3W100SmallMinimal "
    "MobileOneS0 MobileOneS1 MobileViTXXS MobileViTS MobileViTV2W050 MobileViTV2W100 RegNetX002 RegNetX008 RegNetY002 "
    "RegNetY008 RepVGGA0 RepVGGB0 ResNet18 ResNet50 VGG11 VisionTransformerTiny16 VisionTransformerTiny32 Xception"
)

_ZEROMODELS = (
    "beit cait convmixer convnext convnextv2 deit densenet efficientformer efficientnet efficientnet_lite "
    "efficientnetv2 flexivit inception_next inception_resnetv2 inceptionv3 inceptionv4 levit maxvit mit mlp_mixer "
    "mobilenetv2 mobilenetv3 mobilenetv4 mobilevit mobilevitv2 nextvit pit poolformer pvt pvt_v2 regnet res2net resmlp "
    "resnet resnetv2 resnext senet swin swinv2 vgg vit xception"
)

_KERAS_HUB: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet18": (
        "ResNet",
        {
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 128, 256, 512],
            "stackwise_num_blocks": [2, 2, 2, 2],
            "stackwise_num_strides": [1, 2, 2, 2],
            "block_type": "basic_block",
        },
    ),
    "ResNetVD50": (
        "ResNet",
        {
            "input_conv_filters": [32, 32, 64],
            "input_conv_kernel_sizes": [3, 3, 3],
            "stackwise_num_filters": [64, 128, 256, 512],
            "stackwise_num_blocks": [3, 4, 6, 3],
            "stackwise_num_strides": [1, 2, 2, 2],
            "block_type": "bottleneck_block_vd",
        },
    ),
    "ResNetV2-50": (
        "ResNet",
        {
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 128, 256, 512],
            "stackwise_num_blocks": [3, 4, 6, 3],
            "stackwise_num_strides": [1, 2, 2, 2],
            "block_type": "bottleneck_block",
            "use_pre_activation": True,
        },
    ),
    "VGG11": (
        "VGG",
        {
            "stackwise_num_repeats": [1, 1, 2, 2, 2],
            "stackwise_num_filters": [64, 128, 256, 512, 512],
            "image_shape": (224, 224, 3),
        },
    ),
    "DenseNet121": ("DenseNet", {"stackwise_num_repeats": [6, 12, 24, 16]}),
    "MiT-B0": (
        "MiT",
        {
            "layerwise_depths": [2, 2, 2, 2],
            "num_layers": 4,
            "layerwise_num_heads": [1, 2, 5, 8],
            "layerwise_sr_ratios": [8, 4, 2, 1],
            "max_drop_path_rate": 0.1,
            "layerwise_patch_sizes": [7, 3, 3, 3],
            "layerwise_strides": [4, 2, 2, 2],
            "hidden_dims": [32, 64, 160, 256],
            "image_shape": (224, 224, 3),
        },
    ),
    "ViT-Ti/16": (
        "ViT",
        {
            "image_shape": (224, 224, 3),
            "patch_size": 16,
            "num_layers": 12,
            "num_heads": 3,
            "hidden_dim": 192,
            "mlp_dim": 768,
        },
    ),
    "DeiT-Ti": (
        "DeiT",
        {
            "image_shape": (224, 224, 3),
            "patch_size": 16,
            "num_layers": 12,
            "num_heads": 3,
            "hidden_dim": 192,
            "intermediate_dim": 768,
        },
    ),
    "CSPDarkNet": (
        "CSPNet",
        {
            "stem_filters": 32,
            "stem_kernel_size": 3,
            "stem_strides": 1,
            "stackwise_depth": [1, 2, 4, 4],
            "stackwise_strides": 2,
            "stackwise_num_filters": [64, 128, 256, 512],
            "block_type": "dark_block",
            "stage_type": "dark",
        },
    ),
    "Swin-T": (
        "SwinTransformer",
        {
            "image_shape": (224, 224, 3),
            "embed_dim": 96,
            "depths": [2, 2, 6, 2],
            "num_heads": [3, 6, 12, 24],
            "window_size": 7,
        },
    ),
}


def applications() -> Iterator[Entry]:
    """keras.applications."""
    for name in _KERAS.split():

        def make(name: str = name) -> Any:
            import keras

            build = getattr(keras.applications, name)
            return keras_function(lambda: build(weights=None, classifier_activation=None))

        side = 299 if name.startswith(("Inception", "Xception")) else 224
        yield Entry("keras.applications", name, make, _image(side))


def kimm() -> Iterator[Entry]:
    """kimm."""
    for name in _KIMM.split():

        def make(name: str = name) -> Any:
            import kimm

            build = getattr(kimm.models, name)
            return keras_function(lambda: build(weights=None, classifier_activation="linear"))

        yield Entry("kimm (Keras)", name, make, _image(_KIMM_SIDES.get(name, 224)))


_KIMM_SIDES = {
    "InceptionV3": 299,
    "MobileViTXXS": 256,
    "MobileViTS": 256,
    "MobileViTV2W050": 256,
    "MobileViTV2W100": 256,
    "VisionTransformerTiny16": 384,
    "VisionTransformerTiny32": 384,
    "Xception": 299,
}
"""Sizes of images of models that are not for 224 pixels."""


def zeromodels() -> Iterator[Entry]:
    """zeromodels, one of each family."""
    for family in _ZEROMODELS.split():

        def make(family: str = family) -> Any:
            module = importlib.import_module(f"zeromodels.models.{family}")
            (name,) = (name for name in dir(module) if name.endswith("ImageClassify"))
            return keras_function(lambda: getattr(module, name)(**_ZERO_OPTIONS.get(family, {})))

        yield Entry("zeromodels (Keras)", family, make, _image(_ZERO_SIDES.get(family, 224)))


_ZERO_SIDES = {
    "flexivit": 240,
    "inceptionv3": 299,
    "inceptionv4": 299,
    "inception_resnetv2": 299,
    "mobilevit": 256,
    "mobilevitv2": 256,
    "swinv2": 256,
}

_ZERO_OPTIONS: dict[str, dict[str, Any]] = {
    "efficientformer": {"depths": (3, 2, 6, 4), "embed_dim": (48, 96, 224, 448)},
    "vgg": {"num_filters": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]},
}
"""Arguments without a default."""


def keras_hub() -> Iterator[Entry]:
    """keras-hub: backbones of these options, and a classifier on each."""
    for name, (family, options) in _KERAS_HUB.items():

        def make(family: str = family, options: dict[str, Any] = options) -> Any:
            import keras_hub

            backbone = getattr(keras_hub.models, f"{family}Backbone")
            classifier = getattr(keras_hub.models, f"{family}ImageClassifier")
            return keras_function(lambda: classifier(backbone(**options), 1000, preprocessor=None))

        yield Entry("keras-hub", name, make)


def _image(side: int) -> tuple[int, int, int]:
    return side, side, 3
