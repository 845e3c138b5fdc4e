"""How processes get TensorFlow: without start-up talk, without packages that nobody needs, and in forked processes."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from tests.digits import digits_config, write_some_digits
from transfer.config.reference import render
from transfer.runtime.fork_server import process_pool

LOUD = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def run_python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**LOUD, **environment})


def test_keras_finds_none_of_the_packages_that_it_would_load_and_everybody_else_does():
    done = run_python("""
import sys
from transfer.runtime.startup import import_tensorflow, own_process
own_process()
import_tensorflow()
import pyarrow as pa
pa.table({"numbers": [1, 2]})
assert not {"matplotlib", "pandas", "sklearn"} & set(sys.modules)
import matplotlib, pandas, sklearn
assert pa.table({"numbers": [1, 2]}).to_pandas()["numbers"].sum() == 3
import keras
assert keras.Sequential([keras.layers.Dense(1)])(keras.ops.ones((1, 1))).shape == (1, 1)
""")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


IMPORT_AND_COMPUTE = """
from transfer.runtime.startup import import_tensorflow, quiet_stderr
with quiet_stderr():
    import_tensorflow()
    import tensorflow as tf
    tf.ones(1).numpy()
tf.get_logger().error("something is wrong")
"""


def test_start_up_talk_is_left_out_unless_it_is_asked_for_and_errors_are_shown():
    errors = run_python(IMPORT_AND_COMPUTE).stderr.splitlines()
    assert [line.rpartition(":")[2] for line in errors] == ["something is wrong"]
    talk = run_python(IMPORT_AND_COMPUTE, TF_CPP_MIN_LOG_LEVEL="0").stderr
    assert "oneDNN" in talk or "CPU instructions" in talk


def test_what_is_no_talk_is_shown_and_so_are_the_last_words_of_a_process_that_crashes():
    done = run_python("""
import os, sys
from transfer.runtime.startup import quiet_stderr
with quiet_stderr():
    os.write(2, b"E0000 00:00:1 1 jpeg_mem.cc:331] Premature end of JPEG data. Stopped at line 46/120\\n")
    os.write(2, b"E0000 00:00:1 1 util.cc:131] oneDNN supports DT_UINT8 only on platforms with AVX-512. Falling\\n")
    os.write(2, b"I0000 00:00:1 1 a.cc:1] talk\\nE0000 00:00:1 1 b.cc:1] out of memory\\nCorrupt JPEG data: 2 bytes\\n")
    print("of Python", file=sys.stderr)
    os.write(2, b"F0000 00:00:1 1 c.cc:1] Check failed\\n")
    os.abort()
""")
    assert done.returncode < 0
    shown = [line.rpartition("] ")[2] for line in done.stderr.splitlines()]
    assert sorted(shown) == ["Check failed", "of Python", "out of memory"]


def test_a_healthy_run_says_nothing_but_what_this_project_says(tmp_path):
    source = write_some_digits(tmp_path / "images")
    # A file that the ledger names; libjpeg complains of it, too.
    (source / "0/cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xdb\0C\0")
    path = tmp_path / "config.yaml"
    path.write_text(render(digits_config(source, str(tmp_path / "storage"), publish={"parity_images": 8})))
    command = [sys.executable, "-m", "transfer", "train", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=LOUD)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["version"] == 1
    assert len(answer["epochs"]) == sum(line.startswith("phase ") for line in done.stderr.splitlines()) == 3
    steps = ("check: ", "evaluate ", "frozen part: ", "phase ", "store: ")
    facts = ("Phase ", "Run ", "Splits: ", "digits/0000000")
    others = [line for line in done.stderr.splitlines() if not line.startswith(steps + facts)]
    assert [line.split(",")[0].split(" differ")[0] for line in others] == [
        "241 images listed",
        "Exported and evaluated model",
    ]


def variable(name):
    return os.environ.get(name)


def seen_by_a_forked_process(name):
    import tensorflow as tf
    from tensorflow.python.eager import context

    was_untouched = context.context()._context_handle is None
    return {
        "keras": sys.modules.get("keras"),
        "variable": os.environ.get(name),
        "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
        "changed": getattr(tf, "changed_by_a_test", None),
        "untouched": was_untouched,
        "sum": float(tf.reduce_sum(tf.ones(3))),
    }


def test_a_forked_process_has_tensorflow_and_the_environment_of_now_but_no_object_of_this_one(monkeypatch):
    import tensorflow as tf

    tf.constant(1.0)
    monkeypatch.setattr(tf, "changed_by_a_test", True, raising=False)
    monkeypatch.setenv("OF_A_TEST", "before")
    with process_pool(1) as pool:
        assert pool.submit(variable, "OF_A_TEST").result() == "before"
    monkeypatch.delenv("OF_A_TEST")
    monkeypatch.setenv("OF_ANOTHER", "now")
    with process_pool(1) as pool:
        assert pool.submit(variable, "OF_A_TEST").result() is None
        seen = pool.submit(seen_by_a_forked_process, "OF_ANOTHER").result()
    assert seen == {
        "keras": None,
        "variable": "now",
        "gpu": "-1",
        "changed": None,
        "untouched": True,
        "sum": 3.0,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are spawned, and threads are not counted here")
def test_what_is_forked_has_one_thread_and_no_device():
    done = run_python("""
import os
import transfer.runtime.preloaded
from tensorflow.python.eager import context
print(len(os.listdir("/proc/self/task")), context.context()._context_handle, flush=True)
""")
    assert done.stdout == "1 None\n", done.stderr


def test_a_pool_leaves_no_process_behind():
    with process_pool(2) as pool:
        list(pool.map(abs, [-1, -2]))
    assert not multiprocessing.active_children()


def test_a_script_without_a_guard_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "from transfer.runtime.parallel import run_in_process\n"
        "from transfer.runtime.fork_server import process_pool\n"
        "with process_pool(1) as pool:\n"
        "    print(pool.submit(len, 'abc').result(), run_in_process(len, 'abcd'))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "once\n3 4\n"
