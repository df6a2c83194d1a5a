"""Lowers an architecture to data: one symbolic walk gives its graph, its parameters and its program.

The walk follows the published `Network` module [1, Section 3]; thousands of architectures a second.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021.
[2] He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
"""

from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE, check_image_size, patches, stem_stride
from ghn_jax.executor.layouts import ROW, Axis
from ghn_jax.executor.program import Builder, Lowered, Value

_HIDDEN_PADDED = 512


class UnreachableOutput(ValueError):
    """No path joins the input of an architecture to its logits."""


def lower(arch: Architecture, num_classes: int = 10, image_size: int = CIFAR_SIZE) -> Lowered:
    """Lowers a cell-based architecture for square images of 32, 64, 96, ... pixels; see `image_sizes`.

    Raises UnreachableOutput if `none` operations cut the output off, ValueError for another image size.
    """
    build = Builder(image_size)
    return build.finish(_network(build, arch, num_classes))


def capacity_of(arch: Architecture, num_classes: int = 10, image_size: int = CIFAR_SIZE) -> int:
    """The `capacity` of the lowered architecture, in less time; raises what `lower` raises."""
    build = Builder(image_size)
    _network(build, arch, num_classes)
    return build.capacity


def _network(build: Builder, arch: Architecture, num_classes: int) -> Value:
    check_image_size(build.image.size)
    s0, s1 = _stem(build, arch)
    channels, reduction_prev = arch.C, arch.stem_type == 1
    for index in range(arch.n_cells):
        channels *= arch.C_mult if arch.is_reduction(index) else 1
        s0, s1 = s1, _cell(build, arch, index, channels, s0, s1, reduction_prev)
        reduction_prev = arch.is_reduction(index)
    if not s1.live:
        raise UnreachableOutput("`genotype` joins no path of operations to the output: replace some 'none'")
    return _classifier(build, arch, s1, num_classes)


