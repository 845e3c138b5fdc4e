"""The demo: a small base network, pretrained on letters, learns handwritten digits from a few examples."""

from pathlib import Path

BASE_PATH = Path(__file__).with_name("glyph_base.keras")
"""The base network: float32 pixels 0..255 [batch, 32, 32, 3] -> features [batch, 4, 4, 64].

Its blocks are named `block1` to `block4`; `scripts/pretrain_demo_base.py` makes it.
"""
