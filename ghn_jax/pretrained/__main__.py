"""Files of GHNs, on the command line.

    python -m ghn_jax.pretrained list
    python -m ghn_jax.pretrained show FILE_OR_NAME
    python -m ghn_jax.pretrained convert FILE_OR_NAME OUT.safetensors
    python -m ghn_jax.pretrained convert FILE_OR_NAME OUT.pt     for the public PyTorch code

A file of the public code is read without running anything of it.
"""

import argparse
import dataclasses
import pathlib

import numpy as np

from ghn_jax import pretrained
from ghn_jax.runtime import commands, devices, outputs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ghn_jax.pretrained", description="Files of GHNs.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="the names that are known")
    show = verbs.add_parser("show", help="what a GHN is, and where it comes from")
    convert = verbs.add_parser("convert", help="writes a GHN in another format")
    for verb in (show, convert):
        verb.add_argument("source", help="a file, a name, or the work directory of a training run")
    convert.add_argument(
        "out", type=pathlib.Path, help="OUT.safetensors, or OUT.pt for the public PyTorch code"
    )
    convert.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of the weights in the file"
    )
    return parser


def _show(source: str) -> None:
    config, params, info = pretrained.load(source)
    for title, facts in (("configuration", dataclasses.asdict(config)), ("info", info)):
        print(title)
        _print_facts(facts, "  ")
    count = sum(tensor.size for tensor in _leaves(params))
    print(f"weights\n  {count:,} in {len(_leaves(params))} tensors")


def _print_facts(facts: dict, indent: str) -> None:
    """One a line; those of the weights that training started from further in."""
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print_facts(value, indent + "  ")
        else:
            print(f"{indent}{name:<14} {value}")


def _leaves(params: dict) -> list[np.ndarray]:
    return [
        leaf for value in params.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])
    ]


def _convert(source: str, out: pathlib.Path, dtype: str) -> None:
    if out.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"`out` (={str(out)!r}) must end in .safetensors or .pt: the name says the format")
    outputs.check("out", out)
    pretrained.save(out, pretrained.load(source), np.dtype(dtype).type)
    print(f"{source} -> {out}, {out.stat().st_size:,} bytes")


def main() -> None:
    """Runs the command."""
    options = _parser().parse_args()
    with commands.errors_as_lines():
        match options.verb:
            case "list":
                known = pretrained.list_ghns()
                width = max(map(len, known))
                for name, description in known.items():
                    print(f"{name:<{width}} {description}")
            case "show":
                devices.check()
                _show(options.source)
            case "convert":
                devices.check()
                _convert(options.source, options.out, options.dtype)


if __name__ == "__main__":
    main()
