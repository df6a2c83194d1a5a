from typing import Any, cast

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.sampling import sample
from ghn_jax.graphs import MAX_HOPS, PRIMITIVES, batch, next_size, pad_size, path_lengths
from ghn_jax.models.config import preset
from ghn_jax.models.ghn import encode
from ghn_jax.models.shape_encoder import shape_index, shape_tables


@pytest.mark.parametrize(("split", "index"), [("val", 0), ("deep", 2), ("dense", 1)])
def test_path_lengths_equal_breadth_first_search(split: str, index: int):
    graph = lower(sample(split, index)).graph
    size = graph.num_nodes
    ones = np.ones(len(graph.senders))
    expected = shortest_path(
        coo_array((ones, (graph.senders, graph.receivers)), shape=(size, size)), unweighted=True
    )
    expected[(expected > MAX_HOPS) | np.isinf(expected)] = 0
    np.testing.assert_array_equal(path_lengths(graph), expected)


def test_graphs_are_topologically_sorted_from_input_to_class_bias():
    graph = lower(sample("val", 3)).graph
    assert (graph.senders < graph.receivers).all()
    assert PRIMITIVES[graph.primitives[0]] == "input"
    assert [PRIMITIVES[p] for p in graph.primitives[-2:]] == ["conv", "bias"]


def test_batch_pads_to_one_of_few_sizes_and_reports_what_is_short():
    tuples = [encode(lower(sample("val", index)).graph, preset("ghn2")) for index in range(3)]
    padded = batch(tuples)
    assert padded.graphs.n_node.shape == (4,)
    assert padded.graphs.n_node.sum() == cast(Any, padded.graphs.nodes)["primitive"].shape[0]
    size = pad_size([int(t.n_node[0]) for t in tuples], [int(t.n_edge[0]) for t in tuples])
    assert next_size(size.max_nodes, start=256) == size.max_nodes
    with pytest.raises(ValueError, match=r"`size.max_nodes` \(=10\) is \d+ too small"):
        batch(tuples, size._replace(max_nodes=10))


@pytest.mark.parametrize(
    ("shape", "same_as"),
    [
        ((5, 3, 2, 2), (8, 3, 3, 3)),
        ((32, 64), (32, 64, 1, 1)),
        ((100,), (96, 1, 1, 1)),
        ((10**5, 1, 40, 7), (8192, 1, 16, 7)),
    ],
)
def test_shapes_without_an_embedding_use_the_nearest(shape: tuple[int, ...], same_as: tuple[int, ...]):
    tables = shape_tables(10, 11)
    assert shape_index(tables, shape) == shape_index(tables, same_as)
    assert shape_index(tables, None) != shape_index(tables, same_as)
