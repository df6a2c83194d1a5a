"""Image sets at run time: by name, whole on the device or streamed from disk."""
