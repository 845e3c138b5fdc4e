"""Pretrained networks: reading them, their preprocessing, and the places where they can be cut.

`load_backbone` and `describe` are in `transfer.backbone.load`, which needs TensorFlow; this package itself does not
import it.
"""
