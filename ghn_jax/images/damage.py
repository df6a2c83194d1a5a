"""A list of damaged images, kept for a person who wants to mend them."""

from collections.abc import Iterable
from pathlib import Path


class DamageList:
    """Names damaged images, one a line and each once, in a file that appears with the first of them.

    Attributes:
      path: of the file; None keeps no list.
    """

    def __init__(self, path: Path | None):
        """Goes on with the list at `path`, if there is one."""
        self.path = path
        there = path is not None and path.exists()
        self._named = set(path.read_text(errors="surrogateescape").splitlines()) if path and there else set()

    def add(self, messages: Iterable[str]) -> None:
        """Names images, as `Batch.damaged` does."""
        new = [
            line for line in dict.fromkeys(" ".join(m.split()) for m in messages) if line not in self._named
        ]
        if self.path is not None and new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", errors="surrogateescape") as file:
                file.writelines(line + "\n" for line in new)
            self._named.update(new)
