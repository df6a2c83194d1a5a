"""Times meta-training steps of the public PyTorch code; `benchmarks.meta_step` runs it where PyTorch is installed.

Standard input: {"public": checkout, "meta_batches": [[arguments of a network, ...], ...], "batch_size": images}.
The last line of standard output: seconds of each step, as JSON. Graphs are built
beforehand, as the public code reads them from a file; networks are built within the step, as it does.
"""

import json
import sys
import time

import torch
from ppuda_modules import expose, ghn2, network

job = json.load(sys.stdin)
expose(job["public"])

from ppuda.deepnets1m.graph import Graph, GraphBatch  # noqa: E402

torch.manual_seed(0)
ghn = ghn2()
ghn.train()
optimizer = torch.optim.Adam(ghn.parameters(), 1e-3, weight_decay=1e-5)
images = torch.randn(job["batch_size"], 3, 32, 32)
labels = torch.randint(0, 10, (job["batch_size"],))
prepared = [[Graph(network(a, light=False), ve_cutoff=50) for a in batch] for batch in job["meta_batches"]]

seconds = []
for batch, graphs in zip(
    [job["meta_batches"][0], *job["meta_batches"]], [prepared[0], *prepared], strict=True
):
    start = time.perf_counter()
    optimizer.zero_grad()
    models = ghn([network(arguments, light=True) for arguments in batch], GraphBatch(graphs).to_device("cpu"))
    loss = sum(torch.nn.functional.cross_entropy(model(images)[0], labels) for model in models) / len(models)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(ghn.parameters(), 5)
    optimizer.step()
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds[1:]))  # the first step warms the process up
