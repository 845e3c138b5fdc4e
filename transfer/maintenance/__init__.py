"""What is stored, looked through as a whole: listed, and removed where nothing needs it. Needs no TensorFlow."""
