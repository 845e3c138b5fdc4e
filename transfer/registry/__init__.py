"""Export to SavedModel, numbered versions, promotion, and prediction with published versions."""
