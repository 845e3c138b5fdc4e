"""Export to SavedModel, numbered versions, promotion, and prediction with what was published."""
