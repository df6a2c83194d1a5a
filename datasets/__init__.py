"""What makes data sets on disk: run from a clone, never imported by `ghn_jax`."""
