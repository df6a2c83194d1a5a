"""What it takes to write and to read data sets in the layout of TFDS, in array_record format, without TensorFlow."""

import resource
from collections.abc import Sequence
from typing import Any


def dataset_info(
    name: str, version: str, description: str, url: str, module: str, splits: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Content of dataset_info.json, the proto DatasetInfo of TFDS, for images with labels.

    Args:
      module: of the TFDS builder.
      splits: "name", "shardLengths" and "numBytes" of each; integers as strings.
    """
    return {
        "name": name,
        "version": version,
        "description": description,
        "location": {"urls": [url]},
        "moduleName": module,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "fileFormat": "array_record",
        "splits": [
            split | {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"} for split in splits
        ],
    }


def allow_open_files(num_files: int) -> None:
    """Makes room for as many open files, for this process and its workers: readers keep all files of a split open.

    Raises:
      ValueError: the system does not allow it.
    """
    needed = num_files + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ValueError(
                f"`data_dir` has {num_files} files, open at once: raise `ulimit -n` (={hard}) to {needed}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
