import base64
import pickle
import zlib

import numpy as np
import pytest

from transfer.backbone.torch_file import read_tensors

# Written by PyTorch 2.13: whole = torch.arange(24, dtype=torch.float32); torch.save(OrderedDict({"turned.weight":
# whole.reshape(2, 3, 4).permute(2, 0, 1), "part.bias": whole[5:8], "count": torch.tensor(7)}), "small.pth",
# _use_new_zipfile_serialization=False)
SMALL = zlib.decompress(
    base64.b64decode(
        "eNptkTtv1EAUhcePzRKThOW9AYqU3sbCmyVKKhIJpRkeydK4QcaxR+tBlr13PA4CKZKbKIGKkoIiZUpKSn4KLT8BiYLj9QqlWMvfjHznzjlH17"
        "X52cn+ftv/s/Hu8mDdq80Xvy2sJ8TcoMcYm6pCF3GRhcdClbLIyUBDsIqTTGqdiVDkiYxyMs8DB0X9YSrCUn4UJVknZLtBB8UyLZSmDjcDC18y"
        "17TE7cBuNIp8Ql1uVxU8Y9hkItZwKZ1XKhFKJM9krB1igzEZ7sxVVyoXifdeyEmqyYx1oeLUCysts9IJlTiqZJaEWuRlocLjoUOW6wbdJgQ6o4"
        "kgu73i7GdFpF+3RYc6wRp6dkZb/nDb90fbW09GI1qa5Y2nFSL2X2q6dsgZt7nJrTNa5gZf4fYZOZ/SJt51TStjWg2Wm5lFSntHMippLYV9aqcL"
        "5W+krWzvkHe4dUo3uXFKt1q525rujOnubHxxUWFk91qpefrnGNz/8Pevqm8O/Z1Nf0h9qBtQX0fowaBVfaDp4ZgeNcN+0/zgBaGMRVqm8Prs6l"
        "M/xbKLF9TgAvwEvwDbY6wHNsBjsAsOwFswBTU4B1/AV3ABLsF38GPPmDt05/s/QNemlQ=="
    )
)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.pth"
    path.write_bytes(SMALL)
    return path


def test_a_tensor_is_read_with_its_strides_and_its_place_in_a_storage(small):
    tensors = read_tensors(small)
    assert list(tensors) == ["turned.weight", "part.bias", "count"]
    whole = np.arange(24, dtype=np.float32)
    np.testing.assert_array_equal(tensors["turned.weight"], whole.reshape(2, 3, 4).transpose(2, 0, 1))
    np.testing.assert_array_equal(tensors["part.bias"], whole[5:8])
    assert tensors["count"] == 7


def test_a_file_runs_no_code(small):
    class Harmful:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    header = SMALL[: SMALL.index(b"\x80\x02}")]
    small.write_bytes(header + pickle.dumps(Harmful()))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins.exec is neither a tensor"):
        read_tensors(small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + SMALL, "no PyTorch file of the format before 1.6"),
        (SMALL[:-4], "the file ends within the storage"),
        # The offset of `part.bias`, 5 in its storage of 24.
        (SMALL.replace(b"K\x05K\x03\x85", b"K\x16K\x03\x85"), r"shape \(3,\) lies outside of its storage"),
    ],
    ids=["zip", "cut off", "tensor outside of its storage"],
)
def test_a_file_that_is_damaged_or_of_another_format_is_refused(small, content, message):
    assert content != SMALL
    small.write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match=message):
        read_tensors(small)
