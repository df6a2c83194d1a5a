"""Graph HyperNetworks in JAX: predict all parameters of a neural network in one forward pass."""
