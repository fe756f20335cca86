"""Write the README's picture, the first figure of the Welcome page, as that page draws it: `make picture`."""

from __future__ import annotations

import base64
import sys

import execute
from book import ROOT, load

PICTURE = ROOT / "book" / "_static" / "collapse.png"


def main() -> int:
    run = execute.run(load().pages[0])
    if run.error:
        print(run.error, file=sys.stderr)
        return 1
    outputs = [output for cell in run.notebook.cells for output in cell.get("outputs", [])]
    figure = next(output.data["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    PICTURE.write_bytes(base64.b64decode(figure))
    print(f"wrote {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
