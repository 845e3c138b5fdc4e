"""Pretrained networks: where they come from, how they see pixels, and where they can be cut.

Import `transfer.backbone.load` for `load_backbone` and `transfer.backbone.load` for `describe`: both need
TensorFlow, which this package itself does not import.
"""
