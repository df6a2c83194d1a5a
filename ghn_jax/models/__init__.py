"""The parts of a graph hypernetwork, each a Flax module: embed, propagate, decode."""
