"""Meta-trains the public PyTorch code; `benchmarks.meta_training` runs it where PyTorch is installed.

Standard input: {"public": checkout, "meta_batches": [[arguments of a network, ...], ...], "networks": [arguments of a
network, ...], "folder": path, "seed": number}. The folder holds images.npy [step, image, 3, 32, 32] and labels.npy of
the training batches, test_images.npy [image, 3, 32, 32] and test_labels.npy. Progress goes to standard error; the last
line of standard output: seconds of training, loss of each step, and accuracy of each network in percent, as JSON.
"""

import json
import sys
import time

import numpy as np
import torch
from ppuda_modules import expose, ghn2, network

job = json.load(sys.stdin)
expose(job["public"])

from ppuda.deepnets1m.graph import Graph, GraphBatch  # noqa: E402

_BATCH = 64


def load(name: str) -> np.ndarray:
    return np.load(f"{job['folder']}/{name}.npy", mmap_mode="r")


def graph_batch(architectures: list[dict]) -> GraphBatch:
    graphs = [Graph(network(arguments, light=False), ve_cutoff=50) for arguments in architectures]
    return GraphBatch(graphs).to_device("cpu")


def train(ghn: torch.nn.Module) -> tuple[float, list[float]]:
    """Takes one step for each meta-batch; returns seconds, without those of building graphs, and losses."""
    optimizer = torch.optim.Adam(ghn.parameters(), 1e-3, weight_decay=1e-5)
    batches, labels = load("images"), load("labels")
    seconds, losses = 0.0, []
    for step, architectures in enumerate(job["meta_batches"]):
        graphs = graph_batch(architectures)  # read from a file by the public script, hence not counted
        start = time.perf_counter()
        optimizer.zero_grad()
        x, y = torch.tensor(batches[step]), torch.tensor(labels[step], dtype=torch.long)
        models = ghn([network(arguments, light=True) for arguments in architectures], graphs)
        loss = sum(torch.nn.functional.cross_entropy(model(x)[0], y) for model in models) / len(models)
        if torch.isfinite(loss):
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ghn.parameters(), 5)
            optimizer.step()
        losses.append(loss.item())
        seconds += time.perf_counter() - start
        if (step + 1) % 10 == 0:
            print(
                f"public: step {step + 1}/{len(job['meta_batches'])}, loss {losses[-1]:.3f}, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return seconds, losses


def accuracy(ghn: torch.nn.Module, arguments: dict) -> float:
    """In percent, with batch norm by the statistics of each batch, the last ones overlapping if they must."""
    model, graphs = network(arguments, light=False).eval(), graph_batch([arguments])
    images, labels = load("test_images"), load("test_labels")
    hits = 0
    with torch.no_grad():
        ghn(model, graphs)  # sets batch norm to the statistics of the batch
        for start in range(0, len(labels), _BATCH):
            first = min(start, len(labels) - _BATCH)
            logits = model(torch.tensor(images[first : first + _BATCH]))[0]
            right = logits.argmax(-1).numpy() == labels[first : first + _BATCH]
            hits += int(right[start - first :].sum())
    return 100 * hits / len(labels)


torch.manual_seed(job["seed"])
ghn = ghn2()
seconds, losses = train(ghn.train())
ghn.eval()
print(json.dumps({"seconds": seconds, "losses": losses, "top1": [accuracy(ghn, a) for a in job["networks"]]}))
