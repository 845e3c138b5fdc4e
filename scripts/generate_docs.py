"""Write what is generated from models, exit codes and computations into the documentation, or check it.

python -m scripts.generate_docs            # write
python -m scripts.generate_docs --check    # exit 1 when a file differs
"""

import sys

from scripts.tables import DOCS, exit_codes, held_out, names, with_table
from transfer.config.reference import json_schema, reference_page


def pages() -> dict[str, str]:
    """Texts by their files in `docs`. scripts/tables/networks.py, which takes a minute, is not among them."""
    little_data = (DOCS / "little_data.md").read_text(encoding="utf-8")
    for name, table in held_out.TABLES.items():
        little_data = with_table(little_data, name, table())
    storage = (DOCS / "storage.md").read_text(encoding="utf-8")
    train = (DOCS / "train.md").read_text(encoding="utf-8")
    return {
        "configuration.md": reference_page(),
        "configuration.schema.json": json_schema(),
        "little_data.md": little_data,
        "storage.md": with_table(storage, "names", names.names()),
        "train.md": with_table(train, "exit_codes", exit_codes.exit_codes()),
    }


def main() -> int:
    stale = []
    for name, text in pages().items():
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"docs/{', docs/'.join(stale)} are not what they are made of; run `make docs`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
