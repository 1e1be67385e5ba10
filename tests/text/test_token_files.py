"""Token files: shards read as one array, and damaged files."""

import numpy as np
import pytest

from jumpahead.errors import ArtefactError
from jumpahead.text import tokenize as tokenize_module
from jumpahead.text.contexts import Contexts
from jumpahead.text.source import Document
from jumpahead.text.token_files import ShardedArray
from jumpahead.text.tokenize import tokenize_splits
from tests.texts import bytes_lm, hex_words


def test_sharded_arrays_index_like_one_array():
    whole = np.arange(100, 187, dtype=np.uint16)
    shards = ShardedArray([whole[:30], whole[30:31], whole[31:]])
    assert (len(shards), shards.shape, shards.dtype) == (87, (87,), np.uint16)
    index = np.array([[86, 0, 30], [29, 31, 30]])
    assert (shards[index] == whole[index]).all()
    for some in (slice(0, 87), slice(28, 33), slice(80, 200), slice(5, 5)):
        assert shards[some].tolist() == whole[some].tolist()


def test_errors_name_the_damaged_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_module, "TOKENS_PER_SHARD", 300)
    tokenize_splits(
        tmp_path, [Document(f"{n}", hex_words(n, 40)) for n in range(40)], bytes_lm(0), "inputs", held_out=0.3
    )
    path = tmp_path / "train" / "tokens-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"tokens-00001\.safetensors is damaged: 'tokens'"):
        Contexts.load(tmp_path / "train")
    path.write_bytes(content[:-9])
    with pytest.raises(ArtefactError, match=r"tokens-00001\.safetensors is torn"):
        Contexts.load(tmp_path / "train")
    path.unlink()
    with pytest.raises(ArtefactError, match=r"tokens-00001\.safetensors does not exist"):
        Contexts.load(tmp_path / "train")
