"""A small TF Hub style module; and, imported for its effect, two logical CPUs for two replicas in one process."""

import functools
import http.server
import tarfile
import threading

import pytest
import tensorflow as tf

import tests.replicas  # noqa: F401


class FeatureVector(tf.Module):
    """A reusable SavedModel as TF Hub publishes them: 8 features of a 32×32 image, some state, an L2 loss."""

    def __init__(self, *, answer="tensor", seed=7, looks_up=False):
        super().__init__()
        self._answer = answer
        self._looks_up = looks_up
        generator = tf.random.Generator.from_seed(seed)
        self.kernel = tf.Variable(generator.normal((3, 8)), name="block/kernel")
        self.bias = tf.Variable(generator.normal((8,)), name="block/bias")
        self.moving_mean = tf.Variable(generator.normal((8,)), trainable=False, name="block/moving_mean")
        # What is no weight: an integer, words, and a table of them. Computed with when it `looks_up`.
        self.scale = tf.Variable(1, dtype=tf.int64, name="scale")
        self.words = tf.Variable(["one"], name="words")
        entries = tf.lookup.KeyValueTensorInitializer(["one"], [1.0])
        self.table = tf.lookup.StaticHashTable(entries, default_value=0.0)
        # The base class has these as properties, which are not saved; a list in an attribute is.
        self.exported_losses = [self._penalty]

    @tf.function
    def __call__(self, images, training=False):
        if self._looks_up:
            images = images * tf.cast(self.scale, tf.float32) * self.table.lookup(self.words)[0]
        features = tf.nn.relu(tf.reduce_mean(images, (1, 2)) @ self.kernel + self.bias)
        features = features * 2.0 if training else features - self.moving_mean
        if self._answer == "tensor":
            return features
        if self._answer == "logits first":
            return {"logits": features, "probabilities": tf.nn.softmax(features)}
        return {"boxes": features, "scores": features[:, :1]}

    @tf.function(input_signature=[])
    def _penalty(self):
        return 0.5 * tf.reduce_sum(self.kernel**2)


def export_module(folder, *, lists_variables=True, **options):
    """Write the module as a reusable SavedModel into `folder` and return it."""
    module = FeatureVector(**options)
    images = tf.TensorSpec((None, 32, 32, 3), tf.float32)
    for training in (False, True):
        module.__call__.get_concrete_function(images, training=training)
    # What the reusable SavedModel interface knows, as saved attributes.
    exported = tf.train.Checkpoint()
    exported.__call__ = module.__call__
    exported.state = module
    if not lists_variables:
        tf.saved_model.save(exported, str(folder))
        return module
    exported.variables = [module.kernel, module.bias, module.moving_mean]
    exported.trainable_variables = [module.kernel, module.bias]
    exported.regularization_losses = module.exported_losses
    tf.saved_model.save(exported, str(folder))
    return module


@pytest.fixture
def export():
    return export_module


@pytest.fixture(scope="session")
def module_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "feature_vector"
    export_module(folder)
    return folder


@pytest.fixture(scope="session")
def module_archive(module_folder, tmp_path_factory):
    archive = tmp_path_factory.mktemp("hub-archive") / "feature_vector.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(module_folder, arcname=".")
    return archive


@pytest.fixture
def serve():
    """Serve a folder over HTTP on the loopback address; gives its URL."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
