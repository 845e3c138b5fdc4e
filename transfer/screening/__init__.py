"""Which pretrained network: what the features of several tell of a dataset, before anything is trained."""
