"""Makes a copy of the public code importable without what its packages import and the drivers here never use."""

import sys
import types
from unittest import mock


def expose(checkout: str) -> None:
    """Lets `import ppuda...` find the modules of this checkout of github.com/facebookresearch/ppuda."""
    sys.path.insert(0, checkout)
    for name in ("ppuda", "ppuda.ghn", "ppuda.deepnets1m", "ppuda.utils"):
        package = types.ModuleType(name)
        package.__path__ = [f"{checkout}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    for name in ("torchvision", "matplotlib", "matplotlib.pyplot", "matplotlib.cm"):
        sys.modules.setdefault(name, mock.MagicMock())
    sys.modules["torchvision"].models.vision_transformer.VisionTransformer = type("Unused", (), {})
    utils = sys.modules["ppuda.utils"]
    utils.drop_path = None
    utils.default_device = lambda: "cpu"
    utils.capacity = lambda model, is_grad=True: (0, sum(p.numel() for p in model.parameters()))


def network(arguments: dict, light: bool):
    """The public module of an architecture, given as `Architecture.to_dict` writes it."""
    from ppuda.deepnets1m import genotypes
    from ppuda.deepnets1m.net import Network

    arguments = arguments | {"genotype": genotypes.from_dict(arguments["genotype"])}
    return Network(is_imagenet_input=False, num_classes=10, light=light, **arguments)


def ghn2():
    """The public GHN-2 for CIFAR-10, with fresh weights."""
    from ppuda.ghn.nn import GHN

    return GHN(
        max_shape=(64, 64, 11, 11),
        num_classes=10,
        hypernet="gatedgnn",
        decoder="conv",
        weight_norm=True,
        ve=True,
        layernorm=True,
        hid=32,
        debug_level=0,
    )
