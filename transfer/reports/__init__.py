"""Common parts of all pages: templates, figures and thumbnails."""
