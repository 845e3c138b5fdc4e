"""The room's own TF Hub style module."""

from tests.unit.backbone.conftest import module_archive, module_folder  # noqa: F401
