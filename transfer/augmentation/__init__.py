"""Random changes of images and activations that do not depend on how a batch is divided among replicas."""
