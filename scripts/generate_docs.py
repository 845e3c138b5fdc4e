"""Write what is generated from the configuration's models, or check that it is up to date.

python -m scripts.generate_docs            # write
python -m scripts.generate_docs --check    # exit 1 when a file differs
"""

import sys
from pathlib import Path

from transfer.config.reference import json_schema, reference_page

DOCS = Path(__file__).parents[1] / "docs"


def main() -> int:
    stale = []
    for name, text in {"configuration.md": reference_page(), "configuration.schema.json": json_schema()}.items():
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"docs/{', docs/'.join(stale)} differ from the models; run `make docs`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
