"""What all pages share: templates, figures, thumbnails, and how numbers are written."""
