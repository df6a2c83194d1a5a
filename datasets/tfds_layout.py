"""What it takes to write data sets in the layout of TFDS, in array_record format, without TensorFlow."""

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
