"""The rank of a writing process, as given on the command line."""

import pytest

from jumpahead.activations.writer_rank import WriterRank
from jumpahead.errors import StudyError

SITES = ["layers.0.mlp", "layers.1.attention"]
SMALL = 0.05  # MiB per shard: several of them


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "2/", "/4", "-1/4", "2/4/1", "a/b", "", "1.0/2"])
def test_a_wrong_rank_is_refused(text):
    with pytest.raises(StudyError, match=r"--shard .*: write it as I/N with I from 1 to N, for instance --shard 2/4"):
        WriterRank.parse(text)
    assert WriterRank.parse(" 2/4 ") == (2, 4)
