import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from empathy_jax.models import safetensors_file
from empathy_jax.models.safetensors_file import Tensor

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(4, dtype=np.float32)[::-1],  # not contiguous
    "half": np.ones((3, 1), np.float16),
    "numbers": np.arange(5, dtype=np.int64)[None],
}
DESCRIBED = {name: Tensor(str(leaf.dtype), leaf.shape) for name, leaf in TENSORS.items()}


def test_the_file_is_the_librarys_byte_for_byte(tmp_path):
    asked = []

    def fetch(name):
        asked.append(name)
        return TENSORS[name]

    safetensors_file.write(tmp_path / "ours", DESCRIBED, fetch, {"format": "pt"})
    contiguous = {name: np.ascontiguousarray(leaf) for name, leaf in TENSORS.items()}
    save_file(contiguous, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sorted(asked) == sorted(TENSORS)
    for name, leaf in load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(leaf, TENSORS[name])


def test_a_tensor_that_is_not_what_the_header_says_is_refused(tmp_path):
    wrong = {**DESCRIBED, "a": Tensor("float32", (5,))}
    with pytest.raises(ValueError, match="a is float32"):
        safetensors_file.write(tmp_path / "file", wrong, TENSORS.__getitem__, {})