def _features(arch: Architecture, width: int) -> Axis:
    """`width` channels, a multiple of the architecture's, as two halves (see FactorizedReduction)."""
    return Axis(2, width // 2, _padded(arch, width // 2))


def _padded(arch: Architecture, width: int) -> int:
    """Widths are padded as if C were a power of two, so that few block shapes occur."""
    power = 32
    while power < arch.C:
        power *= 2
    return width * power // arch.C


def _stem(build: Builder, arch: Architecture) -> tuple[Value, Value]:
    image, stride = build.image, stem_stride(build.image.size)
    if arch.is_vit:
        patch = patches(image.size)
        kernel, padding = (patch.size, patch.size), (patch.padding, patch.padding)
        x = build.conv(image, _features(arch, arch.C), "stem0", kernel, kernel, padding, relu=False)
        assert x.size == patch.count
        x = build.positional_encoding(x, "pos_enc")
        return x, x
    kernel = (arch.ks, arch.ks)
    if arch.stem_type == 0:
        width = arch.C * (3 if arch.preproc and stride == 1 else 1)
        x = build.conv(image, _features(arch, width), "stem.0", kernel, (stride, stride), relu=False)
        x = _norm(build, arch, x, "stem.1")
        x = build.pool(x, "max", stride=2) if arch.stem_pool else x
        return x, x
    first, second = min(stride, 2), max(stride // 2, 1)
    half = Axis(1, arch.C // 2, _padded(arch, arch.C // 2))
    x = _norm(build, arch, build.conv(image, half, "stem0.0", kernel, (first, first), relu=False), "stem0.1")
    x = _norm(
        build, arch, build.conv(x, _features(arch, arch.C), "stem0.3", (3, 3), (second, second)), "stem0.4"
    )
    x = x if arch.preproc else build.relu(x)  # the public second stem rectifies its input in place
    y = _norm(build, arch, build.conv(x, _features(arch, arch.C), "stem1.1", (3, 3), (2, 2)), "stem1.2")
    return x, y


def _norm(build: Builder, arch: Architecture, x: Value, name: str) -> Value:
    return build.batch_norm(x, name) if arch.norm else x


def _cell(
    build: Builder, arch: Architecture, index: int, channels: int, s0: Value, s1: Value, reduced: bool
) -> Value:
    """One cell; `reduced` says that s1 has half the resolution of s0."""
    name, reduction = f"cells.{index}", arch.is_reduction(index)
    genotype = arch.genotype
    ops = genotype.reduce if reduction else genotype.normal
    concat = genotype.reduce_concat if reduction else genotype.normal_concat
    out = _features(arch, channels)

    def preprocess(x: Value, which: str, reduce: bool) -> Value:
        if not arch.preproc:
            return build.subsample(x) if reduce else x
        prefix = f"{name}.{which}"
        if reduce:
            return _norm(build, arch, build.factorized_reduction(x, out, prefix), f"{prefix}.bn")
        return _norm(build, arch, build.conv(x, out, f"{prefix}.op.1"), f"{prefix}.op.2")

    halve = reduced and not arch.is_vit
    states = [preprocess(s0, "preprocess0", halve), preprocess(s1, "preprocess1", False)]
    for step in range(len(ops) // 2):
        terms = []
        for j in (2 * step, 2 * step + 1):
            op, source = ops[j]
            stride = 2 if reduction and source < 2 and not arch.is_vit else 1
            terms.append(_operation(build, arch, op, states[source], out, stride, f"{name}._ops.{j}"))
        states.append(build.add(*terms))
    return build.concatenate([states[i] for i in concat])


def _operation(
    build: Builder, arch: Architecture, op: str, x: Value, out: Axis, stride: int, name: str
) -> Value:
    if op == "none":
        return build.nothing(out, -(-x.size // stride))
    if op == "skip_connect":
        if stride == 1:
            return x
        return _norm(build, arch, build.factorized_reduction(x, out, name), f"{name}.bn")
    if op == "msa":
        return build.attention(x, name)
    if op == "cse":
        width = x.channels.size // 2
        return build.squeeze_excite(x, Axis(1, width, _padded(arch, width)), name, stride)
    if op == "conv_7x1_1x7":
        x = build.conv(x, x.channels, f"{name}.op.1", (1, 7), (1, stride))
        x = build.conv(x, out, f"{name}.op.2", (7, 1), (stride, 1), relu=False)
        x = x._replace(size=-(-x.size // stride))
        return _norm(build, arch, x, f"{name}.op.3")
    kind, kernel = op.rsplit("_", 1)
    k = int(kernel[0])
    if kind in ("max_pool", "avg_pool"):
        return build.pool(x, kind[:3], stride)
    if kind == "conv":
        return _norm(
            build, arch, build.conv(x, out, f"{name}.op.1", (k, k), (stride, stride)), f"{name}.op.2"
        )
    if kind == "dil_conv":
        x = build.separable_conv(x, out, (f"{name}.op.1", f"{name}.op.2"), k, 2, stride)
        return _norm(build, arch, x, f"{name}.op.3")
    assert kind == "sep_conv", op
    x = build.separable_conv(x, x.channels, (f"{name}.op.1", f"{name}.op.2"), k, 1, stride)
    x = _norm(build, arch, x, f"{name}.op.3")
    x = build.separable_conv(x, out, (f"{name}.op.5", f"{name}.op.6"), k, 1, 1)
    return _norm(build, arch, x, f"{name}.op.7")


def _classifier(build: Builder, arch: Architecture, x: Value, num_classes: int) -> Value:
    x = build.global_average(x) if arch.glob_avg else x
    classes = Axis(1, num_classes, -(-num_classes // ROW) * ROW)
    if arch.fc_layers == 1:
        return build.linear(x, classes, "classifier.0", classes=num_classes)
    hidden = Axis(1, arch.fc_dim, max(arch.fc_dim, _HIDDEN_PADDED))
    x = build.dropout(build.relu(build.linear(x, hidden, "classifier.0")))
    return build.linear(x, classes, "classifier.3", classes=num_classes)


def lower_resnet50(num_classes: int = 10, image_size: int = CIFAR_SIZE) -> Lowered:
    """ResNet-50 [2] with torchvision's topology and names; for 32 pixels its stem is 3x3, stride 1, without pooling."""
    check_image_size(image_size)
    build = Builder(image_size)
    small = stem_stride(image_size) == 1

    def conv_norm(x: Value, width: int, name: str, norm: str, kernel: int = 1, stride: int = 1) -> Value:
        out = Axis(1, width, width)
        x = build.conv(x, out, name, (kernel, kernel), (stride, stride), relu=False)
        return build.batch_norm(x, norm)

    x = conv_norm(build.image, 64, "conv1", "bn1", 3 if small else 7, 1 if small else 2)
    x = build.relu(x)
    x = x if small else build.pool(x, "max", stride=2)
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for index in range(depth):
            name, stride = f"layer{stage + 1}.{index}", 2 if stage > 0 and index == 0 else 1
            y = build.relu(conv_norm(x, width, f"{name}.conv1", f"{name}.bn1"))
            y = build.relu(conv_norm(y, width, f"{name}.conv2", f"{name}.bn2", 3, stride))
            y = conv_norm(y, 4 * width, f"{name}.conv3", f"{name}.bn3")
            if index == 0:
                x = conv_norm(x, 4 * width, f"{name}.downsample.0", f"{name}.downsample.1", 1, stride)
            x = build.relu(build.add(y, x))
    classes = Axis(1, num_classes, -(-num_classes // ROW) * ROW)
    return build.finish(build.linear(build.global_average(x), classes, "fc", classes=num_classes))
