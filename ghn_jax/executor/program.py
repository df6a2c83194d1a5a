"""A network lowered to data: its graph, its parameters and the blocks that compute it.

One symbolic walk makes all three (`Builder`), so that they cannot disagree: each method adds an operation to the
graph, to the parameters and to the program at once, and returns a handle on its output.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ghn_jax.executor import blocks
from ghn_jax.executor.blocks import Block
from ghn_jax.executor.layouts import ROW, Axis, Layout, Parameter
from ghn_jax.graphs import PRIMITIVES, Graph, Shape

IMAGE = 0
"""The register that holds the images."""

_PRIMITIVE = {name: index for index, name in enumerate(PRIMITIVES)}
_POOL_SHAPE = (1, 1, 3, 3)

_WRITE = 30
"""Multiply-adds that take as long as writing a number and reading it again, forward and backward, on a CPU."""


class Instruction(NamedTuple):
    """Runs a block on registers; its weights start at `offset` of the flat vector."""

    block: Block
    inputs: tuple[int, ...]
    output: int
    offset: int


class Lowered(NamedTuple):
    """A network as data.

    Attributes:
      graph: its computational graph.
      parameters: its tensors; what no path joins to the output has none.
      program: its instructions, in order; the last one makes the logits.
      capacity: number of parameters of the whole network, unreachable ones included, as the published
        generator counts them.
      work: how long the program takes, about, in multiply-adds for one image.
    """

    graph: Graph
    parameters: tuple[Parameter, ...]
    program: tuple[Instruction, ...]
    capacity: int
    work: int

    @property
    def num_parameters(self) -> int:
        """Number of (reachable) parameters."""
        return sum(math.prod(p.shape) for p in self.parameters)

    @property
    def used_size(self) -> int:
        """Places of the flat vector up to the end of the last parameter."""
        last = self.parameters[-1]
        return last.offset + last.layout.size

    @property
    def flat_size(self) -> int:
        """Least length of the flat vector: the executor cuts pieces that are a little too long."""
        return max(i.offset + blocks.piece_size(i.block) for i in self.program)


class Value(NamedTuple):
    """A symbolic feature map.

    Attributes:
      register: where the program keeps it.
      sources: graph nodes it comes from; an operation that is no node hands its sources on.
      channels: its channel axis.
      size: height and width; 1 for a vector.
      live: False for what only `none` operations lead to, a map of zeros.
    """

    register: int
    sources: tuple[int, ...]
    channels: Axis
    size: int
    live: bool = True


class _Step(NamedTuple):
    block: Block
    inputs: tuple[int, ...]
    weights: tuple["_Weight", ...]
    pixels: int
    channels: int

    @property
    def work(self) -> int:
        return self.pixels * (blocks.num_weights(self.block) + _WRITE * self.channels)


class _Node(NamedTuple):
    primitive: int
    name: str | None
    shape: Shape | None
    predecessors: tuple[int, ...]


class _Weight(NamedTuple):
    name: str
    shape: Shape
    node: int
    layout: Layout


class Builder:
    """Builds a network operation by operation, then drops what does not reach the logits."""

    def __init__(self, image_size: int):
        self._nodes = [_Node(_PRIMITIVE["input"], None, None, ())]
        self._steps: list[_Step] = []
        self.image = Value(IMAGE, (0,), Axis(1, 3, 3), image_size)

    # -- operations, in terms of the public layer names ------------------------------------------------------

    def conv(
        self,
        x: Value,
        out: Axis,
        name: str,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | None = None,
        relu: bool = True,
    ) -> Value:
        """[ReLU,] dense convolution without bias; padding defaults to half the kernel."""
        padding = (kernel[0] // 2, kernel[1] // 2) if padding is None else padding
        shape = (out.size, x.channels.size, *kernel)
        node = self._node("conv", x.sources, f"{name}.weight", shape)
        block = blocks.Convolution(
            kernel, x.channels.padded_size, out.padded_size, stride, padding, relu, x.register == IMAGE
        )
        weight = _Weight(f"{name}.weight", shape, node, Layout(kernel, x.channels, out))
        size = (x.size + 2 * padding[0] - kernel[0]) // stride[0] + 1
        if stride[0] != stride[1]:  # half of a factorised k x k pair; both together have one stride
            size = x.size
        return self._emit(block, (x,), (weight,), (node,), out, size)

    def separable_conv(
        self, x: Value, out: Axis, names: tuple[str, str], kernel: int, dilation: int, stride: int
    ):
        """ReLU, depthwise convolution, 1x1 convolution."""
        depthwise, pointwise = (f"{name}.weight" for name in names)
        primitive = "dil_conv" if dilation > 1 else "sep_conv"
        shape1, shape2 = (x.channels.size, 1, kernel, kernel), (out.size, x.channels.size, 1, 1)
        node1 = self._node(primitive, x.sources, depthwise, shape1)
        node2 = self._node("conv", (node1,), pointwise, shape2)
        size = -(-x.size // stride)
        block = blocks.DepthwiseConvolution(kernel, dilation, stride, x.channels.padded_size)
        weight = _Weight(depthwise, shape1, node1, Layout((kernel, kernel), None, x.channels))
        y = self._emit(block, (x,), (weight,), (node1,), x.channels, size)
        block = blocks.Convolution((1, 1), x.channels.padded_size, out.padded_size, relu=False)
        weight = _Weight(pointwise, shape2, node2, Layout((1, 1), x.channels, out))
        return self._emit(block, (y,), (weight,), (node2,), out, size)

    def factorized_reduction(self, x: Value, out: Axis, name: str) -> Value:
        """Halves the resolution by two 1x1 convolutions side by side."""
        half = Axis(1, out.width, out.padded)
        assert out.count == 2, out
        shape = (half.size, x.channels.size, 1, 1)
        names = [f"{name}.conv_{i}.weight" for i in (1, 2)]
        nodes = tuple(self._node("conv", x.sources, n, shape) for n in names)
        layout = Layout((1, 1), x.channels, half)
        weights = tuple(_Weight(n, shape, node, layout) for n, node in zip(names, nodes, strict=True))
        block = blocks.FactorizedReduction(x.channels.padded_size, half.padded_size)
        return self._emit(block, (x,), weights, self._join("concat", nodes), out, x.size // 2)

    def batch_norm(self, x: Value, name: str) -> Value:
        """Batch norm."""
        node, weights = self._norm("bn", x.sources, x.channels, name)
        return self._emit(
            blocks.BatchNorm(x.channels.padded_size), (x,), weights, (node,), x.channels, x.size
        )

    def attention(self, x: Value, name: str) -> Value:
        """A transformer block: ln1, qkv, msa, output, sum, ln2, MLP, sum."""
        channels = Axis(1, x.channels.size, x.channels.size)
        triple = Axis(1, 3 * channels.size, 3 * channels.size)
        ln1, norm1 = self._norm("ln", x.sources, channels, f"{name}.ln1")
        qkv, w_qkv = self._linear((ln1,), channels, triple, f"{name}.to_qkv", bias=False)
        msa = self._node("msa", (qkv,))
        out, w_out = self._linear((msa,), channels, channels, f"{name}.to_out.0")
        residual = self._join("sum", (*x.sources, out))
        ln2, norm2 = self._norm("ln", residual, channels, f"{name}.ln2")
        hidden, w_hidden = self._linear((ln2,), channels, channels, f"{name}.ff.net.0")
        last, w_last = self._linear((hidden,), channels, channels, f"{name}.ff.net.3")
        sources = self._join("sum", (*residual, last))
        sizes = x.channels.size, x.channels.padded_size
        attended = (*norm1, *w_qkv, *w_out)
        x = self._emit(blocks.Attention(*sizes), (x,), attended, residual, x.channels, x.size)
        transformed = (*norm2, *w_hidden, *w_last)
        return self._emit(blocks.TokenMLP(*sizes), (x,), transformed, sources, x.channels, x.size)

    def squeeze_excite(self, x: Value, hidden: Axis, name: str, stride: int) -> Value:
        """A channel gate."""
        fc1, w1 = self._linear(x.sources, x.channels, hidden, f"{name}.fc1")
        fc2, w2 = self._linear((fc1,), hidden, x.channels, f"{name}.fc2")
        node = self._node("cse", (*x.sources, fc2))
        block = blocks.SqueezeExcite(x.channels.padded_size, hidden.padded_size, stride)
        return self._emit(block, (x,), (*w1, *w2), (node,), x.channels, -(-x.size // stride))

    def positional_encoding(self, x: Value, name: str) -> Value:
        """Adds a learned map."""
        shape = (1, x.channels.size, x.size, x.size)
        node = self._node("pos_enc", (), f"{name}.weight", shape)
        weight = _Weight(f"{name}.weight", shape, node, Layout((x.size, x.size), None, x.channels))
        sources = self._join("sum", (*x.sources, node))
        block = blocks.PositionalEncoding(x.size, x.channels.padded_size)
        return self._emit(block, (x,), (weight,), sources, x.channels, x.size)

    def linear(self, x: Value, out: Axis, name: str, relu: bool = False, classes: int | None = None) -> Value:
        """[ReLU,] a linear layer with bias, on the flattened map if `x` is one."""
        node, weights = self._linear(x.sources, x.channels, out, name, size=x.size)
        inputs = x.channels.padded_size * x.size**2
        block = blocks.Linear(inputs, out.padded_size, relu, classes)
        return self._emit(block, (x,), weights, (node,), out, 1)

    def pool(self, x: Value, kind: str, stride: int) -> Value:
        """3x3 max or average pooling."""
        node = self._node(f"{kind}_pool", x.sources, None, _POOL_SHAPE)
        block = blocks.Pool("max" if kind == "max" else "avg", stride)
        return self._emit(block, (x,), (), (node,), x.channels, -(-x.size // stride))

    def global_average(self, x: Value) -> Value:
        """The mean over the map."""
        node = self._node("glob_avg", x.sources)
        return self._emit(blocks.GlobalAverage(), (x,), (), (node,), x.channels, 1)

    def subsample(self, x: Value) -> Value:
        """Keeps every other pixel; no node."""
        return self._emit(blocks.Subsample(), (x,), (), x.sources, x.channels, -(-x.size // 2))

    def relu(self, x: Value) -> Value:
        """ReLU; no node."""
        return self._emit(blocks.ReLU(), (x,), (), x.sources, x.channels, x.size)

    def dropout(self, x: Value) -> Value:
        """Dropout with rate 0.5, in training; no node."""
        return self._emit(blocks.Dropout(), (x,), (), x.sources, x.channels, x.size)

    def nothing(self, channels: Axis, size: int) -> Value:
        """The output of a `none` operation."""
        return Value(IMAGE, (), channels, size, live=False)

    def add(self, x: Value, y: Value) -> Value:
        """The sum of two maps."""
        if not (x.live and y.live):
            return x if x.live else y
        sources = self._join("sum", (*x.sources, *y.sources))
        return self._emit(blocks.Add(), (x, y), (), sources, x.channels, x.size)

    def concatenate(self, maps: Sequence[Value]) -> Value:
        """Maps side by side."""
        first, live = maps[0], tuple(x for x in maps if x.live)
        if len(maps) == 1:
            return first
        channels = first.channels._replace(count=first.channels.count * len(maps))
        if not live:
            return self.nothing(channels, first.size)
        sources = self._join("concat", tuple(source for x in live for source in x.sources))
        block = blocks.Concatenate(tuple(not x.live for x in maps))
        return self._emit(block, live, (), sources, channels, first.size)

    # -- the graph and the program ---------------------------------------------------------------------------

    def _node(
        self,
        primitive: str,
        predecessors: tuple[int, ...],
        name: str | None = None,
        shape: Shape | None = None,
    ) -> int:
        self._nodes.append(_Node(_PRIMITIVE[primitive], name, shape, predecessors))
        return len(self._nodes) - 1

    def _join(self, primitive: str, predecessors: tuple[int, ...]) -> tuple[int, ...]:
        """A sum or concat node; none if there is only one distinct predecessor."""
        distinct = tuple(dict.fromkeys(predecessors))
        return distinct if len(distinct) == 1 else (self._node(primitive, distinct),)

    def _norm(self, primitive: str, sources: tuple[int, ...], channels: Axis, name: str):
        """A norm layer is one node, which owns two tensors."""
        shape = (channels.size,)
        node = self._node(primitive, sources, f"{name}.weight", shape)
        layout = Layout((1, 1), None, channels)
        weight = _Weight(f"{name}.weight", shape, node, layout)
        return node, (weight, _Weight(f"{name}.bias", shape, node, layout))

    def _linear(
        self, sources: tuple[int, ...], inputs: Axis, out: Axis, name: str, bias: bool = True, size: int = 1
    ):
        shape = (out.size, inputs.size * size**2)
        node = self._node("conv", sources, f"{name}.weight", shape)
        weights = [_Weight(f"{name}.weight", shape, node, Layout((size, size), inputs, out, flattened=True))]
        if bias:
            node = self._node("bias", (node,), f"{name}.bias", (out.size,))
            weights.append(_Weight(f"{name}.bias", (out.size,), node, Layout((1, 1), None, out)))
        return node, tuple(weights)

    def _emit(
        self,
        block: Block,
        inputs: tuple[Value, ...],
        weights: tuple[_Weight, ...],
        sources: tuple[int, ...],
        channels: Axis,
        size: int,
    ) -> Value:
        live = True
        for x in inputs:
            live = live and x.live
        registers = tuple([x.register for x in inputs])
        self._steps.append(_Step(block, registers, weights, size**2, channels.padded_size))
        return Value(len(self._steps), sources, channels, size, live)

    @property
    def capacity(self) -> int:
        """Number of parameters so far."""
        return sum(math.prod(weight.shape) for step in self._steps for weight in step.weights)

    def finish(self, logits: Value) -> Lowered:
        """Keeps what the logits depend on. The step number i (from 1) writes register i."""
        registers, nodes = {logits.register}, {0, *logits.sources}
        for register in range(len(self._steps), 0, -1):
            if register in registers:
                registers.update(self._steps[register - 1].inputs)
        for node in range(len(self._nodes) - 1, -1, -1):
            if node in nodes:
                nodes.update(self._nodes[node].predecessors)
        new_node = {old: new for new, old in enumerate(sorted(nodes))}

        program, parameters, offset, work = [], [], 0, 0
        for register in sorted(registers - {IMAGE}):
            step = self._steps[register - 1]
            work += step.work
            program.append(Instruction(step.block, step.inputs, register, offset))
            for name, shape, node, layout in step.weights:
                parameters.append(Parameter(name, shape, new_node[node], layout, offset))
                offset += layout.size
                assert offset % ROW == 0, (name, layout)
        kept = [self._nodes[old] for old in new_node]
        edges = [(new_node[p], new) for new, node in enumerate(kept) for p in node.predecessors]
        senders, receivers = np.array(edges, np.int32).T
        graph = Graph(
            np.array([node.primitive for node in kept], np.int32),
            tuple(node.name for node in kept),
            tuple(node.shape for node in kept),
            senders,
            receivers,
        )
        return Lowered(graph, tuple(parameters), tuple(program), self.capacity, work)
