"""Times networks of the public PyTorch code; `benchmarks.executor` runs it where PyTorch is installed.

Standard input: {"public": checkout, "networks": [arguments of a network, ...], "batch_size": images, "runs": times}.
The last line of standard output: for each network the seconds of its fastest forward and backward pass, as JSON.
"""

import json
import sys
import time

import torch
from ppuda_modules import expose, network

job = json.load(sys.stdin)
expose(job["public"])
images = torch.randn(job["batch_size"], 3, 32, 32)
labels = torch.randint(0, 10, (job["batch_size"],))


def seconds(model: torch.nn.Module) -> float:
    start = time.perf_counter()
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(images)[0], labels).backward()
    return time.perf_counter() - start


fastest = []
for arguments in job["networks"]:
    torch.manual_seed(0)
    model = network(arguments, light=False).train()
    fastest.append(min(seconds(model) for _ in range(job["runs"] + 1)))
print(json.dumps(fastest))
