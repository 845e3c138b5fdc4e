# What docs/notebook.ipynb is made of, by scripts/build_notebook.py: `# %%` begins a cell.
# %% [markdown]
# # A classifier in a notebook
#
# This notebook trains a classifier of handwritten digits, looks at it, searches for better settings, and loads the
# model that was published. It runs offline, without a GPU, in about a minute on two cores: the images come with
# scikit-learn, and the base, a small pretrained network, comes with this project.
#
# ## The base network
#
# `inspect` lists the blocks of a network. `unfreeze: 1` trains the last block too, `unfreeze: 2` the last two. The
# others are the frozen part. It computes each image once, and its output is cached: `cached_bytes` for each image.

# %%
import transfer
from transfer.demo import BASE_PATH

transfer.inspect(str(BASE_PATH), image_size=32)[["block", "parameters", "output_shape", "cached_bytes"]]

# %% [markdown]
# ## Training
#
# A configuration is a mapping, a YAML file, or just a folder of images. This one holds out 80 % of the 1,797 digits, so
# that the pretrained base has to show what it is worth. The first phase trains the head, the second one a block too.

# %%
digits = {
    "name": "digits",
    "storage": "./storage",
    "dataset": {"source": "digits", "validation": 0.1, "test": 0.8},
    "base": {"model": str(BASE_PATH), "image_size": 32},
    "phases": [
        {"unfreeze": 0, "epochs": 5, "learning_rate": 3e-3},
        {"unfreeze": 1, "epochs": 5, "learning_rate": 1e-3},
    ],
    "training": {"batch_size": 16},
}
run = transfer.train(digits, verbose=False)
print(f"{run.dataset.rows('train')} images to train on, {run.metrics.images} held out")
print(f"accuracy {run.metrics.accuracy:.0%} on the images that were held out")

# %% [markdown]
# The same call again finds the finished run and trains nothing. A call with other values finds the cached features.
#
# ## How it learned
#
# `run.history` is a table with a row an epoch.

# %%
columns = ["phase", "loss", "accuracy", "validation_loss", "validation_accuracy"]
run.history[columns].round(2)

# %%
axes = run.history.plot(y=["loss", "validation_loss"], marker="o", grid=True, figsize=(6, 3))

# %% [markdown]
# ## Where it is wrong
#
# Rows are the true classes. `run.mistakes` has the surest mistakes with the images' keys.

# %%
run.confusion

# %%
recall = {row.name: round(row.recall, 2) for row in run.metrics.per_class}
print(recall)

# %% [markdown]
# A run at the end of a cell is its whole report: the same figures, with pictures of the worst mistakes. That output is
# a page of its own, and is left out here:
#
# ![A report: accuracy with its interval, curves, confusion matrix, classes, worst mistakes](report.png)

# %% [no output]
run

# %% [markdown]
# ## Ask it
#
# Images are paths, folders, `s3://` addresses, bytes, Pillow images or arrays, one or several.

# %%
import numpy as np
from sklearn.datasets import load_digits

pixels = (load_digits().images[:5] * 255 / 16).astype(np.uint8)
images = list(np.stack([pixels] * 3, axis=-1))
print([answer.label for answer in run.predict(images)], "expected", load_digits().target[:5])

# %% [markdown]
# ## A sweep
#
# A sweep tries values on Ray Tune. Its trials share the cached features, so each of them trains nothing but a head. The
# winner on the validation images is trained to its end, evaluated and published like a single run.

# %%
space = {"phases.0.learning_rate": [1e-4, 1e-3, 1e-2]}
head = {"phases": [{"unfreeze": 0, "epochs": 5}]}
found = transfer.sweep(digits | head, space, search="grid", verbose=False)
found.trials.drop(columns="seconds").round({"value": 2})

# %%
print("best:", found.values, f"with accuracy {found.best.metrics.accuracy:.0%} on the held-out images")

# %% [markdown]
# ## The published model
#
# Both runs were published as versions of the model `digits`. The first version serves, for a later one has to be
# promoted. `load_model` fetches what serves, in any process.

# %%
model = transfer.load_model("digits", "./storage")
print(model)
print([answer.label for answer in model.predict(images)])

# %% [markdown]
# `keras_model` gives a `keras.Model` to go on with in Keras: pixels in, probabilities out.

# %%
network = run.keras_model()
print(network.input_shape, "->", network.output_shape)

# %% [markdown]
# [Python and notebooks](python.md) has the rest, and [the configuration](configuration.md) every key.
