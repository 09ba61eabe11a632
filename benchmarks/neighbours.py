"""How far an edit's pictures depend on its neighbours, by dtype: `python -m benchmarks.neighbours`.

Each of some unrelated edits is run alone, and in one batch with the others. In float32 they are to be the same within a
grey level; half precision rounds differently with other numbers of rows, and this says by how much.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import common


def main() -> None:
    parser = common.arguments(__doc__, steps=20, edits=4)
    parser.add_argument("--dtypes", default="float32,bfloat16,float16", help="of the weights, with commas")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.edits = 2, 2
    found = {dtype: apart(options, dtype) for dtype in options.dtypes.split(",")}
    common.write("neighbours", options, {"edits": options.edits, "steps": options.steps, "dtypes": found})
    common.gate(found.get("float32", {"largest": 0})["largest"])


def apart(options: Any, dtype: str) -> dict[str, Any]:
    """Differences in grey levels between the pictures of edits alone and of the same edits in a batch."""
    pipe = common.pipeline(options, dtype)
    requests = common.unrelated(options.edits, options.steps)
    alone = [pipe.edit_batch([request])[0] for request in requests]
    differences = np.concatenate(
        [
            np.abs(np.subtract(*(np.asarray(getattr(r, name), np.int16) for r in pair))).ravel()
            for pair in zip(alone, pipe.edit_batch(requests), strict=True)
            for name in ("source_image", "target_image")
        ]
    )
    return {
        "largest": int(differences.max()),
        "mean": round(float(differences.mean()), 4),
        "share_over_one": round(float((differences > 1).mean()), 5),
    }


if __name__ == "__main__":
    main()
