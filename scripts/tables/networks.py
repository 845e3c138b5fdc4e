"""The networks that go by name, those of the installed `keras.applications` above all, by size, for docs/networks.md.

    python -m scripts.tables.networks            # write; a minute
    python -m scripts.tables.networks --check    # exit 1 when the page has something else

Networks are built without values for their weights: the largest would have 1.4 GB of them.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from scripts.tables import DOCS, markdown, with_table
from transfer.backbone.applications import known_networks
from transfer.backbone.blocks import network_flops
from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig

HEADER = ("network", "image size", "parameters (millions)", "MB", "multiply-adds (billions)", "features", "blocks")
PAGE = DOCS / "networks.md"
USUAL_SIZE = 224
"""In pixels, for MobileNetV3, whose size Keras leaves open."""


def row_of(name: str) -> tuple[str, ...]:
    """A network's row: at the image size that Keras gives it by default, without its classifier, in float32."""
    with keras.StatelessScope(initialize_variables=False):
        whole = known_networks()[name](weights=None)
        size = whole.input_shape[1] or USUAL_SIZE
        backbone = load_backbone(BaseNetworkConfig(model=name, weights="none", image_size=size))
    parameters = backbone.network.count_params()
    return (
        f"`{name}`",
        f"{size}",
        f"{parameters / 1e6:.1f}",
        f"{parameters * 4 / 1e6:.0f}",
        f"{network_flops(backbone.network) / 1e9:.2f}",
        f"{backbone.network.output_shape[-1]:,}",
        f"{len(backbone.blocks)}",
    )


def table() -> str:
    """All networks, those with the fewest multiply-adds first."""
    rows = []
    for name in known_networks():
        rows.append(row_of(name))
        keras.backend.clear_session()
    return markdown(HEADER, sorted(rows, key=lambda row: float(row[4])))


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    new = with_table(page, "networks", table())
    if "--check" not in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
    elif new != page:
        print(f"{PAGE.name} differs from the installed Keras; run `python -m scripts.tables.networks`.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
