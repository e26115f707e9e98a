"""`Dataset.map` in batches whose result is found again by a key that we write ourselves.

`datasets` would hash the function with everything it closes over, where a tokenizer hashes
differently in every process, and would put the result beside the input, which may be
another user's read-only folder. Knows nothing of pairs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, Features


def cached_map(
    dataset: "Dataset",
    function: Callable[..., dict[str, list]],
    *,
    key: Mapping[str, Any],
    features: "Features",
    desc: str,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> "Dataset":
    """Apply `function(batch, row_indices)` to a data set, and replace its columns by `features`.

    The result is stored under `cache_dir` (null: the cache of `datasets`) and read from there when
    the same data and `key` recur. `key` must name everything the result depends on besides the
    data, and be of plain JSON values.
    """
    import datasets

    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "rahf"
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"data": dataset._fingerprint, **key}, sort_keys=True)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:32]
    return dataset.map(
        function,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=features,
        num_proc=num_proc,
        new_fingerprint=fingerprint,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        desc=desc,
    )
