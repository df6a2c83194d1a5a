"""What a model can be refused for."""


class UnsupportedModel(ValueError):
    """The graph of a model cannot be found."""
