"""Loads a file of GHN-3 and predicts models of torchvision with the public PyTorch code; `benchmarks.published_files`
runs it where PyTorch is installed.

Standard input: {"ghn3": checkout of github.com/SamsungSAILMontreal/ghn3, "public": checkout of
github.com/facebookresearch/ppuda, "path": file, "models": names}. Prints the same lines as that benchmark. Models are
built before the clock starts.
"""

import json
import sys
import time
import types
from unittest import mock

import torch
import torchvision
from ppuda_modules import expose

job = json.load(sys.stdin)
VisionTransformer = torchvision.models.vision_transformer.VisionTransformer
expose(job["public"])
torchvision.models.vision_transformer.VisionTransformer = VisionTransformer  # which expose takes for a mock's
package = types.ModuleType("ghn3")
package.__path__ = [f"{job['ghn3']}/ghn3"]
sys.modules["ghn3"] = package  # its own imports everything that training takes
for name in ("transformers", "psutil"):
    sys.modules.setdefault(name, mock.MagicMock())
sys.modules["transformers"].pytorch_utils.Conv1D = type("Unused", (), {})

from ghn3.graph import Graph  # noqa: E402
from ghn3.nn import GHN3  # noqa: E402

start = time.perf_counter()
saved = torch.load(job["path"], map_location="cpu", weights_only=False)
ghn = GHN3(**{"is_ghn2": False} | saved["config"])
ghn.load_state_dict(saved["state_dict"])
ghn.eval()
print(f"public load: {time.perf_counter() - start:.1f} s")
for name in job["models"]:
    for which in ("first", "again"):
        model = getattr(torchvision.models, name)()
        start = time.perf_counter()
        graph = Graph(model, ve_cutoff=50)
        traced = time.perf_counter()
        with torch.no_grad():
            ghn(model, graph)
        end = time.perf_counter()
        print(
            f"public {name}, {which}: {end - start:.2f} s (graph {traced - start:.2f}, prediction {end - traced:.2f})",
            flush=True,
        )
