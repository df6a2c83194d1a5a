"""Which architectures an evaluation is of, and the published table."""

import json

import pytest

from datasets.deepnets1m import write_split
from ghn_jax.deepnets import sampling
from ghn_jax.evaluation.accuracy import NotFinite, Summary
from ghn_jax.evaluation.architectures import select
from ghn_jax.evaluation.options import EvaluateOptions
from ghn_jax.evaluation.table import evaluate_table


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Splits of DeepNets-1M: one of ours, one as it is published."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path_factory.mktemp("deepnets")
    write_split(path, "deep", 3)
    nets = [sampling.sample("test", i).to_dict() for i in range(2)]
    (path / "deepnets1m_eval_meta.json").write_text(json.dumps({"wide": {"nets": nets}}))
    with h5py.File(path / "deepnets1m_eval.hdf5", "w") as file:
        for i in range(2):
            file[f"wide/{i}/adj"] = [0]
    return path


def test_stored_architectures(directory):
    chosen = select(EvaluateOptions(split="deep", deepnets_dir=directory), 32)
    assert [key for key, _ in chosen] == ["0", "1", "2"]
    network = chosen[1][1](10, 32)
    assert (
        network.num_parameters
        == select(EvaluateOptions(split="deep", arch="1"), 32)[0][1](10, 32).num_parameters
    )
    (key, make), *others = select(EvaluateOptions(split="wide", deepnets_dir=directory, arch="1"), 32)
    assert (key, others) == ("1", [])
    assert (
        make(10, 32).num_parameters
        == select(EvaluateOptions(split="wide", arch="1"), 32)[0][1](10, 32).num_parameters
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dense"}, "no split 'dense'|not in"),
        ({"split": "deep", "arch": "3"}, r"`arch` \(=3\) is outside"),
        ({"split": "nosuch"}, "nosuch"),
        ({"split": "deep", "num_archs": 0}, "num_archs"),
    ],
)
def test_what_a_directory_lacks(directory, options, message):
    with pytest.raises(ValueError, match=message):
        select(EvaluateOptions(deepnets_dir=directory, **options), 32)


def test_table_has_the_columns_of_the_paper(directory, capsys):
    evaluated = []

    def evaluate_split(options):
        evaluated.append(options.split)
        return Summary(66.9, 0.34, 77.1, 3), {"resnet50": 58.6, "vit": 11.4}

    evaluate_table(EvaluateOptions(split="table", deepnets_dir=directory), evaluate_split)
    assert evaluated == ["wide", "deep", "predefined"]
    printed = capsys.readouterr().out
    assert "| wide | deep | predefined |" in printed
    assert "| 66.9 ± 0.3 (77.1) | 66.9 ± 0.3 (77.1) | resnet50 58.6 / vit 11.4 |" in printed
    assert f"test: not in {directory}, left out" in printed
    evaluated.clear()
    evaluate_table(EvaluateOptions(split="table"), evaluate_split)
    assert evaluated == ["test", "wide", "deep", "dense", "bnfree", "predefined"]


def test_the_table_goes_on_past_a_split_that_is_not_finite(directory, capsys):
    def evaluate_split(options):
        if options.split == "wide":
            raise NotFinite("architecture 3 is not finite")
        return Summary(66.9, 0.34, 77.1, 3), {"resnet50": 58.6, "vit": 11.4}

    with pytest.raises(NotFinite, match="wide: architecture 3 is not finite"):
        evaluate_table(EvaluateOptions(split="table", deepnets_dir=directory), evaluate_split)
    printed = capsys.readouterr().out
    assert "| not finite | 66.9 ± 0.3 (77.1) | resnet50 58.6 / vit 11.4 |" in printed
