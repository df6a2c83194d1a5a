"""The published table: a GHN on all splits of unseen architectures.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Tables 2 and 3.
"""

import dataclasses
from collections.abc import Callable, Mapping

from ghn_jax.deepnets import sampling
from ghn_jax.evaluation.accuracy import NotFinite, Summary
from ghn_jax.evaluation.options import TABLE, EvaluateOptions

SPLITS = ("test", "wide", "deep", "dense", "bnfree", "predefined")
"""Columns of the table."""


def evaluate_table(
    options: EvaluateOptions, evaluate_split: Callable[[EvaluateOptions], tuple[Summary, Mapping[str, float]]]
) -> None:
    """Evaluates one split after the other and prints the table; splits that --deepnets_dir lacks are left out.

    Args:
      evaluate_split: makes the summary of a split, and the accuracy of each of its architectures.

    Raises ValueError if there is none of the splits; NotFinite, when all is done, for those with networks that are not.
    """
    if options.arch is not None or options.results is not None:
        raise ValueError(
            f"`split` (={TABLE}) is of all architectures, in a file a split: leave --arch, --results out"
        )
    columns, failures = {}, []
    for split in SPLITS:
        if missing := _missing(options, split):
            print(f"{split}: {missing}, left out")
            continue
        try:
            summary, accuracies = evaluate_split(dataclasses.replace(options, split=split))
            columns[split] = _cell(split, summary, accuracies)
        except NotFinite as error:  # the other splits are evaluated all the same
            columns[split] = "not finite"
            failures.append(f"{split}: {error}")
    if not columns:
        raise ValueError(f"`deepnets_dir` (={str(options.deepnets_dir)!r}) has none of {', '.join(SPLITS)}")
    print(f"\n{options.ckpt}: mean ± standard error (max) over the architectures of each split")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    print("| " + " | ".join(columns.values()) + " |")
    if failures:
        raise NotFinite("; ".join(failures))


def _missing(options: EvaluateOptions, split: str) -> str | None:
    """Why a split cannot be evaluated."""
    if options.deepnets_dir is None or split == "predefined":
        return None
    from ghn_jax.deepnets.stored import has_split  # needs h5py

    return None if has_split(options.deepnets_dir, split) else f"not in {options.deepnets_dir}"


def _cell(split: str, summary: Summary, accuracies: Mapping[str, float]) -> str:
    """A cell of the table: ResNet-50 and the ViT one by one."""
    if split == "predefined":
        return " / ".join(f"{name} {accuracies[name]:.1f}" for name in sampling.PREDEFINED)
    return f"{summary.mean:.1f} ± {summary.standard_error:.1f} ({summary.best:.1f})"
