"""From any JAX model to its graph: the model as a jaxpr, a walk through it, and what its operations mean."""
